"""Guest memory as a device sees it: one interface, whether it maps the segments or asks the memory service.

Addresses are guest physical. A range that is not inside one grant (or is written where that is not allowed) raises
OutsideGrant before anything was read or written.
"""

from __future__ import annotations

import itertools
import mmap
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from google.protobuf.message import Message

from vmesh import errors, segment
from vmesh.v1 import memory_pb2 as messages
from vmesh.wire import Peer

MAX_TRANSFER = 1 << 20  # of one DmaRead or DmaWrite
NEEDED_AT_ONCE = 256  # pages of one NeedPages
_ANSWER_SECONDS = 10.0
_ASKED_AT_ONCE = 128  # DmaRead or DmaWrite

Piece = tuple[int, int]
"""A range of guest memory: address, bytes."""
Fill = Callable[[list[memoryview]], int]
"""Fills buffers from the first on; gives how many bytes it wrote."""


class GuestMemory(Protocol):
    """Reads and writes guest memory; a write has happened for everybody when the method returns."""

    def read(self, address: int, size: int) -> bytes: ...

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None: ...

    def read_u16(self, address: int) -> int:
        """Two bytes at an even address, little endian, in one access: never half of an old value, half of a new one."""
        ...

    def write_u16(self, address: int, value: int) -> None:
        """As `read_u16`, the other way."""
        ...

    def covers(self, address: int, size: int, *, write: bool) -> bool:
        """Whether the range may be read, or written."""
        ...

    def around(self, address: int, size: int, *, write: bool) -> tuple[int, int]:
        """The range that may be read, or written, in one and has this one in it: its start and end; 0 and -1: none."""
        ...

    def gather(self, pieces: Sequence[Piece]) -> list[memoryview]:
        """The content of the ranges, to be read only, and before the guest may use them again. No copy where mapped."""
        ...

    def scatter(self, pieces: Sequence[Piece], fill: Fill) -> int:
        """Let `fill` write into the ranges, straight into guest memory where it is mapped; gives what `fill` gave."""
        ...

    def discard(self, pieces: Sequence[Piece]) -> int:
        """Give the host back what memory it has for the ranges. Each byte of them reads as 0 then, or as before. Gives
        how many bytes read as 0; fewer where the host cannot, or only in larger pages."""
        ...


def barrier() -> None:
    """What was written before is seen by all before anything is read after.

    A semaphore's operations are atomic ones, which order everything on the hosts that vmesh knows (on x86 a load may
    otherwise overtake an earlier store).
    """
    with _BARRIER:
        pass


_BARRIER = threading.Lock()


def check(grants: Sequence[messages.Grant], address: int, size: int, write: bool) -> None:
    """Raises OutsideGrant unless the range lies inside one of `grants`."""
    for grant in grants:
        if grant.base <= address and 0 <= size <= grant.base + grant.size - address:
            if write and not grant.writable:
                break
            return
    kind = "write" if write else "read"
    granted = ", ".join(f"{g.base:#x}+{g.size:#x}{'' if g.writable else ' (read only)'}" for g in grants)
    raise errors.OutsideGrant(f"guest memory {kind}", expected=granted or "none", got=f"{address:#x}+{size:#x}")


@dataclass(frozen=True, slots=True)
class _Mapped:
    base: int
    file: mmap.mmap
    content: memoryview
    halves: memoryview  # the content in units of two bytes, which Python reads and writes in one access
    flags: memoryview | None
    dirty: int  # where its flags begin: "dirty", "holds-code"
    code: int
    news: memoryview | None  # one value of eight bytes
    mine: int  # the random half of what is stored there


@dataclass(frozen=True, slots=True)
class _Window:
    """What may be used of a mapping: guest physical addresses from `base` to `end`."""

    base: int
    end: int
    writable: bool
    mapped: _Mapped


class LocalGuestMemory:
    """Maps the segments, and sets the page flags of what it writes.

    Pages that are absent are asked for with `fetch`, which is given an address in each, at most NEEDED_AT_ONCE, and
    comes back when they are present. Files that cannot be opened are had from `take`. Raises ConfigError if a segment
    cannot be mapped.
    """

    def __init__(
        self,
        segments: Sequence[messages.Segment],
        grants: Sequence[messages.Grant],
        fetch: Callable[[list[int]], None] | None = None,
        take: segment.Take | None = None,
    ) -> None:
        self._grants = tuple(grants)
        self._fetch = fetch
        mapped = [(each, _map(each, take)) for each in segments]
        windows = [
            _Window(grant.base, grant.base + grant.size, grant.writable and each.writable, found)
            for grant in grants
            for each, found in mapped
            if each.base <= grant.base and grant.base + grant.size <= each.base + each.size
        ]
        self._windows = tuple(sorted(windows, key=lambda window: window.base - window.end))  # the largest first

    def read(self, address: int, size: int) -> bytes:
        return bytes(self._view(address, size))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        size = len(data)
        mapped = self._find(address, size, True)
        start = address - mapped.base
        mapped.content[start : start + size] = data
        _mark(mapped, start, size)

    def read_u16(self, address: int) -> int:
        mapped = self._find(address, 2, False)
        value: int = mapped.halves[_half(address, mapped)]
        return value

    def write_u16(self, address: int, value: int) -> None:
        mapped = self._find(address, 2, True)
        mapped.halves[_half(address, mapped)] = value
        _mark(mapped, address - mapped.base, 2)

    def covers(self, address: int, size: int, *, write: bool) -> bool:
        return self.around(address, size, write=write)[1] >= 0

    def around(self, address: int, size: int, *, write: bool) -> tuple[int, int]:
        for window in self._windows:
            if window.base <= address and 0 <= size <= window.end - address and window.writable >= write:
                return window.base, window.end
        return 0, -1

    def gather(self, pieces: Sequence[Piece]) -> list[memoryview]:
        return [mapped.content[start : start + size] for mapped, start, size in self._locate(pieces, False)]

    def scatter(self, pieces: Sequence[Piece], fill: Fill) -> int:
        located = self._locate(pieces, True)
        try:
            return fill([mapped.content[start : start + size] for mapped, start, size in located])
        finally:
            for mapped, start, size in located:
                _mark(mapped, start, size)

    def discard(self, pieces: Sequence[Piece]) -> int:
        given = 0
        for mapped, start, size in self._locate(pieces, True):  # absent pages come first: who brings them writes there
            first, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
            if first >= end:
                continue
            try:
                mapped.file.madvise(mmap.MADV_REMOVE, first, end - first)
                given += end - first
            except OSError:  # a file system that makes no holes
                pass
            finally:
                _mark(mapped, first, end - first)
        return given

    def _locate(self, pieces: Sequence[Piece], write: bool) -> list[tuple[_Mapped, int, int]]:
        """Where the pieces are mapped: the offset and size of each. Raises OutsideGrant."""
        located = []
        window: _Window | None = None
        for address, size in pieces:  # the path of every buffer: no call but where the window changes
            if window is None or not (window.base <= address and 0 <= size <= window.end - address):
                window = self._window(address, size, write)
            mapped = window.mapped
            start = address - mapped.base
            if (flags := mapped.flags) is None or not flags[start >> 12] or (start & 4095) + size > 4096:
                self._need(mapped, start, size)
            located.append((mapped, start, size))
        return located

    def _view(self, address: int, size: int) -> memoryview:
        mapped = self._find(address, size, False)
        start = address - mapped.base
        return mapped.content[start : start + size]

    def _find(self, address: int, size: int, write: bool) -> _Mapped:
        mapped = self._window(address, size, write).mapped
        self._need(mapped, address - mapped.base, size)
        return mapped

    def _need(self, mapped: _Mapped, start: int, size: int) -> None:
        """Return when the pages of a range are present."""
        flags = mapped.flags
        if flags is None or not size:
            return
        first, last = start >> 12, (start + size - 1) >> 12
        if not flags[first] or (last > first and flags[first : last + 1].tobytes().find(0) >= 0):
            self._wait(mapped, first, last)

    def _window(self, address: int, size: int, write: bool) -> _Window:
        for window in self._windows:
            if window.base <= address and 0 <= size <= window.end - address and window.writable >= write:
                return window
        check(self._grants, address, size, write)
        raise errors.OutsideGrant("guest memory", expected="a mapped segment", got=f"{address:#x}+{size:#x}")

    def _wait(self, mapped: _Mapped, first: int, last: int) -> None:
        """Return when these pages are present."""
        assert mapped.flags is not None
        while absent := [page for page in range(first, last + 1) if not mapped.flags[page]]:
            addresses = [mapped.base + page * segment.PAGE for page in absent[:NEEDED_AT_ONCE]]
            if self._fetch is None:
                raise errors.OutsideGrant("guest memory", expected="a present page", got=f"{addresses[0]:#x}")
            self._fetch(addresses)


class RemoteGuestMemory:
    """Asks the memory service, over a connection that has attached: with `ask`, which asks several things at once and
    waits as long as it takes for pages that are absent; without it, one by one and for some seconds. Raises PeerError
    if memory does not answer."""

    def __init__(
        self,
        memory: Peer,
        grants: Sequence[messages.Grant],
        ask: Callable[[Sequence[Message]], list[Message]] | None = None,
    ) -> None:
        request = partial(memory.request, timeout=_ANSWER_SECONDS)
        self._request = ask or (lambda bodies: [request(body) for body in bodies])
        self._grants = tuple(grants)

    def read(self, address: int, size: int) -> bytes:
        return self._read([(address, size)])[0]

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self._write([(address, memoryview(data))])

    def read_u16(self, address: int) -> int:
        return int.from_bytes(self.read(address, 2), "little")

    def write_u16(self, address: int, value: int) -> None:
        self.write(address, value.to_bytes(2, "little"))

    def covers(self, address: int, size: int, *, write: bool) -> bool:
        return self.around(address, size, write=write)[1] >= 0

    def around(self, address: int, size: int, *, write: bool) -> tuple[int, int]:
        for grant in self._grants:
            if grant.base <= address and 0 <= size <= grant.base + grant.size - address:
                return (grant.base, grant.base + grant.size) if grant.writable >= write else (0, -1)
        return 0, -1

    def gather(self, pieces: Sequence[Piece]) -> list[memoryview]:
        return [memoryview(content) for content in self._read(pieces)]

    def scatter(self, pieces: Sequence[Piece], fill: Fill) -> int:
        for address, size in pieces:
            check(self._grants, address, size, write=True)
        views = [memoryview(bytearray(size)) for _, size in pieces]
        count = fill(views)
        remaining = count
        filled = []
        for (address, size), view in zip(pieces, views, strict=True):
            used = min(size, remaining)
            if used:
                filled.append((address, view[:used]))
            remaining -= used
        self._write(filled)
        return count

    def discard(self, pieces: Sequence[Piece]) -> int:
        """Nothing: memory has no message for it, and pages of zeros that are sent would be kept."""
        for address, size in pieces:
            check(self._grants, address, size, write=True)
        return 0

    def _read(self, pieces: Sequence[Piece]) -> list[bytes]:
        cuts = [list(_cut(address, size)) for address, size in pieces]
        wanted = [messages.DmaRead(address=_u64(start), size=_u64(count)) for cut in cuts for start, count in cut]
        answers = iter(self._ask(wanted))
        found = []
        for cut in cuts:
            parts = []
            for _, count in cut:
                data = next(answers).data
                if len(data) != count:
                    raise errors.MemoryFailed("DmaRead answered", expected=f"{count} bytes", got=str(len(data)))
                parts.append(data)
            found.append(b"".join(parts))
        return found

    def _write(self, filled: Sequence[tuple[int, memoryview]]) -> None:
        self._ask(
            [
                messages.DmaWrite(address=_u64(start), data=bytes(view[start - address : start - address + count]))
                for address, view in filled
                for start, count in _cut(address, len(view))
            ]
        )

    def _ask(self, requests: Sequence[messages.DmaRead | messages.DmaWrite]) -> list[messages.DmaDone]:
        """Some at a time, so that neither the connection nor memory has to hold very much."""
        done: list[messages.DmaDone] = []
        batch: list[messages.DmaRead | messages.DmaWrite] = []
        size = 0
        for number, request in enumerate(requests, 1):
            batch.append(request)
            size += request.size if isinstance(request, messages.DmaRead) else len(request.data)
            if number < len(requests) and len(batch) < _ASKED_AT_ONCE and size < MAX_TRANSFER:
                continue
            for answer in self._request(batch):
                if not isinstance(answer, messages.DmaDone):
                    raise errors.MemoryFailed("memory answered", expected="DmaDone", got=answer.DESCRIPTOR.name)
                done.append(answer)
            batch, size = [], 0
        return done


def _cut(address: int, size: int) -> Iterator[Piece]:
    """A range in pieces that one message can bring; at least one, so that what may not be used is refused."""
    for start in range(address, address + size, MAX_TRANSFER) or (address,):
        yield start, min(MAX_TRANSFER, address + size - start)


def _half(address: int, mapped: _Mapped) -> int:
    if address & 1:
        raise ValueError(f"expected an even address, got {address:#x}")
    return (address - mapped.base) >> 1


def _mark(mapped: _Mapped, start: int, size: int) -> None:
    """Set the page flags of what was written; after the write: see Segment in memory.proto."""
    flags = mapped.flags
    if flags is None or not size:
        return
    first, last = start // segment.PAGE, (start + size - 1) // segment.PAGE
    dirty, code = mapped.dirty, mapped.code
    if first == last:
        flags[dirty + first] = 1
        barrier()
        holds_code = flags[code + first] not in _UNTRUSTED
    else:
        flags[dirty + first : dirty + last + 1] = b"\x01" * (last + 1 - first)
        barrier()
        holds_code = bool(flags[code + first : code + last + 1].tobytes().strip(_UNTRUSTED))
    if holds_code:
        _doubt(mapped, first, last)


def _doubt(mapped: _Mapped, first: int, last: int) -> None:
    """Code that was written is not to be trusted, and the cpu is told."""
    assert mapped.flags is not None
    assert mapped.news is not None
    for place in range(mapped.code + first, mapped.code + last + 1):
        if mapped.flags[place] not in _UNTRUSTED:
            mapped.flags[place] = segment.CODE_WRITTEN
    mapped.news[0] = mapped.mine | next(_NEWS) & 0xFFFF_FFFF


_UNTRUSTED = bytes([segment.CODE_FREE, segment.CODE_WRITTEN])
_NEWS = itertools.count(1)


def _u64(value: int) -> int:
    if not 0 <= value < 1 << 64:
        raise errors.OutsideGrant("guest memory", expected="a 64-bit address and size", got=f"{value:#x}")
    return value


def _map(each: messages.Segment, take: segment.Take | None) -> _Mapped:
    found = segment.attach_all(each, writable=each.writable, take=take)
    content, flags, news = memoryview(found.content), None, None
    if found.flags is not None:
        flags = memoryview(found.flags)
        news = flags[segment.CODE_NEWS * each.flags_stride :][:8].cast("Q")
    dirty, code = segment.FLAG_DIRTY * each.flags_stride, segment.FLAG_HOLDS_CODE * each.flags_stride
    return _Mapped(
        each.base, found.content, content, content.cast("H"), flags, dirty, code, news, secrets.randbits(32) << 32
    )
