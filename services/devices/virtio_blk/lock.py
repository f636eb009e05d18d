"""The lock on an image that keeps two machines from writing to it: QEMU's, so that it holds between the two as well.

An open file description holds read locks on bytes of the file: byte 100 + n says that it does n, byte 200 + n that
nobody else may (n: 0 reads, 1 writes). Whether another one holds a byte is asked with F_OFD_GETLK.
Source: QEMU docs/system/qemu-block-drivers.rst.inc ("Disk image file locking"), and what `qemu-system-riscv64` is seen
to lock in /proc/locks. The locks end with the process.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from contextlib import suppress
from pathlib import Path

from vmesh import errors

_READS, _WRITES = 0, 1
_DOES, _ALONE = 100, 200
_FLOCK = struct.Struct("hhqqi4x")  # type, whence, start, length, pid: fcntl(2), on a host of 64 bits
_WHENCE_SET = 0


def take(fd: int, path: Path, *, writes: bool) -> None:
    """Lock the image for as long as `fd` is open. Raises ConfigError if another one uses it in a way that conflicts."""
    try:
        _take(fd, path, writes)
    except errors.ConfigError:
        release(fd)  # `fd` may stay open, and who was first would find our locks when it opens the image again
        raise


def release(fd: int) -> None:
    """Let go of what `take` took."""
    with suppress(OSError):  # a file system without locks
        fcntl.fcntl(
            fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, _WHENCE_SET, _DOES, _ALONE + _WRITES + 1 - _DOES, 0)
        )


def _take(fd: int, path: Path, writes: bool) -> None:
    does = (_READS, _WRITES) if writes else (_READS,)
    alone = (_WRITES,)
    for byte in [_DOES + each for each in does] + [_ALONE + each for each in alone]:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, _WHENCE_SET, byte, 1, 0))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _taken(path) from error
            return  # a file system without locks
    for byte in [_ALONE + each for each in does] + [_DOES + each for each in alone]:
        asked = _FLOCK.pack(fcntl.F_WRLCK, _WHENCE_SET, byte, 1, 0)
        if _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK:
            raise _taken(path)


def _taken(path: Path) -> errors.ConfigError:
    who = "another machine, or another drive of this one"
    return errors.ConfigError(f"the disk {path} is in use by {who}: one that writes has to be the only one")
