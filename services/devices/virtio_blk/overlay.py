"""A temporary disk over one that stays as it is (-snapshot): what is written goes into files beside it.

Blocks of 4 KiB. The map has a byte for each, 1 if the overlay has it. A block is written before its byte, so that a
device that is killed in between still reads what was there before, and does the request again. Both files are sparse:
what is discarded or zeroed takes no room. Neither is mapped into memory, where a full file system is a SIGBUS.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from vmesh import errors
from vmesh_services.devices.virtio_blk.image import Buffers, Image, RawImage, behind, first

BLOCK = 4096
_ZEROES = memoryview(bytes(BLOCK))


class Overlay:
    """`base` with what was written over it, in `path` and `path`.map; `fresh`: nothing yet. Raises ConfigError.

    Otherwise both files have to be there and whole: without them the base would show where something was written.
    """

    def __init__(self, base: Image, path: Path, *, fresh: bool) -> None:
        self.size = base.size
        self._base = base
        blocks = -(-base.size // BLOCK)
        os.close(_open(path, blocks * BLOCK, fresh))
        self._map = _open(path.with_name(path.name + ".map"), blocks, fresh)
        self._data = RawImage(path, read_only=False)

    def begin(self, *, again: bool) -> None:
        self._base.begin(again=again)

    def read(self, offset: int, buffers: Buffers) -> None:
        length = sum(len(buffer) for buffer in buffers)
        for start, end, ours in self._runs(offset, offset + length):
            (self._data if ours else self._base).read(start, first(buffers, end - start))
            buffers = behind(buffers, end - start)

    def write(self, offset: int, buffers: Buffers) -> None:
        end = offset + sum(len(buffer) for buffer in buffers)
        self._copy_edges(offset, end)
        self._data.write(offset, buffers)
        self._take(offset, end)

    def flush(self) -> None:
        """Nothing: it ends with the machine."""

    def discard(self, offset: int, length: int) -> None:
        """Whole blocks of ours are read as zeroes afterwards, and take no room."""
        start, end = self._whole(offset, offset + length)
        for begun, ended, ours in self._runs(start, end):
            if ours:
                self._data.discard(begun, ended - begun)

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Takes no room, whatever `unmap` says: nothing of a temporary disk is kept in reserve."""
        end = offset + length
        start, stop = self._whole(offset, end)
        if start >= stop:  # inside of a block, or of two
            start = stop = end
        for begun, ended in ((offset, start), (stop, end)):
            while begun < ended:
                part = min(ended, (begun // BLOCK + 1) * BLOCK)
                self.write(begun, [_ZEROES[: part - begun]])
                begun = part
        if start < stop:
            self._data.zero(start, stop - start, unmap=True)
            self._take(start, stop)

    def take(self) -> None:
        self._base.take()

    def release(self) -> None:
        self._base.release()

    def close(self) -> None:
        self._base.close()
        self._data.close()
        os.close(self._map)

    def _copy_edges(self, start: int, end: int) -> None:
        """Bring the blocks of the base that are only written in part into the overlay."""
        for edge in sorted({start // BLOCK, (end - 1) // BLOCK}):
            begun, ended = edge * BLOCK, min((edge + 1) * BLOCK, self.size)
            if (begun < start or end < ended) and not self._flags(edge, 1)[0]:
                block = memoryview(bytearray(ended - begun))
                self._base.read(begun, [block])
                self._data.write(begun, [block])

    def _whole(self, start: int, end: int) -> tuple[int, int]:
        """The blocks that lie in the range as a whole; the last one of the disk may be a shorter one."""
        last = end if end == self.size else end // BLOCK * BLOCK
        return -(-start // BLOCK) * BLOCK, last

    def _runs(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """The range as ranges that lie in one of the two: start, end, whether here."""
        if start >= end:
            return
        base = start // BLOCK
        flags = self._flags(base, -(-end // BLOCK) - base)
        while start < end:
            ours = flags[start // BLOCK - base]
            last = flags.find(b"\x00" if ours else b"\x01", start // BLOCK - base)
            stop = end if last < 0 else (base + last) * BLOCK
            yield start, stop, bool(ours)
            start = stop

    def _flags(self, block: int, count: int) -> bytes:
        flags = os.pread(self._map, count, block)
        if len(flags) < count:
            raise OSError(errno.EIO, "the map of the temporary disk was cut short")
        return flags

    def _take(self, start: int, end: int) -> None:
        """The overlay has these blocks."""
        block, after = start // BLOCK, -(-end // BLOCK)
        while block < after:
            block += os.pwrite(self._map, b"\x01" * (after - block), block)


def _open(path: Path, size: int, fresh: bool) -> int:
    """Raises ConfigError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if fresh else 0), 0o600)
        if fresh:
            os.ftruncate(fd, size)
        found = os.fstat(fd).st_size
    except OSError as error:
        raise errors.ConfigError(f"cannot use the temporary disk {path}: {error.strerror}") from error
    if found != size:
        os.close(fd)
        raise errors.ConfigError(f"size of the temporary disk {path}", expected=f"{size} bytes", got=str(found))
    return fd
