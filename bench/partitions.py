"""Links between the services of a machine that are down for 1, 10 and 60 s: what the guest sees, and how it ends.

Every service is on a host of its own, the cpu with the cache of RAM beside it. The guest works with its devices all the
time and is checked in every byte (tests/checked_work.py). After what was down for long enough that the machine has to
end, a new one takes its place.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import harness
from bench.harness import BenchError
from bench.report import Report, Row, Sample, held
from tests.checked_work import Progress, flags
from tests.hosts import Spread
from tests.relay import Relay
from vmesh.cli.plan import CACHE
from vmesh.deploy.description import CPU, MEMORY, MONITOR

SECONDS = (1.0, 10.0, 60.0)
BUS_LIMIT = 20.0  # of `vmesh run`
DISK, DEVICES = "blk0", ("uart0", "rtc", "test", "blk0")
WHERE = {MONITOR: "door", CPU: "cpu", CACHE: "cpu", **{device: device for device in DEVICES}}
_STEPS = 3  # that the guest has to make before and after
_BACK_SECONDS = 60.0
_MARGIN = 5.0

Pair = tuple[str, str]
# One after the other; those in which the guest takes no part at once.
LINKS: Mapping[str, Sequence[Pair]] = {
    "cpu and serial port": [(CPU, "uart0")],
    "cpu and clock": [(CPU, "rtc")],
    "cpu and disk": [(CPU, DISK)],
    "disk and memory": [(DISK, MEMORY)],
    "cache of RAM and memory": [(CACHE, MEMORY)],
    "monitor and all others": [(MONITOR, other) for other in (MEMORY, CPU, CACHE, *DEVICES)],
    "devices without DMA and memory": [(device, MEMORY) for device in ("uart0", "rtc", "test")],
    "cpu and test device": [(CPU, "test")],
}
_ENDS = ("cpu and serial port", "cpu and clock", "cpu and disk")  # a hart waits there, for BUS_LIMIT


@dataclass(slots=True)
class _Machine:
    spread: Spread
    progress: Progress

    def ended(self) -> str:
        """What the monitor said when it ended, if it has."""
        return self.spread.said(MONITOR) if self.spread.processes[MONITOR].poll() is not None else ""

    def steps(self, more: int, what: str) -> None:
        """Raises BenchError for what the guest should not say, and if it does not go on."""
        try:
            self.progress.wait(more, what, _BACK_SECONDS, self.ended)
        except AssertionError as error:
            raise BenchError(str(error)) from None


def measure(runs: int) -> Report:
    """Each link is down `runs` times for each of SECONDS. Raises BenchError for a wrong result."""
    went_on: dict[tuple[str, float], list[tuple[float, int]]] = {}
    ended: dict[tuple[str, float], list[tuple[float, str]]] = {}
    for seconds in SECONDS:
        ends = [name for name in LINKS if name in _ENDS and seconds > BUS_LIMIT]
        for _ in range(runs):
            with _machine() as machine:
                for name in [name for name in LINKS if name not in ends]:
                    went_on.setdefault((name, seconds), []).append(_outlive(machine, name, seconds))
            for name in ends:
                with _machine() as machine:
                    ended.setdefault((name, seconds), []).append(_end(machine, name))
    rows = []
    for (name, seconds), found in went_on.items():
        after = Sample(tuple(each[0] for each in found))
        during = sum(steps for _, steps in found) / len(found)
        what = f"{name}, {seconds:g} s: went on, after"
        rows.append(Row(what, "s", after, bar=f"{during:.0f} steps meanwhile"))
    for (name, seconds), ends_found in ended.items():
        took = Sample(tuple(each[0] for each in ends_found))
        holds = all(each[0] < BUS_LIMIT + _MARGIN for each in ends_found)
        rows.append(
            Row(f"{name}, {seconds:g} s: ended after", "s", took, bar=held(f"{BUS_LIMIT:g} s, with reason", holds))
        )
    reasons = sorted({reason for found in ended.values() for _, reason in found})
    return Report("Links that are down; the guest's every byte is checked", rows, reasons)


@contextmanager
def _machine() -> Iterator[_Machine]:
    with tempfile.TemporaryDirectory(prefix="vmesh-bench-", dir="/dev/shm") as scratch:
        relay = Relay()
        spread = Spread([*flags(harness.debian(), Path(scratch)), "-cpu-apart"], WHERE, relay)
        made = _Machine(spread, Progress(lambda: spread.console))
        try:
            spread.start()
            made.steps(_STEPS, "to begin")
            yield made
        finally:
            spread.close()
            relay.close()


def _outlive(machine: _Machine, name: str, seconds: float) -> tuple[float, int]:
    """Seconds until the guest has gone on after that, and the steps that it has made meanwhile."""
    passages = [passage for pair in LINKS[name] for passage in machine.spread.between(*pair)]
    before = machine.progress.steps
    machine.spread.relay.hold(*passages)
    time.sleep(seconds)
    machine.progress.look()
    meanwhile = machine.progress.steps - before
    machine.spread.relay.release(*passages)
    began = time.monotonic()
    machine.steps(1, f"after {name} could not meet for {seconds:g} s")
    took = time.monotonic() - began
    machine.steps(_STEPS, f"after {name} could not meet for {seconds:g} s")
    return took, meanwhile


def _end(machine: _Machine, name: str) -> tuple[float, str]:
    """Seconds until the machine has ended, and its reason."""
    passages = [passage for pair in LINKS[name] for passage in machine.spread.between(*pair)]
    machine.spread.relay.hold(*passages)
    began = time.monotonic()
    status = machine.spread.processes[MONITOR].wait(BUS_LIMIT + 2 * _MARGIN)
    took = time.monotonic() - began
    machine.progress.look()
    reason = machine.ended()
    if status != 1 or "no sign of life" not in reason:
        raise BenchError(f"{name}: status {status}, {reason!r}")
    return took, f"{name}: {reason}"
