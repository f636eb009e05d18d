"""What a virtual address is, and who may reach it: PMP, page walks, and the fences of both.

Privileged specification: 3.7 (physical memory protection), 12.2 to 12.6 (supervisor memory management, Sv39 to Sv57),
11 (Svadu), 14 (Svpbmt).
"""

from __future__ import annotations

from ...core.coherence import code_stored, may_hold_code
from ...core.memory import is_absent, mark_dirty, want_page
from ...core.segments import segment_of
from ...core.state import CONTEXTS, FETCH, PENDING_NONE, PENDING_TRAP, READ, WRITE, Segment
from ...core.tlb import OFFSET, PAGE, UNKEPT, UNTRANSLATED, flush_address, flush_context, in_space
from ...native.lang import at, cold, compare_exchange, i64, inline, native, peek_aligned, u8, u64
from .csr_bits import (
    ADUE,
    ASID_MASK,
    MPP,
    MPP_SHIFT,
    MPRV,
    MXR,
    PBMTE,
    PMP_A_SHIFT,
    PMP_L,
    PMP_NA4,
    PMP_NAPOT,
    PMP_OFF,
    PMP_TOR,
    PPN_MASK,
    PTE_A,
    PTE_D,
    PTE_NAPOT,
    PTE_PBMT_SHIFT,
    PTE_PPN_SHIFT,
    PTE_R,
    PTE_RESERVED,
    PTE_U,
    PTE_V,
    PTE_W,
    PTE_X,
    SATP_ASID_SHIFT,
    SATP_MODE_SHIFT,
    SUM,
)
from .isa import (
    FETCH_ACCESS,
    FETCH_PAGE,
    LOAD_ACCESS,
    LOAD_MISALIGNED,
    LOAD_PAGE,
    STORE_ACCESS,
    STORE_MISALIGNED,
    STORE_PAGE,
)
from .state import MACHINE, PMP_ENTRIES, SUPERVISOR, USER, Hart

#: Modes of an address space: who translates, and whether the supervisor may reach the user's pages.
AS_USER, AS_SUPERVISOR, AS_SUPERVISOR_WITH_SUM = range(3)


@inline
def data_privilege(hart: Hart) -> u64:
    """The privilege of loads and stores (3.1.6.3, MPRV)."""
    privilege = u64(hart.privilege)
    if hart.mstatus & MPRV != 0 and privilege == MACHINE:
        privilege = (hart.mstatus & MPP) >> MPP_SHIFT
    return privilege


@cold
def fault(hart: Hart, kind: u64, address: u64, page: bool) -> u64:
    """Notes a page fault or an access fault; gives 0."""
    if kind == READ:
        hart.cause = u64(LOAD_PAGE) if page else u64(LOAD_ACCESS)
    elif kind == WRITE:
        hart.cause = u64(STORE_PAGE) if page else u64(STORE_ACCESS)
    else:
        hart.cause = u64(FETCH_PAGE) if page else u64(FETCH_ACCESS)
    hart.trap_value = address
    hart.pending = PENDING_TRAP
    return 0


@native
def refuse_access(hart: Hart, address: u64, kind: u64) -> u64:
    """An access fault."""
    return fault(hart, kind, address, False)


@native
def refuse_misaligned(hart: Hart, address: u64, kind: u64) -> u64:
    """A misaligned address: of a store and an atomic access, or of a load."""
    hart.cause = u64(STORE_MISALIGNED) if kind == WRITE else u64(LOAD_MISALIGNED)
    hart.trap_value = address
    hart.pending = PENDING_TRAP
    return 0


@native
def pmp_allows(hart: Hart, physical: u64, size: u64, kind: u64, privilege: u64) -> bool:
    """Whether PMP lets an access happen; ``hart.uniform`` says if the answer holds for the whole page."""
    first_page = physical & ~OFFSET
    last_page = first_page + OFFSET
    last = physical + size - 1
    hart.uniform = 1
    previous = u64(0)
    for i in range(PMP_ENTRIES):
        config = hart.pmpcfg[i]
        address = hart.pmpaddr[i]
        mode = (config >> PMP_A_SHIFT) & 3
        low = u64(0)
        high = u64(0)
        if mode == PMP_TOR:
            low = previous << 2
            high = address << 2
        elif mode == PMP_NA4:
            low = address << 2
            high = low + 4
        elif mode == PMP_NAPOT:
            ones = address ^ (address + 1)
            low = (address & ~ones) << 2
            high = low + ((ones + 1) << 2)
        previous = address
        if mode != PMP_OFF and low < high and low <= last_page and high > first_page:
            if low > first_page or high <= last_page:
                hart.uniform = 0
            if low <= last and high > physical:
                if low > physical or high <= last:
                    return False
                if privilege == MACHINE and config & PMP_L == 0:
                    return True
                return (config >> u8(kind)) & 1 != 0
    return privilege == MACHINE


@native
def walk(hart: Hart, address: u64, kind: u64, privilege: u64) -> u64:
    """Translates a virtual address (12.3.2); ``hart.pending`` says whether it did."""
    hart.page_mask = OFFSET
    mode = hart.satp >> SATP_MODE_SHIFT
    if privilege == MACHINE or mode == 0:
        return address
    levels = mode - 5
    unused = 52 - 9 * levels
    if u64(i64(address << unused) >> unused) != address:
        return fault(hart, kind, address, True)
    table = (hart.satp & PPN_MASK) << 12
    level = levels
    while level > 0:
        level -= 1
        entry_at = table + (((address >> (12 + 9 * level)) & 511) << 3)
        segment_address = segment_of(hart, entry_at)
        if segment_address == 0 or not pmp_allows(hart, entry_at, 8, READ, SUPERVISOR):
            return fault(hart, kind, address, False)
        segment = at(Segment, segment_address)
        if is_absent(segment, entry_at):
            return want_page(hart, entry_at)
        host = segment.host + (entry_at - segment.base)
        entry = peek_aligned(u64, host)
        if entry & PTE_V == 0 or entry & (PTE_R | PTE_W) == PTE_W or entry & (PTE_RESERVED | PTE_NAPOT) != 0:
            return fault(hart, kind, address, True)
        memory_type = (entry >> PTE_PBMT_SHIFT) & 3
        if memory_type == 3 or (memory_type != 0 and hart.menvcfg & PBMTE == 0):
            return fault(hart, kind, address, True)
        if entry & (PTE_R | PTE_X) == 0:
            if entry & (PTE_D | PTE_A | PTE_U) != 0 or memory_type != 0:
                return fault(hart, kind, address, True)
            table = ((entry >> PTE_PPN_SHIFT) & PPN_MASK) << 12
            continue
        mask = (u64(PAGE) << (9 * level)) - 1
        if (entry << 2) & mask & ~OFFSET != 0:
            return fault(hart, kind, address, True)
        if entry & PTE_U != 0:
            if privilege == SUPERVISOR and (kind == FETCH or hart.mstatus & SUM == 0):
                return fault(hart, kind, address, True)
        elif privilege == USER:
            return fault(hart, kind, address, True)
        wanted = u64(PTE_X)
        if kind == READ:
            wanted = u64(PTE_R | PTE_X) if hart.mstatus & MXR != 0 else u64(PTE_R)
        elif kind == WRITE:
            wanted = u64(PTE_W)
        if entry & wanted == 0:
            return fault(hart, kind, address, True)
        wanted = u64(PTE_A | PTE_D) if kind == WRITE else u64(PTE_A)
        if entry & wanted != wanted:
            if hart.menvcfg & ADUE == 0:
                return fault(hart, kind, address, True)
            if segment.writable == 0 or not pmp_allows(hart, entry_at, 8, WRITE, SUPERVISOR):
                return fault(hart, kind, address, False)
            mark_dirty(segment, entry_at)
            holds_code = may_hold_code(segment, entry_at)
            if compare_exchange(u64, host, entry, entry | wanted) != entry:
                level += 1
                continue
            if holds_code:
                code_stored(hart, segment, entry_at)
        hart.page_mask = mask | OFFSET
        return ((((entry >> PTE_PPN_SHIFT) & PPN_MASK) << 12) & ~mask) | (address & mask)
    return fault(hart, kind, address, True)


@inline
def translate(hart: Hart, address: u64, size: u64, kind: u64) -> u64:
    """A virtual address's physical one, if privilege, page tables and PMP let the access happen."""
    privilege = u64(hart.privilege) if kind == FETCH else data_privilege(hart)
    physical = walk(hart, address, kind, privilege)
    if hart.pending != PENDING_NONE:
        return 0
    hart.physical = physical
    # PMP looks at the page tables, too: what it finds of this page is what counts
    if not pmp_allows(hart, physical, size, kind, privilege):
        return fault(hart, kind, address, False)
    return physical


@native
def fence_vma(hart: Hart, address: u64, asid: u64, any_address: bool, any_asid: bool) -> None:
    """SFENCE.VMA (12.2.1): frees the entries it names in every context, by address and by address space."""
    for i in range(CONTEXTS):
        if any_asid or ((hart.contexts[i].space >> SATP_ASID_SHIFT) & ASID_MASK) == (asid & ASID_MASK):
            if any_address:
                if hart.contexts[i].used != 0:
                    flush_context(hart, i)
            else:
                flush_address(hart, i, address)


@inline
def space(hart: Hart) -> u64:
    """An address space is what ``satp`` says: mode, ASID and root."""
    return hart.satp


@native
def select(hart: Hart) -> u64:
    """Which TLBs the current privilege uses. Machine mode with MPRV (3.1.6.3) has loads translate, and fetches not."""
    if hart.privilege == MACHINE:
        return u64(UNKEPT) if data_privilege(hart) != MACHINE else u64(UNTRANSLATED)
    mode = u64(AS_USER)
    if hart.privilege == SUPERVISOR:
        mode = u64(AS_SUPERVISOR_WITH_SUM) if hart.mstatus & SUM != 0 else u64(AS_SUPERVISOR)
    return in_space(hart, mode)
