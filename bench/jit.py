"""Compilers in a Linux guest: code that is written and run, fences for all harts, mprotect, membarrier.

bench/jit.c says what each job does. One boot for each number of harts; a job's spinners are threads that keep as many
other harts busy. vmesh and QEMU by turns, same kernel, same program, timed by the guest's clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from bench import harness, programs
from bench.programs import Boot
from bench.report import Report, Row, Sample, held

#: What each job does so many times a pass: for some tenths of a second, once it is warm.
JOBS: Mapping[str, tuple[str, int]] = {
    "fence": ("FENCE.I, nothing written", 2_000_000),
    "rewrite": ("4 instructions written, fenced, called", 200_000),
    "large": ("a page written, fenced, called", 4_000),
    "compiler": ("a function written beside others, and calls", 6_000),
    "beside": ("a call of code that counts in its own page", 1_000_000),
    "rewrite_all": ("4 instructions written, flushed on all harts, called", 200_000),
    "flush": ("instruction caches flushed on all harts", 200_000),
    "mprotect": ("a page made writable, written, made executable, called", 50_000),
    "membarrier": ("membarrier, private expedited", 200_000),
}
LOCAL = ("fence", "rewrite", "large", "compiler", "beside")
REMOTE = ("rewrite_all", "flush", "mprotect", "membarrier")
#: Of the harts that a remote job has to ask, so many times fewer a pass: by the number of spinners.
FEWER: Mapping[int, int] = {0: 1, 1: 10, 3: 100}
#: By number of harts: spinners, and what is done beside them.
PLANS: Mapping[int, Sequence[tuple[int, Sequence[str]]]] = {
    1: ((0, (*LOCAL, *REMOTE)),),
    2: ((0, REMOTE), (1, (*LOCAL, *REMOTE))),
    4: ((1, REMOTE), (3, REMOTE)),
}
PASSES = 3
LEAST_BAR = 1.0

_SOURCE = Path(__file__).with_name("jit.c")


def measure(runs: int) -> Report:
    """Raises BenchError, also where the emulators disagree about a result or the guest's clock is wrong."""
    rows = []
    program = programs.compiled("jit", [_SOURCE])
    for harts, plan in PLANS.items():
        jobs = [_job(name, spinners) for spinners, names in plan for name in names]
        with harness.scratch() as scratch:
            flags = ["-m", "512M", "-smp", str(harts), *programs.guest_flags(scratch, PASSES, jobs, program)]
            ours, theirs = harness.by_turns(
                partial(programs.boot, harness.ours(*flags), PASSES, jobs),
                partial(programs.boot, harness.theirs(*flags), PASSES, jobs),
                runs,
            )
        for name in {job.rpartition(":")[0] for job in jobs}:
            programs.check_checksums(name, ours, theirs)
        rows += [_row(harts, job, ours, theirs) for job in jobs]
    return report(rows, runs)


def report(rows: Sequence[Row], runs: int) -> Report:
    least = min(rows, key=lambda row: row.ratio or 0.0)
    ratio = least.ratio or 0.0
    bar = held(f"none below {LEAST_BAR}", ratio >= LEAST_BAR)
    last = Row(f"least: {least.what}", "x QEMU", Sample((ratio,)), bar=bar)
    notes = ["Thousands a second by the guest's clock, so that more is better; all computed the same on both."]
    return Report(f"Compilers in a Linux guest, {runs} boots each, {PASSES} passes a boot", [*rows, last], notes)


def _job(name: str, spinners: int) -> str:
    count = JOBS[name][1] // (FEWER[spinners] if name in REMOTE else 1)
    return f"{name}:{count}:{spinners}"


def _row(harts: int, job: str, ours: Sequence[Boot], theirs: Sequence[Boot]) -> Row:
    name, count, spinners = job.split(":")
    title = f"{harts} harts, {spinners} busy: {JOBS[name][0]}"
    return Row(title, "1000/s", _rates(int(count), job, ours), _rates(int(count), job, theirs))


def _rates(count: int, job: str, boots: Sequence[Boot]) -> Sample:
    return Sample(tuple(count / each.seconds / 1000 for boot in boots for each in boot.passes[job]))
