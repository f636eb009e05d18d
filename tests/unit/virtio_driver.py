"""The driver's side of a virtqueue, written from the specification alone, and guest memory to put it into."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from vmesh import segment
from vmesh.guest_memory import LocalGuestMemory
from vmesh.v1.memory_pb2 import Grant, Segment
from vmesh.virtio.queue import Areas

BASE = 0x8000_0000
RAM = 1 << 20
BUFFERS = BASE + 0x40000  # below it are rings and tables
Buffer = tuple[int, int]


def guest_memory(directory: Path, size: int = RAM) -> LocalGuestMemory:
    path, flags = directory / "ram", directory / "ram.flags"
    segment.create(path, size)
    stride = segment.flags_stride(size)
    segment.create(flags, segment.FLAG_ARRAYS * stride)
    with flags.open("r+b") as file:
        file.write(b"\x01" * (size // segment.PAGE))  # all present
    mapped = Segment(
        name="ram", base=BASE, size=size, path=str(path), writable=True, flags_path=str(flags), flags_stride=stride
    )
    return LocalGuestMemory([mapped], [Grant(base=BASE, size=size, writable=True)])


class Driver(ABC):
    """`add` makes a request available, `must_ring` says whether the device wants to hear of what was added since the
    last time, `reap` gives what came back, as (identifier, bytes written)."""

    chains: Mapping[int, object]  # what the device has, by identifier

    def __init__(
        self, memory: LocalGuestMemory, areas: Areas, event_index: bool = False, indirect: bool = False
    ) -> None:
        self.memory, self.areas = memory, areas
        self.event_index, self.indirect = event_index, indirect
        memory.write(areas.descriptors, bytes(0x10000))
        self._begin()

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def add(self, readable: list[Buffer], writable: list[Buffer]) -> int | None:
        """The identifier, or None if there is no room."""

    @abstractmethod
    def must_ring(self) -> bool: ...

    @abstractmethod
    def reap(self) -> list[tuple[int, int]]: ...

    @abstractmethod
    def listen(self, after: int) -> None:
        """Ask for an interrupt when `after` more are used, 1 for the next (without event index: the next)."""

    def table(self, identifier: int) -> int:
        """Where the indirect table of a request goes."""
        return self.areas.descriptors + 0x10000 + 0x200 * identifier


def _descriptors(readable: list[Buffer], writable: list[Buffer]) -> list[tuple[int, int, int]]:
    return [(*each, 0) for each in readable] + [(*each, 2) for each in writable]


class SplitDriver(Driver):
    def _begin(self) -> None:
        size = self.areas.size
        self.free = list(range(size))
        self.chains: dict[int, list[int]] = {}
        self.available = self.used = self.told = 0
        self.ring, self.back = self.areas.driver, self.areas.device
        self.listen(1)

    def add(self, readable: list[Buffer], writable: list[Buffer]) -> int | None:
        buffers = _descriptors(readable, writable)
        count = 1 if self.indirect else len(buffers)
        if count > len(self.free):
            return None
        taken = [self.free.pop() for _ in range(count)]
        if self.indirect:
            table = self.table(taken[0])
            for number, (address, length, flags) in enumerate(buffers):
                more = number + 1 < len(buffers)
                self.memory.write(table + 16 * number, struct.pack("<QIHH", address, length, flags | more, number + 1))
            buffers = [(table, 16 * len(buffers), 4)]
        for number, (address, length, flags) in enumerate(buffers):
            more = number + 1 < len(buffers)
            following = taken[number + 1] if more else 0xDEAD
            entry = struct.pack("<QIHH", address, length, flags | more, following)
            self.memory.write(self.areas.descriptors + 16 * taken[number], entry)
        self.chains[taken[0]] = taken
        self.memory.write_u16(self.ring + 4 + 2 * (self.available % self.areas.size), taken[0])
        self.available = self.available + 1 & 0xFFFF
        self.memory.write_u16(self.ring + 2, self.available)
        return taken[0]

    def must_ring(self) -> bool:
        old, new, self.told = self.told, self.available, self.available
        if not self.event_index:
            return not self.memory.read_u16(self.back) & 1
        event = self.memory.read_u16(self.back + 4 + 8 * self.areas.size)
        return (new - event - 1) % 65536 < (new - old) % 65536

    def reap(self) -> list[tuple[int, int]]:
        done = []
        while self.used != self.memory.read_u16(self.back + 2):
            identifier, written = struct.unpack(
                "<II", self.memory.read(self.back + 4 + 8 * (self.used % self.areas.size), 8)
            )
            self.free += self.chains.pop(identifier)
            done.append((identifier, written))
            self.used = self.used + 1 & 0xFFFF
        return done

    def listen(self, after: int) -> None:
        self.memory.write_u16(self.ring + 4 + 2 * self.areas.size, self.used + after - 1 & 0xFFFF)


class PackedDriver(Driver):
    def _begin(self) -> None:
        self.room = self.areas.size
        self.place, self.wrap = 0, 1
        self.used, self.used_wrap = 0, 1
        self.chains: dict[int, int] = {}
        self.identifiers = list(range(self.areas.size))
        self.added = 0  # places since must_ring
        self.listen(1)

    def add(self, readable: list[Buffer], writable: list[Buffer]) -> int | None:
        buffers = _descriptors(readable, writable)
        count = 1 if self.indirect else len(buffers)
        if count > self.room:
            return None
        identifier = self.identifiers.pop()
        if self.indirect:
            table = self.table(identifier)
            for number, (address, length, flags) in enumerate(buffers):
                self.memory.write(table + 16 * number, struct.pack("<QIHH", address, length, 0xDEAD, flags))
            buffers = [(table, 16 * len(buffers), 4)]
        self.chains[identifier] = count
        self.room -= count
        self.added += count
        first = None
        for number, (address, length, flags) in enumerate(buffers):
            flags |= (number + 1 < count) | self.wrap << 7 | (1 - self.wrap) << 15
            at = self.areas.descriptors + 16 * self.place
            # Only the last has the identifier that counts.
            self.memory.write(at, struct.pack("<QIH", address, length, identifier if number + 1 == count else 0xDEAD))
            if first is None:
                first = (at, flags)
            else:
                self.memory.write_u16(at + 14, flags)
            self.place += 1
            if self.place == self.areas.size:
                self.place, self.wrap = 0, 1 - self.wrap
        assert first is not None
        self.memory.write_u16(first[0] + 14, first[1])
        return identifier

    def must_ring(self) -> bool:
        added, self.added = self.added, 0
        position, flags = self.memory.read_u16(self.areas.device), self.memory.read_u16(self.areas.device + 2)
        if flags != 2:
            return flags == 0 and added > 0
        event, event_wrap = position & 0x7FFF, position >> 15
        new = self.place
        if event_wrap != self.wrap:
            event -= self.areas.size
        return (new - event - 1) % 65536 < added

    def reap(self) -> list[tuple[int, int]]:
        done: list[tuple[int, int]] = []
        while True:
            written, identifier, flags = struct.unpack(
                "<IHH", self.memory.read(self.areas.descriptors + 16 * self.used + 8, 8)
            )
            if flags >> 7 & 1 != self.used_wrap or flags >> 15 != self.used_wrap:
                return done
            count = self.chains.pop(identifier)
            self.identifiers.append(identifier)
            self.room += count
            done.append((identifier, written))
            self.used += count
            if self.used >= self.areas.size:
                self.used, self.used_wrap = self.used - self.areas.size, 1 - self.used_wrap

    def listen(self, after: int) -> None:
        """`after` is of places here, which come to as many requests or fewer."""
        place, wrap = self.used + after - 1, self.used_wrap
        if place >= self.areas.size:
            place, wrap = place - self.areas.size, 1 - wrap
        self.memory.write_u16(self.areas.driver, place | wrap << 15)
        self.memory.write_u16(self.areas.driver + 2, 2 if self.event_index else 0)


def areas(size: int, index: int = 0) -> Areas:
    """Of the first queue or the second."""
    base = BASE + index * 0x20000
    return Areas(size, base, base + 0x8000, base + 0xC000)
