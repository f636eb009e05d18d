"""The packed virtqueue (virtio 1.2, 2.8): one ring, in which the device writes over what the driver has written."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vmesh.guest_memory import barrier
from vmesh.virtio.queue import DESCRIPTOR, F_INDIRECT, F_NEXT, F_WRITE, Chain, Malformed, Queue

_USED = struct.Struct("<IH")  # bytes written, identifier: from the ninth byte of a descriptor
_LENGTH, _FLAGS = 8, 14
_AVAILABLE, _USED_BIT = 1 << 7, 1 << 15
_ENABLE, _DISABLE, _AT = 0, 1, 2  # the flags of an event suppression area, behind its position
WRAP = 1 << 15
_PLACE = WRAP - 1
_MARK = 1 << 63


class PackedQueue(Queue):
    """Positions are places in the ring, with the wrap counter in bit 15."""

    _asked: tuple[int, int] | None = None  # what the driver was last told about notifications; None: not known

    def recover(self) -> None:
        mark, used = self._marks[2 * self.index], self._marks[2 * self.index + 1]
        if not mark & _MARK:
            return
        position, places = mark & 0xFFFF, mark >> 16 & 0xFFFF
        if bool(self._flags(position) & _USED_BIT) != bool(position & WRAP):
            self._mark_used(position, used & 0xFFFF, used >> 16)
        self._next = self._used = self._advance(position, places)

    def wants_interrupt(self) -> bool:
        old, new = self._signalled, self._used
        if old == new:
            return False
        self._signalled = new
        if self._always_signal:
            self._always_signal = False
            return True
        barrier()  # as in the split ring
        wish = self._memory.read_u16(self.areas.driver + 2) & 3
        if wish != _AT or not self._event_index:
            return wish != _DISABLE
        event = self._memory.read_u16(self.areas.driver)
        # How far back from the newest: the event lies among what was pushed since the last time.
        return 0 < self._distance(event, new) <= self._distance(old, new)

    def _open(self) -> None:
        areas = self.areas
        self._check_area("descriptor", areas.descriptors, 16 * areas.size, 16, write=True)
        self._check_area("driver", areas.driver, 4, 4, write=False)
        self._check_area("device", areas.device, 4, 4, write=True)
        if self._next & _PLACE >= areas.size:
            raise Malformed(f"expected a position below {areas.size}, got {self._next & _PLACE}")

    def _pop(self) -> Chain | None:
        position = self._next
        if not self._available(position):
            self._ask(position, _AT if self._event_index else _ENABLE)
            barrier()  # as in the split ring
            if not self._available(position):
                return None
        if not self._event_index:
            self._ask(0, _DISABLE)
        barrier()  # the rest of a descriptor is read after its flags
        chain = self._follow(position)
        self._next = self._behind(chain)
        return chain

    def _follow(self, position: int) -> Chain:
        entries, table = self.areas.size, self.areas.descriptors
        descriptors: list[tuple[int, int, int]] = []
        place = position & _PLACE
        for count in range(1, entries + 1):
            address, length, identifier, flags = DESCRIPTOR.unpack(self._memory.read(table + 16 * place, 16))
            if flags & F_INDIRECT:
                if count > 1 or flags & F_NEXT:
                    raise Malformed("an indirect descriptor in a chain")
                for start, size, _, inner in self._read_indirect(address, length):
                    if inner & F_INDIRECT:
                        raise Malformed("an indirect descriptor in an indirect table")
                    descriptors.append((start, size, inner))
            else:
                descriptors.append((address, length, flags))
            if not flags & F_NEXT:
                return Chain(*self._buffers(descriptors), identifier, position, count)
            place = place + 1 if place + 1 < entries else 0
        raise Malformed(f"a chain of more than the {entries} descriptors there are")

    def push_all(self, done: Sequence[tuple[Chain, int]]) -> None:
        for chain, written in done:
            self._check_oldest(chain, self._used)
            # See 3 of the argument in queue.py. The first word counts only with the second before it.
            self._marks[2 * self.index + 1] = written << 16 | chain.identifier
            self._marks[2 * self.index] = _MARK | chain.places << 16 | chain.position
            self._mark_used(chain.position, chain.identifier, written)
            self._used = self._behind(chain)

    def _mark_used(self, position: int, identifier: int, written: int) -> None:
        at = self.areas.descriptors + 16 * (position & _PLACE)
        flags = F_WRITE if written else 0
        if position & WRAP:
            flags |= _AVAILABLE | _USED_BIT
        self._memory.write(at + _LENGTH, _USED.pack(written, identifier))
        barrier()
        self._memory.write_u16(at + _FLAGS, flags)

    def _behind(self, chain: Chain) -> int:
        return self._advance(chain.position, chain.places)

    def _advance(self, position: int, places: int) -> int:
        place = (position & _PLACE) + places
        if place >= self.areas.size:
            return place - self.areas.size | (position ^ WRAP) & WRAP
        return place | position & WRAP

    def _distance(self, earlier: int, later: int) -> int:
        """Places from `earlier` to `later`; a position with another wrap counter is of the lap before."""
        lap = 0 if (earlier ^ later) & WRAP == 0 else self.areas.size
        return (later & _PLACE) + lap - (earlier & _PLACE)

    def _flags(self, position: int) -> int:
        return self._memory.read_u16(self.areas.descriptors + 16 * (position & _PLACE) + _FLAGS)

    def _available(self, position: int) -> bool:
        flags = self._flags(position)
        wrap = bool(position & WRAP)
        return bool(flags & _AVAILABLE) == wrap != bool(flags & _USED_BIT)

    def _ask(self, position: int, flags: int) -> None:
        wish = (position, flags)
        if wish != self._asked:
            self._asked = wish
            self._memory.write_u16(self.areas.device, position)
            barrier()
            self._memory.write_u16(self.areas.device + 2, flags)
