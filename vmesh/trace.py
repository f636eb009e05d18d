"""What a service records of the bus while somebody wants to see it (proto/vmesh/v1/trace.proto)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from vmesh.guest_memory import Fill, GuestMemory, Piece
from vmesh.time import host_ns
from vmesh.v1 import bus_pb2
from vmesh.v1.trace_pb2 import TRACE_DMA_READ, TRACE_DMA_WRITE, TraceKind, TraceRecord, TraceRecords

LIMIT = 16384  # records that are kept until they are fetched


class Recorder:
    """Bounded. `add` is for any thread; who has nothing to record while it is off looks at `on` first."""

    def __init__(self, service: str) -> None:
        self.on = False
        self._service = service
        self._records: deque[TraceRecord] = deque()
        self._dropped = 0

    def switch(self, on: bool) -> None:
        """Begin anew, or end."""
        self.on = on
        self._records.clear()
        self._dropped = 0

    def add(self, kind: TraceKind.ValueType, time_ns: int, **fields: Any) -> None:
        """Keep a record, of these fields of TraceRecord, if there is room."""
        if len(self._records) >= LIMIT:
            self._dropped += 1
        else:
            self._records.append(TraceRecord(kind=kind, time_ns=time_ns, service=self._service, **fields))

    def take(self) -> TraceRecords:
        """All there is; it is not kept any longer."""
        found = TraceRecords(dropped=self._dropped)
        self._dropped = 0
        for _ in range(len(self._records)):
            found.records.append(self._records.popleft())
        return found


def identity(device: str, hart: int, sequence: int) -> str:
    """The id that goes from an access through all that follows from it."""
    return f"{device}/{hart}/{sequence}"


def register_name(regions: Sequence[bus_pb2.Region], region: int, offset: int) -> str:
    """The name of a register as the description has it, or region and offset."""
    if region < len(regions):
        for register in regions[region].registers:
            place = offset - register.offset
            if register.size and 0 <= place < register.size * max(1, register.count) and place % register.size == 0:
                number, names = place // register.size, register.name.split(", ")
                if len(names) == register.count > 1:  # each of the row has its own
                    return names[number]
                return f"{register.name or f'{offset:#x}'}" + (f"[{number}]" if register.count > 1 else "")
    return f"{region}:{offset:#x}" if region else f"{offset:#x}"


def describe(update: bus_pb2.DeviceUpdate, regions: Sequence[bus_pb2.Region]) -> str:
    """An update for people: `line 0 up, LSR=0x60`."""
    parts = [f"line {line.line} {'up' if line.level else 'down'}" for line in update.lines]
    for shadow in update.shadows:
        name = register_name(regions, shadow.region, shadow.offset)
        sign = " withdrawn" if shadow.withdrawn else f"{'|=' if shadow.raised else '='}{shadow.value:#x}"
        parts.append(name + sign)
    for place in update.places:
        parts.append(f"region {place.region} {'nowhere' if place.absent else f'at {place.base:#x}'}")
    parts += [f"message {message.data:#x} to {message.address:#x}" for message in update.messages]
    return ", ".join(parts)


class MemoryTrace:
    """Sees every use of a device's guest memory: its methods stand before those of `memory` until `close`."""

    _METHODS = ("read", "write", "gather", "scatter", "discard")

    def __init__(self, memory: GuestMemory, record: Callable[[TraceKind.ValueType, int, int, int], None]) -> None:
        self._memory = memory
        self._record = record  # (kind, when it began, address, bytes)
        self._own = {name: getattr(memory, name) for name in self._METHODS}
        for name in self._METHODS:
            setattr(memory, name, getattr(self, f"_{name}"))

    def close(self) -> None:
        for name in self._METHODS:
            delattr(self._memory, name)

    def _read(self, address: int, size: int) -> bytes:
        self._record(TRACE_DMA_READ, host_ns(), address, size)
        found: bytes = self._own["read"](address, size)
        return found

    def _write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self._record(TRACE_DMA_WRITE, host_ns(), address, len(data))
        self._own["write"](address, data)

    def _gather(self, pieces: Sequence[Piece]) -> list[memoryview]:
        self._pieces(TRACE_DMA_READ, pieces)
        found: list[memoryview] = self._own["gather"](pieces)
        return found

    def _scatter(self, pieces: Sequence[Piece], fill: Fill) -> int:
        self._pieces(TRACE_DMA_WRITE, pieces)
        count: int = self._own["scatter"](pieces, fill)
        return count

    def _discard(self, pieces: Sequence[Piece]) -> int:
        self._pieces(TRACE_DMA_WRITE, pieces)
        given: int = self._own["discard"](pieces)
        return given

    def _pieces(self, kind: TraceKind.ValueType, pieces: Sequence[Piece]) -> None:
        began = host_ns()
        for address, size in pieces:
            self._record(kind, began, address, size)
