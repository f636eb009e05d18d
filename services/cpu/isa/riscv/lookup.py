"""Page tables as a debugger reads them: without permissions and effects (privileged specification 12.3.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...core.tlb import PAGE
from .csr_bits import MPP, MPP_SHIFT, MPRV, PPN_MASK, PTE_PPN_SHIFT, PTE_R, PTE_V, PTE_X, SATP_MODE_SHIFT
from .state import MACHINE


def look_up(hart: Any, address: int, read: Callable[[int], int | None]) -> int | None:
    """The physical address of a virtual one for a hart's loads, or None if it is not mapped. ``read`` gives a
    doubleword of memory; what it raises passes."""
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
        entry = read(table + (address >> 12 + 9 * level & 511) * 8)
        if entry is None or not entry & PTE_V:
            return None
        table = (entry >> PTE_PPN_SHIFT & PPN_MASK) << 12
        if entry & (PTE_R | PTE_X):
            mask = (PAGE << 9 * level) - 1
            return table & ~mask | address & mask
    return None
