"""A machine over several hosts: network namespaces, joined by a relay that delays what goes through.

The local arrangement, the same processes on Unix sockets, takes part in each turn.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from bench import harness
from bench.harness import BenchError, LogLine
from bench.report import Report, Row, Sample, held
from tests.hosts import HERE, Host, Spread, namespaces
from tests.relay import Relay
from vmesh.deploy.description import CPU, MONITOR

FAR = "far"
DEVICES = ("uart0", "rtc", "test")
LATENCIES = (0.0001, 0.001, 0.01)  # seconds there and back
BAR_LATENCY, BAR = 0.001, 2.0  # of the local boot
LOCAL = "on one host"

FLAGS = ("-m", "512M", "-smp", "1", "-nographic")
_LIMIT = 150.0
_PINGS = 200
_COUNTED = {
    "sync_round_trips": "round trips: a hart waited for a device",
    "posted_accesses": "posted writes",
    "shadow_reads": "reads answered from a shadow",
    "batches": "messages with accesses",
}
# Echo at an address, and round trips to one: the median, in microseconds.
_ECHO = """
import socket, sys
near, _ = socket.create_server((sys.argv[1], int(sys.argv[2]))).accept()
near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while data := near.recv(100): near.sendall(data)
"""
_PING = """
import socket, statistics, sys, time
far = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
took = []
for _ in range(int(sys.argv[3])):
    began = time.perf_counter(); far.sendall(b"x"); far.recv(1); took.append(time.perf_counter() - began)
print(statistics.median(took) * 1e6)
"""


@dataclass(frozen=True, slots=True)
class Boot:
    """Seconds from the first process, and from the first byte on the console, to the guest's power-off; what was
    counted, and the bytes that went through the relay."""

    wall: float
    guest: float
    counted: Mapping[str, str]
    bytes: int


def measure(runs: int) -> Report:
    """Raises BenchError where there can be no network namespaces."""
    boots: dict[str, list[Boot]] = {}
    pings: dict[str, float] = {}
    with made_hosts((HERE, FAR)) as hosts:
        boot(hosts, 0.0, {})  # the cache of code is filled
        for _ in range(runs):
            boots.setdefault(LOCAL, []).append(boot(hosts, 0.0, {}))
            for latency in LATENCIES:
                away = boot(hosts, latency, dict.fromkeys(DEVICES, FAR))
                boots.setdefault(name_of(latency), []).append(away)
        for latency in LATENCIES:
            pings[name_of(latency)] = ping(hosts, latency)
    return Report(
        f"Debian boots with its devices on another host, {runs} boots each",
        [row for name, done in boots.items() for row in _rows(name, done, boots[LOCAL], pings.get(name))],
        ["Local: the same boot on one host, over Unix sockets, by turns with the others."],
        peer="local",
    )


def boot(hosts: Sequence[Host], latency: float, where: Mapping[str, str]) -> Boot:
    """One boot to the power-off. Raises BenchError."""
    flags = [*FLAGS, *harness.guest_flags(harness.debian(), "vmesh.run=true")]
    with spread(flags, hosts, latency, where) as machine:
        began = time.monotonic()
        machine.start()
        first = when(machine, b"")
        end = when(machine, b"reboot: Power down")
        status = machine.processes[MONITOR].wait(30)
        if status:
            raise BenchError(f"status {status}: {machine.said(MONITOR)}")
        counted = _counted(harness.read_log(machine.log(CPU)))
        return Boot(end - began, end - first, counted, machine.relay.bytes)


def ping(hosts: Sequence[Host], latency: float) -> float:
    """What a byte needs there and back, in microseconds, between two processes that do nothing else."""
    here, far = hosts[0], hosts[1]
    relay = Relay(latency / 2)
    echo = subprocess.Popen([*far.enter, sys.executable, "-c", _ECHO, far.address, "6999"])
    try:
        passage = relay.passage((far.address, 6999), here.relay)
        time.sleep(0.5)
        command = [*here.enter, sys.executable, "-c", _PING, *map(str, passage.address), str(_PINGS)]
        return float(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    finally:
        echo.kill()
        echo.wait()
        relay.close()


@contextmanager
def made_hosts(names: Sequence[str]) -> Iterator[list[Host]]:
    try:
        with namespaces(names) as made:
            yield made
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or b""
        raise BenchError(f"no network namespaces: {said.decode().strip() or error}") from None


@contextmanager
def spread(flags: Sequence[str], hosts: Sequence[Host], latency: float, where: Mapping[str, str]) -> Iterator[Spread]:
    relay = Relay(latency / 2)
    machine = Spread(flags, where, relay, hosts)
    try:
        yield machine
    finally:
        machine.close()
        relay.close()


def when(machine: Spread, text: bytes) -> float:
    """When `text` was on the console; empty: the first byte. Raises BenchError."""
    deadline = time.monotonic() + _LIMIT
    while time.monotonic() < deadline:
        console = machine.console
        if console and text in console:
            return time.monotonic()
        if machine.processes[MONITOR].poll():
            break
        time.sleep(0.002)
    raise BenchError(f"no {text!r}: {machine.said(MONITOR)}; {machine.console[-200:]!r}")


def _counted(lines: Sequence[LogLine]) -> Mapping[str, str]:
    return harness.logged(lines, CPU, "counted").fields


def name_of(latency: float) -> str:
    return f"{latency * 1000:g} ms away"


def _rows(name: str, boots: Sequence[Boot], local: Sequence[Boot], pinged: float | None) -> Iterator[Row]:
    wall, guest = (Sample(tuple(getattr(each, what) for each in boots)) for what in ("wall", "guest"))
    their_wall, their_guest = (Sample(tuple(getattr(each, what) for each in local)) for what in ("wall", "guest"))
    if name == LOCAL:
        yield Row(f"{name}: first process to power-off", "s", wall)
        yield Row(f"{name}: first byte to power-off", "s", guest)
    else:
        assert pinged is not None
        yield Row(f"{name}: a byte there and back", "us", Sample((pinged,)), digits=0)
        yield Row(f"{name}: first process to power-off", "s", wall, their_wall)
        ratio = guest.median / their_guest.median
        bar = held(f"at most {BAR:g}x", ratio <= BAR) if name == name_of(BAR_LATENCY) else ""
        yield Row(f"{name}: first byte to power-off", "s", guest, their_guest, bar=bar)
        through = Sample(tuple(each.bytes / 1024 for each in boots))
        yield Row(f"{name}: all that went between the hosts", "KiB", through, digits=0)
    for key, what in _COUNTED.items():
        count = partial(_number, key)
        yield Row(f"{name}: {what}", "count", Sample(tuple(map(count, boots))), digits=0)


def _number(key: str, boot: Boot) -> float:
    return float(boot.counted[key])
