"""Wall time of Debian's boot, from the command to the power-off: vmesh and QEMU by turns, same images, same flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench import harness
from bench.harness import LogLine, Run
from bench.report import Report, Row, Sample, held

INTERPRETER, COLD, WARM = "interpreter alone", "translator, nothing kept", "translator, warm cache"
MODES = {
    INTERPRETER: "tcg,translate=off",
    COLD: "tcg,translate=on,cache=off",
    WARM: "tcg,translate=on",
}
BARS = {INTERPRETER: 1.5, COLD: 1.0, WARM: 0.7}  # of QEMU's wall time
WARMING = 6
START_BAR = 1.0  # seconds from the command to the first instruction, caches warm

_FLAGS = ("-m", "512M", "-smp", "1")
_MARKS = {"console": b"", "init": b"Run /init as init process", "power off": b"reboot: Power down"}


def boot_ours(log: Path, accelerator: str) -> tuple[Run, list[LogLine]]:
    flags = [*_FLAGS, *harness.guest_flags(harness.debian(), "vmesh.run=true"), "-accel", accelerator, "-D", str(log)]
    done = harness.run(harness.ours(*flags), _MARKS)
    return done, harness.read_log(log)


def boot_theirs() -> Run:
    flags = [*_FLAGS, *harness.guest_flags(harness.debian(), "vmesh.run=true")]
    return harness.run(harness.theirs(*flags), _MARKS)


def measure(runs: int) -> Report:
    ours: dict[str, list[tuple[Run, list[LogLine]]]] = {name: [] for name in MODES}
    theirs: list[Run] = []
    with harness.scratch() as scratch:
        log = scratch / "log"
        for _ in range(WARMING):  # a boot is too short to translate all that it finds hot: not counted
            boot_ours(log, MODES[WARM])
        boot_theirs()
        for _ in range(runs):
            for name, accelerator in MODES.items():
                ours[name].append(boot_ours(log, accelerator))
            theirs.append(boot_theirs())
    rows = []
    for name, bar in BARS.items():
        wall = Row(
            f"command to power-off, {name}",
            "s",
            _sample([run for run, _ in ours[name]], "wall"),
            _sample(theirs, "wall"),
        )
        rows.append(replace(wall, bar=held(f"at most {bar}x", (wall.ratio or 0.0) <= bar)))
    instruction = Sample(tuple(harness.logged(lines, "cpu", "started").time - run.began for run, lines in ours[WARM]))
    started = max(instruction.values) < START_BAR
    runs_warm = [run for run, _ in ours[WARM]]
    rows += [
        Row("to the first instruction", "s", instruction, bar=held(f"every one under {START_BAR} s", started)),
        Row("to the first console byte", "s", _sample(runs_warm, "console"), _sample(theirs, "console")),
        Row("to /init", "s", _sample(runs_warm, "init"), _sample(theirs, "init")),
        Row("to the guest's power-off", "s", _sample(runs_warm, "power off"), _sample(theirs, "power off")),
        Row("teardown after it", "s", _teardown(runs_warm), _teardown(theirs)),
    ]
    return Report(f"Debian boots and powers off, {runs} runs each; phases with the warm cache", rows)


def _sample(runs: Sequence[Run], phase: str) -> Sample:
    return Sample(tuple(run.wall if phase == "wall" else run.marks[phase] for run in runs))


def _teardown(runs: Sequence[Run]) -> Sample:
    return Sample(tuple(run.wall - run.marks["power off"] for run in runs))
