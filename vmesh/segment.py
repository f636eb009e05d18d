"""Shared memory segments: files of fixed size, on tmpfs as a rule, that services map; page flags beside them."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

from vmesh import errors, mapping

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
            raise errors.ConfigError(what, expected=f"{size} bytes", got=str(found))
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


def attach(path: Path, *, writable: bool) -> mmap.mmap:
    """Map the whole file, shared, and guarded by `mapping`. Raises ConfigError if that fails."""
    try:
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            return mapping.share(fd, 0, path, writable=writable)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        raise errors.ConfigError(f"cannot map {path}: {error}") from error


def clear(path: Path) -> None:
    """Have the file take no host memory: every mapping of it reads zero. Raises ConfigError if it cannot be mapped."""
    mapped = attach(path, writable=True)
    mapped.madvise(mmap.MADV_REMOVE)
    mapped.close()


def flags_stride(size: int) -> int:
    """The distance between the arrays of page flags for a segment of `size` bytes."""
    pages = size // PAGE
    return -(-pages // PAGE) * PAGE
