"""Guest memory as a debugger sees it: translated as a hart would, without effects (privileged specification 12.3.2).

Permissions do not count, nothing is marked as accessed, and no TLB learns of it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

from .csr_bits import MPP, MPP_SHIFT, MPRV, PPN_MASK, PTE_PPN_SHIFT, PTE_R, PTE_V, PTE_X, SATP_MODE_SHIFT
from .state import MACHINE
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


def translate(machine: Any, hart: Any, address: int) -> int | None:
    """The physical address of a virtual one for a hart's loads, or None if it is not mapped. Raises AbsentPage."""
    privilege = hart.privilege
    if privilege == MACHINE and hart.mstatus & MPRV:
        privilege = (hart.mstatus & MPP) >> MPP_SHIFT
    mode = hart.satp >> SATP_MODE_SHIFT
    if privilege == MACHINE or not mode:
        return address
    levels = mode - 5
    top = address >> 11 + 9 * levels
    if top not in (0, (1 << 53 - 9 * levels) - 1):
        return None
    table = (hart.satp & PPN_MASK) << 12
    for level in reversed(range(levels)):
        place = table + (address >> 12 + 9 * level & 511) * 8
        segment = segment_at(machine, place)
        if segment is None:
            return None
        check_present(segment, place)
        entry = ctypes.c_uint64.from_address(segment.host + place - segment.base).value
        if not entry & PTE_V:
            return None
        table = (entry >> PTE_PPN_SHIFT & PPN_MASK) << 12
        if entry & (PTE_R | PTE_X):
            mask = (PAGE << 9 * level) - 1
            return table & ~mask | address & mask
    return None


def pieces(machine: Any, hart: Any | None, address: int, size: int) -> Iterator[tuple[int, int, Any | None, int]]:
    """An address range page by page: offset in it, bytes, and where that is: the segment (None: no memory) and the
    physical address. ``hart`` translates, if there is one. Raises AbsentPage."""
    done = 0
    while done < size:
        place = (address + done) % _VIRTUAL
        length = min(size - done, PAGE - place % PAGE)
        physical = place if hart is None else translate(machine, hart, place)
        segment = None if physical is None else segment_at(machine, physical)
        if segment is not None:
            check_present(segment, physical or 0)
        yield done, length, segment, physical or 0
        done += length
