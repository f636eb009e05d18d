"""The monitor's doors (QMP, HMP, gRPC, gdb) under stress: latency beside QEMU, what idle clients cost, many clients at
once, and hostile ones.

The guest works all the time: every hart runs a loop of the shell.
"""

from __future__ import annotations

import json
import os
import random
import re
import select
import socket
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from bench import harness
from bench.harness import BenchError
from bench.report import Report, Row, Sample, held
from vmesh.client import GatewayError, MachineClient
from vmesh.machine import MachineDirectory, find
from vmesh.v1 import gateway_pb2
from vmesh.v1.gateway_pb2_grpc import MachineStub

ASKED = 2000  # query-status, of which the median is taken
TURN = 4.0  # seconds with and without idle clients
HOSTILE_SECONDS = 60.0
GROWTH_BAR = 64 << 20  # bytes of the monitor's memory
_LIMIT = 60.0
_PROMPT = b"~ # "
_LOAD = b"while :; do :; done\n"


class Door:
    """A QMP client that has negotiated."""

    def __init__(self, path: Path) -> None:
        self._socket = connect(path)
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: object) -> Any:
        """What the command returns, or its error's description."""
        message = {
            "execute": command,
            "arguments": {name.replace("_", "-"): value for name, value in arguments.items()},
        }
        self._socket.sendall(json.dumps(message).encode())
        while True:
            line = self._lines.readline()
            if not line:
                raise BenchError("a QMP client that behaves was disconnected")
            answer = json.loads(line)
            if "event" not in answer:
                return answer.get("return", answer.get("error"))

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


class Gdb:
    """A client of gdb's remote protocol (gdb manual, appendix E). The machine stands when it has come."""

    def __init__(self, path: Path) -> None:
        self._socket = connect(path)
        self._input = b""
        self.ask("QStartNoAckMode")
        self._socket.sendall(b"+")
        self.ask("?")

    def ask(self, content: str) -> str:
        self._send(content)
        return self._receive()

    def go_on(self) -> None:
        self._send("vCont;c")

    def stop(self) -> None:
        self._socket.sendall(b"\x03")
        self._receive()

    def close(self) -> None:
        self._socket.close()

    def _send(self, content: str) -> None:
        self._socket.sendall(f"${content}#{sum(content.encode()) & 0xFF:02x}".encode())

    def _receive(self) -> str:
        while not (found := re.search(rb"\$([^#]*)#..", self._input)):
            data = self._socket.recv(65536)
            if not data:
                raise BenchError("a gdb client that behaves was disconnected")
            self._input += data
        self._input = self._input[found.end() :]
        return found[1].decode()


def connect(path: Path) -> socket.socket:
    deadline = time.monotonic() + _LIMIT
    while True:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(_LIMIT)
        try:
            made.connect(str(path))
            return made
        except OSError:
            made.close()
            if time.monotonic() > deadline:
                raise BenchError(f"nobody listens at {path}") from None
            time.sleep(0.05)


@dataclass(slots=True)
class Outcome:
    """What hostile clients met: how often each kind was at work, the monitor's memory, and how long an honest client
    waited for query-status while they were (seconds)."""

    attacks: Counter[str] = field(default_factory=Counter)
    errors: int = 0  # answers that were errors, as they should be
    before: int = 0  # bytes
    most: int = 0
    waits: list[float] = field(default_factory=list)


def attack(machine: MachineDirectory, pid: int, seconds: float, chance: random.Random) -> Outcome:
    """Attack the machine's QMP and HMP sockets, and ask query-status all the while. `pid` is the monitor's."""
    outcome = Outcome(before=resident(pid))
    end = time.monotonic() + seconds
    kinds = [_random, _huge, _nested, _half, _flood, _slow, _hmp_random, _hmp_flood, _hmp_long]
    kinds += [_grpc_random, _grpc_flood, _grpc_slow]
    threads = [
        threading.Thread(
            target=_attacker, args=(machine, kinds[place::3], end, random.Random(chance.random()), outcome)
        )
        for place in range(3)
    ]
    for thread in threads:
        thread.start()
    door = Door(machine.qmp)
    while time.monotonic() < end:
        began = time.perf_counter()
        status = door.ask("query-status")
        outcome.waits.append(time.perf_counter() - began)
        if not status.get("running"):
            raise BenchError(f"the machine does not run any more: {status}")
        outcome.most = max(outcome.most, resident(pid))
        time.sleep(0.02)
    for thread in threads:
        thread.join(_LIMIT)
    door.close()
    return outcome


def resident(pid: int) -> int:
    """Bytes of memory that a process has for itself."""
    fields = Path(f"/proc/{pid}/status").read_text().split("RssAnon:")[1].split()
    return int(fields[0]) << 10


Kind = Callable[[MachineDirectory, random.Random, Outcome], None]


def _attacker(
    machine: MachineDirectory, kinds: Sequence[Kind], end: float, chance: random.Random, outcome: Outcome
) -> None:
    while time.monotonic() < end:
        kind = chance.choice(kinds)
        outcome.attacks[kind.__name__.strip("_")] += 1
        with suppress(OSError):
            kind(machine, chance, outcome)


def _talk(path: Path, pieces: Iterator[bytes], outcome: Outcome, *, reads: bool = True, seconds: float = 1.0) -> None:
    """Send what is taken within a second, reading or not."""
    with connect(path) as client:
        client.setblocking(False)
        end = time.monotonic() + seconds
        for piece in pieces:
            rest = memoryview(piece)
            while rest and time.monotonic() < end:
                readable, writable, _ = select.select([client] if reads else [], [client], [], 0.1)
                if readable:
                    data = client.recv(1 << 16)
                    if not data:
                        return
                    outcome.errors += data.count(b'"error"')
                if writable:
                    rest = rest[client.send(rest[: 1 << 16]) :]
            if time.monotonic() >= end:
                return
        if reads and select.select([client], [], [], 0.2)[0]:
            outcome.errors += client.recv(1 << 16).count(b'"error"')


_HELLO = b'{"execute":"qmp_capabilities"}'


def _random(machine: MachineDirectory, chance: random.Random, outcome: Outcome) -> None:
    _talk(machine.qmp, (chance.randbytes(chance.randrange(1, 5000)) for _ in range(20)), outcome)


def _huge(machine: MachineDirectory, chance: random.Random, outcome: Outcome) -> None:
    _talk(machine.qmp, iter([_HELLO, b'{"execute": "', *[b"x" * (1 << 20)] * 80, b'"}\n']), outcome)


def _nested(machine: MachineDirectory, chance: random.Random, outcome: Outcome) -> None:
    _talk(machine.qmp, iter([_HELLO, chance.choice([b"[", b'{"a":']) * (1 << 20)]), outcome)


def _half(machine: MachineDirectory, chance: random.Random, outcome: Outcome) -> None:
    text = _HELLO + b'{"execute":"query-status"}' * 3
    _talk(machine.qmp, iter([text[: chance.randrange(len(text))]]), outcome)


def _flood(machine: MachineDirectory, chance: random.Random, outcome: Outcome) -> None:
    _talk(machine.qmp, iter([_HELLO, *[b'{"execute":"query-qmp-schema"}' * 1000] * 10]), outcome)


def _slow(machine: MachineDirectory, chance: random.Random, outcome: Outcome) -> None:
    _talk(machine.qmp, iter([_HELLO, *[b'{"execute":"query-qmp-schema"}' * 1000] * 100]), outcome, reads=False)


def _hmp_random(machine: MachineDirectory, chance: random.Random, outcome: Outcome) -> None:
    # Not what a machine must not be told: letters only where no command can come of them.
    _talk(machine.hmp, (bytes(b | 0x80 for b in chance.randbytes(2000)) + b"zz\x1b[\t\r" for _ in range(20)), outcome)


def _hmp_flood(machine: MachineDirectory, chance: random.Random, outcome: Outcome) -> None:
    _talk(machine.hmp, iter([b"help\r" * 10000] * 20), outcome, reads=chance.random() < 0.5)


def _hmp_long(machine: MachineDirectory, chance: random.Random, outcome: Outcome) -> None:
    _talk(machine.hmp, iter([b"x" * (1 << 20), b"\rprint " + b"(" * (1 << 16) + b"\r"]), outcome)


@contextmanager
def _stub(machine: MachineDirectory) -> Iterator[MachineStub]:
    with grpc.insecure_channel(f"unix:{machine.gateway}") as channel:
        yield MachineStub(channel)


def _grpc_random(machine: MachineDirectory, chance: random.Random, outcome: Outcome) -> None:
    preface = chance.choice([b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
    noise = (chance.randbytes(chance.randrange(1, 50_000)) for _ in range(20))
    _talk(machine.gateway, iter([preface, *noise]), outcome)


def _grpc_flood(machine: MachineDirectory, chance: random.Random, outcome: Outcome) -> None:
    """Calls that are far too large, and many at once."""
    with _stub(machine) as stub:
        for _ in range(20):
            huge = stub.SwapDevice.future(gateway_pb2.SwapDeviceRequest(name="x" * (2 << 20)), timeout=_LIMIT)
            outcome.errors += huge.exception() is not None
        for call in [stub.Status.future(gateway_pb2.StatusRequest(), timeout=_LIMIT) for _ in range(200)]:
            outcome.errors += call.exception() is not None


def _grpc_slow(machine: MachineDirectory, chance: random.Random, outcome: Outcome) -> None:
    """Streams of events and of the bus that nobody reads."""
    with _stub(machine) as stub:
        streams: list[grpc.Call] = [stub.Events(gateway_pb2.EventsRequest(), timeout=_LIMIT) for _ in range(8)]
        streams.append(stub.Trace(gateway_pb2.TraceRequest(), timeout=_LIMIT))
        time.sleep(1.0)
        for stream in streams:
            stream.cancel()


def measure(runs: int) -> Report:
    """Raises BenchError."""
    seed = random.randrange(1 << 32)
    with harness.scratch() as scratch, ExitStack() as stack:
        guest = harness.guest_flags(harness.debian())
        theirs = scratch / "qemu.sock"
        name = f"bench-{os.getpid()}"
        stack.enter_context(_busy(harness.theirs(*guest, "-m", "256M", "-qmp", f"unix:{theirs},server=on,wait=off")))
        their_times = _latency(theirs)
        stack.close()
        stack.enter_context(_busy(harness.ours(*guest, "-m", "256M", "-name", name, "-gdb", f"unix:{scratch / 'gdb'}")))
        machine = find(name)
        our_times = _latency(machine.qmp)
        cost = _idle_cost(machine, runs, scratch / "gdb")
        answered, notes = _together(machine, scratch / "gdb")
        monitor = machine.read_record().pid
        hostile = attack(machine, monitor, HOSTILE_SECONDS, random.Random(seed))
        growth = hostile.most - hostile.before
        door = Door(machine.qmp)
        unharmed = _instructions(door, 1.0) > 0
    ours, peer = Sample(tuple(t * 1e3 for t in our_times)), Sample(tuple(t * 1e3 for t in their_times))
    bar = held("< 1 ms or < 2x", ours.median < 1 or ours.median < 2 * peer.median)
    cheap = held("< 3", statistics.median(cost) < 3)
    bounded = held("< 64, guest goes on", growth < GROWTH_BAR and unharmed)
    what = f"hostile clients for {HOSTILE_SECONDS:g} s: the monitor grows"
    rows = [
        Row("query-status, guest at work", "ms", Sample((ours.median,)), Sample((peer.median,)), 3, bar),
        Row("idle clients cost the guest (6)", "%", Sample(tuple(cost)), None, 2, cheap),
        Row("2 QMP, HMP, gdb, 2 gRPC: not answered", "", Sample((answered,)), None, 0, held("0", answered == 0)),
        Row(what, "MiB", Sample((growth / (1 << 20),)), None, 1, bounded),
        Row("honest client meanwhile, longest wait", "ms", Sample((max(hostile.waits) * 1e3,)), None, 0),
    ]
    notes.append(f"attacks (seed {seed}): " + ", ".join(f"{name} {n}" for name, n in sorted(hostile.attacks.items())))
    notes.append(f"errors that they were told: {hostile.errors}; honest answers meanwhile: {len(hostile.waits)}")
    return Report("The monitor's doors", rows, notes)


@contextmanager
def _busy(command: Sequence[str]) -> Iterator[None]:
    """A machine whose guest works."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            output, deadline = b"", time.monotonic() + harness.LIMIT
            while _PROMPT not in output:
                if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    raise BenchError("no prompt")
                part = os.read(process.stdout.fileno(), 65536)
                if not part:
                    raise BenchError(f"ended: {' '.join(command)}")
                output += part
            process.stdin.write(_LOAD)
            process.stdin.flush()
            time.sleep(1.0)
            yield
        finally:
            harness.end(process)


def _latency(path: Path) -> list[float]:
    door = Door(path)
    times = []
    for _ in range(ASKED):
        began = time.perf_counter()
        door.ask("query-status")
        times.append(time.perf_counter() - began)
    door.close()
    return times


def _instructions(door: Door, seconds: float) -> float:
    """Instructions a second."""

    def retired() -> int:
        text = door.ask("human-monitor-command", command_line="info cpus")
        return sum(int(line.rpartition(",")[2].split()[0]) for line in text.splitlines())

    before, began = retired(), time.monotonic()
    time.sleep(seconds)
    return (retired() - before) / (time.monotonic() - began)


def _idle_cost(machine: MachineDirectory, runs: int, gdb: Path) -> list[float]:
    """Percent of the guest's speed that six clients cost which say nothing, pair by pair of turns."""
    door = Door(machine.qmp)
    cost = []
    for _ in range(max(runs, 3)):
        alone = _instructions(door, TURN)
        with ExitStack() as stack:
            for _ in range(2):
                stack.callback(Door(machine.qmp).close)
                stack.enter_context(MachineClient(machine)).status()
            stack.enter_context(connect(machine.hmp))
            debugger = Gdb(gdb)
            stack.callback(debugger.close)
            debugger.go_on()
            together = _instructions(door, TURN)
        cost.append(100 * (1 - together / alone))
    door.close()
    return cost


def _together(machine: MachineDirectory, gdb: Path) -> tuple[int, list[str]]:
    """Two QMP, one HMP, one gdb, two gRPC clients ask at once for a turn: how many did not get an answer."""
    end = time.monotonic() + TURN
    answers: Counter[str] = Counter()
    failed: list[str] = []

    def qmp() -> None:
        door = Door(machine.qmp)
        while time.monotonic() < end:
            door.ask("query-cpus-fast")
            answers["QMP"] += 1
        door.close()

    def hmp() -> None:
        with connect(machine.hmp) as client:
            text = b""
            while time.monotonic() < end:
                client.sendall(b"info registers\r")
                wanted = text.count(b"(vmesh) ") + 1
                while text.count(b"(vmesh) ") < wanted:
                    text = (text + client.recv(65536))[-65536:]
                text = b""
                answers["HMP"] += 1

    def grpc() -> None:
        with MachineClient(machine) as client:
            while time.monotonic() < end:
                client.status()
                answers["gRPC"] += 1

    def debug() -> None:
        client = Gdb(gdb)
        while time.monotonic() < end:
            client.go_on()
            time.sleep(0.05)
            client.stop()
            if not client.ask("g"):
                raise BenchError("gdb was not given registers")
            answers["gdb"] += 1
        client.ask("D")  # the guest goes on; it would stay where it is if gdb just went
        client.close()

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, BenchError, GatewayError) as error:
            failed.append(f"{work.__name__}: {error}")

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (qmp, qmp, hmp, debug, grpc, grpc)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_LIMIT)
    failed += [f"{name}: none" for name in ("QMP", "HMP", "gdb", "gRPC") if not answers[name]]
    return len(failed), [*failed, "answers at once: " + ", ".join(f"{name} {n}" for name, n in sorted(answers.items()))]
