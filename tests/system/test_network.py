"""Debian's kernel on networks: behind passt, on a hub with others, at an interface of the host."""

from __future__ import annotations

import ctypes
import hashlib
import http.server
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.hosts import free_port
from tests.system.conftest import BRIEF, PROMPT, Host, Terminal, counters
from tests.waiting import LIMIT, wait_for
from vmesh.client import MachineClient
from vmesh.guest import Guest
from vmesh.machine import find
from vmesh.spawn import python
from vmesh.v1.gateway_pb2 import ServiceStatus

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]
SIZE = 5_000_003  # of the file that is fetched
ETHERNET = 1500  # bytes in a frame without a larger MTU; how many there are with it is TCP's affair
# Commands for an address by DHCP: udhcpc's script makes the lease the interface's configuration.
LEASE = "udhcpc -i eth0 -t 30 -nq\n"


@pytest.fixture
def passt() -> None:
    if shutil.which("passt") is None:
        pytest.skip("passt is not installed (Debian's package passt)")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A file's address on the host's loopback, as a guest sees it, and its SHA-256."""
    content = random.Random(5).randbytes(SIZE)
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "file").write_bytes(content)
    handler = partial(_Quiet, directory=tmp_path / "web")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://10.0.2.2:{server.server_port}/file", hashlib.sha256(content).hexdigest()
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    """The socket of a `vmesh hub`."""
    directory = Path(tempfile.mkdtemp(prefix="vmesh-hub-"))
    path = directory / "hub"
    process = subprocess.Popen(python("vmesh.cli", "hub", str(path)), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert f"addr.path={path} joins" in process.stdout.readline()
    yield str(path)
    process.terminate()
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert re.search(r"\d+ frames forwarded, \d+ dropped", said)
    directory.rmdir()  # it has removed its socket


@pytest.mark.parametrize("device", ["", ",host_mtu=65520", ",host_mtu=65520,packed=on"])
def test_address_by_dhcp_and_a_file_by_http(
    host: Host, debian: Guest, passt: None, web: tuple[str, str], tmp_path: Path, device: str
) -> None:
    url, digest = web
    log = tmp_path / "log"
    answer = host.vmesh(
        *("run", "-append", BRIEF, "-D", str(log), "-netdev", "user,id=n"),
        *("-device", f"virtio-net-device,netdev=n,id=card,mac=52:54:00:00:00:07{device}"),
        stdin=f"{LEASE}ip addr\nwget -qO- {url} | sha256sum\n",
    )
    assert "link/ether 52:54:00:00:00:07" in answer
    assert "inet 10.0.2.15/24" in answer
    assert f"{digest}  -" in answer
    counted = counters(log, "card")
    assert counted["bytes_received"] > SIZE
    if "host_mtu" in device:
        assert "mtu 65520" in answer
        assert counted["bytes_received"] / counted["frames_received"] > ETHERNET


def test_a_lease_with_a_large_mtu(host: Host, debian: Guest, passt: None, web: tuple[str, str], tmp_path: Path) -> None:
    """The driver has small buffers then, of which a frame needs several."""
    url, digest = web
    log = tmp_path / "log"
    commands = f"{LEASE}ip link set eth0 mtu 65520\nwget -qO- {url} | sha256sum\n"
    answer = host.vmesh("run", "-append", BRIEF, "-D", str(log), "-nic", "user,id=n", "-smp", "2", stdin=commands)
    assert f"{digest}  -" in answer
    counted = counters(log, "net0")
    assert counted["bytes_received"] / counted["frames_received"] > ETHERNET


@pytest.mark.parametrize("killed", ["passt", "card"])
def test_a_port_of_the_host_leads_to_the_guest_whoever_is_killed(
    host: Host, run: Run, debian: Guest, passt: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    log = tmp_path / "log"
    port = free_port()
    netdev, card = f"user,id=n,hostfwd=tcp:127.0.0.1:{port}-:7", "virtio-net-device,netdev=n,id=card"
    flags = ("-append", BRIEF, "-D", str(log), "-health-interval", "0.1", "-netdev", netdev, "-device", card)
    machine = run("-name", "forward", *flags)
    machine.expect(PROMPT)
    for line in LEASE.strip().splitlines():
        machine.type(line + "\n")
    machine.type("echo l''eased; nc -llp 7 -e cat\n")
    machine.expect("leased\n")
    monkeypatch.setenv("VMESH_RUNTIME", str(host.runtime))
    echo_from_the_guest(port)
    with socket.create_connection(("127.0.0.1", port), LIMIT) as before:
        before.sendall(b"before\n")
        assert before.recv(100) == b"before\n"
        passt_was = passt_pid(log)
        os.kill({"passt": passt_was, "card": service("forward").pid}[killed], signal.SIGKILL)
        echo_from_the_guest(port)
        if killed == "card":  # passt has the connections, and outlives it
            before.sendall(b"the same one\n")
            assert before.recv(100) == b"the same one\n"
    assert (passt_pid(log) == passt_was) == (killed == "card")
    assert service("forward").epoch == (2 if killed == "card" else 1)


def echo_from_the_guest(port: int) -> None:
    """A connection to the guest's server; it is tried until there is one, and passt that leads there."""

    def answers() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(b"there and back\n")
            return connection.recv(100) == b"there and back\n"
        return False

    wait_for(answers, "an answer of the guest")


def passt_pid(log: Path) -> int:
    """Of the one that was started last."""
    return int(re.findall(r"info card netdev passt=(\d+)", log.read_text())[-1])


def test_a_port_that_is_taken_in_part_ends_the_machine(run: Run, passt: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        forward = f"hostfwd=tcp::{taken.getsockname()[1]}"
        machine = run("-nic", f"user,{forward}-:7", pipes=True)
        assert machine.wait() == 1
    assert f"{forward}: cannot have 0.0.0.0: Address already in use" in machine.output


def test_without_passt_the_machine_says_what_to_install(run: Run) -> None:
    machine = run("-nic", "user", pipes=True, PATH="/nonexistent")
    assert machine.wait() == 1
    assert "Debian's package passt" in machine.output


def test_machines_on_a_hub_and_a_card_that_is_killed(
    host: Host, run: Run, debian: Guest, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two guests ping each other and send a file; meanwhile the receiver's card is killed, and comes back."""
    monkeypatch.setenv("VMESH_RUNTIME", str(host.runtime))
    machines = []
    for number in (1, 2):
        card = f"virtio-net-device,netdev=n,id=card,mac=52:54:00:00:00:0{number}"
        netdev = f"stream,id=n,addr.type=unix,addr.path={hub},reconnect-ms=50"
        flags = ("-append", BRIEF, "-health-interval", "0.05", "-netdev", netdev, "-device", card)
        machines.append(run("-name", f"hub{number}", *flags))
    for number, machine in enumerate(machines, 1):
        machine.expect(PROMPT)
        machine.ask(f"ip addr add 10.1.0.{number}/24 dev eth0; ip link set eth0 up")
    one, two = machines
    one.ask("until ping -c 1 -w 5 10.1.0.2; do :; done")  # a first packet may be lost while the address is looked up
    assert "3 packets received" in one.ask("ping -c 3 -i 0.2 -w 20 10.1.0.2")

    one.ask("dd if=/dev/urandom of=/tmp/f bs=1M count=6 2>/dev/null")
    digest = one.ask("sha256sum /tmp/f").split()[0]
    two.type("nc -lp 9 >/tmp/f; sha256sum /tmp/f; echo d''one\n")
    # In pieces: whoever kills the card in the midst of it may be late.
    pieces = "for i in $(seq 0 11); do dd if=/tmp/f bs=512k skip=$i count=1 2>/dev/null; sleep 0.3; done"
    one.type(f"until ({pieces}) | nc 10.1.0.2 9; do :; done\n")

    def state() -> str:
        return f"2 MB: {service('hub1')}, {service('hub2')}, {one.output[-500:]!r}, {two.output[-500:]!r}"

    wait_for(lambda: service("hub2").counters["bytes_received"] > 2_000_000, state)
    os.kill(service("hub2").pid, signal.SIGKILL)
    assert digest in two.expect("\ndone\n")
    wait_for(lambda: service("hub2").epoch == 2, "the next life of the card")
    again = service("hub2")
    assert again.counters["bytes_received"] > 1_000_000


def service(machine: str) -> ServiceStatus:
    """The card of a machine."""
    with MachineClient(find(machine), timeout=LIMIT) as client:
        return next(each for each in client.status().services if each.name == "card")


def test_the_guest_sees_whether_somebody_is_there(run: Run, debian: Guest) -> None:
    directory = Path(tempfile.mkdtemp(prefix="vmesh-wire-"))
    path = directory / "wire"
    try:
        machine = run("-append", BRIEF, "-nic", f"stream,id=n,server=on,addr.type=unix,addr.path={path}")
        machine.expect(PROMPT)
        machine.ask("carrier() { cat /sys/class/net/eth0/carrier; }")
        machine.ask("wait_for() { until [ $(carrier) = $1 ]; do :; done; }")
        machine.ask("ip link set eth0 up")
        for _ in range(2):
            machine.ask("wait_for 0")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
                peer.connect(str(path))
                machine.ask("wait_for 1")
        machine.ask("wait_for 0")
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace of the host."""
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists() or shutil.which("ip") is None:
        pytest.skip("needs root, /dev/net/tun and ip (Debian's package iproute2)")
    name = f"vmesh-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.parametrize("offload", ["on", "off"])
def test_an_interface_of_the_host(host: Host, debian: Guest, namespace: str, tmp_path: Path, offload: str) -> None:
    """Both directions of a connection between guest and host; with offload, frames larger than the wire's."""
    log = tmp_path / "log"
    inside = ("ip", "netns", "exec", namespace)
    subprocess.run(["ip", "-n", namespace, "tuntap", "add", "dev", "tap0", "mode", "tap"], check=True)
    subprocess.run(["ip", "-n", namespace, "addr", "add", "10.3.0.1/24", "dev", "tap0"], check=True)
    subprocess.run(["ip", "-n", namespace, "link", "set", "tap0", "up"], check=True)
    content = random.Random(6).randbytes(SIZE)
    flags = ("-append", BRIEF, "-D", str(log), "-nic", f"tap,ifname=tap0,script=no,vnet_hdr={offload}")
    commands = (
        "ip addr add 10.3.0.2/24 dev eth0; ip link set eth0 up\n"
        "nc 10.3.0.1 9 >/tmp/f </dev/null; sha256sum /tmp/f\n"
        # cat sends much at once, nc would send pieces of 1 KiB; the second waits until the host has it all.
        "nc 10.3.0.1 9 -e sh -c 'cat /tmp/f; cat'\n"
    )
    listener = listen_inside(namespace)
    with listener, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(give_and_take, listener, content)
        answer = host.vmesh("run", *flags, stdin=commands, by=inside)
        assert serving.result(LIMIT) == content
    assert hashlib.sha256(content).hexdigest() in answer
    counted = counters(log, "net0")
    # How many there are is TCP's own affair: it sends small segments where its peer is slow.
    assert (counted["gso_received"] > 0) == (offload == "on")
    assert (counted["gso_sent"] > 0) == (offload == "on")


def listen_inside(namespace: str) -> socket.socket:
    """A listening socket of that network namespace."""
    made: list[socket.socket] = []

    def make() -> None:  # in a thread of its own, which alone moves there
        with open(f"/run/netns/{namespace}") as file:
            assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0) == 0
        made.append(socket.create_server(("10.3.0.1", 9)))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join(LIMIT)
    made[0].settimeout(LIMIT)
    return made[0]


def give_and_take(listener: socket.socket, content: bytes) -> bytes:
    """Sends `content` to the first that comes, and gives as much from the second."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(LIMIT)
        connection.sendall(content)
    connection, _ = listener.accept()
    connection.settimeout(LIMIT)
    with connection, connection.makefile("rb") as file:
        return file.read(len(content))
