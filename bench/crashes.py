"""Kills whole machines while their guest writes files to a disk, and looks what is there afterwards.

The guest writes files of random content, has each flushed to the disk (fsync), and says its number and SHA-256. At a
random moment every process of the machine is killed. After that the journal is replayed and the file system checked
(e2fsprogs), and every file that was said must be there as it was said. The host itself goes on, so
whether the host's own disk has it this cannot show.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench import harness
from bench.harness import BenchError
from bench.report import Report, Row, Sample

DISKS = ("format=raw", "format=raw,cache=writethrough", "format=qcow2")
_DISK = "48M"
_SECONDS = (0.3, 3.0)  # from the first file to the end
_PROMPT = b"~ # "
_WRITE = (
    "mount -t ext4 /dev/vda /mnt && i=0",
    "keep() { dd if=/dev/urandom of=/mnt/f$i bs=5k count=$((i%9+1)) conv=fsync; }",
    "say() { echo kept $i $(sha256sum </mnt/f$i); }",
    "while keep 2>/dev/null; do say; i=$((i+1)); done",
)
_SAID = re.compile(rb"kept (\d+) ([0-9a-f]{64}) -\r\n")


@dataclass(frozen=True, slots=True)
class Crash:
    """What one machine's end has left: how many files were said, and what is wrong with them or the file system."""

    said: int
    wrong: Sequence[str]


def measure(runs: int) -> Report:
    """`runs` machines, by turns on each of DISKS. Raises BenchError if something is wrong."""
    require_tools()
    seed = secrets.randbits(32)
    files: dict[str, list[int]] = defaultdict(list)
    for number in range(runs):
        disk = DISKS[number % len(DISKS)]
        with harness.scratch() as scratch:
            done = crash(scratch, disk, random.Random(seed + number))
        if done.wrong:
            raise BenchError(f"machine {number} of seed {seed}, {disk}: {'; '.join(done.wrong[:3])}")
        files[disk].append(done.said)
    rows = [
        Row(f"{disk}: {len(counts)} ends; files flushed before, all there", "count", Sample(tuple(counts)), digits=0)
        for disk, counts in files.items()
    ]
    return Report(f"{runs} kills of whole machines during writes (seed {seed})", rows)


def require_tools() -> None:
    """Raises BenchError, naming the package."""
    for program, package in (("mke2fs", "e2fsprogs"), ("e2fsck", "e2fsprogs"), ("debugfs", "e2fsprogs"), *_QEMU):
        if _tool(program) is None:
            raise BenchError(f"{program} is not installed (Debian's package {package})")


_QEMU = (("qemu-img", "qemu-utils"), ("qemu-nbd", "qemu-utils"))


def crash(scratch: Path, disk: str, chance: random.Random) -> Crash:
    """One machine on a disk of that kind, from its start to its end. Raises BenchError if it does not write."""
    raw, path = scratch / "raw", scratch / "disk"
    raw.touch()
    _run("mke2fs", "-q", "-F", "-t", "ext4", str(raw), _DISK)
    form = disk.partition("format=")[2].partition(",")[0]
    _run("qemu-img", "convert", "-f", "raw", "-O", form, str(raw), str(path))
    with tempfile.TemporaryDirectory(prefix="vmesh-crash-") as runtime:
        environment = {**os.environ, "VMESH_RUNTIME": runtime}
        flags = ("-m", "512M", "-append", "loglevel=1", "-drive", f"file={path},{disk}")
        output = _killed(harness.ours(*flags), environment, chance)
    _run("qemu-img", "convert", "-f", form, "-O", "raw", str(path), str(raw))
    return _look(raw, scratch / "files", {int(number): sha.decode() for number, sha in _SAID.findall(output)})


def _killed(command: Sequence[str], environment: dict[str, str], chance: random.Random) -> bytes:
    """What a machine has said until it was killed."""
    with tempfile.TemporaryFile() as sink, subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=sink, stderr=subprocess.STDOUT, env=environment
    ) as machine:  # fmt: skip
        assert machine.stdin is not None

        def until(pattern: re.Pattern[bytes]) -> None:
            deadline = time.monotonic() + harness.LIMIT
            while not pattern.search(os.pread(sink.fileno(), 1 << 24, 0)):
                if machine.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(
                        f"no {pattern.pattern!r} of the machine: {os.pread(sink.fileno(), 1 << 16, 0)[-500:]!r}"
                    )
                time.sleep(0.02)

        try:
            until(re.compile(re.escape(_PROMPT)))
            for line in _WRITE:
                machine.stdin.write(line.encode() + b"\n")
                machine.stdin.flush()
            until(_SAID)
            time.sleep(chance.uniform(*_SECONDS))
        finally:
            kill_all(f"VMESH_RUNTIME={environment['VMESH_RUNTIME']}")
        return os.pread(sink.fileno(), 1 << 24, 0)


def kill_all(mark: str) -> None:
    """Kill every process with `mark` in its environment, until there is none. Raises BenchError."""
    deadline = time.monotonic() + harness.LIMIT
    while pids := [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _has(pid, mark.encode())]:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise BenchError(f"processes do not end: {pids}")


def _has(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _look(raw: Path, folder: Path, said: dict[int, str]) -> Crash:
    wrong = []
    _run("e2fsck", "-y", "-E", "journal_only", str(raw))
    checked = subprocess.run([_tool("e2fsck") or "", "-fn", str(raw)], capture_output=True, text=True, check=False)
    if checked.returncode:
        wrong.append(f"e2fsck: {checked.stdout.strip()}")
    folder.mkdir()
    _run("debugfs", "-R", f"rdump / {folder}", str(raw))
    for number, sha in said.items():
        file = folder / f"f{number}"
        content = file.read_bytes() if file.exists() else b""
        if hashlib.sha256(content).hexdigest() != sha:
            wrong.append(f"file {number} of {len(said)}: {len(content)} bytes that are not those that were flushed")
    return Crash(len(said), wrong)


def _tool(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _run(program: str, *arguments: str) -> None:
    done = subprocess.run([_tool(program) or program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # 1: e2fsck has done what it was to do
        raise BenchError(f"{program} failed: {(done.stderr or done.stdout).strip()[-300:]}")
