"""Seeing inside a machine that runs: consoles, events, the bus's trace, metrics, top; and who may connect to what."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import grpc
import pytest

from tests.hosts import free_port
from tests.keys import make_keys
from tests.system import programs
from tests.system.conftest import PROMPT, Host, Terminal
from tests.waiting import LIMIT, Process, wait_for
from vmesh.client import GatewayError, MachineClient
from vmesh.machine import MachineDirectory
from vmesh.remote import Remote
from vmesh.spawn import python
from vmesh.v1 import gateway_pb2
from vmesh.v1.gateway_pb2_grpc import MachineStub
from vmesh.v1.trace_pb2 import TRACE_HANDLED, TRACE_POSTED, TRACE_SHADOW, TraceKind, TraceRecord

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]


@pytest.fixture
def shared(host: Host, shell: Terminal) -> Iterator[MachineClient]:
    with MachineClient(MachineDirectory(host.runtime / "shared"), timeout=LIMIT) as client:
        yield client


@pytest.fixture(scope="module")
def remote(host: Host, tmp_path_factory: pytest.TempPathFactory, peer: Callable[[str], str]) -> Iterator[Remote]:
    """The gateway over TCP of a machine `far`, whose hart sleeps."""
    folder = tmp_path_factory.mktemp("far")
    keys = make_keys(folder / "keys", peer("openssl"))
    kernel = folder / "sleep.elf"
    kernel.write_bytes(programs.elf(programs.sleep(1)))
    place = Remote("127.0.0.1", free_port(), keys)
    metrics = free_port()
    flags = ("-bios", "none", "-kernel", str(kernel), "-serial", "null", "-name", "far")
    machine = host.run(*flags, "-gateway", f"{place},tls-creds={keys}", "-metrics", f"127.0.0.1:{metrics}", pipes=True)
    (folder / "metrics").write_text(str(metrics))
    with MachineClient(MachineDirectory(host.runtime / "far"), timeout=LIMIT) as client:
        wait_for(lambda: _answers(client), "the machine to run")
    yield place
    machine.close()


def _answers(client: MachineClient) -> bool:
    try:
        return client.status().state == gateway_pb2.MACHINE_RUNNING
    except GatewayError:
        return False


class Attached(threading.Thread):
    """Keeps what an attached console shows."""

    def __init__(self, client: MachineClient, *typed: bytes) -> None:
        super().__init__(daemon=True)
        self.output = b""
        self._stream = client.attach(typed)
        self.start()

    def run(self) -> None:
        for output in self._stream:
            self.output += output.data

    def wait(self, text: bytes) -> None:
        wait_for(lambda: text in self.output, lambda: f"{text!r} in {self.output!r}")


class Counting(threading.Thread):
    """Counts what a stream gives."""

    def __init__(self, stream: Iterator[object]) -> None:
        super().__init__(daemon=True)
        self.count = 0
        self._stream = stream
        self.start()

    def run(self) -> None:
        for _ in self._stream:
            self.count += 1


def test_two_are_attached_beside_the_terminal(host: Host, shared: MachineClient, shell: Terminal) -> None:
    with MachineClient(MachineDirectory(host.runtime / "shared"), timeout=LIMIT) as other:
        looks = Attached(shared)
        wait_for(lambda: looks.output, "what was written before")
        types = Attached(other, b"echo both-$((40+2))\n")
        for attached in (looks, types):
            attached.wait(b"both-42")
    shell.expect("both-42")
    shell.expect(PROMPT)


def test_attached_at_a_terminal(host: Host, shell: Terminal, root: Path) -> None:
    attached = Terminal(python("vmesh.cli", "attach", "shared"), host.environment, root)
    attached.expect("attached to 'shared'; Ctrl-A d detaches")
    attached.type("echo there-$((40+2))\n")
    attached.expect("there-42")
    attached.type("\x01h")
    attached.expect("Ctrl-A d       detach: the machine goes on")
    attached.type("\x01d")
    assert attached.wait() == 0
    shell.expect("there-42")
    shell.expect(PROMPT)


def test_streams_beside_each_other_under_load(host: Host, shared: MachineClient, shell: Terminal) -> None:
    shell.ask("while :; do cat /proc/interrupts >/dev/null; done & sleep 0.1")
    with MachineClient(MachineDirectory(host.runtime / "shared"), timeout=LIMIT) as other:
        counts = [Counting(stream) for client in (shared, other) for stream in (client.trace(), client.events())]
        consoles = [Attached(shared), Attached(other, b"echo load-$((40+2))\n")]
        for console in consoles:
            console.wait(b"load-42")
        for _ in range(20):
            assert shared.status(usage=True).harts
            assert other.registers(0).registers
        shared.pause()
        other.resume()
        wait_for(lambda: all(each.count for each in counts), lambda: str([each.count for each in counts]))
    shell.expect("load-42")
    shell.expect(PROMPT)
    shell.ask("kill %1; sleep 0.1")


def test_there_is_no_such_console(host: Host, shell: Terminal) -> None:
    said = host.vmesh("attach", "shared", "uart7", status=1)
    assert said == "vmesh attach: machine 'shared': there is no console 'uart7'; expected one of uart0\n"


def test_events_come_in_order_and_end_with_the_machine(host: Host, run: Run, tmp_path: Path) -> None:
    kernel = tmp_path / "sleep.elf"
    kernel.write_bytes(programs.elf(programs.sleep(1)))
    run("-bios", "none", "-kernel", str(kernel), "-serial", "null", "-name", "told", pipes=True)
    machine = MachineDirectory(host.runtime / "told")
    wait_for(machine.gateway.exists, "the gateway")
    with MachineClient(machine, timeout=LIMIT) as client:
        names: list[str] = []
        begun = threading.Event()

        def listen() -> None:
            stream = client.events()
            begun.set()
            names.extend(event.name for event in stream)

        def heard() -> bool:
            client.pause()
            client.resume()
            return "RESUME" in names

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        begun.wait(LIMIT)
        wait_for(heard, "an event")
        client.quit()
        listener.join(LIMIT)
        assert not listener.is_alive()
    assert names[-1] == "SHUTDOWN"
    assert "STOP" in names


def test_a_trace_follows_an_access_by_its_id(shared: MachineClient, shell: Terminal) -> None:
    records: list[TraceRecord] = []
    stream = shared.trace()

    def read() -> None:
        for each in stream:
            records.extend(each.records)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def of(kind: TraceKind.ValueType, register: str = "") -> list[TraceRecord]:
        found = [each for each in list(records) if each.kind == kind and each.device == "uart0"]
        return [each for each in found if each.register == register or not register]

    def traced() -> bool:
        shell.ask("echo traced")
        written = of(TRACE_POSTED, "RBR/THR")
        handled = {record.sequence for record in of(TRACE_HANDLED)}
        return b"traced" in bytes(record.value for record in written) and any(
            record.sequence in handled for record in written
        )

    wait_for(traced, lambda: f"what was written and handled, by its id, in {len(records)} records")
    assert all(record.pc and record.write for record in of(TRACE_POSTED, "RBR/THR"))
    wait_for(lambda: of(TRACE_SHADOW, "LSR"), "the line status to be read")


def test_after_a_trace_the_bus_is_native_again(shared: MachineClient, shell: Terminal) -> None:
    before = shared.status().bus
    text = shell.ask("seq 1000 | tail -1; sleep 1")
    after = shared.status().bus
    assert "1000" in text
    assert after.posted_accesses > before.posted_accesses
    assert after.sync_round_trips - before.sync_round_trips < 200


def test_a_trace_file_is_for_perfetto(host: Host, shell: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    tracing = Process(python("vmesh.cli", "trace", "shared", "-o", str(file)), env=host.environment)
    while not (file.exists() and all(text in file.read_bytes() for text in (b"THR", b"shared: uart0"))):
        shell.ask("echo perfetto")
    tracing.send_signal(signal.SIGINT)
    assert tracing.wait() == 0
    events = json.loads(file.read_text())["traceEvents"]
    assert {"shared: cpu", "shared: uart0"} <= {e["args"]["name"] for e in events if e["name"] == "process_name"}
    (first,) = [e for e in events if e["name"] == "write uart0.RBR/THR"][:1]
    assert re.fullmatch(r"uart0/0/\d+", first["args"]["id"])
    assert all({"ph", "pid", "tid"} <= event.keys() for event in events)


def test_memory_is_read_and_written(host: Host, shared: MachineClient, shell: Terminal) -> None:
    header = shared.read_memory(0x8020_0000, 64, physical=True)
    assert header[0x38:0x3C] == b"RSC\x05"  # of Linux's Image for RISC-V
    shared.write_memory(0x8020_0000, header, physical=True)
    lines = host.vmesh("memory", "shared", "0x80200000", "64", "--physical").splitlines()
    assert lines[3].startswith("0000000080200030  ")
    assert "RSC." in lines[3]
    assert "there is no memory" not in host.vmesh("memory", "shared", "0", "16", "--physical", status=1)


def test_metrics_have_every_service(remote: Remote) -> None:
    port = (remote.folder.parent / "metrics").read_text()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    assert 'vmesh_machine_state{machine="far",state="running"} 1.0' in text
    for service in ("memory", "cpu", "uart0"):
        assert f'vmesh_process_cpu_seconds_total{{machine="far",process="{service}"}}' in text
    assert re.search(r'vmesh_hart_instructions_total\{hart="0",machine="far"\} \d+', text)


def test_top_says_whether_it_is_stuck(host: Host, remote: Remote) -> None:
    idle = "IDLE: every hart waits for an interrupt"
    wait_for(lambda: idle in host.vmesh("top", "far"), "the machine to be idle")
    host.vmesh("pause", "far")
    assert "PAUSED: `vmesh resume` lets it go on" in host.vmesh("top", "far", "--interval", "0.2")
    host.vmesh("resume", "far")


def test_top_is_live_on_a_terminal_until_q(host: Host, remote: Remote, root: Path) -> None:
    environment = {**host.environment, "TERM": "xterm"}
    top = Terminal(python("vmesh.cli", "top", "far", "--interval", "0.2"), environment, root)
    top.expect("IDLE")
    top.type("q")
    assert top.wait() == 0


def test_with_keys_all_is_there_over_tcp(host: Host, remote: Remote) -> None:
    with MachineClient(remote, timeout=LIMIT) as client:
        assert client.status().name == "far"
        assert client.registers(0).registers[11].name == "a0"
    said = host.vmesh("status", f"{remote},tls-creds={remote.folder}")
    assert said.startswith("machine 'far' is running")


def test_without_keys_nobody_comes_in(remote: Remote, tmp_path: Path, peer: Callable[[str], str]) -> None:
    authority = (remote.folder / "ca-cert.pem").read_bytes()
    strangers = make_keys(tmp_path / "strangers", peer("openssl"))
    stranger = [(strangers / name).read_bytes() for name in ("client-key.pem", "client-cert.pem")]
    for channel in (
        grpc.insecure_channel(remote.target),
        grpc.secure_channel(remote.target, grpc.ssl_channel_credentials(authority)),
        grpc.secure_channel(remote.target, grpc.ssl_channel_credentials(authority, *stranger)),
    ):
        with channel, pytest.raises(grpc.RpcError) as refused:
            MachineStub(channel).Status(gateway_pb2.StatusRequest(), timeout=10)
        assert isinstance(refused.value, grpc.Call)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    with MachineClient(remote, timeout=LIMIT) as client:
        assert client.status().name == "far"


#: As the kernel has them: 127.0.0.1, and the same in an IPv6 socket.
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F")

REFUSED = (
    (("-gateway", "tcp:127.0.0.1:7777"), "expected keys: ,tls-creds=FOLDER"),
    (("-gateway", "tcp:0.0.0.0:7777,tls-creds=/nowhere"), "expected ca-cert.pem in /nowhere"),
    (("-metrics", "0.0.0.0:9100"), "expected an address of this host's loopback"),
    (("-metrics", "9100x"), "expected HOST:PORT"),
)


@pytest.mark.parametrize(("flags", "reason"), REFUSED)
def test_what_would_listen_without_keys_is_refused(host: Host, flags: tuple[str, ...], reason: str) -> None:
    said = host.vmesh("run", *flags, status=2)
    assert said.count("\n") == 1
    assert reason in said


def test_nothing_else_listens_beyond_the_machine(host: Host, shell: Terminal, remote: Remote) -> None:
    port = int((remote.folder.parent / "metrics").read_text())
    assert listening(host, "shared") == set()
    assert listening(host, "far") == {remote.port, port}


def listening(host: Host, machine: str) -> set[int]:
    """The ports that a machine's processes listen on, all of them of the loopback interface."""
    record = host.ps()[machine]
    pids = [record["pid"], *(service["pid"] for service in record["services"])]
    children = [Path(f"/proc/{pid}/task/{pid}/children").read_text().split() for pid in pids]
    processes = {*map(str, pids), *chain.from_iterable(children)}
    files = [each for pid in processes for each in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = set()
    for file in files:
        try:
            inodes.add(os.readlink(file))
        except OSError:
            continue  # closed meanwhile
    found = set()
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, _, port = fields[1].rpartition(":")
                assert address in LOOPBACK, fields
                found.add(int(port, 16))
    return found
