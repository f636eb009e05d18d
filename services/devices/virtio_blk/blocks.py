"""A disk whose requests have to be whole blocks: what is smaller is read, changed and written back.

The device does one request at a time, so nothing comes in between.
"""

from __future__ import annotations

from vmesh_services.devices.virtio_blk.image import Buffers, Image


class Blocks:
    """`base`, of which only multiples of `block` bytes are asked; its size is one."""

    def __init__(self, base: Image, block: int) -> None:
        self.size = base.size
        self._base = base
        self._block = block
        self._zeroes = memoryview(bytes(block))

    def begin(self, *, again: bool) -> None:
        self._base.begin(again=again)

    def read(self, offset: int, buffers: Buffers) -> None:
        length = sum(map(len, buffers))
        start, end = self._around(offset, offset + length)
        before, after = bytearray(offset - start), bytearray(end - offset - length)
        self._base.read(start, _without_empty([memoryview(before), *buffers, memoryview(after)]))

    def write(self, offset: int, buffers: Buffers) -> None:
        end = offset + sum(map(len, buffers))
        start, stop = self._around(offset, end)
        single = stop - start == self._block
        head = self._read_block(start) if offset > start or (single and end < stop) else self._zeroes
        tail = head if single else self._read_block(stop - self._block) if end < stop else self._zeroes
        edges = head[: offset - start], tail[self._block - (stop - end) :]
        self._base.write(start, _without_empty([edges[0], *buffers, edges[1]]))

    def flush(self) -> None:
        self._base.flush()

    def discard(self, offset: int, length: int) -> None:
        """Whole blocks of it."""
        start, end = -(-offset // self._block) * self._block, (offset + length) // self._block * self._block
        if start < end:
            self._base.discard(start, end - start)

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        end = offset + length
        start, stop = -(-offset // self._block) * self._block, end // self._block * self._block
        if start >= stop:
            start = stop = end
        for begun, ended in ((offset, start), (stop, end)):
            while begun < ended:
                part = min(ended, (begun // self._block + 1) * self._block)
                self.write(begun, [self._zeroes[: part - begun]])
                begun = part
        if start < stop:
            self._base.zero(start, stop - start, unmap=unmap)

    def take(self) -> None:
        self._base.take()

    def release(self) -> None:
        self._base.release()

    def close(self) -> None:
        self._base.close()

    def _around(self, start: int, end: int) -> tuple[int, int]:
        return start // self._block * self._block, -(-end // self._block) * self._block

    def _read_block(self, start: int) -> memoryview:
        block = memoryview(bytearray(self._block))
        self._base.read(start, [block])
        return block


def _without_empty(buffers: Buffers) -> Buffers:
    return [buffer for buffer in buffers if buffer]
