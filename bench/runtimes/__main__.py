"""Node and OpenJDK in a Debian guest, timed by the guest's clock: vmesh and QEMU by turns, same kernel, same disk.

    vmesh guest image --package nodejs --package openjdk-21-jdk-headless --size 3G jit.img
    python -P -m bench.runtimes --image jit.img --runs 3

The disk is copied; init.sh, which is the copy's first process, says what is run. Needs e2fsprogs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from bench import harness, programs
from bench.harness import BenchError
from bench.programs import Boot
from bench.report import Report, Row, Sample, held

JOBS: Mapping[str, str] = {
    "node_start": "node -e",
    "node_compute": "node computes",
    "java_start": "java -version",
    "javac": "javac",
    "java_compute": "java computes",
}
PASSES = 3
NODE_BAR, JAVA_BAR = 1.2, 2.0
LIMIT = 1800.0

_FILES = Path(__file__).parent
_MARKS = {"begin": b"programs begin ", "end": b"programs end "}


def prepared(image: Path, scratch: Path) -> Path:
    """A copy of the disk with what is run in it. Raises BenchError."""
    disk = scratch / "disk.img"
    subprocess.run(["cp", "--sparse=always", str(image), str(disk)], check=True)
    commands = ["mkdir bench", "cd bench"]
    for name in ("init.sh", "compute.js", "Compute.java"):
        commands += [f"write {_FILES / name} {name}", f"sif {name} mode 0100755"]
    done = subprocess.run(
        ["/sbin/debugfs", "-w", "-f", "-", str(disk)],
        input="\n".join(commands),
        text=True,
        check=False,
        capture_output=True,
    )
    if done.returncode:
        raise BenchError(f"debugfs: {done.stderr.strip()}")
    return disk


def boot(command: Sequence[str]) -> Boot:
    return programs.read(harness.run(command, _MARKS, LIMIT), PASSES, list(JOBS))


def measure(image: Path, runs: int, harts: int) -> Report:
    """Raises BenchError, also where the emulators disagree about a result."""
    with harness.scratch() as scratch:
        disk = prepared(image, scratch)
        drive = f"file={disk},format=raw,if=none,id=d,snapshot=on"
        flags = ["-m", "2G", "-smp", str(harts), "-drive", drive, "-device", "virtio-blk-device,drive=d"]
        # OpenJDK refuses Sv57, which QEMU's cpu has by default: Linux is told to do with less on both.
        flags += harness.guest_flags(harness.debian(), "quiet no5lvl root=/dev/vda init=/bench/init.sh")
        ours, theirs = harness.by_turns(lambda: boot(harness.ours(*flags)), lambda: boot(harness.theirs(*flags)), runs)
    for name in JOBS:
        programs.check_checksums(name, ours, theirs)
    return report(ours, theirs)


def report(ours: Sequence[Boot], theirs: Sequence[Boot]) -> Report:
    """Speeds, so that the ratio is QEMU's time over ours."""
    rows = []
    for name, what in JOBS.items():
        rows.append(Row(what, "1/s", _speeds(name, ours), _speeds(name, theirs), digits=3))
    for language, least in (("Node", NODE_BAR), ("Java", JAVA_BAR)):
        names = [f"{language.lower()}_start", f"{language.lower()}_compute"]
        ratio = statistics.geometric_mean(
            row.ratio or 0.001 for name, row in zip(JOBS, rows, strict=False) if name in names
        )
        bar = held(f"at least {least}", ratio >= least)
        rows.append(Row(f"{language}, its start and computing", "x QEMU", Sample((ratio,)), bar=bar))
    return Report(f"Node and OpenJDK in a Debian guest, {len(ours)} boots each, {PASSES} passes a boot", rows)


def _speeds(name: str, boots: Sequence[Boot]) -> Sample:
    return Sample(tuple(1 / each.seconds for boot in boots for each in boot.passes[name]))


def main() -> int:
    verbatim = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(prog="bench.runtimes", description=__doc__, formatter_class=verbatim)
    parser.add_argument("--image", type=Path, required=True, help="a disk with Debian, nodejs and a JDK")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--smp", type=int, default=2)
    options = parser.parse_args()
    try:
        measure(options.image, options.runs, options.smp).print(Console())
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
