"""Guest memory as a device sees it: one interface, whether it maps the segments or asks the memory service.

Addresses are guest physical. A range that is not inside one grant (or is written where that is not allowed) raises
OutsideGrant before anything was read or written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vmesh import errors, segment
from vmesh.v1 import memory_pb2 as messages
from vmesh.wire import Peer

MAX_TRANSFER = 1 << 20  # of one DmaRead or DmaWrite
_ANSWER_SECONDS = 10.0


class GuestMemory(Protocol):
    """Reads and writes guest memory; a write has happened for everybody when the method returns."""

    def read(self, address: int, size: int) -> bytes: ...

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None: ...


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
    size: int
    content: memoryview
    flags: memoryview | None
    stride: int


class LocalGuestMemory:
    """Maps the segments, and sets the page flags of what it writes.

    Raises ConfigError if a segment cannot be mapped.
    """

    def __init__(self, segments: Sequence[messages.Segment], grants: Sequence[messages.Grant]) -> None:
        self._grants = tuple(grants)
        self._mapped = [_map(each) for each in segments]

    def read(self, address: int, size: int) -> bytes:
        check(self._grants, address, size, write=False)
        mapped = self._find(address, size)
        start = address - mapped.base
        return bytes(mapped.content[start : start + size])

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        size = len(data)
        check(self._grants, address, size, write=True)
        mapped = self._find(address, size)
        if mapped.content.readonly:
            raise errors.OutsideGrant("guest memory write", expected="RAM", got=f"{address:#x} in ROM")
        start = address - mapped.base
        mapped.content[start : start + size] = data
        if mapped.flags is not None and size:
            first, after = start // segment.PAGE, (start + size - 1) // segment.PAGE + 1
            ones = b"\x01" * (after - first)
            # After the write: see Segment in memory.proto.
            for array in (segment.FLAG_DIRTY, segment.FLAG_DIRTY_CPU):
                begin = array * mapped.stride
                mapped.flags[begin + first : begin + after] = ones

    def _find(self, address: int, size: int) -> _Mapped:
        for mapped in self._mapped:
            if mapped.base <= address and size <= mapped.base + mapped.size - address:
                return mapped
        raise errors.OutsideGrant("guest memory", expected="a mapped segment", got=f"{address:#x}+{size:#x}")


class RemoteGuestMemory:
    """Asks the memory service, over a connection that has attached. Raises PeerError if that does not answer."""

    def __init__(self, memory: Peer) -> None:
        self._memory = memory

    def read(self, address: int, size: int) -> bytes:
        pieces = []
        for start in range(address, address + size, MAX_TRANSFER) or (address,):
            count = min(MAX_TRANSFER, address + size - start)
            answer = self._ask(messages.DmaRead(address=_u64(start), size=_u64(count)))
            if len(answer.data) != count:
                raise errors.PeerError("DmaRead answered", expected=f"{count} bytes", got=str(len(answer.data)))
            pieces.append(answer.data)
        return b"".join(pieces)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), MAX_TRANSFER) or (0,):
            piece = view[start : start + MAX_TRANSFER]
            self._ask(messages.DmaWrite(address=_u64(address + start), data=bytes(piece)))

    def _ask(self, request: messages.DmaRead | messages.DmaWrite) -> messages.DmaDone:
        answer = self._memory.request(request, _ANSWER_SECONDS)
        if not isinstance(answer, messages.DmaDone):
            raise errors.PeerError("memory answered", expected="DmaDone", got=answer.DESCRIPTOR.name)
        return answer


def _u64(value: int) -> int:
    if not 0 <= value < 1 << 64:
        raise errors.OutsideGrant("guest memory", expected="a 64-bit address and size", got=f"{value:#x}")
    return value


def _map(each: messages.Segment) -> _Mapped:
    content = memoryview(segment.attach(Path(each.path), writable=each.writable))
    if len(content) != each.size:
        raise errors.ConfigError(f"segment {each.name}", expected=f"{each.size} bytes", got=str(len(content)))
    flags = None
    if each.flags_path:
        flags = memoryview(segment.attach(Path(each.flags_path), writable=True))
        if len(flags) < segment.FLAG_ARRAYS * each.flags_stride or each.flags_stride < each.size // segment.PAGE:
            raise errors.ConfigError(f"page flags of {each.name} are too short: {len(flags)} bytes")
    return _Mapped(each.base, each.size, content, flags, each.flags_stride)
