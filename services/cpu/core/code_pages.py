"""A hart's decoded pages: made, kept, changed and given up.

Only the hart itself adds and removes pages, and decodes. Whoever has changed memory brings copy and slots up to date,
in any thread (``refresh``). ``Hart.code_lock`` is held for all of that. The hart runs slots without it: a slot is given
back to the decoder by one store of its handler, and its operands stay as they are.
"""

from __future__ import annotations

from ..native.host import SCHED_YIELD
from ..native.lang import (
    Ptr,
    at,
    atomic_store,
    call_host,
    compare_exchange,
    cpu_relax,
    native,
    peek,
    peek_aligned,
    poke,
    ref,
    u32,
    u64,
)  # fmt: skip
from .provided import is_long
from .segments import machine_of
from .state import (
    CODE_GENERATION,
    CODE_HASH,
    CODE_PAGE_STRIDE,
    CODE_RETURNED,
    PAGE_SLOTS,
    SCRATCH_BITS,
    CodePage,
    Hart,
)  # fmt: skip
from .tlb import flush_fetch

#: An odd number with bits all over: the golden ratio's.
FINGERPRINT_FACTOR = 0x9E37_79B9_7F4A_7C15
WORDS = 512
#: Doublewords that are changed one by one; of a page with more all is taken anew.
FEW = 32
#: What ``check_page`` finds of a page's code.
UNCHANGED, CHANGED, REWRITTEN = 0, 1, 2
#: Spins until a host core is offered to whoever is waited for.
SPINS = 256


@native
def relax(hart: Hart, spins: u64) -> None:
    """A turn of a spin loop."""
    cpu_relax()
    if spins % SPINS == SPINS - 1:
        call_host(machine_of(hart).syscall, SCHED_YIELD, 0, 0, 0, 0, 0, 0)


@native
def lock_pages(hart: Hart) -> None:
    """Takes a hart's lock, from any thread. Whoever has it waits for nothing."""
    spins = u64(0)
    while compare_exchange(u64, ref(hart.code_lock), 0, 1) != 0:
        relax(hart, spins)
        spins += 1


@native
def unlock_pages(hart: Hart) -> None:
    atomic_store(u64, ref(hart.code_lock), 0)


@native
def find_page(hart: Hart, physical: u64) -> u64:
    """The host address of a hart's decoded page, or 0. By the hart itself, or with its lock."""
    address = peek(u64, hart.code_hash + (((physical >> 12) & (CODE_HASH - 1)) << 3))
    while address != 0 and at(CodePage, address).physical != physical:
        address = at(CodePage, address).next
    return address


@native
def forget_slots(hart: Hart, page: CodePage) -> None:
    """Slots are decoded when they are next run; breakpoints stay."""
    machine = machine_of(hart)
    decode = machine.decode_handler
    for i in range(PAGE_SLOTS):
        if page.slots[i].handler != machine.breakpoint_handler:
            page.slots[i].handler = decode
    for i in range(PAGE_SLOTS // 64):
        page.covered[i] = 0


@native
def reset_slots(hart: Hart, page: CodePage, host: u64) -> None:
    """Takes a page's bytes anew."""
    forget_slots(hart, page)
    fingerprint = u64(0)
    for i in range(WORDS):
        word = peek_aligned(u64, host + 8 * i)
        page.copy[i] = word
        fingerprint = ((fingerprint << 5) | (fingerprint >> 59)) ^ (word * FINGERPRINT_FACTOR)
    page.fingerprint = fingerprint
    page.version += 1
    page.fresh = 1


@native
def drop_regions(hart: Hart, page: CodePage) -> None:
    """Code of a region has changed. Which region is not known: all go."""
    machine = machine_of(hart)
    for i in range(PAGE_SLOTS):
        handler = page.slots[i].handler
        if handler - machine.core >= machine.core_size:
            page.slots[i].handler = machine.decode_handler
    for i in range(PAGE_SLOTS // 64):
        page.covered[i] = 0


@native
def refresh(hart: Hart, page: CodePage, index: u64, host: u64) -> bool:
    """Brings a doubleword of a page up to date, whose content is at ``host``; whether there was code in it."""
    word = peek_aligned(u64, host + 8 * index)
    old = page.copy[index]
    if word == old:
        return False
    difference = (word * FINGERPRINT_FACTOR) ^ (old * FINGERPRINT_FACTOR)
    turns = (5 * (WORDS - 1 - index)) & 63
    page.fingerprint ^= (difference << turns) | (difference >> ((64 - turns) & 63))
    page.copy[index] = word
    page.version += 1
    machine = machine_of(hart)
    # an instruction may reach into the doubleword from before
    first = (index << 2) - 1 if index != 0 else u64(0)
    changed = False
    for i in range(first, (index << 2) + 4):
        if (page.covered[i >> 6] >> (i & 63)) & 1 != 0:
            drop_regions(hart, page)
            changed = True
        handler = page.slots[i].handler
        if handler != machine.decode_handler and handler != machine.breakpoint_handler:
            page.slots[i].handler = machine.decode_handler
            changed = True
    if changed:
        page.fresh = 1
    return changed


@native
def check_page(hart: Hart, page: CodePage, host: u64) -> u64:
    """Brings a page up to date; gives whether there was code in what had changed. Data beside the code costs little."""
    # most have not changed; LLVM makes vector instructions of a loop without a way out
    difference = u64(0)
    words = at(Ptr[u64], host)
    for i in range(WORDS):
        difference |= words[i] ^ page.copy[i]
    if difference == 0:
        return UNCHANGED
    changed = u64(UNCHANGED)
    count = u64(0)
    for i in range(WORDS):
        if words[i] != page.copy[i]:
            count += 1
            if count > FEW:
                reset_slots(hart, page, host)
                return REWRITTEN
            if refresh(hart, page, i, host):
                changed = u64(CHANGED)
    return changed


@native
def free_page(hart: Hart) -> u64:
    """Where a page can be decoded: in the place of one that is no longer used, in a new place, or, with no place left,
    in the first one of all."""
    if hart.code_used >= hart.code_kept:
        for _ in range(hart.code_used):
            hart.code_hand += 1
            if hart.code_hand >= hart.code_used:
                hart.code_hand = 0
            place = hart.code_pool + hart.code_hand * CODE_PAGE_STRIDE
            if at(CodePage, place).generation + 1 < hart.code_generation:
                forget_page(hart, place)
                return place
    if hart.code_used == hart.code_pages:
        flush_fetch(hart)
        forget_pages(hart)
    hart.code_used += 1
    return hart.code_pool + (hart.code_used - 1) * CODE_PAGE_STRIDE


@native
def forget_pages(hart: Hart) -> None:
    """Takes all decoded pages out of the table; nothing leads to them."""
    hart.code_used = 0
    for i in range(CODE_HASH):
        poke(u64, hart.code_hash + 8 * i, 0)


@native
def forget_page(hart: Hart, page: u64) -> None:
    """Takes a decoded page out of the table, and remembers it."""
    physical = at(CodePage, page).physical
    hart.code_forgotten[(physical >> 12) & (CODE_HASH - 1)] = physical
    place = hart.code_hash + (((physical >> 12) & (CODE_HASH - 1)) << 3)
    while peek(u64, place) != page:
        place = ref(at(CodePage, peek(u64, place)).next)
    poke(u64, place, at(CodePage, page).next)


@native
def add_page(hart: Hart, physical: u64, host: u64) -> u64:
    """Makes a decoded page of a physical page, by the hart itself; gives its host address."""
    hart.count_code_pages += 1
    if hart.count_code_pages % CODE_GENERATION == 0:
        # from here on what is used is looked up
        flush_fetch(hart)
        hart.code_generation += 1
        if hart.code_returned > CODE_RETURNED:
            hart.code_kept += CODE_GENERATION
        hart.code_returned = 0
    if hart.code_forgotten[(physical >> 12) & (CODE_HASH - 1)] == physical:
        hart.code_returned += 1
    lock_pages(hart)
    address = free_page(hart)
    page = at(CodePage, address)
    page.physical = physical
    page.slots[PAGE_SLOTS].handler = machine_of(hart).page_end_handler
    if page.armed != 0:
        page.armed = 0
        for i in range(PAGE_SLOTS):
            page.slots[i].handler = 0
    reset_slots(hart, page, host)
    bucket = hart.code_hash + (((physical >> 12) & (CODE_HASH - 1)) << 3)
    page.next = peek(u64, bucket)
    poke(u64, bucket, address)
    unlock_pages(hart)
    return address


@native
def instruction_bits(hart: Hart, slot: u64) -> u64:
    """The bits of the instruction of a slot, from its page's copy (or, alone in the scratch slot, from beside it)."""
    if slot == ref(hart.scratch):
        return hart.scratch[SCRATCH_BITS]
    page = slot & ~(CODE_PAGE_STRIDE - 1)
    insn = peek(u32, ref(at(CodePage, page).copy) + ((slot - page) >> 3))
    return u64(insn) if is_long(insn) else u64(insn & 0xFFFF)
