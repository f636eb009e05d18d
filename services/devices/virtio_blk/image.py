"""What a disk is to the device, and the raw image: a file, or a block device, whose bytes are those of the disk."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from vmesh import errors
from vmesh.virtio.device import NotYet
from vmesh_services.devices.virtio_blk import lock

SECTOR = 512

Buffers = list[memoryview]

_LIBC = ctypes.CDLL(None, use_errno=True)
_FALLOCATE = _LIBC.fallocate64
_FALLOCATE.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16  # linux/falloc.h
_NOT_THERE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV)
_MOST_BUFFERS = 1024  # of one preadv or pwritev: limits.h, IOV_MAX
_ZEROES = memoryview(bytes(1 << 20))


class Later(NotYet):
    """The host has not answered yet. The request is to be made again, after `begin(again=True)`, when `fd` is readable
    (writable, if `write`), or where that is -1 after `seconds`."""

    def __init__(self, fd: int = -1, *, write: bool = False, seconds: float = 0.0) -> None:
        super().__init__("the host has not answered yet")
        self.fd, self.write, self.seconds = fd, write, seconds


def wait(later: Later, seconds: float) -> bool:
    """Wait for what `later` names, at most so long; gives whether it is there."""
    if later.fd < 0:
        time.sleep(max(0.0, min(seconds, later.seconds)))
        return seconds >= later.seconds
    poller = select.poll()
    poller.register(later.fd, select.POLLOUT if later.write else select.POLLIN)
    return bool(poller.poll(max(0.0, seconds) * 1000))


class Image(Protocol):
    """A disk of `size` bytes. Every method raises OSError where the host cannot; ranges were checked by the caller.

    Reads and what changes the disk may raise Later, and continue when they are called again.
    """

    size: int

    def begin(self, *, again: bool) -> None:
        """The calls that follow are for one request. `again`: they are those of the last, which has raised Later."""

    def read(self, offset: int, buffers: Buffers) -> None: ...

    def write(self, offset: int, buffers: Buffers) -> None: ...

    def flush(self) -> None:
        """What was written holds against the host's death."""

    def discard(self, offset: int, length: int) -> None:
        """The content is no longer needed; what is read there afterwards is not defined."""

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Zeroes are read there afterwards; with `unmap` the host may take the space back."""

    def take(self) -> None:
        """Use it from now on. Raises ConfigError if another machine does; used already is no error."""

    def release(self) -> None:
        """Let another machine use it."""

    def close(self) -> None: ...


class RawImage:
    """The image at `path`. Raises ConfigError if it cannot be opened, or is in use by another writer.

    With `later` it is not used, and may be in use, before `take`.
    """

    def __init__(self, path: Path, *, read_only: bool, later: bool = False) -> None:
        self._path, self._read_only = path, read_only
        self._taken = False
        try:
            self._fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise errors.ConfigError(f"cannot open the disk {path}: {error.strerror}") from error
        try:
            mode = os.fstat(self._fd).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise errors.ConfigError(f"cannot use the disk {path}", expected="a file or a block device")
            if not later:
                self.take()
        except errors.ConfigError:
            os.close(self._fd)
            raise
        # A file that ends inside a sector: the rest of that is read as zeroes, and nothing else is.
        self._end = os.lseek(self._fd, 0, os.SEEK_END)
        self.size = -(-self._end // SECTOR) * SECTOR

    def begin(self, *, again: bool) -> None:
        """Nothing: the host's files answer at once."""

    def read(self, offset: int, buffers: Buffers) -> None:
        for part in _parts(buffers):
            while part:
                count = os.preadv(self._fd, part, offset)
                if not count:  # behind the end of the file
                    if offset < self._end:
                        raise OSError(errno.EIO, f"the disk {self._path} was cut short")
                    for buffer in part:
                        buffer[:] = bytes(len(buffer))
                    break
                offset += count
                part = behind(part, count)

    def write(self, offset: int, buffers: Buffers) -> None:
        for part in _parts(buffers):
            while part:
                count = os.pwritev(self._fd, part, offset)
                offset += count
                part = behind(part, count)
        self._end = max(self._end, offset)

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        try:
            _fallocate(self._fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        try:
            _fallocate(self._fd, (_PUNCH_HOLE if unmap else _ZERO_RANGE) | _KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            for start in range(offset, offset + length, len(_ZEROES)):
                self.write(start, [_ZEROES[: offset + length - start]])

    def take(self) -> None:
        if not self._taken:
            lock.take(self._fd, self._path, writes=not self._read_only)
            self._taken = True

    def release(self) -> None:
        lock.release(self._fd)
        self._taken = False

    def close(self) -> None:
        os.close(self._fd)


def behind(buffers: Buffers, count: int) -> Buffers:
    """`buffers` without their first `count` bytes."""
    for number, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[number + 1 :]] if count else buffers[number:]
        count -= len(buffer)
    return []


def first(buffers: Buffers, count: int) -> Buffers:
    """The first `count` bytes of `buffers`."""
    head = []
    for buffer in buffers:
        if count <= 0:
            break
        head.append(buffer[:count])
        count -= len(buffer)
    return head


def _parts(buffers: Buffers) -> Iterator[Buffers]:
    if len(buffers) <= _MOST_BUFFERS:
        yield buffers
        return
    for start in range(0, len(buffers), _MOST_BUFFERS):
        yield buffers[start : start + _MOST_BUFFERS]


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _FALLOCATE(fd, mode, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
