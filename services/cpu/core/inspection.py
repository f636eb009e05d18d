"""Guest memory for the monitor (cpu.proto: ReadMemory, WriteMemory): read and written behind the harts' backs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial

from vmesh import errors
from vmesh.v1 import cpu_pb2

from .harts import Harts
from .lookup import AbsentPage, pieces

#: Bytes of one request at most.
LIMIT = 1 << 20
_SPACE = 1 << 64


def read(harts: Harts, request: cpu_pb2.ReadMemory) -> cpu_pb2.MemoryContent:
    """What is there, up to where no memory is. Raises BadRequest if that is at once."""
    translate = _translation(harts, request, request.size)
    found = bytearray()
    try:
        for _, length, segment, physical in pieces(harts.machine, translate, request.address, request.size):
            if segment is None:
                break
            found += ctypes.string_at(segment.host + physical - segment.base, length)
    except AbsentPage as absent:
        if not found:
            raise _absent(absent) from None
    if request.size and not found:
        raise _nothing(request, request.address)
    return cpu_pb2.MemoryContent(data=bytes(found))


def write(harts: Harts, request: cpu_pb2.WriteMemory) -> None:
    """Writes all of it. Raises BadRequest if no memory is at one of its bytes, and then writes nothing."""
    translate = _translation(harts, request, len(request.data))
    try:
        found = list(pieces(harts.machine, translate, request.address, len(request.data)))
    except AbsentPage as absent:
        raise _absent(absent) from None
    for done, _, segment, _ in found:
        if segment is None:
            raise _nothing(request, request.address + done)
    for done, length, segment, physical in found:
        assert segment is not None
        ctypes.memmove(segment.host + physical - segment.base, request.data[done : done + length], length)
        if segment.dirty:  # after the write, as devices do it: this thread answers no shoot-down
            ctypes.c_uint8.from_address(segment.dirty + (physical - segment.base >> 12)).value = 1
        harts.code_written(physical, length)


def _translation(
    harts: Harts, request: cpu_pb2.ReadMemory | cpu_pb2.WriteMemory, size: int
) -> Callable[[int], int | None]:
    """What gives physical addresses: a hart's translation, or nothing, of those that are."""
    if size > LIMIT:
        raise errors.BadRequest("bytes of memory", expected=f"at most {LIMIT}", got=str(size))
    if request.address + size > _SPACE:
        raise errors.BadRequest("memory", expected="an end below 2^64", got=f"{size} bytes at {request.address:#x}")
    if request.physical:
        return lambda address: address
    return partial(harts.translate, harts.record(request.hart))


def _absent(absent: AbsentPage) -> errors.BadRequest:
    return errors.BadRequest("memory", expected="a page that is here", got=f"{absent}, which is still to come")


def _nothing(request: cpu_pb2.ReadMemory | cpu_pb2.WriteMemory, address: int) -> errors.BadRequest:
    there = "a physical address where memory is"
    if not request.physical:
        there = f"a virtual address that hart {request.hart} maps to memory"
    return errors.BadRequest("memory", expected=there, got=f"{address:#x}")
