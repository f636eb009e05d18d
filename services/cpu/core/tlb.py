"""A hart's TLBs: which are in use, and what frees their entries."""

from __future__ import annotations

from ..native.lang import Ptr, at, inline, native, ref, u64
from .provided import select, space
from .state import CONTEXTS, FETCH_ENTRIES, MODES, TLB_ENTRIES, Hart, Tlb, TlbEntry

PAGE = 4096
OFFSET = PAGE - 1
FREE = (1 << 64) - 1
#: An entry's place is its page number, and that once more, shifted by so many bits: programs map what they use
#: together at the same place of different megabytes. Bit 0 stays the page's own: pages that are neighbours never have
#: the same place, on which accesses to the end of the one and the begin of the other rely (``Handler.locate``).
FOLD = 9
#: In the tag of a write entry, which no access then finds: stores to the page take the slow path, which knows it.
WATCHED = 1 << 11
#: TLBs that belong to no address space: for who translates nothing, and for who keeps nothing but fetches, as loads and
#: stores go elsewhere. Then those of the address spaces.
UNTRANSLATED, UNKEPT, SPACES = 0, 1, 2


@inline
def data_index(address: u64) -> u64:
    """The place of a page in the TLBs for reads and writes."""
    return ((address >> 12) ^ (address >> (12 + FOLD) & ~1)) & (TLB_ENTRIES - 1)


@inline
def fetch_index(address: u64) -> u64:
    """The place of a page in the TLB for fetches."""
    return ((address >> 12) ^ (address >> (12 + FOLD) & ~1)) & (FETCH_ENTRIES - 1)


@native
def free_entries(first: u64, count: u64) -> None:
    """Frees TLB entries that lie behind each other."""
    entries = at(Ptr[TlbEntry], first)
    for i in range(count):
        entries[i].tag = FREE


@native
def flush_tlb(tlb: Tlb) -> None:
    free_entries(ref(tlb.read), 2 * TLB_ENTRIES + FETCH_ENTRIES)


@inline
def tlb_number(hart: Hart, number: u64) -> Tlb:
    return at(Ptr[Tlb], hart.tlbs)[number]


@native
def flush_context(hart: Hart, number: u64) -> None:
    """Frees the TLBs of one address space."""
    context = hart.contexts[number]
    for mode in range(MODES):
        if (context.used >> mode) & 1 != 0:
            flush_tlb(tlb_number(hart, SPACES + number * MODES + mode))
    context.used = 0
    context.superpage_low = FREE
    context.superpage_high = 0
    hart.count_tlb_flushes += 1


@native
def flush_all(hart: Hart) -> None:
    """Frees every TLB: physical memory protection or the meaning of permissions changed."""
    for i in range(CONTEXTS):
        flush_context(hart, i)
    flush_tlb(tlb_number(hart, UNTRANSLATED))
    flush_tlb(tlb_number(hart, UNKEPT))


@native
def flush_fetch(hart: Hart) -> None:
    """Frees all entries for fetches."""
    for i in range(CONTEXTS):
        context = hart.contexts[i]
        for mode in range(MODES):
            if (context.used >> mode) & 1 != 0:
                free_entries(ref(tlb_number(hart, SPACES + i * MODES + mode).fetch), FETCH_ENTRIES)
    free_entries(ref(tlb_number(hart, UNTRANSLATED).fetch), FETCH_ENTRIES)
    free_entries(ref(tlb_number(hart, UNKEPT).fetch), FETCH_ENTRIES)


@native
def flush_writes(hart: Hart) -> None:
    """Frees all entries for writes."""
    for i in range(CONTEXTS):
        context = hart.contexts[i]
        for mode in range(MODES):
            if (context.used >> mode) & 1 != 0:
                free_entries(ref(tlb_number(hart, SPACES + i * MODES + mode).write), TLB_ENTRIES)
    free_entries(ref(tlb_number(hart, UNTRANSLATED).write), TLB_ENTRIES)


@inline
def free_if(entry: TlbEntry, page: u64) -> None:
    if entry.tag & ~WATCHED == page:
        entry.tag = FREE


@native
def flush_address(hart: Hart, number: u64, address: u64) -> None:
    """Frees the entries of one address in one address space."""
    context = hart.contexts[number]
    if context.used == 0:
        return
    if address >= context.superpage_low and address <= context.superpage_high:
        flush_context(hart, number)
        return
    page = address & ~OFFSET
    index = data_index(address)
    for mode in range(MODES):
        if (context.used >> mode) & 1 != 0:
            tlb = tlb_number(hart, SPACES + number * MODES + mode)
            free_if(tlb.read[index], page)
            free_if(tlb.write[index], page)
            free_if(tlb.fetch[fetch_index(address)], page)


@native
def select_context(hart: Hart) -> None:
    """Finds the TLBs of the hart's address space, or takes them from the one that was made the longest ago."""
    wanted = space(hart)
    for i in range(CONTEXTS):
        if hart.contexts[i].space == wanted:
            hart.context = i
            return
    number = hart.next_context
    hart.next_context = (number + 1) % CONTEXTS
    flush_context(hart, number)
    hart.contexts[number].space = wanted
    hart.context = number


@inline
def in_space(hart: Hart, mode: u64) -> u64:
    """The number of the TLBs of the hart's address space in a mode, which are in use from now on."""
    hart.contexts[hart.context].used |= u64(1) << mode
    return SPACES + hart.context * MODES + mode


@native
def select_tlb(hart: Hart) -> None:
    """Sets ``hart.tlb`` to the TLBs that the hart uses."""
    hart.tlb = hart.tlbs + select(hart) * Tlb.size


@inline
def keeps(hart: Hart) -> bool:
    """Whether the hart uses TLBs of an address space."""
    return hart.tlb >= hart.tlbs + SPACES * Tlb.size
