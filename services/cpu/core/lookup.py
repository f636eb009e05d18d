"""Guest memory as a debugger sees it: translated as a hart would (``Isa.look_up``), without effects.

Permissions do not count, nothing is marked as accessed, and no TLB learns of it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

from .tlb import PAGE

_VIRTUAL = 1 << 64


class AbsentPage(Exception):
    """A page that is needed has no content yet (memory.proto: PRESENCE); the message is its physical address."""


def check_present(segment: Any, physical: int) -> None:
    """Raises AbsentPage."""
    if segment.present and not ctypes.c_uint8.from_address(segment.present + (physical - segment.base >> 12)).value:
        raise AbsentPage(f"{physical & -PAGE:#x}")


def segment_at(machine: Any, physical: int) -> Any | None:
    """The record of the memory segment that holds a physical address, or None. Its page may be absent."""
    for number in range(machine.segment_count):
        segment = machine.segments[number]
        if 0 <= physical - segment.base < segment.size:
            return segment
    return None


def read_word(machine: Any, physical: int) -> int | None:
    """A doubleword of memory, little-endian; None where none is. Raises AbsentPage."""
    segment = segment_at(machine, physical)
    if segment is None:
        return None
    check_present(segment, physical)
    return int(ctypes.c_uint64.from_address(segment.host + physical - segment.base).value)


def pieces(
    machine: Any, translate: Callable[[int], int | None], address: int, size: int
) -> Iterator[tuple[int, int, Any | None, int]]:
    """An address range page by page: offset in it, bytes, and where that is: the segment (None: no memory) and the
    physical address, which ``translate`` gives. Raises AbsentPage."""
    done = 0
    while done < size:
        place = (address + done) % _VIRTUAL
        length = min(size - done, PAGE - place % PAGE)
        physical = translate(place)
        segment = None if physical is None else segment_at(machine, physical)
        if segment is not None:
            check_present(segment, physical or 0)
        yield done, length, segment, physical or 0
        done += length
