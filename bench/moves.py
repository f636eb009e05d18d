"""A guest that checks all it does (memory, disk, TCP, clocks), moved to and fro, by pre-copy and post-copy in turns."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from bench import harness
from bench.harness import BenchError
from bench.migration import client, guest_initrd, hand_over, wait_moved
from bench.report import Report, Row, Sample, held
from vmesh.client import MachineClient
from vmesh.machine import find
from vmesh.spawn import python

_MEBIBYTES = 16
_PORT = 7
_LIMIT = 60.0
_LINE = re.compile(rb"verify (\d+) (\d+) (\d+)\r?\n")


class _Console:
    """What a machine says, read as it comes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.said = b""

    def until(self, text: bytes | re.Pattern[bytes], since: int = 0) -> re.Match[bytes]:
        """Raises BenchError if it does not come, or the guest finds something wrong."""
        assert self._process.stdout is not None
        wanted = re.compile(re.escape(text)) if isinstance(text, bytes) else text
        deadline = time.monotonic() + _LIMIT
        while (found := wanted.search(self.said, since)) is None:
            if b"verify failed" in self.said or b"Kernel panic" in self.said:
                raise BenchError(f"the guest: {self.said[-400:].decode(errors='replace')}")
            ready = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]
            part = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            if not part:
                raise BenchError(f"waited for {text!r}: {self.said[-400:].decode(errors='replace')}")
            self.said += part
        return found


def measure(runs: int) -> Report:
    """`runs` moves, with 1 and with 4 harts by turns. Raises BenchError for anything that is not as it should be."""
    downtimes: list[float] = []
    handovers: list[float] = []
    apart: list[float] = []
    with harness.scratch() as scratch:
        initrd = guest_initrd(scratch)
        for harts in (1, 4):
            _campaign(scratch, initrd, harts, (runs + 1) // 2, downtimes, handovers, apart)
    rows = [
        Row("moves, everything checked after each", "", Sample((float(len(downtimes)),)), digits=0),
        Row("downtime", "ms", Sample(tuple(downtimes)), digits=1),
        Row("downtime of a handover, the last move", "ms", Sample(tuple(handovers)), digits=1),
        Row(
            "the guest's time of day off the host's, since before the first move", "ms", Sample(tuple(apart)), digits=0,
            bar=held("< 100 ms", max(apart) < 100),
        ),
    ]  # fmt: skip
    return Report("a guest that checks memory, disk, TCP and clocks, moved to and fro", rows)


def _campaign(
    scratch: Path,
    initrd: Path,
    harts: int,
    moves: int,
    downtimes: list[float],
    handovers: list[float],
    apart: list[float],
) -> None:
    hub, disk = scratch / f"hub{harts}", scratch / f"disk{harts}"
    disk.write_bytes(bytes(8 << 20))
    with _hub(hub), ExitStack() as stack:
        peer = _start(stack, f"peer{harts}", _flags(initrd, hub, 1, 1, f"migration echo {_PORT}"))
        peer.until(b"echo ready")
        job = f"modprobe virtio_blk; sleep 1; migration verify {_MEBIBYTES} /dev/vda 10.1.0.1 {_PORT}"
        flags = [*_flags(initrd, hub, harts, 2, job), "-drive", f"file={disk},format=raw"]
        here = _start(stack, f"m{harts}-0", flags)
        here.until(_LINE)
        behind = _behind(here)  # Linux reads the clock chip in whole seconds
        source = stack.enter_context(client(f"m{harts}-0"))
        for number in range(1, moves + 2):
            name = f"m{harts}-{number}"
            last = number == moves + 1  # it is handed over
            place = f"handover:m{harts}-{number - 1}" if last else f"unix:{scratch}/{harts}-{number}"
            there = _start(stack, name, [*flags, "-incoming", place])
            target = stack.enter_context(client(name))
            _wait_socket(find(name).handover if last else Path(place[5:]))
            postcopy = number % 2 == 0
            if last:
                handovers.append(hand_over(source, name))
            else:
                source.migrate_set(max_bandwidth=0, postcopy_ram=postcopy)
                source.migrate(place)
                if postcopy:
                    _start_postcopy(source)
                downtimes.append(wait_moved(source).downtime_ms)
            source.quit()
            apart.append(abs(_behind(there) - behind))
            source = target


def _behind(machine: _Console) -> float:
    """How far the guest's time of day is behind the host's, in ms: the least of some lines, which take their time."""
    found = []
    for _ in range(4):  # of which the first may have waited to be read
        line = machine.until(_LINE, len(machine.said))
        found.append(time.time() * 1e3 - float(line[3]))
    return min(found[1:])


def _start_postcopy(source: MachineClient) -> None:
    from vmesh.client import GatewayError

    try:
        source.migrate_start_postcopy()
    except GatewayError:
        return  # it was quicker


def _flags(initrd: Path, hub: Path, harts: int, number: int, job: str) -> list[str]:
    guest = replace(harness.debian(), initrd=initrd)
    set_up = f"ip link set eth0 up; ip addr add 10.1.0.{number}/24 dev eth0"
    flags = harness.guest_flags(guest, f'quiet vmesh.run="{set_up}; {job}"')
    netdev = f"stream,id=n,addr.type=unix,addr.path={hub}"
    card = f"virtio-net-device,netdev=n,mac=52:54:00:00:00:0{number}"
    return ["-m", "256M", "-smp", str(harts), *flags, "-netdev", netdev, "-device", card]


def _start(stack: ExitStack, name: str, flags: list[str]) -> _Console:
    process = stack.enter_context(
        subprocess.Popen(
            harness.ours("-name", name, *flags),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    )
    stack.callback(process.terminate)
    return _Console(process)


def _wait_socket(path: Path) -> None:
    deadline = time.monotonic() + _LIMIT
    while not path.exists():
        if time.monotonic() > deadline:
            raise BenchError("the destination does not listen")
        time.sleep(0.02)


@contextmanager
def _hub(path: Path) -> Iterator[None]:
    with subprocess.Popen(python("vmesh.cli", "hub", str(path)), stdout=subprocess.DEVNULL) as process:
        try:
            _wait_socket(path)
            yield
        finally:
            process.terminate()
