"""The split virtqueue (virtio 1.2, 2.7): a table of descriptors, a ring of the driver's, a ring of the device's."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vmesh.guest_memory import barrier
from vmesh.virtio.queue import DESCRIPTOR, F_INDIRECT, F_NEXT, Chain, Malformed, Queue

_USED = struct.Struct("<II")  # identifier, bytes written
_NO_INTERRUPT = 1  # of the driver ring's flags
_NO_NOTIFY = 1  # of the device ring's flags
_RING = 4  # where a ring begins in its area, after flags and index
_INDEX = 2
_MASK = 0xFFFF


class SplitQueue(Queue):
    """Positions are indexes of requests, modulo 2^16."""

    _seen = 0  # the driver's index when it was last read
    _asked: int | None = None  # what the driver was last told about notifications; None: not known

    def recover(self) -> None:
        self._next = self._used = self._seen = self._memory.read_u16(self.areas.device + _INDEX)

    def wants_interrupt(self) -> bool:
        old, new = self._signalled, self._used
        if old == new:
            return False
        self._signalled = new
        if self._always_signal:
            self._always_signal = False
            return True
        barrier()  # the used index is out before the driver's wish is read: one of the two sees the other
        if not self._event_index:
            return not self._memory.read_u16(self.areas.driver) & _NO_INTERRUPT
        event = self._memory.read_u16(self.areas.driver + _RING + 2 * self.areas.size)
        return new - event - 1 & _MASK < new - old & _MASK

    def _open(self) -> None:
        areas = self.areas
        self._seen = self._next
        self._mask = areas.size - 1
        self._check_area("descriptor", areas.descriptors, 16 * areas.size, 16, write=False)
        self._check_area("driver", areas.driver, _RING + 2 * areas.size + 2, 2, write=False)
        self._check_area("device", areas.device, _RING + 8 * areas.size + 2, 4, write=True)

    def _pop(self) -> Chain | None:
        position = self._next
        if position == self._seen and not self._look():
            return None
        head = self._memory.read_u16(self.areas.driver + _RING + 2 * (position & self._mask))
        chain = self._follow(head, position)
        self._next = position + 1 & _MASK
        return chain

    def _look(self) -> bool:
        """Whether there is more than was seen. If not, the driver is asked to ring; if so, not to."""
        index = self.areas.driver + _INDEX
        seen = self._memory.read_u16(index)
        if seen == self._next:
            self._ask(self._next if self._event_index else 0)
            barrier()  # the wish is out before the index is read again: either we see the request or we are rung for it
            seen = self._memory.read_u16(index)
            if seen == self._next:
                return False
        if seen - self._next & _MASK > self.areas.size:
            raise Malformed(f"expected an available index of at most {self.areas.size} from {self._next}, got {seen}")
        self._seen = seen
        if not self._event_index:  # with it, the driver is silent as it is: the event lies behind it
            self._ask(_NO_NOTIFY)
        barrier()  # what the index stands for is read after it
        return True

    def _ask(self, wish: int) -> None:
        if wish != self._asked:
            self._asked = wish
            event = self.areas.device + _RING + 8 * self.areas.size
            self._memory.write_u16(event if self._event_index else self.areas.device, wish)

    def _follow(self, head: int, position: int) -> Chain:
        size = self.areas.size
        if head >= size:
            raise Malformed(f"expected a descriptor below {size}, got {head}")
        table = self.areas.descriptors
        read, unpack = self._memory.read, DESCRIPTOR.unpack
        descriptors: list[tuple[int, int, int]] = []
        address, length, flags, following = unpack(read(table + 16 * head, 16))
        count = 1
        indirect = None
        while True:
            if flags & F_INDIRECT:
                if indirect is not None or flags & F_NEXT:
                    raise Malformed("an indirect descriptor that has a next one or lies in an indirect table")
                indirect = self._read_indirect(address, length)
                size, count = len(indirect), 1
                address, length, flags, following = indirect[0]
                continue
            descriptors.append((address, length, flags))
            if not flags & F_NEXT:
                return Chain(*self._buffers(descriptors), head, position, 1)
            count += 1
            if count > size:
                raise Malformed(f"a chain of more than the {size} descriptors there are")
            if following >= size:
                raise Malformed(f"expected a descriptor below {size}, got {following}")
            if indirect is None:
                address, length, flags, following = unpack(read(table + 16 * following, 16))
            else:
                address, length, flags, following = indirect[following]

    def push_all(self, done: Sequence[tuple[Chain, int]]) -> None:
        if not done:
            return
        memory, device, position = self._memory, self.areas.device, self._used
        for chain, written in done:
            self._check_oldest(chain, position)
            memory.write(device + _RING + 8 * (position & self._mask), _USED.pack(chain.identifier, written))
            position = position + 1 & _MASK
        barrier()
        memory.write_u16(device + _INDEX, position)
        self._used = position

    def _behind(self, chain: Chain) -> int:
        return chain.position + 1 & _MASK
