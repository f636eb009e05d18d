"""Small programs in a Linux guest, timed by the guest's own clock: vmesh and QEMU by turns, same kernel, same files.

The programs are in bench/programs/; ziglang cross-compiles them. One boot does each of them a few times, each in a
process of its own; what they compute must be the same in every pass, on both.
"""

from __future__ import annotations

import hashlib
import os
import stat
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from bench import harness
from bench.harness import BenchError, Run
from bench.report import Report, Row, Sample, held
from vmesh import private
from vmesh.guest import initramfs
from vmesh.spawn import python

PROGRAMS: Mapping[str, str] = {
    "sieve": "integers and bytes",
    "fib": "recursion",
    "sha256": "hashing",
    "sort": "qsort with callback",
    "bytecode": "bytecode interpreter",
    "calls": "function pointers",
    "chase": "pointer chasing, 8 MiB",
    "lz": "compression",
    "strings": "copy, measure, search, compare",
    "core": "list, matrix, states, CRC",
    "matmul": "matrices, double",
    "nbody": "bodies, double",
    "fft": "FFT and filter, single",
    "syscalls": "getppid, read",
    "pipes": "two processes, one byte",
    "forks": "a process of 1 MiB",
    "faults": "pages mapped and touched",
}
PASSES = 3
MEAN_BAR = 1.5
LEAST_BAR = 0.8
CLOCK_TOLERANCE = 0.05  # of the time on the host, on top of what the console may be late
CONSOLE_DELAY = 0.3  # seconds
LIMIT_EACH = 60.0  # seconds that a program may take in a boot

_SOURCES = Path(__file__).with_name("programs")
_CPU = "baseline_rv64+m+a+f+d+c+zba+zbb+zbs"
_WARNINGS = ("-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Werror")
_COMPILE = ("-target", "riscv64-linux-musl", f"-mcpu={_CPU}", "-static", "-s", "-O2", *_WARNINGS)
_MARKS = {"begin": b"programs begin ", "end": b"programs end "}
_FLAGS = ("-m", "512M", "-smp", "1")


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass of a job: seconds on the guest's clock, and what it computed."""

    seconds: float
    checksum: str


@dataclass(frozen=True, slots=True)
class Boot:
    """The passes of one boot, in order, by job; seconds from begin to end on both clocks."""

    passes: Mapping[str, Sequence[Pass]]
    guest_seconds: float
    host_seconds: float


def measure(runs: int, only: Sequence[str] = (), vmesh_flags: Sequence[str] = ()) -> Report:
    """Raises BenchError, also where the emulators disagree about a result or the guest's clock is wrong."""
    if unknown := [name for name in only if name not in PROGRAMS]:
        raise BenchError(f"--only: expected programs among {', '.join(PROGRAMS)}, got '{unknown[0]}'")
    names = [name for name in PROGRAMS if name in only or not only]
    with harness.scratch() as scratch:
        flags = [*_FLAGS, *guest_flags(scratch, PASSES, names)]
        ours, theirs = harness.by_turns(
            lambda: boot(harness.ours(*flags, *vmesh_flags), PASSES, names),
            lambda: boot(harness.theirs(*flags), PASSES, names),
            runs,
        )
    for name in names:
        check_checksums(name, ours, theirs)
    return report(names, ours, theirs)


def guest_flags(scratch: Path, passes: int, jobs: Sequence[str], program: Path | None = None) -> list[str]:
    """The flags of a guest that does each job (see programs/main.c) `passes` times and powers off; ``program`` does
    them instead of those of this benchmark."""
    guest = harness.debian()
    assert guest.initrd is not None
    archive = scratch / "programs.cpio"
    archive.write_bytes(with_programs(guest.initrd.read_bytes(), program or build()))
    command = f'quiet vmesh.run="programs {passes} {" ".join(jobs)}"'
    return harness.guest_flags(replace(guest, initrd=archive), command)


def build() -> Path:
    """The programs, one executable for Linux. Raises BenchError."""
    return compiled("programs", sorted(_SOURCES.glob("*.[ch]")))


def compiled(name: str, files: Sequence[Path]) -> Path:
    """The executable made of C sources and headers, from the cache folder or else compiled. Raises BenchError."""
    shape = hashlib.sha256(repr((_COMPILE, version("ziglang"))).encode())
    for file in files:
        shape.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    folder = private.cache_folder("bench")
    path = folder / f"{name}-{shape.hexdigest()[:16]}"
    if path.exists():
        os.close(private.open_file(path, os.O_RDONLY))
        return path
    private.make_folder(folder)
    fresh = path.with_suffix(f".{os.getpid()}")
    sources = [file for file in files if file.suffix == ".c"]
    command = python("ziglang", "cc", *_COMPILE, *map(str, sources), "-o", str(fresh))
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{name} does not compile: {done.stderr.strip()}")
    fresh.replace(path)
    return path


def with_programs(archive: bytes, programs: Path) -> bytes:
    """An initramfs with /bin/programs added: Linux unpacks archives that follow each other into one tree."""
    entry = initramfs.Entry("bin/programs", stat.S_IFREG | 0o755, programs.read_bytes())
    return archive + initramfs.archive(iter([entry]))


def boot(command: Sequence[str], passes: int, jobs: Sequence[str]) -> Boot:
    """Boot such a guest. Raises BenchError unless it does every pass of each job, and its clock is right."""
    done = read(harness.run(command, _MARKS, harness.LIMIT + LIMIT_EACH * len(jobs)), passes, jobs)
    check_clock(done)
    return done


def read(run: Run, passes: int, jobs: Sequence[str]) -> Boot:
    """What a boot printed. Raises BenchError unless `passes` passes are there of each job, as often as it is named."""
    found: dict[str, list[Pass]] = {}
    clock: dict[str, int] = {}
    for words in map(str.split, run.output.decode(errors="replace").splitlines()):
        match words:
            case ["program", job, _, nanoseconds, checksum] if nanoseconds.isdecimal():
                found.setdefault(job, []).append(Pass(int(nanoseconds) / 1e9, checksum))
            case ["programs", "begin" | "end" as edge, nanoseconds] if nanoseconds.isdecimal():
                clock[edge] = int(nanoseconds)
    wanted = {job: passes * jobs.count(job) for job in jobs}
    if clock.keys() != _MARKS.keys() or {job: len(each) for job, each in found.items()} != wanted:
        expected = ", ".join(f"{count} passes of {job}" for job, count in wanted.items())
        raise BenchError(f"expected {expected}, got: {run.output[-2000:]!r}")
    return Boot(found, (clock["end"] - clock["begin"]) / 1e9, run.marks["end"] - run.marks["begin"])


def check_clock(boot: Boot) -> None:
    """Raises BenchError unless as much time passed in the guest as on the host, nearly."""
    if abs(boot.guest_seconds - boot.host_seconds) > CLOCK_TOLERANCE * boot.host_seconds + CONSOLE_DELAY:
        both = f"{boot.guest_seconds:.2f} s in the guest, {boot.host_seconds:.2f} s on the host"
        raise BenchError(f"the guest's clock is wrong: {both}")


def check_checksums(name: str, ours: Sequence[Boot], theirs: Sequence[Boot]) -> None:
    """Raises BenchError unless a program computed one and the same in every pass of all boots, however many of it."""
    mine, qemus = (
        {
            each.checksum
            for boot in boots
            for job, passes in boot.passes.items()
            if f"{job}:".startswith(f"{name}:")
            for each in passes
        }
        for boots in (ours, theirs)
    )
    if len(mine | qemus) != 1:
        raise BenchError(f"{name}: expected one result, got {sorted(mine)} on vmesh, {sorted(qemus)} on QEMU")


def report(names: Sequence[str], ours: Sequence[Boot], theirs: Sequence[Boot]) -> Report:
    """Speeds, so that the ratio is QEMU's time over ours: above 1 is faster than QEMU."""
    rows = []
    for name in names:
        rows.append(Row(f"{name}: {PROGRAMS[name]}", "1/s", _speeds(name, ours), _speeds(name, theirs)))
    ratios = {name: row.ratio or 0.0 for name, row in zip(names, rows, strict=True)}
    mean = statistics.geometric_mean(ratios.values())
    least = min(ratios, key=lambda name: ratios[name])
    first, fastest = (
        statistics.geometric_mean(seconds(name, theirs) / seconds(name, ours) for name in names)
        for seconds in (_first, _fastest)
    )
    rows += [
        Row("geometric mean", "x QEMU", Sample((mean,)), bar=held(f"at least {MEAN_BAR}", mean >= MEAN_BAR)),
        Row(
            f"least: {least}",
            "x QEMU",
            Sample((ratios[least],)),
            bar=held(f"none below {LEAST_BAR}", ratios[least] >= LEAST_BAR),
        ),
        Row("geometric mean of the first passes", "x QEMU", Sample((first,))),
        Row("geometric mean of the fastest passes", "x QEMU", Sample((fastest,))),
        Row("guest's clock/host's clock", "", _clock(ours), _clock(theirs), digits=3),
    ]
    notes = ["Passes a second by the guest's clock; every pass of every boot computed the same on both."]
    return Report(f"Programs in a Linux guest, {len(ours)} boots each, {PASSES} passes a boot", rows, notes)


def _speeds(name: str, boots: Sequence[Boot]) -> Sample:
    return Sample(tuple(1 / each.seconds for boot in boots for each in boot.passes[name]))


def _first(name: str, boots: Sequence[Boot]) -> float:
    """Median seconds of the first pass, in which code is still to be translated."""
    return statistics.median(boot.passes[name][0].seconds for boot in boots)


def _fastest(name: str, boots: Sequence[Boot]) -> float:
    """Seconds of the pass that the host's other work disturbed least."""
    return min(each.seconds for boot in boots for each in boot.passes[name])


def _clock(boots: Sequence[Boot]) -> Sample:
    return Sample(tuple(boot.guest_seconds / boot.host_seconds for boot in boots))
