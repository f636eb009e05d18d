"""The FIFOs through which harts ring a device and a device raises its interrupts, on one host, without a message
(proto/vmesh/v1/bus.proto: Description.doorbell, Description.interrupts)."""

from __future__ import annotations

import os
import re
import stat
import struct
from pathlib import Path

from vmesh import errors

VALUES = 64  # of a doorbell
_RAISE = struct.Struct("<QQIIQ")  # epoch, number of the update, latch, bits, guest time
_RING = struct.Struct("<QQ")  # value, guest time
RING_BYTES = _RING.size
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}")
_READ_BYTES = 4096
NAMES = "1 to 80 of [A-Za-z0-9._-], not beginning with a dot"


def is_name(name: str) -> bool:
    """Whether a FIFO may have it: a plain name, in the machine directory."""
    return _NAME.fullmatch(name) is not None


def make(path: Path) -> int:
    """A FIFO that nobody else has open, in the place of one of a former life; its descriptor, for reading.

    It is open for writing too, so that it never comes to its end. Raises ConfigError.
    """
    try:
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise errors.ConfigError(f"cannot make the FIFO {path}: {error.strerror}") from error


def open_existing(folder: Path, name: str, flags: int) -> int | None:
    """The FIFO of that name, or None if there is none, or nobody reads it.

    Raises BadRequest if the name is no plain one, or is that of something else: it came from a peer.
    """
    if not is_name(name):
        raise errors.BadRequest("name of a FIFO", expected=NAMES, got=repr(name[:80]))
    try:
        fd = os.open(folder / name, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    found = os.fstat(fd)
    if not stat.S_ISFIFO(found.st_mode) or found.st_uid != os.geteuid():
        os.close(fd)
        raise errors.BadRequest(f"{name} in the machine directory", expected="a FIFO of our own", got="something else")
    return fd


class Bell:
    """The device's end of its doorbell; `fd` is readable while there is something."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError."""
        self.fd = make(path)

    def rung(self) -> tuple[set[int], int]:
        """The values that were rung since the last time, and guest time at the last of them; all there are if something
        else was among it: to look in vain does no harm."""
        values, time_ns = set[int](), 0
        while True:
            try:
                found = os.read(self.fd, _READ_BYTES)
            except BlockingIOError:
                return values, time_ns
            rings = list(_RING.iter_unpack(found[: len(found) // _RING.size * _RING.size]))
            if len(rings) * _RING.size == len(found) and all(value < VALUES for value, _ in rings):
                values.update(value for value, _ in rings)
                time_ns = max(time_ns, rings[-1][1])
            else:
                values.update(range(VALUES))
            if len(found) < _READ_BYTES:
                return values, time_ns


def ring(value: int, time_ns: int) -> bytes:
    """What a doorbell is rung with, at that guest time."""
    return _RING.pack(value, time_ns)


class Raiser:
    """The device's end of the FIFO for its interrupts."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError."""
        self._folder, self._name = path.parent, path.name
        self._fd: int | None = None
        os.close(make(path))

    def send(self, epoch: int, sequence: int, latch: int, bits: int, time_ns: int) -> bool:
        """Whether the raise is on its way: somebody listens, and has room."""
        if self._fd is None:
            self._fd = open_existing(self._folder, self._name, os.O_WRONLY)
            if self._fd is None:
                return False
        try:
            os.write(self._fd, _RAISE.pack(epoch, sequence, latch, bits, time_ns))
        except BlockingIOError:
            return False
        except BrokenPipeError:
            os.close(self._fd)
            self._fd = None
            return False
        return True
