"""Two harts on two cores: how much more independent work they do than one, vmesh and QEMU (MTTCG) by turns.

A Linux guest with `-smp 2` does programs of bench/programs/, each as one instance alone and as two at the same time,
from the first start to the last end by the guest's clock. What counts is the work rate of two over that of one. The
cache of compiled code is warm: from a boot before, which is not counted.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence

from bench import harness, programs
from bench.harness import BenchError
from bench.programs import Boot
from bench.report import Report, Row, Sample, held

PROGRAMS = ("fib", "sieve", "bytecode", "matmul")
PASSES = 5
GAIN_BAR = 1.8

_FLAGS = ("-m", "512M", "-smp", "2")


def measure(runs: int) -> Report:
    """Raises BenchError, also where the host has one core, the emulators disagree or the guest's clock is wrong."""
    if (cores := len(os.sched_getaffinity(0))) < 2:
        raise BenchError(f"harts: expected a host with at least 2 cores, got {cores}")
    # One and two by turns: what disturbs the host then disturbs both.
    jobs = [_job(name, instances) for name in PROGRAMS for instances in (1, 2)] * PASSES
    with harness.scratch() as scratch:
        flags = [*_FLAGS, *programs.guest_flags(scratch, 1, jobs)]
        programs.boot(harness.ours(*flags), 1, jobs)
        ours, theirs = harness.by_turns(
            lambda: programs.boot(harness.ours(*flags), 1, jobs),
            lambda: programs.boot(harness.theirs(*flags), 1, jobs),
            runs,
        )
    for name in PROGRAMS:
        programs.check_checksums(name, ours, theirs)
    return report(ours, theirs)


def report(ours: Sequence[Boot], theirs: Sequence[Boot]) -> Report:
    rows = []
    for name in PROGRAMS:
        rows += [
            Row(f"{name}: one instance", "1/s", _rates(name, 1, ours), _rates(name, 1, theirs)),
            Row(f"{name}: two instances", "1/s", _rates(name, 2, ours), _rates(name, 2, theirs)),
            Row(f"{name}: two/one", "x", _gains(name, ours), _gains(name, theirs)),
        ]
    gain, their_gain = (statistics.median(_gains(name, boots).median for name in PROGRAMS) for boots in (ours, theirs))
    bar = held(f"at least {GAIN_BAR}", gain >= GAIN_BAR)
    rows.append(Row("two/one, median of the programs", "x", Sample((gain,)), Sample((their_gain,)), bar=bar))
    notes = ["Work done a second by the guest's clock; every instance computed the same on both."]
    return Report(f"Two harts in a Linux guest, {len(ours)} boots each, {PASSES} passes a boot", rows, notes)


def _rates(name: str, instances: int, boots: Sequence[Boot]) -> Sample:
    """Work of one instance done a second, of each pass."""
    return Sample(tuple(instances / each.seconds for boot in boots for each in boot.passes[_job(name, instances)]))


def _gains(name: str, boots: Sequence[Boot]) -> Sample:
    """Of each pass of two and the pass of one just before it."""
    one, two = (_rates(name, instances, boots).values for instances in (1, 2))
    return Sample(tuple(after / before for before, after in zip(one, two, strict=True)))


def _job(name: str, instances: int) -> str:
    """As programs/main.c takes it."""
    return f"{name}:{instances}"
