"""Pages that are at the cache, beside a cpu on another host (memory.proto: CACHE): DMA to them is handed on to it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vmesh import errors, segment
from vmesh.guest_memory import LocalGuestMemory
from vmesh.loop import Loop
from vmesh.segment import PAGE
from vmesh.v1 import memory_pb2 as messages
from vmesh.wire import Client, Server

TAKEN_AT_ONCE = 256
_MOST_OPEN = 1024  # accesses that the cache has not answered
_ZERO = bytes(PAGE)
_RETRY_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class _Open:
    """An access that the cache is to make; `size` is what a read has to find."""

    message: messages.CachedDma
    size: int
    done: Callable[[bytes], None]


class Away:
    """Of a machine's `segments`, of which RAM has `present`, a flag for each page. `guest` maps RAM."""

    def __init__(
        self,
        segments: Sequence[messages.Segment],
        present: memoryview,
        guest: LocalGuestMemory,
        server: Server,
        loop: Loop,
    ) -> None:
        self._content = [(each, memoryview(segment.attach(Path(each.path), writable=False))) for each in segments]
        self._ram = next(each for each in segments if each.writable)
        self._present = present
        self._guest = guest
        self._server, self._loop = server, loop
        self._cache: Client | None = None
        self._next = 1
        self._open: dict[int, _Open] = {}  # by number
        self._unsent: deque[int] = deque()
        self._handed_on = 0

    def greeted(self, cache: Client) -> None:
        """A cache has said Hello: what was not answered is asked of it."""
        self._cache = cache
        self._unsent = deque(self._open)
        self._send()

    def take(self, request: messages.TakePages) -> messages.PagesTaken:
        """Give pages away. Raises BadRequest or HostLimit, having given none."""
        if len(request.addresses) > TAKEN_AT_ONCE:
            got = str(len(request.addresses))
            raise errors.BadRequest("TakePages", expected=f"at most {TAKEN_AT_ONCE} pages", got=got)
        taken = messages.PagesTaken(pages=[self._page(address) for address in request.addresses])
        holes = list(self._holes()) if request.empty else []
        for address in request.addresses:
            if 0 <= address - self._ram.base < self._ram.size:
                self._present[(address - self._ram.base) // PAGE] = 0
        for base, size in holes:
            taken.empty.add(base=self._ram.base + base, size=size)
            self._present[base // PAGE : (base + size) // PAGE] = bytes(size // PAGE)
        return taken

    def read(self, address: int, size: int, done: Callable[[bytes], None]) -> None:
        """Read guest memory, wherever it is; `done` gets it. Raises TooMany."""
        pieces = list(self._pieces(address, size))
        self._check_room(pieces)
        found = [b""] * len(pieces)
        waited = sum(away for _, _, away in pieces)

        def came(place: int, data: bytes) -> None:
            nonlocal waited
            found[place] = data
            waited -= 1
            if not waited:
                done(b"".join(found))

        for place, (start, count, away) in enumerate(pieces):
            if away:
                access = messages.CachedDma(read=messages.DmaRead(address=start, size=count))
                self._hand_on(access, count, partial(came, place))
            else:
                found[place] = self._guest.read(start, count)
        if not waited:
            done(b"".join(found))

    def write(self, address: int, data: bytes, done: Callable[[], None]) -> None:
        """Write guest memory, wherever it is; `done` is called when it has happened. Raises TooMany."""
        pieces = list(self._pieces(address, len(data)))
        self._check_room(pieces)
        waited = sum(away for _, _, away in pieces)

        def came(_data: bytes) -> None:
            nonlocal waited
            waited -= 1
            if not waited:
                done()

        for start, count, away in pieces:
            piece = data[start - address : start - address + count]
            if away:
                self._hand_on(messages.CachedDma(write=messages.DmaWrite(address=start, data=piece)), 0, came)
            else:
                self._guest.write(start, piece)
        if not waited:
            done()

    def answered(self, answer: messages.CachedDmaDone) -> None:
        """The cache has made an access. Raises BadRequest for what is no answer to it."""
        access = self._open.get(answer.number)
        if access is None:
            return  # it has answered again
        if len(answer.data) != access.size:
            raise errors.BadRequest("CachedDmaDone", expected=f"{access.size} bytes", got=str(len(answer.data)))
        del self._open[answer.number]
        access.done(answer.data)

    def reset(self) -> None:
        """All pages are here again: the cache is to forget its own."""
        self._present[:] = b"\x01" * len(self._present)

    def counters(self) -> dict[str, int]:
        return {
            "pages_away": self._present.tobytes().count(0),
            "dma_handed_on": self._handed_on,
            "dma_unanswered": len(self._open),
        }

    def _page(self, address: int) -> messages.TakenPage:
        for each, content in self._content:
            if each.base <= address < each.base + each.size and not address % PAGE:
                page = bytes(content[address - each.base : address - each.base + PAGE])
                return messages.TakenPage(address=address, content=b"" if page == _ZERO else page)
        raise errors.BadRequest("TakePages", expected="addresses of pages of RAM or ROM", got=f"{address:#x}")

    def _holes(self) -> Iterator[tuple[int, int]]:
        """The parts of RAM that nobody has written to, as offset and size: whole pages. Raises HostLimit."""
        fd = os.open(self._ram.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = segment.touched(fd, self._ram.size)
        finally:
            os.close(fd)
        place = 0
        for start, end in [*parts, (self._ram.size // PAGE, 0)]:
            if start > place:
                yield place * PAGE, (start - place) * PAGE
            place = end

    def _pieces(self, address: int, size: int) -> Iterator[tuple[int, int, bool]]:
        """A range as parts that are away, or here: address, size, whether it is away."""
        end = address + size
        while address < end:
            start, away = address, not self._present[(address - self._ram.base) // PAGE]
            while address < end and (not self._present[(address - self._ram.base) // PAGE]) == away:
                address = min(end, (address // PAGE + 1) * PAGE)
            yield start, address - start, away

    def _check_room(self, pieces: Sequence[tuple[int, int, bool]]) -> None:
        wanted = len(self._open) + sum(away for _, _, away in pieces)
        if wanted > _MOST_OPEN:
            raise errors.TooMany("accesses that wait for the cache", expected=f"at most {_MOST_OPEN}", got=str(wanted))

    def _hand_on(self, access: messages.CachedDma, size: int, done: Callable[[bytes], None]) -> None:
        access.number = self._next
        self._next += 1
        self._handed_on += 1
        self._open[access.number] = _Open(access, size, done)
        self._unsent.append(access.number)
        self._send()

    def _send(self) -> None:
        """In their order; what cannot be sent now is tried again, or sent after the next Hello."""
        while self._unsent and self._cache is not None:
            access = self._open.get(self._unsent[0])
            if access is not None and not self._server.send(self._cache, access.message):
                if self._server.clients.get(self._cache.identity) is not self._cache:
                    self._cache = None
                else:
                    self._loop.call_in("cache", _RETRY_SECONDS, self._send)
                return
            self._unsent.popleft()
