"""The cache itself: it takes each page from the memory service once, and makes the DMA to it that is handed on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message

from vmesh import errors, segment, wire
from vmesh.guest_memory import MAX_TRANSFER, NEEDED_AT_ONCE, LocalGuestMemory
from vmesh.latencies import Latencies
from vmesh.segment import PAGE
from vmesh.service import Runtime, Service
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import memory_pb2 as messages
from vmesh.v1.packet_pb2 import Packet
from vmesh.wire import Client
from vmesh_services.memory.away import TAKEN_AT_ONCE
from vmesh_services.memory.cache.read_ahead import ReadAhead

_RECEIVED_AT_ONCE = 64
_WAITERS = 1 << 16
_AGAIN_SECONDS = 0.05


@dataclass(slots=True, eq=False)
class _Waiter:
    """A NeedPages that is to be answered."""

    client: Client
    packet_id: int
    missing: set[int]


class Cache(Service):
    """To the cpu of this host it is the memory service; RAM itself is that of the service `memory`."""

    kind = "cache"

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        runtime.outlive_loss()
        self._home = runtime.dial("memory", common.ROLE_CACHE, heed_loss=True)
        self._connected = False
        self._map: messages.AddressMap | None = None
        self._unanswered: list[tuple[Client, int]] = []  # MapRequests of this host
        self._ram = messages.Segment()
        self._content = self._flags = self._rom = memoryview(b"").cast("B")
        self._rom_base = 0
        self._rom_missing: set[int] = set()  # addresses
        self._guest = LocalGuestMemory([], [])
        self._waiting: dict[int, list[_Waiter]] = {}  # by page of RAM
        self._fetching: dict[int, float] = {}  # since when, by page of RAM
        self._empty_taken = False
        self._taking: dict[int, tuple[int, bool]] = {}  # in which generation, whether with `empty`, by id of the packet
        self._generation = 0  # of RAM: a reset begins another
        self._dma: deque[messages.CachedDma] = deque()
        self._dma_done = 0  # the number of the last one
        self._read_ahead = ReadAhead()
        self._latencies = Latencies()
        self._counts = dict.fromkeys(("faults", "pages_fetched", "pages_empty", "dma_made", "connections_lost"), 0)

    def start(self) -> None:
        self._meet()

    def handle(self, client: Client, packet: Packet) -> Message | None:
        match packet.WhichOneof("body"):
            case "map_request":
                self._unanswered.append((client, packet.id))
                self._answer_map()
                return None
            case "need_pages":
                self._need(client, packet.need_pages.addresses, packet.id)
                return None
            case _:
                return super().handle(client, packet)

    def reset(self) -> None:
        """Memory has been reset: nothing here is valid any more. The cpu stands still."""
        self._generation += 1
        self._fetching.clear()
        self._empty_taken = False
        if self._ram.size:
            pages = self._ram.size // PAGE
            segment.clear(Path(self._ram.path))
            self._flags[:pages] = bytes(pages)
            start = segment.FLAG_DIRTY * self._ram.flags_stride
            self._flags[start : start + pages] = b"\x01" * pages
            self._take_all()

    def shutdown(self) -> None:
        self._home.close()

    def counters(self) -> dict[str, int]:
        absent = self._flags[: self._ram.size // PAGE].tobytes().count(0)
        return {**self._counts, "pages_absent": absent, **self._latencies.counters("page_waits")}

    # The connection to memory

    def _meet(self) -> None:
        """A connection begins: what was asked by the former one is asked when memory has said Welcome."""
        self._connected = False
        self._taking.clear()
        self._dma.clear()
        self._home.say_hello()
        self._runtime.loop.watch(self._home.socket, read=self._receive)
        if self._home.losses is not None:
            self._runtime.loop.watch(self._home.losses, read=self._receive)

    def _receive(self) -> None:
        try:
            for _ in range(_RECEIVED_AT_ONCE):
                packet = self._home.receive()
                if packet is None:
                    break
                self._received(packet)
        except errors.PeerLost:
            self._lost()

    def _lost(self) -> None:
        self._counts["connections_lost"] += 1
        self._runtime.log.warning("lost", peer="memory")
        self._runtime.loop.watch(self._home.socket)
        if self._home.losses is not None:
            self._runtime.loop.watch(self._home.losses)
        self._home.redial()
        self._meet()

    def _received(self, packet: Packet) -> None:
        """Raises PeerError for what memory must not say."""
        body = wire.body_of(packet)
        match body:
            case common.Welcome():
                self._connected = True
                if self._map is None:
                    self._home.send(messages.MapRequest())
                else:
                    self._take_all()
            case messages.AddressMap():
                if self._map is None:
                    self._begin(body)
            case messages.PagesTaken():
                generation, empty = self._taking.pop(packet.id, (-1, False))
                if generation == self._generation:
                    self._empty_taken |= empty
                    self._taken(body)
            case messages.CachedDma():
                self._dma.append(body)
                self._make_dma()
            case common.Error():
                raise errors.from_message(body)
            case common.Refused():
                raise errors.PeerError(f"{self._home.address} refused: {body.reason}")
            case None:
                pass  # it looks whether we are there
            case _:
                raise wire.mismatch(self._home.address, "what a cache is told", body)

    def _begin(self, found: messages.AddressMap) -> None:
        """Make the segments that memory has, without their content."""
        directory = self._runtime.machine.path
        made = messages.AddressMap(devices=found.devices)
        for theirs in found.segments:
            path = directory / f"{self._runtime.name}-{'ram' if theirs.writable else 'rom'}.seg"
            segment.create(path, theirs.size)
            mine = made.segments.add(
                name=theirs.name, path=str(path), base=theirs.base, size=theirs.size, writable=theirs.writable
            )
            content = memoryview(segment.attach(path, writable=True))
            if theirs.writable:
                mine.flags_stride = segment.flags_stride(theirs.size)
                mine.flags_path = str(directory / f"{self._runtime.name}-ram.flags")
                segment.create(Path(mine.flags_path), segment.FLAG_ARRAYS * mine.flags_stride)
                self._flags = memoryview(segment.attach(Path(mine.flags_path), writable=True))
                self._ram, self._content = mine, content
                granted = messages.Grant(base=mine.base, size=mine.size, writable=True)
                self._guest = LocalGuestMemory([mine], [granted])
            else:
                self._rom, self._rom_base = content, theirs.base
                self._rom_missing = set(range(theirs.base, theirs.base + theirs.size, PAGE))
        if self._home.remote:
            for device in made.devices:
                device.doorbell = device.interrupts = ""  # FIFOs of another host
        self._map = made
        self._take_all()

    def _answer_map(self) -> None:
        """The cpu gets the map when all is there that it does not wait for page by page."""
        if self._map is None or self._rom_missing or not self._empty_taken:
            return
        answer = self._map
        for client, packet_id in self._unanswered:
            self._runtime.answer(client, packet_id, lambda: answer)
        self._unanswered.clear()

    # Pages

    def _need(self, client: Client, addresses: Sequence[int], packet_id: int) -> None:
        if len(addresses) > NEEDED_AT_ONCE:
            raise errors.BadRequest("NeedPages", expected=f"at most {NEEDED_AT_ONCE} pages", got=str(len(addresses)))
        if len(self._waiting) + len(addresses) > _WAITERS:
            raise errors.TooMany("pages that are waited for", expected=f"at most {_WAITERS}", got="one more")
        missing = {page for page in map(self._page, addresses) if not self._flags[page]}
        if not missing:
            self._runtime.answer(client, packet_id, common.Done)
            return
        waiter = _Waiter(client, packet_id, missing)
        for page in sorted(missing):
            self._waiting.setdefault(page, []).append(waiter)
            if page not in self._fetching:
                self._counts["faults"] += 1
                self._fetch([page])  # before what comes with it
                self._fetch(self._read_ahead.block(page))

    def _page(self, address: int) -> int:
        if not 0 <= address - self._ram.base < self._ram.size:
            raise errors.BadRequest("NeedPages", expected="addresses in RAM", got=f"{address:#x}")
        return (address - self._ram.base) // PAGE

    def _fetch(self, pages: Iterable[int]) -> None:
        """Take those of these pages that are neither here nor on their way."""
        now = time.monotonic()
        last = self._ram.size // PAGE
        wanted = [page for page in pages if page < last and not self._flags[page] and page not in self._fetching]
        self._fetching.update(dict.fromkeys(wanted, now))
        self._take([self._ram.base + page * PAGE for page in wanted])

    def _take(self, addresses: Sequence[int], *, empty: bool = False) -> None:
        if not self._connected:
            return  # asked for with all others when it is
        for start in range(0, len(addresses), TAKEN_AT_ONCE) or ([0] if empty else []):
            request = messages.TakePages(addresses=addresses[start : start + TAKEN_AT_ONCE], empty=empty)
            self._taking[self._home.send(request)] = self._generation, empty

    def _take_all(self) -> None:
        """A connection or another content of RAM begins: ask for all that is not there yet."""
        self._take(sorted(self._rom_missing))
        if not self._empty_taken:
            self._take([], empty=True)
        wanted = {page for page in (*self._fetching, *self._waiting) if not self._flags[page]}
        self._fetching = {page: self._fetching.get(page, time.monotonic()) for page in sorted(wanted)}
        self._take([self._ram.base + page * PAGE for page in self._fetching])

    def _taken(self, taken: messages.PagesTaken) -> None:
        for each in taken.pages:
            if len(each.content) not in (0, PAGE) or each.address % PAGE:
                raise errors.PeerError("a page of memory", expected=f"{PAGE} bytes", got=str(len(each.content)))
            if each.address in self._rom_missing:
                self._rom_missing.discard(each.address)
                start = each.address - self._rom_base
                if each.content:
                    self._rom[start : start + PAGE] = each.content
            elif self._ram.base <= each.address < self._ram.base + self._ram.size:
                self._install((each.address - self._ram.base) // PAGE, each.content)
        for zero in taken.empty:
            start = zero.base - self._ram.base
            if start % PAGE or zero.size % PAGE or not 0 <= start <= start + zero.size <= self._ram.size:
                raise errors.PeerError("empty pages of memory", expected="pages of RAM", got=f"{zero.base:#x}")
            first, last = start // PAGE, (start + zero.size) // PAGE
            self._counts["pages_empty"] += self._flags[first:last].tobytes().count(0)
            self._flags[first:last] = b"\x01" * (last - first)
            for page in [page for page in self._waiting if first <= page < last]:
                self._came(page)
        self._answer_map()
        self._make_dma()

    def _install(self, page: int, content: bytes) -> None:
        if self._flags[page]:
            return  # it came twice, and may have been written to since
        if content:
            self._content[page * PAGE : (page + 1) * PAGE] = content
        self._flags[page] = 1
        self._counts["pages_fetched"] += 1
        self._came(page)

    def _came(self, page: int) -> None:
        since = self._fetching.pop(page, None)
        waiters = self._waiting.pop(page, ())
        if waiters and since is not None:
            self._latencies.add(time.monotonic() - since)
        for waiter in waiters:
            waiter.missing.discard(page)
            if not waiter.missing:
                self._runtime.answer(waiter.client, waiter.packet_id, common.Done)

    # DMA to pages that are here

    def _make_dma(self) -> None:
        """In its order, as far as the pages are here."""
        while self._dma:
            access = self._dma[0]
            write = access.HasField("write")
            address = access.write.address if write else access.read.address
            size = len(access.write.data) if write else access.read.size
            start = address - self._ram.base
            if size > MAX_TRANSFER or not 0 <= start <= start + size <= self._ram.size:
                raise errors.PeerError("DMA of memory", expected="a range of RAM", got=f"{address:#x}+{size:#x}")
            pages = range(start // PAGE, -(-(start + size) // PAGE))
            if any(not self._flags[page] for page in pages):
                self._fetch(pages)
                return
            data = b""
            if not write:
                data = self._guest.read(address, size)
            elif access.number > self._dma_done:
                self._guest.write(address, access.write.data)
            try:
                self._home.send_packet(wire.make(messages.CachedDmaDone(number=access.number, data=data)))
            except errors.PeerError:  # it does not read: the access is made, and is answered later
                self._dma_done = max(self._dma_done, access.number)
                self._runtime.loop.call_in("dma", _AGAIN_SECONDS, self._make_dma)
                return
            self._dma_done = max(self._dma_done, access.number)
            self._counts["dma_made"] += 1
            self._dma.popleft()
