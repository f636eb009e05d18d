"""A disk in a Linux guest: sequential and random access through virtio-blk, vmesh and QEMU by turns, a raw image each.

bench/block.c does the work in the guest and times it by the guest's clock. The images lie in the host's page cache, so
that what is measured is the way there and not the host's disk.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import harness, programs
from bench.harness import BenchError
from bench.report import Report, Row, Sample, held
from vmesh.guest import initramfs

SIZE = 512 << 20  # of the disk
SEQUENTIAL_BAR = 0.5

_SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = ("-m", "512M", "-smp", "1")
_MARKS = {"begin": b"block begin", "end": b"block end"}


@dataclass(frozen=True, slots=True)
class Job:
    """What is measured; `block` bytes a request, `rate` in MiB a second rather than in requests."""

    what: str
    block: int
    rate: bool


JOBS: Mapping[str, Job] = {
    "read": Job("sequential read, 128 KiB", 128 << 10, True),
    "write": Job("sequential write, 128 KiB", 128 << 10, True),
    "buffered": Job("sequential read, 128 KiB, page cache", 128 << 10, True),
    "random-read": Job("random read, 4 KiB, depth 1", 4096, False),
    "random-write": Job("random write, 4 KiB, depth 1", 4096, False),
    "deep-read": Job("random read, 4 KiB, depth 32", 4096, False),
    "deep-write": Job("random write, 4 KiB, depth 32", 4096, False),
}


def measure(runs: int) -> Report:
    """Raises BenchError."""
    with harness.scratch() as scratch:
        flags = [*_FLAGS, *_guest_flags(scratch)]
        ours, theirs = (_disk(scratch / name) for name in ("vmesh.img", "qemu.img"))
        pairs = harness.by_turns(
            lambda: boot(harness.ours(*flags, *_drive(ours))),
            lambda: boot(harness.theirs(*flags, *_drive(theirs))),
            runs,
        )
    return report(*pairs)


def boot(command: Sequence[str]) -> Mapping[str, tuple[int, float]]:
    """Bytes and seconds of each job in one boot. Raises BenchError unless all are there."""
    output = harness.run(command, _MARKS).output.decode(errors="replace")
    found = {}
    for words in map(str.split, output.splitlines()):
        match words:
            case ["block", job, size, nanoseconds] if size.isdecimal() and nanoseconds.isdecimal():
                found[job] = (int(size), int(nanoseconds) / 1e9)
    if found.keys() != JOBS.keys():
        raise BenchError(f"expected {', '.join(JOBS)}, got: {output[-2000:]!r}")
    return found


def report(
    ours: Sequence[Mapping[str, tuple[int, float]]], theirs: Sequence[Mapping[str, tuple[int, float]]]
) -> Report:
    rows = []
    for name, job in JOBS.items():
        row = Row(job.what, "MiB/s" if job.rate else "1/s", _rates(name, ours), _rates(name, theirs), digits=0)
        if name in ("read", "write"):
            bar = held(f"at least {SEQUENTIAL_BAR}x", (row.ratio or 0.0) >= SEQUENTIAL_BAR)
            row = replace(row, bar=bar)
        rows.append(row)
    return Report(f"virtio-blk on a raw image in the host's page cache, {len(ours)} boots each", rows)


def _rates(name: str, boots: Sequence[Mapping[str, tuple[int, float]]]) -> Sample:
    unit = 1 << 20 if JOBS[name].rate else JOBS[name].block
    return Sample(tuple(size / unit / seconds for size, seconds in (boot[name] for boot in boots)))


def _guest_flags(scratch: Path) -> list[str]:
    guest = harness.debian()
    assert guest.initrd is not None
    program = programs.compiled("block", [_SOURCE])
    entry = initramfs.Entry("bin/block", stat.S_IFREG | 0o755, program.read_bytes())
    archive = scratch / "block.cpio"
    archive.write_bytes(guest.initrd.read_bytes() + initramfs.archive(iter([entry])))
    return harness.guest_flags(replace(guest, initrd=archive), 'quiet vmesh.run="block /dev/vda"')


def _drive(image: Path) -> list[str]:
    return ["-drive", f"file={image},format=raw,if=none,id=d", "-device", "virtio-blk-device,drive=d"]


def _disk(path: Path) -> Path:
    with path.open("wb") as file:
        for _ in range(SIZE >> 20):
            file.write(bytes(range(256)) * 4096)
    return path
