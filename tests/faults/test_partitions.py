"""A machine with every service on a host of its own: links that are down for a while, links that are reset, and what
whoever listens on them gets to see."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq

from tests.checked_work import Progress, flags
from tests.hosts import Spread
from tests.relay import Passage, Relay
from tests.waiting import LIMIT, Process, wait_for
from vmesh import curve, guest, wire
from vmesh.cli.plan import CACHE
from vmesh.client import MachineClient
from vmesh.deploy.description import CPU, MEMORY, MONITOR
from vmesh.machine import MachineDirectory
from vmesh.v1 import common_pb2

DISK = "blk0"
WHERE = {MONITOR: "door", "uart0": "a", "rtc": "b", "test": "c", DISK: "d", CPU: "e", CACHE: "e"}
BLOCK = 65536  # of the disk, which a step writes
DOWN_SECONDS, BUS_LIMIT = 1.0, 10  # the latter: what a hart waits for a device before the machine ends

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1800)]


class Machine:
    """The machine, and how far its guest has come."""

    def __init__(self, scratch: Path, relay: Relay) -> None:
        found = guest.find()
        if found is None:
            pytest.skip("Debian's guest is not cached (make guest)")
        self.relay = relay
        self.disk = scratch / "disk"
        self.spread = Spread([*flags(found, scratch), "-cpu-apart", "-bus-limit", str(BUS_LIMIT)], WHERE, relay)
        self.progress = Progress(lambda: self.spread.console)
        self._tcpdump: Process | None = None

    def listen_in(self, file: Path) -> None:
        """Have tcpdump write what goes to and from the ports of all services, where it is installed and may."""
        self._capture = file
        if shutil.which("tcpdump") and os.geteuid() == 0:
            ports = " or ".join(f"port {port}" for port in self.spread.ports.values())
            words = ["tcpdump", "-i", "lo", "-s", "0", "-U", "-Z", "root", "-w", str(file), f"tcp and ({ports})"]
            self._tcpdump = Process(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_for(file.exists, "tcpdump to listen")

    def heard(self) -> bytes | None:
        """What tcpdump has written; None where it has not run."""
        if self._tcpdump is None:
            return None
        if self._tcpdump.poll() is None:
            self._tcpdump.terminate()
            self._tcpdump.wait()
        return self._capture.read_bytes()

    def ended(self) -> str:
        """What the monitor said when it ended, if it has."""
        return self.spread.said(MONITOR) if self.spread.processes[MONITOR].poll() is not None else ""

    def goes_on(self, steps: int, what: str) -> None:
        self.progress.wait(steps, what, failed=self.ended)

    def resets(self) -> None:
        """Reset the machine, and have its guest begin anew."""
        before = len(self.spread.console)
        with MachineClient(MachineDirectory(self.spread.directory(MONITOR)), timeout=LIMIT) as client:
            client.reset()
        self.progress = Progress(lambda: self.spread.console[before:])
        self.goes_on(1, "after a reset")

    def links(self, *services: str) -> list[tuple[str, str]]:
        """The pairs of services that meet, of which one is among these."""
        return [pair for pair in self.spread.passages if {*services} & {*pair}]


@pytest.fixture
def machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        relay = Relay(record=True)
        made = Machine(Path(scratch), relay)
        try:
            made.spread.start()
            made.listen_in(Path(scratch) / "capture")
            made.goes_on(1, "to begin")
            yield made
        finally:
            made.heard()
            made.spread.close()
            relay.close()


def test_guest_outlives_links_that_fail_and_nobody_reads_along(machine: Machine) -> None:
    down = [
        *([pair] for pair in machine.links(CPU) if MONITOR not in pair and "test" not in pair),
        [(DISK, MEMORY)],
        [(CACHE, MEMORY)],
        machine.links(MONITOR),
        [(device, MEMORY) for device in ("uart0", "rtc", "test")] + [(CPU, "test")],
    ]
    for pairs in down:
        passages = _passages(machine, pairs)
        machine.relay.hold(*passages)
        time.sleep(DOWN_SECONDS)
        machine.relay.release(*passages)
        machine.goes_on(2, f"after {pairs} could not meet")
    for pairs in down:
        machine.relay.reset(*_passages(machine, pairs))
        machine.goes_on(1, f"after the connections of {pairs} were reset")
    _check_nothing_was_seen(machine)
    _check_strangers_get_no_answer(machine)
    machine.goes_on(1, "after strangers have knocked")

    machine.resets()
    machine.relay.hold(*_passages(machine, [(CPU, "uart0")]))
    assert machine.spread.processes[MONITOR].wait() == 1
    machine.progress.look()
    assert f"no sign of life from uart0 at tcp://127.0.0.1:{_port(machine)} for {BUS_LIMIT} s" in machine.ended()


def _passages(machine: Machine, pairs: Sequence[tuple[str, str]]) -> list[Passage]:
    return [passage for pair in pairs for passage in machine.spread.between(*pair)]


def _port(machine: Machine) -> int:
    return machine.spread.passages[CPU, "uart0"].address[1]


def _check_nothing_was_seen(machine: Machine) -> None:
    """Nothing that the guest said, stored or has in its memory, in what the links have carried."""
    carried = machine.relay.recorded()
    if (heard := machine.heard()) is not None:
        assert b"CURVE" in heard
        assert len(heard) > sum(map(len, carried)) / 2, "tcpdump has missed what the links have carried"
        carried = [*carried, heard]
    disk = machine.disk.read_bytes()
    steps = range(1, machine.progress.steps)
    written = {disk[place : place + 16] for place in range(0, len(disk), BLOCK)} - {bytes(16)}
    assert steps, "the guest has not worked"
    assert written, "the guest has written nothing"
    said = {f"step {step} right".encode() for step in steps} | {b"work begins", b"Linux version", b"vmesh.run=work"}
    secrets = said | written
    assert sum(map(len, carried)) > len(steps) * BLOCK * 2, "the links have carried less than the disk's content"
    assert any(b"CURVE" in each for each in carried), "no greeting of CURVE: this is not what went through"
    seen = [secret for secret in secrets if any(secret in each for each in carried)]
    assert not seen


def _check_strangers_get_no_answer(machine: Machine) -> None:
    """Whoever has no key, an unknown one, or a known one but takes the service for another, at every port."""
    spread = machine.spread
    curve.make(spread.root / "strange", ["disk"])
    unknown = curve.load(spread.root / "strange", "disk")
    known = curve.load(spread.keys(DISK), DISK)
    hello = wire.make(wire.hello(common_pb2.ROLE_MONITOR, MONITOR), 1).SerializeToString()
    poller = zmq.Poller()
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        for service, port in spread.ports.items():
            for keys, server in ((None, ""), (unknown, service), (known, MEMORY if service != MEMORY else CPU)):
                socket = stack.enter_context(context.socket(zmq.DEALER))
                socket.setsockopt(zmq.LINGER, 0)
                if keys is not None:
                    socket.setsockopt(zmq.CURVE_SERVERKEY, known.known[server])
                    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
                    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
                socket.connect(f"tcp://{spread.host(service).address}:{port}")
                socket.send(hello)
                poller.register(socket, zmq.POLLIN)
        assert not poller.poll(1000)
