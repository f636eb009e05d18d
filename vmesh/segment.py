"""Shared memory segments: files of fixed size, on tmpfs as a rule, that services map; page flags beside them."""

from __future__ import annotations

import errno
import mmap
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vmesh import errors, mapping

if TYPE_CHECKING:
    from vmesh.v1.memory_pb2 import Segment

PAGE = 4096

# The arrays of the flags file (proto/vmesh/v1/memory.proto: Segment).
FLAG_PRESENT = 0
FLAG_DIRTY = 1
FLAG_HOLDS_CODE = 2
CODE_NEWS = 3  # no flags: eight bytes
FLAG_ARRAYS = 4
# Values of FLAG_HOLDS_CODE that devices know.
CODE_FREE = 0
CODE_WRITTEN = 2


def amount(size: int) -> str:
    """So many bytes, exactly, as people say it."""
    for shift, unit in ((20, "MiB"), (10, "KiB")):
        if size and not size % (1 << shift):
            return f"{size >> shift} {unit}"
    return f"{size} bytes"


def create(path: Path, size: int) -> None:
    """Make a sparse file of `size` bytes, readable by its owner only; it takes host memory as it is written to.

    Raises HostLimit if the host could not hold it when full, ConfigError if it cannot be made.
    """
    room = available(path.parent)
    if size > room:
        raise errors.HostLimit(
            f"cannot make {path.name}: the host has too little memory",
            expected=f"at most {room} bytes ({room >> 20} MiB) in {path.parent}",
            got=f"{size} bytes ({size >> 20} MiB)",
        )
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)
    except OSError as error:
        raise errors.ConfigError(f"cannot make {path}: {error.strerror}") from error


def adopt(theirs: Path, path: Path, size: int) -> None:
    """Give the file of another machine of this host a second name. Raises ConfigError unless it has `size` bytes."""
    try:
        found = theirs.stat().st_size
        if found != size:
            what = f"memory of machine '{theirs.parent.name}'"
            raise errors.ConfigError(what, expected=f"{amount(size)} of RAM (-m)", got=amount(found))
        os.link(theirs, path, follow_symlinks=False)
    except OSError as error:
        raise errors.ConfigError(f"cannot adopt {theirs}: {error.strerror}") from error


def available(directory: Path) -> int:
    """How many bytes a file in `directory` could grow to now: what the file system and, on tmpfs, the memory leave."""
    status = os.statvfs(directory)
    room = status.f_bavail * status.f_frsize
    with open("/proc/meminfo") as meminfo:
        found = dict(re.findall(r"^(MemAvailable|SwapFree):\s+(\d+) kB$", meminfo.read(), re.MULTILINE))
    return min(room, sum(int(kib) << 10 for kib in found.values())) if found else room


class Mapped(NamedTuple):
    """A segment's content and its page flags, if it has any."""

    content: mmap.mmap
    flags: mmap.mmap | None


Take = Callable[[str], int]


def attach_all(found: Segment, *, folder: Path = Path(), writable: bool = True, take: Take | None = None) -> Mapped:
    """Map a segment that memory has named, with its flags, which are always writable; `folder` is where paths begin. A
    file that cannot be opened is had from `take`, by its name, as a descriptor.

    Raises ConfigError if that fails, or the files are not as memory.proto has them: who uses them reads at no place
    where there is nothing.
    """
    what = f"segment {found.name[:64]!r}"
    if found.base % PAGE or not found.size or found.size % PAGE or found.base + found.size > 1 << 64:
        got = f"{found.base:#x}+{found.size:#x}"
        raise errors.ConfigError(what, expected=f"a multiple of {PAGE} bytes at a multiple of {PAGE}", got=got)
    content = attach(folder / found.path, writable=writable, take=take)
    if len(content) != found.size:
        raise errors.ConfigError(what, expected=f"{found.size} bytes", got=str(len(content)))
    if not found.flags_path:
        return Mapped(content, None)
    stride, pages = found.flags_stride, found.size // PAGE
    if stride % PAGE or stride < pages:
        raise errors.ConfigError(f"page flags of {what}", expected=f"a distance for {pages} pages", got=str(stride))
    flags = attach(folder / found.flags_path, writable=True, take=take)
    if len(flags) < FLAG_ARRAYS * stride:
        raise errors.ConfigError(f"page flags of {what}", expected=f"{FLAG_ARRAYS * stride} bytes", got=str(len(flags)))
    return Mapped(content, flags)


def attach(path: Path, *, writable: bool, take: Take | None = None) -> mmap.mmap:
    """Map the whole file, shared, and guarded by `mapping`. Raises ConfigError if that fails, or it is no file; what
    `take` raises."""
    try:
        try:
            fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            if take is None:
                raise
            fd = take(path.name)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise errors.ConfigError(f"cannot map {path}", expected="a file")
            return mapping.share(fd, 0, path, writable=writable)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        raise errors.ConfigError(f"cannot map {path}: {error}") from error


def touched(fd: int, size: int) -> list[tuple[int, int]]:
    """The parts of a segment's file of `size` bytes that have memory of the host, each as its first page and the page
    behind its last. All else is zero: a hole. To read a hole through a mapping would fill it.

    Raises HostLimit for a file that was cut short, which ends in what looks like a hole, and is none.
    """
    found, at = [], 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole up to the end
                raise
            break
        found.append((start // PAGE, -(-at // PAGE)))
    if (left := os.fstat(fd).st_size) < size:
        raise errors.HostLimit(f"guest memory was cut short: {left} of {size} bytes are left")
    return found


def clear(path: Path) -> None:
    """Have the file take no host memory: every mapping of it reads zero. Raises ConfigError if it cannot be mapped."""
    mapped = attach(path, writable=True)
    mapped.madvise(mmap.MADV_REMOVE)
    mapped.close()


def flags_stride(size: int) -> int:
    """The distance between the arrays of page flags for a segment of `size` bytes."""
    pages = size // PAGE
    return -(-pages // PAGE) * PAGE
