"""A temporary disk over one that stays as it is (-snapshot): what is written goes into files of the machine directory.

Blocks of 4 KiB. The map has a byte for each, 1 if the overlay has it. A block is written before its byte, so that a
device that is killed in between still reads what was there before, and does the request again.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from services.devices.virtio_blk.image import Buffers, Image, behind, first
from vmesh import errors

BLOCK = 4096


class Overlay:
    """`base` with what was written over it, in `path` and `path`.map; `fresh`: nothing yet. Raises ConfigError."""

    def __init__(self, base: Image, path: Path, *, fresh: bool) -> None:
        self.size = base.size
        self._base = base
        self._blocks = -(-base.size // BLOCK)
        try:
            self._fd = _open(path, self._blocks * BLOCK, fresh)
            fd = _open(path.with_name(path.name + ".map"), max(1, self._blocks), fresh)
            self._map = mmap.mmap(fd, max(1, self._blocks))
            os.close(fd)
        except OSError as error:
            raise errors.ConfigError(f"cannot make the temporary disk {path}: {error.strerror}") from error

    def read(self, offset: int, buffers: Buffers) -> None:
        length = sum(len(buffer) for buffer in buffers)
        for start, end, ours in self._runs(offset, offset + length):
            part = first(buffers, end - start)
            buffers = behind(buffers, end - start)
            if not ours:
                self._base.read(start, part)
            elif os.preadv(self._fd, part, start) != end - start:
                raise OSError(5, "the temporary disk is cut short")

    def write(self, offset: int, buffers: Buffers) -> None:
        end = offset + sum(len(buffer) for buffer in buffers)
        for edge in {offset // BLOCK, (end - 1) // BLOCK}:
            start = edge * BLOCK
            if not self._map[edge] and (start < offset or end < min(start + BLOCK, self.size)):
                self._copy(start)
        if os.pwritev(self._fd, buffers, offset) != end - offset:
            raise OSError(28, "the temporary disk is full")
        after = -(-end // BLOCK)
        self._map[offset // BLOCK : after] = b"\x01" * (after - offset // BLOCK)

    def flush(self) -> None:
        """Nothing: it ends with the machine."""

    def discard(self, offset: int, length: int) -> None:
        """Nothing."""

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        step = 1 << 20
        for start in range(offset, offset + length, step):
            self.write(start, [memoryview(bytes(min(step, offset + length - start)))])

    def take(self) -> None:
        """Nothing: others may use it too."""

    def release(self) -> None:
        """Nothing."""

    def close(self) -> None:
        self._base.close()
        os.close(self._fd)

    def _copy(self, start: int) -> None:
        """Bring a block of the base into the overlay."""
        block = memoryview(bytearray(min(BLOCK, self.size - start)))
        self._base.read(start, [block])
        os.pwrite(self._fd, block, start)

    def _runs(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """The range as ranges that lie in one of the two: start, end, whether here."""
        while start < end:
            ours = self._map[start // BLOCK]
            last = self._map.find(b"\x01" if not ours else b"\x00", start // BLOCK, -(-end // BLOCK))
            stop = end if last < 0 else last * BLOCK
            yield start, stop, bool(ours)
            start = stop


def _open(path: Path, size: int, fresh: bool) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if fresh else 0), 0o600)
    os.ftruncate(fd, size)
    return fd
