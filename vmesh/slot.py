"""The slot: a small record in a file that outlives the process, so that its next life can go on where it was killed.

Two records take turns, each with its checksum and number: a process that dies while it writes one leaves the other.
Behind them are marks, words that are stored at once, for what cannot wait for a record. The file holds against the
death of the process, not of the host. What is written to is allocated first: storing to a page of a mapped file that a
full file system has no room for would end the process (`mapping`).
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from pathlib import Path

from vmesh import errors, mapping

_HEADER = struct.Struct("<IIQ")  # checksum of what follows it in the record, bytes of data, number of the record
_CHECKED = struct.Struct("<IQ")
CAPACITY = 1 << 20  # in a sparse file: what is not written takes nothing
_ALLOCATED = 16 << 10  # bytes of each record, from the start, if nobody wants more
MARKS = 64


class Slot:
    """The record at `path`. Raises ConfigError if the file cannot be made.

    A record of up to `room` bytes can be written at any time, for a longer one the file system may be too full.
    """

    def __init__(self, path: Path, *, fresh: bool, room: int = 0) -> None:
        self._path = path
        self._number = 0
        self._allocated = min(max(_ALLOCATED, _HEADER.size + room), CAPACITY)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if fresh else 0)
            self._file = open(os.open(path, flags, 0o600), "rb+", buffering=0)  # noqa: SIM115
            size = 2 * CAPACITY + 8 * MARKS
            self._file.truncate(size)
            _allocate(self._file.fileno(), self._allocated)
            self._map = mapping.share(self._file.fileno(), size, path, writable=True)
        except OSError as error:
            raise errors.ConfigError(f"cannot open the slot {path}: {error.strerror}") from error

    @property
    def marks(self) -> memoryview:
        """MARKS words of 64 bits, 0 in a fresh slot."""
        return memoryview(self._map)[2 * CAPACITY :].cast("Q")

    def read(self) -> bytes | None:
        """The last record that was written whole, or None if there is none."""
        number, newest = _newest(self._map)
        if number <= self._number:
            return None
        self._number = number
        return newest

    def write(self, data: bytes) -> None:
        """Replace the record. Raises HostLimit if `data` is too long, or the file system is full."""
        size = len(data)
        if size > CAPACITY - _HEADER.size:
            raise errors.HostLimit(
                f"slot {self._path.name}", expected=f"at most {CAPACITY - _HEADER.size} bytes", got=str(size)
            )
        if _HEADER.size + size > self._allocated:
            self._grow(_HEADER.size + size)
        self._number += 1
        half = (self._number & 1) * CAPACITY
        start = half + _HEADER.size
        self._map[start : start + size] = data
        checksum = zlib.crc32(data, zlib.crc32(_CHECKED.pack(size, self._number)))
        _HEADER.pack_into(self._map, half, checksum, size, self._number)

    def _grow(self, size: int) -> None:
        """Have room for records of that size, and of twice that for those to come."""
        wanted = min(2 * size, CAPACITY)
        try:
            _allocate(self._file.fileno(), wanted)
        except OSError as error:
            what = f"slot {self._path.name}: {error.strerror}"
            raise errors.HostLimit(what, expected=f"room for {wanted} bytes") from error
        self._allocated = wanted


def stored(path: Path) -> bytes | None:
    """The last record in another process's slot, as `Slot.read`; nothing is mapped or made. Raises OSError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    return _newest(content.ljust(2 * CAPACITY, b"\0"))[1]


def _newest(content: bytes | mmap.mmap) -> tuple[int, bytes | None]:
    """The number and the data of the last record that was written whole; 0 and None without one."""
    last, newest = 0, None
    for half in (0, CAPACITY):
        checksum, size, number = _HEADER.unpack_from(content, half)
        if number <= last or size > CAPACITY - _HEADER.size:
            continue
        start = half + _HEADER.size
        data = content[start : start + size]
        if zlib.crc32(data, zlib.crc32(_CHECKED.pack(size, number))) == checksum:
            last, newest = number, data
    return last, newest


def _allocate(fd: int, size: int) -> None:
    """So much of each record, and the marks. Raises OSError."""
    for start, length in ((0, size), (CAPACITY, size), (2 * CAPACITY, 8 * MARKS)):
        os.posix_fallocate(fd, start, length)
