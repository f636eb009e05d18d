"""A virtqueue, seen from the device: requests come out with `pop`, and go back to the driver with `push`.

Everything in the rings is the guest's and may be wrong in any way: it is read once, checked, and then used. What cannot
be followed breaks the queue: `pop` gives nothing any more, and the device is told why. Every loop is bounded by the
queue's size or by MAX_INDIRECT.

**A device may be killed between any two instructions, and each request is still done exactly once as the guest sees
it.** The argument:

1. Requests of a queue are completed in the order in which they were made available (`push` refuses another order). So
   one number says which are done: the position of the first that is not. Nothing else need survive.
2. A request is completed by one store, which the guest sees whole or not at all: the split ring's used index, or the
   flags of the packed ring's descriptor. All that belongs to it (data, length, identifier) is stored before.
3. Split ring: the used index in guest memory *is* the position, modulo 2^16. A successor reads it there (`recover`).
   Packed ring: the position cannot be read from the ring, because a used descriptor does not say how many places its
   request took, and the device writes over the request. So when a request is done, and before anything of its
   descriptor is lost, the device stores a mark (vmesh/slot.py) with all that is to be written, the request's position
   last. A successor looks at the descriptor that the mark names. If its used bit equals the wrap counter, the store of
   2 happened; if not, the successor makes it, from the mark. Either way the position is behind that request. The bit
   can differ again only when the place is used a lap later, and by then the mark names another place.
4. A request for which that has not begun is popped again by the successor, with the same content: its buffers are the
   device's until they are used (2.7.4: the driver may not touch them). So it is done again from its beginning, which
   for reads and writes of a disk gives the same result, as nothing after it has been done yet (1).
5. Whether the guest was interrupted for what was pushed is not known. A successor interrupts once: an interrupt too
   many does no harm, drivers have to look into the ring.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vmesh import errors
from vmesh.guest_memory import GuestMemory, Piece

MAX_SIZE = 1024  # of our queues; the specification allows 32768
MAX_INDIRECT = 1024  # descriptors in an indirect table
MAX_BYTES = (1 << 32) - 1  # of one request: what a used element can say

DESCRIPTOR = struct.Struct("<QIHH")  # address, length; then flags and next (split), or identifier and flags (packed)
F_NEXT, F_WRITE, F_INDIRECT = 1, 2, 4


class Malformed(Exception):
    """The driver's rings cannot be followed; the message says why."""


@dataclass(frozen=True, slots=True)
class Areas:
    """Where the driver has put a queue: entries, and the guest physical addresses of its three areas."""

    size: int
    descriptors: int
    driver: int
    device: int


@dataclass(slots=True)
class Chain:
    """A request: the buffers that the device may read, and those that it may write, in order; all are in guest memory.

    How they are cut into pieces means nothing (2.7.4.1: message framing). The rest is the queue's.
    """

    readable: list[Piece]
    writable: list[Piece]
    identifier: int
    position: int
    places: int


class Queue(ABC):
    """A queue that is ready. `broken` is called once, with the reason, when the driver's rings make no sense."""

    def __init__(
        self,
        index: int,
        areas: Areas,
        memory: GuestMemory,
        *,
        position: int,
        indirect: bool,
        event_index: bool,
        marks: memoryview,
        broken: Callable[[str], None],
    ) -> None:
        """Raises Malformed if the areas are not in guest memory or not aligned."""
        self.index = index
        self.areas = areas
        self._memory = memory
        self._indirect = indirect
        self._event_index = event_index
        self._marks = marks
        self._broken: Callable[[str], None] | None = broken
        self._next = self._used = self._signalled = position
        self._always_signal = True  # until the first time: who was interrupted for what is not known
        self._open()

    @property
    def position(self) -> int:
        """Of the first request that is not completed; see VirtioQueueState in devices.proto."""
        return self._used

    @property
    def ahead(self) -> int:
        """Of the request that `pop` gives next."""
        return self._next

    def pop(self) -> Chain | None:
        """The next request. None: there is none, and the driver will ring when it makes one available."""
        if self._broken is None:
            return None
        try:
            return self._pop()
        except (Malformed, errors.OutsideGrant) as error:
            tell, self._broken = self._broken, None
            tell(f"queue {self.index}: {error}")
            return None

    def put_back(self, chain: Chain) -> None:
        """Not now: the next `pop` gives `chain`, the last one popped, again. The driver is not asked to ring for it."""
        if self._behind(chain) != self._next:
            raise ValueError("expected the request popped last")
        self._next = chain.position

    def push(self, chain: Chain, written: int) -> None:
        """Give `chain` back to the driver; `written` bytes, from the first, of its writable buffers were written.

        Requests have to be pushed in the order in which they were popped.
        """
        self.push_all(((chain, written),))

    @abstractmethod
    def push_all(self, done: Sequence[tuple[Chain, int]]) -> None:
        """As `push`, for each in turn. The driver sees all of them at once in the split ring, not in the packed one:
        there a mark names one request."""

    @abstractmethod
    def wants_interrupt(self) -> bool:
        """Whether the driver is to be interrupted for what was pushed since the last time this was asked."""

    @abstractmethod
    def recover(self) -> None:
        """Find out where a predecessor stood that was killed at any instruction."""

    @abstractmethod
    def _open(self) -> None:
        """Check the areas. Raises Malformed."""

    @abstractmethod
    def _pop(self) -> Chain | None: ...

    def _check_oldest(self, chain: Chain, position: int) -> None:
        if chain.position != position:
            raise ValueError("expected the oldest request that was popped and not pushed")

    @abstractmethod
    def _behind(self, chain: Chain) -> int:
        """The position of the request after `chain`."""

    def _check_area(self, name: str, address: int, size: int, alignment: int, *, write: bool) -> None:
        if address % alignment or not self._memory.covers(address, size, write=write):
            raise Malformed(
                f"expected the {name} area, {size} bytes, in guest memory and aligned to {alignment}, got {address:#x}"
            )

    def _read_indirect(self, address: int, length: int) -> list[tuple[int, int, int, int]]:
        """The descriptors of an indirect table."""
        if not self._indirect:
            raise Malformed("an indirect descriptor, which was not negotiated")
        if not length or length % DESCRIPTOR.size or length > MAX_INDIRECT * DESCRIPTOR.size:
            raise Malformed(f"expected an indirect table of 1 to {MAX_INDIRECT} descriptors, got {length} bytes")
        if not self._memory.covers(address, length, write=False):
            raise Malformed(f"an indirect table outside of guest memory: {length} bytes at {address:#x}")
        return list(DESCRIPTOR.iter_unpack(self._memory.read(address, length)))

    def _buffers(self, descriptors: Iterable[tuple[int, int, int]]) -> tuple[list[Piece], list[Piece]]:
        """The readable and the writable pieces of a chain's descriptors: address, length, flags of each, in order."""
        readable: list[Piece] = []
        writable: list[Piece] = []
        total, low, high, checked = 0, 0, -1, -1
        for address, length, flags in descriptors:  # the path of every buffer: no call but where the range changes
            write = flags & F_WRITE
            if not write and writable:
                raise Malformed("a readable buffer behind a writable one")
            if write != checked or not low <= address <= high - length:
                low, high = self._memory.around(address, length, write=bool(write))
                if high < 0:
                    raise Malformed(f"a buffer outside of guest memory: {length} bytes at {address:#x}")
                checked = write
            total += length
            pieces = writable if write else readable
            if pieces and low <= pieces[-1][0] and sum(pieces[-1]) == address:
                pieces[-1] = (pieces[-1][0], pieces[-1][1] + length)
            elif length:
                pieces.append((address, length))
        if total > MAX_BYTES:
            raise Malformed(f"expected a request of at most {MAX_BYTES} bytes")
        return readable, writable


def cut(pieces: list[Piece], size: int) -> tuple[list[Piece], list[Piece]]:
    """`pieces` as two lists: the first `size` bytes, or all there are, and the rest."""
    head: list[Piece] = []
    for number, (address, length) in enumerate(pieces):
        if length > size:
            if size:
                head.append((address, size))
            return head, [(address + size, length - size), *pieces[number + 1 :]]
        head.append((address, length))
        size -= length
    return head, []


def length_of(pieces: list[Piece]) -> int:
    """The bytes of all."""
    return sum(size for _, size in pieces)
