"""Run benchmarks, one after the other, and print what they measured beside QEMU's figures."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from rich.console import Console

from bench import (
    apart,
    block,
    boot,
    bus,
    cpu,
    crashes,
    doors,
    failing_operations,
    gdb,
    harness,
    harts,
    hosts,
    jit,
    kills,
    memory,
    migration,
    migration_faults,
    moves,
    net,
    partitions,
    programs,
)
from bench.harness import BenchError
from bench.report import Report

BENCHMARKS: Mapping[str, tuple[Callable[[int], Report], int]] = {  # what measures, and its usual number of runs
    "apart": (apart.measure, 3),
    "block": (block.measure, 3),
    "boot": (boot.measure, 5),
    "bus": (bus.measure, 1),
    "cpu": (cpu.measure, 3),
    "crashes": (crashes.measure, 20),  # machines in all
    "doors": (doors.measure, 5),
    "failing_operations": (failing_operations.measure, 200),  # operations that fail, at least
    "gdb": (gdb.measure, 3),
    "harts": (harts.measure, 3),
    "hosts": (hosts.measure, 5),
    "jit": (jit.measure, 3),
    "kills": (kills.measure, 200),  # kills in all
    "memory": (memory.measure, 1),
    "migration": (migration.measure, 5),
    "migration_faults": (migration_faults.measure, 300),  # faults in all
    "moves": (moves.measure, 50),  # moves in all
    "net": (net.measure, 3),
    "partitions": (partitions.measure, 1),
    "programs": (programs.measure, 5),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -P -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; default: all of them")
    parser.add_argument("--runs", type=int, metavar="N", help="repetitions, instead of each benchmark's own number")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value there too")
    parser.add_argument("--only", metavar="NAME,...", help="programs, kills, migration_faults: these alone")
    parser.add_argument("--vmesh-flags", default="", metavar="FLAGS", help="programs: flags for `vmesh run` as well")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in BENCHMARKS]:
        parser.error(f"expected one of {', '.join(BENCHMARKS)}, got '{unknown[0]}'")
    if arguments.runs is not None and arguments.runs < 1:
        parser.error("--runs: expected at least 1")
    console = Console()
    # Lines are kept whole where nobody looks at them.
    console = console if console.is_terminal else Console(width=160)
    reports: dict[str, Report] = {}
    try:
        where = _where()
        console.print(where, highlight=False)
        console.print("Medians (range); the host may be busy with other things: trust the ratios.\n", highlight=False)
        for name in arguments.names or BENCHMARKS:
            measure, runs = BENCHMARKS[name]
            only = arguments.only.split(",") if arguments.only else ()
            if measure in (kills.measure, migration_faults.measure):
                measure = partial(measure, only=only)
            if measure is programs.measure:
                measure = partial(measure, only=only, vmesh_flags=shlex.split(arguments.vmesh_flags))
            reports[name] = measure(arguments.runs or runs)
            reports[name].print(console)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        data = {"where": where, "benchmarks": {name: report.data() for name, report in reports.items()}}
        arguments.json.write_text(json.dumps(data, indent=1) + "\n")
    return 0


def _where() -> str:
    version = subprocess.run([harness.qemu(), "--version"], capture_output=True, text=True, check=True).stdout
    day = datetime.date.today().isoformat()
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    python = platform.python_version()
    return f"{day}, {_processor()}, {cores} cores, load {load:.1f}, Python {python}; {version.splitlines()[0]}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
