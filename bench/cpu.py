"""Plain loops in a paged guest (S-mode, Sv39, 4 KiB pages), timed by the guest itself.

The guest is in bench/guest/; ziglang cross-compiles it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import harness
from bench.harness import BenchError
from bench.report import Report, Row, Sample, held
from vmesh.spawn import python

MIPS_BAR = 300.0

_SOURCES = Path(__file__).with_name("guest")
_TICK = 1e-7  # seconds; the board's timebase is 10 MHz
_PLAIN = {"alu": "arithmetic", "memory": "loads and stores over 4 pages", "branch": "data-dependent branches",
          "call": "calls and returns"}  # fmt: skip
_DOUBLE = "double"
LOOPS = {**_PLAIN, _DOUBLE: "floating point, double"}
_DEVICES = {"shadow": "read of a shadow register (LSR)", "sync": "read that only the device answers (RTC)"}


def build(directory: Path) -> Path:
    """The guest's ELF. Raises BenchError."""
    elf = directory / "loops.elf"
    flags = [
        "-target",
        "riscv64-freestanding-none",
        "-mcpu=baseline_rv64",
        "-mcmodel=medany",
        "-nostdlib",
        "-static",
        "-O1",
    ]
    files = [_SOURCES / "loops.S", _SOURCES / "main.c"]
    link = f"-Wl,-T,{_SOURCES / 'link.ld'}"
    command = python("ziglang", "cc", *flags, link, *map(str, files), "-o", str(elf))
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"the guest does not compile: {done.stderr.strip()}")
    return elf


def measure(runs: int) -> Report:
    with harness.scratch() as scratch:
        flags = ("-bios", "none", "-kernel", str(build(scratch)))
        ours, theirs = harness.by_turns(
            lambda: run(harness.ours(*flags, "-accel", "tcg,translate=off")),
            lambda: run(harness.theirs(*flags)),
            runs,
        )
    rows = []
    for name, what in LOOPS.items():
        rate, their_rate = (_sample(each, name, lambda seconds: 1e-6 / seconds) for each in (ours, theirs))
        bar = held(f"at least {MIPS_BAR:g}", rate.median >= MIPS_BAR) if name in _PLAIN else ""
        rows.append(Row(what, "MIPS", rate, their_rate, digits=0, bar=bar))
    for name, what in _DEVICES.items():
        time, their_time = (_sample(each, name, lambda seconds: 1e6 * seconds) for each in (ours, theirs))
        rows.append(Row(what, "µs", time, their_time, digits=3))
    notes = [
        "QEMU compiles these loops to host code; vmesh interprets them here. The translator is measured by `programs`."
    ]
    return Report(f"Plain loops in a paged guest, {runs} runs of 3 passes", rows, notes)


def run(command: Sequence[str]) -> dict[str, list[float]]:
    """Seconds for one piece of work, of each pass, by loop."""
    return results(harness.run(command, {}).output.decode())


def results(output: str) -> dict[str, list[float]]:
    """What the guest has printed, as `run` gives it. Raises BenchError."""
    found: dict[str, list[float]] = {}
    for words in map(str.split, output.splitlines()):
        if len(words) == 3:
            found.setdefault(words[0], []).append(int(words[2]) * _TICK / int(words[1]))
    if found.keys() != {*_PLAIN, _DOUBLE, *_DEVICES}:
        raise BenchError(f"unexpected output: {output!r}")
    return found


def _sample(runs: Sequence[dict[str, list[float]]], name: str, convert: Callable[[float], float]) -> Sample:
    return Sample(tuple(convert(seconds) for run in runs for seconds in run[name]))
