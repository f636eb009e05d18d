"""Wall time of Debian's boot, from the command to the power-off: vmesh and QEMU by turns, same images, same flags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench import harness
from bench.harness import LogLine, Run
from bench.report import Report, Row, Sample, held

RATIO_BAR = 1.5
START_BAR = 1.0  # seconds from the command to the first instruction, caches warm

_FLAGS = ("-m", "512M", "-smp", "1")
_MARKS = {"console": b"", "init": b"Run /init as init process", "power off": b"reboot: Power down"}


def boot_ours(log: Path) -> tuple[Run, list[LogLine]]:
    flags = [*_FLAGS, *harness.guest_flags(harness.debian(), "vmesh.run=true"), "-D", str(log)]
    done = harness.run(harness.ours(*flags), _MARKS)
    return done, harness.read_log(log)


def boot_theirs() -> Run:
    flags = [*_FLAGS, *harness.guest_flags(harness.debian(), "vmesh.run=true")]
    return harness.run(harness.theirs(*flags), _MARKS)


def measure(runs: int) -> Report:
    with harness.scratch() as scratch:
        log = scratch / "log"
        boot_ours(log)  # warms the caches of both, and is not counted
        boot_theirs()
        ours, theirs = harness.by_turns(lambda: boot_ours(log), boot_theirs, runs)
    instruction = Sample(tuple(harness.logged(lines, "cpu", "started").time - run.began for run, lines in ours))
    our_runs = [run for run, _ in ours]
    wall = Row("command to power-off", "s", _sample(our_runs, "wall"), _sample(theirs, "wall"))
    ratio = wall.ratio or 0.0
    started = max(instruction.values) < START_BAR
    rows = [
        Row(wall.what, "s", wall.ours, wall.peer, bar=held(f"at most {RATIO_BAR}x", ratio <= RATIO_BAR)),
        Row("to the first instruction", "s", instruction, bar=held(f"every one under {START_BAR} s", started)),
        Row("to the first console byte", "s", _sample(our_runs, "console"), _sample(theirs, "console")),
        Row("to /init", "s", _sample(our_runs, "init"), _sample(theirs, "init")),
        Row("to the guest's power-off", "s", _sample(our_runs, "power off"), _sample(theirs, "power off")),
        Row("teardown after it", "s", _teardown(our_runs), _teardown(theirs)),
    ]
    return Report(f"Debian boots and powers off, {runs} runs each", rows)


def _sample(runs: Sequence[Run], phase: str) -> Sample:
    return Sample(tuple(run.wall if phase == "wall" else run.marks[phase] for run in runs))


def _teardown(runs: Sequence[Run]) -> Sample:
    return Sample(tuple(run.wall - run.marks["power off"] for run in runs))
