"""Runs emulators as a user would, and notes when what came out on the console."""

from __future__ import annotations

import datetime
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vmesh import guest
from vmesh.guest import Guest

VMESH = Path(sys.executable).with_name("vmesh")
A = TypeVar("A")
B = TypeVar("B")
LIMIT = 180.0  # seconds that one run may take, where its benchmark does not say otherwise


class BenchError(Exception):
    """A benchmark that cannot go on; the message is one line."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run: seconds from its command to each mark on its console, to its end, and what it printed."""

    began: float  # time.time()
    wall: float
    marks: Mapping[str, float]
    output: bytes


def qemu() -> str:
    path = shutil.which("qemu-system-riscv64")
    if path is None:
        raise BenchError("qemu-system-riscv64 is not installed (make test-peers)")
    return path


def debian() -> Guest:
    found = guest.find()
    if found is None:
        raise BenchError("Debian's guest is not cached (make guest)")
    return found


def guest_flags(what: Guest, append: str = "") -> list[str]:
    """The flags that both emulators get, so that both boot the same."""
    flags = ["-bios", what.bios, "-kernel", str(what.kernel), "-append", f"{what.append} {append}".strip()]
    return flags + (["-initrd", str(what.initrd)] if what.initrd else [])


def ours(*flags: str) -> list[str]:
    return [str(VMESH), "run", "-nographic", *flags]


def theirs(*flags: str) -> list[str]:
    return [qemu(), "-machine", "virt", "-nographic", *flags]


def run(command: Sequence[str], marks: Mapping[str, bytes], limit: float = LIMIT) -> Run:
    """Run to the end, at most `limit` seconds, with nothing to read.

    A mark is the text whose coming is noted; empty text: the first byte. Raises BenchError if the command fails, takes
    too long, or a mark does not come.
    """
    found: dict[str, float] = {}
    output = bytearray()
    began, start = time.time(), time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            while True:
                ready, _, _ = select.select([process.stdout], [], [], max(0.0, start + limit - time.monotonic()))
                if not ready:
                    raise BenchError(f"not done after {limit:g} s: {' '.join(command)}")
                part = os.read(process.stdout.fileno(), 65536)
                now = time.monotonic() - start
                if not part:
                    break
                output += part
                for name, text in marks.items():
                    if name not in found and text in output:
                        found[name] = now
            status = process.wait(limit)
            wall = time.monotonic() - start
            said = process.stderr.read().decode(errors="replace").strip()
        finally:
            process.kill()
    if status or found.keys() != marks.keys():
        missing = ", ".join(marks.keys() - found.keys())
        raise BenchError(f"status {status}, not seen: {missing or 'nothing'}; it said '{said}': {' '.join(command)}")
    return Run(began, wall, found, bytes(output))


@contextmanager
def kept(command: Sequence[str], until: bytes) -> Iterator[int]:
    """A machine whose console has shown `until`, for a `with` block: the pid of its command. Ends with SIGTERM."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            output = b""
            deadline = time.monotonic() + LIMIT
            while until not in output:
                if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    raise BenchError(f"not seen after {LIMIT:g} s: {until!r}")
                part = os.read(process.stdout.fileno(), 65536)
                if not part:
                    raise BenchError(f"ended before {until!r}: {' '.join(command)}")
                output += part
            yield process.pid
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours, by force if it does not go."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vmesh-bench-") as path:
        yield Path(path)


def by_turns(ours: Callable[[], A], theirs: Callable[[], B], runs: int) -> tuple[list[A], list[B]]:
    """Do the two by turns, `runs` times: what disturbs the host then disturbs both."""
    pairs = [(ours(), theirs()) for _ in range(runs)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


_LINE = re.compile(
    r"(?P<time>\S+)Z (?P<level>\w+) (?P<service>\S+) (?P<event>.*?)(?P<fields>( \w+=(\"[^\"]*\"|\S+))*)$"
)


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a machine's log, see vmesh.log; `time` as of time.time()."""

    time: float
    service: str
    event: str
    fields: Mapping[str, str]


def read_log(path: Path) -> list[LogLine]:
    lines = []
    for match in filter(None, map(_LINE.match, path.read_text().splitlines())):
        when = datetime.datetime.fromisoformat(match["time"] + "+00:00").timestamp()
        fields = dict(re.findall(r" (\w+)=(\"[^\"]*\"|\S+)", match["fields"]))
        lines.append(LogLine(when, match["service"], match["event"], fields))
    return lines


def logged(lines: Sequence[LogLine], service: str, event: str) -> LogLine:
    """The first such line. Raises BenchError."""
    for line in lines:
        if (line.service, line.event) == (service, event):
            return line
    raise BenchError(f"the log has no line '{service} {event}'")
