"""How a hart goes on: entry from Python, the look at the clock and at requests, fetches, single instructions across
pages."""

from __future__ import annotations

from ..native.host import FUTEX, FUTEX_WAIT_PRIVATE, SCHED_YIELD
from ..native.lang import (
    Ptr,
    at,
    atomic_load,
    atomic_rmw,
    atomic_store,
    call_host,
    cold,
    export,
    native,
    peek,
    ref,
    u8,
    u16,
    u32,
    u64,
)  # fmt: skip
from .attention import raise_attention
from .code_pages import forget_pages, lock_pages, unlock_pages
from .coherence import EXPORTS as COHERENCE_EXPORTS
from .coherence import code_page
from .debug import arm, breaks, disarm, end_step
from .latch import EXPORTS as LATCH_EXPORTS
from .memory import host_address
from .message import EXPORTS as MESSAGE_EXPORTS
from .provided import decode, is_long, is_woken, refuse_access, take_interrupt, take_trap
from .segments import machine_of
from .shoot_down import EXPORTS as SHOOT_DOWN_EXPORTS
from .shoot_down import answer_shoot_downs, come_in, look_at_news, stay_out
from .state import (
    ACCESS_NONE,
    ATTENTION_REGIONS,
    ATTENTION_STOP,
    CODE_PAGE_STRIDE,
    CONTEXTS,
    EXIT_FLUSH,
    EXIT_NONE,
    EXIT_REGIONS,
    EXIT_STOP,
    FETCH,
    HOT,
    MODES,
    PAGE_SLOTS,
    PENDING_EXIT,
    PENDING_NONE,
    PENDING_STEP,
    PENDING_TRAP,
    SAMPLES,
    SCRATCH_BITS,
    STEP_NONE,
    STEP_UNDERWAY,
    STEP_WANTED,
    CodePage,
    Hart,
    Slot,
    Tlb,
)  # fmt: skip
from .timers import NEVER, TICK, host_time, look_at_clock
from .tlb import OFFSET, fetch_index, flush_all, select_context, select_tlb

#: Retired instructions between two looks at the clock (about 50 microseconds).
SLICE = 20_000
#: How long a posted write may wait for company, in ticks of guest time (0.1 ms): an interrupt may be behind it.
POSTED_AGE = 1_000
#: And while one waits, retired instructions between two looks: some take a hundred times as long as others.
POSTED_SLICE = 1_000
#: The longest sleep in WFI, in nanoseconds.
LONGEST_SLEEP = 1_000_000_000


@native
def enter(hart: Hart) -> None:
    """Runs handlers until one returns; the interpreter defines it."""
    return


@export
def run(hart: Hart) -> u64:
    """Runs a hart from its record until Python is wanted; gives the reason (EXIT_*).

    Keeps the longest pause for work of Python's own; a device's answer or an ordered stop may take what they take.
    """
    if hart.left_at != 0:
        pause = host_time(hart) - hart.left_at
        if pause > hart.longest_pause:
            hart.longest_pause = pause
        hart.left_at = 0
    hart.exit_reason = EXIT_NONE
    come_in(hart)
    enter(hart)
    stay_out(hart)
    if hart.exit_reason == EXIT_REGIONS or hart.exit_reason == EXIT_FLUSH:
        hart.left_at = host_time(hart)
    return u64(hart.exit_reason)


@cold
def wait(hart: Hart) -> bool:
    """Sleeps in WFI until an interrupt is pending; False if Python is wanted first."""
    while True:
        look_at_clock(hart)
        if is_woken(hart):
            hart.waiting = 0
            return True
        if hart.ring_count != 0:
            hart.exit_reason = EXIT_FLUSH
            return False
        bits = atomic_rmw("xchg", u32, ref(hart.attention), 0)
        if bits & ATTENTION_STOP != 0:
            hart.exit_reason = EXIT_STOP
            return False
        if bits == 0:
            sleep(hart)


@native
def sleep(hart: Hart) -> None:
    """Sleeps until the next deadline or until somebody wants the hart's attention."""
    machine = machine_of(hart)
    now = look_at_clock(hart)
    length = u64(LONGEST_SLEEP)
    if hart.deadline != NEVER:
        if hart.deadline <= now:
            return
        if (hart.deadline - now) < LONGEST_SLEEP // TICK:
            length = (hart.deadline - now) * TICK
    hart.timespec[0] = length // 1_000_000_000
    hart.timespec[1] = length % 1_000_000_000
    stay_out(hart)
    call_host(machine.syscall, FUTEX, ref(hart.attention), FUTEX_WAIT_PRIVATE, 0, ref(hart.timespec), 0, 0)
    come_in(hart)


@native
def is_slot(hart: Hart, slot: u64) -> bool:
    """Whether it is one of a decoded page."""
    return slot - hart.code_pool < hart.code_pages * CODE_PAGE_STRIDE


@native
def is_region(hart: Hart, slot: u64) -> bool:
    """Whether a slot's handler is none of the interpreter's."""
    machine = machine_of(hart)
    return at(Slot, slot).handler - machine.core >= machine.core_size


@native
def sample(hart: Hart, slot: u64, hot: u64) -> None:
    """Counts a slot that the clock found; every ``hot`` samples Python is told. A slot may take another's place.

    In place of a slot that is a region already, the one counts where a region was last left for the interpreter, or a
    page for the next one: what a loop's region lacks, because it had not been run when the region was made, was too
    much for one or is in another page, is hot too.
    """
    ran = hart.retired - hart.looked
    hart.looked = hart.retired
    if not is_slot(hart, slot):
        return
    if is_region(hart, slot):
        hart.count_translated += ran
        slot = hart.outside
        hart.outside = 0
        if not is_slot(hart, slot) or is_region(hart, slot):
            return
    found = hart.samples[(slot >> 4) % SAMPLES]
    if found.slot != slot:
        found.slot = slot
        found.count = 0
    found.count += 1
    if found.count >= hot and hart.hot_count < HOT:
        found.count = 0
        hart.hot[hart.hot_count] = slot
        hart.hot_count += 1


@native
def let_others_run(hart: Hart, asked: bool) -> None:
    """Offers the host's core once to a hart that may be waiting for one, where there are more harts than cores: to one
    that has not looked up since it was asked for something (an IPI, a fence for all harts), or to whoever had ``asked``
    this one, which has done it by now. Not while it is asked again and again: that would be all it does."""
    if asked:
        hart.was_asked = 1
        return
    machine = machine_of(hart)
    offered = hart.was_asked != 0
    hart.was_asked = 0
    for i in range(machine.hart_count):
        other = at(Hart, machine.harts[i])
        if other.attention != 0 and other.inside != 0 and ref(other) != ref(hart):
            offered = True
    if offered:
        call_host(machine.syscall, SCHED_YIELD, 0, 0, 0, 0, 0, 0)


@native
def attention(hart: Hart, slot: u64) -> None:
    """The hart, about to run ``slot``, looks up: clock, requests of others, the age of posted writes, hot code."""
    hart.stop_at = hart.retired + (u64(SLICE) if hart.ring_count == 0 else u64(POSTED_SLICE))
    hot = machine_of(hart).hot_samples
    if hot != 0 and (hart.ring_count == 0 or hart.retired - hart.looked >= SLICE):
        sample(hart, slot, hot)
        if hart.hot_count != 0 or hart.fresh_count != 0:
            hart.exit_reason = EXIT_REGIONS
    bits = atomic_rmw("xchg", u32, ref(hart.attention), 0)
    if bits & ATTENTION_REGIONS != 0:
        hart.exit_reason = EXIT_REGIONS
    if bits & ATTENTION_STOP != 0:
        hart.exit_reason = EXIT_STOP
    answer_shoot_downs(hart)
    look_at_news(hart)
    if machine_of(hart).hart_count > 1:
        let_others_run(hart, bits != 0)
    now = look_at_clock(hart)
    if hart.ring_count != 0 and now - hart.ring_since > POSTED_AGE:
        hart.exit_reason = EXIT_FLUSH
    if atomic_load(u32, ref(hart.attention)) != 0:
        atomic_store(u64, ref(hart.stop_at), 0)


@native
def go(hart: Hart) -> None:
    """Finds where the hart goes on: sets ``ip``, ``bias`` and ``tlb`` from its record, or ``exit_reason``."""
    while True:
        pending = hart.pending
        hart.pending = PENDING_NONE
        if pending == PENDING_EXIT:
            if hart.stepping == STEP_UNDERWAY:
                # the instruction is run again
                hart.stepping = STEP_WANTED
            return
        if pending == PENDING_TRAP:
            take_trap(hart, hart.cause, hart.trap_value)
        if pending == PENDING_STEP:
            hart.stepping = STEP_WANTED
        elif hart.stepping == STEP_UNDERWAY:
            end_step(hart, pending == PENDING_TRAP)
        if hart.access_state == ACCESS_NONE and hart.retired >= hart.stop_at:
            # a handler that traps at its first instruction comes through here only; an access that was made ends first
            attention(hart, 0)
        if hart.exit_reason != EXIT_NONE:
            return
        if hart.access_state == ACCESS_NONE:
            if hart.stepping != STEP_NONE:
                hart.waiting = 0
            if hart.waiting != 0 and not wait(hart):
                return
            if (hart.stepping == STEP_NONE or (hart.step_interrupts != 0 and hart.watch_hit == 0)) and take_interrupt(
                hart
            ):
                # it may be of a device that has written code
                look_at_news(hart)
        select_tlb(hart)
        slot = u64(0)
        if hart.stepping != STEP_NONE:
            hart.stepping = STEP_UNDERWAY
            # a jump looks at it, and comes back here
            hart.stop_at = 0
            slot = single(hart, hart.pc)
        else:
            slot = locate(hart, hart.pc)
        if slot != 0:
            # a loop across pages comes through here
            hart.outside = slot
            hart.ip = slot
            return


@native
def locate(hart: Hart, pc: u64) -> u64:
    """The slot of the instruction at ``pc``, and ``hart.bias`` for it; 0 if its fetch trapped, or the hart stops."""
    entry = at(Tlb, hart.tlb).fetch[fetch_index(pc)]
    slots = entry.addend
    if entry.tag != pc & ~OFFSET:
        host = host_address(hart, pc, 2, FETCH)
        if host == 0:
            if hart.pending == PENDING_NONE:
                refuse_access(hart, pc, FETCH)
            return 0
        breakpoints = machine_of(hart).breakpoint_count
        if hart.uniform == 0:
            if breakpoints != 0 and breaks(hart, pc):
                return 0
            return single(hart, pc)
        page = code_page(hart, hart.physical & ~OFFSET, host & ~OFFSET)
        if breakpoints != 0:
            lock_pages(hart)
            arm(hart, page, pc & ~OFFSET)
            unlock_pages(hart)
        slots = ref(page.slots)
        entry.tag = pc & ~OFFSET
        entry.addend = slots
    hart.bias = (pc & ~OFFSET) - (slots >> 3)
    return slots + ((pc & (OFFSET - 1)) << 3)


@native
def fetch_half(hart: Hart, pc: u64) -> u32:
    """Two bytes of code; ``hart.pending`` says whether the fetch trapped."""
    entry = at(Tlb, hart.tlb).fetch[fetch_index(pc)]
    if entry.tag == pc & ~OFFSET:
        return u32(peek(u16, ref(at(CodePage, entry.addend).copy) + (pc & OFFSET)))
    host = host_address(hart, pc, 2, FETCH)
    if host == 0:
        if hart.pending == PENDING_NONE:
            refuse_access(hart, pc, FETCH)
        return 0
    return u32(peek(u16, host))


@native
def single(hart: Hart, pc: u64) -> u64:
    """Decodes one instruction into the scratch slot, which leads back to ``go``: for what no page of slots can hold."""
    insn = fetch_half(hart, pc)
    if hart.pending != PENDING_NONE:
        return 0
    if is_long(insn):
        insn |= fetch_half(hart, pc + 2) << 16
        if hart.pending != PENDING_NONE:
            return 0
    machine = machine_of(hart)
    slots = at(Ptr[Slot], ref(hart.scratch))
    if hart.scratch[SCRATCH_BITS] != u64(insn) or slots[0].handler == 0:
        # a loop that has one in it comes with the same one again and again
        decode(hart, slots[0], insn, pc, False)
        slots[1].handler = machine.page_end_handler
        slots[2].handler = machine.page_end_handler
        hart.scratch[SCRATCH_BITS] = u64(insn)
    hart.bias = pc - (ref(hart.scratch) >> 3)
    return ref(hart.scratch)


@native
def at_breakpoint(hart: Hart, pc: u64) -> u64:
    """The slot where a hart goes on that has come to a breakpoint's slot; 0 if it stops, or its fetch trapped."""
    return u64(0) if breaks(hart, pc) else single(hart, pc)


@native
def decode_slot(hart: Hart, slot: u64, pc: u64) -> None:
    """Decodes the instruction of a slot in its page, when it is run for the first time."""
    base = slot & ~(CODE_PAGE_STRIDE - 1)
    page = at(CodePage, base)
    offset = (slot - base) >> 3
    machine = machine_of(hart)
    lock_pages(hart)
    insn = peek(u32, ref(page.copy) + offset)
    if offset == OFFSET - 1 and is_long(insn):
        at(Slot, slot).handler = machine.straddle_handler
        unlock_pages(hart)
        return
    decode(hart, at(Slot, slot), insn, pc, True)
    unlock_pages(hart)
    if machine.eager != 0 and hart.hot_count < HOT:
        hart.hot[hart.hot_count] = slot
        hart.hot_count += 1
        hart.exit_reason = EXIT_REGIONS


@export
def install(
    hart: Hart,
    page: CodePage,
    version: u64,
    steps: Ptr[u16],
    step_count: u64,
    entries: Ptr[u16],
    entry_count: u64,
    code: u64,
) -> None:
    """Puts a region into the slots of its entries, if the page is still the one that it was made of; ``steps`` are the
    offsets of its instructions.

    The slots of all of them are decoded, since the region may leave at any.
    """
    lock_pages(hart)
    if page.armed == 0 and page.version == version:
        put_region(hart, page, steps, step_count, entries, entry_count, code)
    unlock_pages(hart)


@native
def put_region(
    hart: Hart, page: CodePage, steps: Ptr[u16], step_count: u64, entries: Ptr[u16], entry_count: u64, code: u64
) -> None:
    machine = machine_of(hart)
    decode_handler = machine.decode_handler
    for i in range(step_count):
        offset = u64(steps[i])
        slot = page.slots[offset >> 1]
        page.covered[offset >> 7] |= u64(1) << ((offset >> 1) & 63)
        if slot.handler == decode_handler:
            decode(hart, slot, peek(u32, ref(page.copy) + offset), offset, True)
            if machine.eager != 0:
                slot.handler = decode_handler
    for i in range(entry_count):
        page.slots[u64(entries[i]) >> 1].handler = code


@export
def executed(hart: Hart, page: CodePage, bitmap: Ptr[u8]) -> None:
    """Which slots of a page have been run: bit ``i % 8`` of byte ``i / 8`` for slot i."""
    decode_handler = machine_of(hart).decode_handler
    for i in range(PAGE_SLOTS // 8):
        bits = u64(0)
        for j in range(8):
            if page.slots[8 * i + j].handler != decode_handler:
                bits |= u64(1) << j
        bitmap[i] = u8(bits)


@export
def reset_tlbs(hart: Hart) -> None:
    """Frees everything that is derived from memory: after a reset or a load of state."""
    for i in range(CONTEXTS):
        hart.contexts[i].used = (1 << MODES) - 1
        hart.contexts[i].space = ~u64(0)
    flush_all(hart)
    lock_pages(hart)
    forget_pages(hart)
    unlock_pages(hart)
    select_context(hart)
    select_tlb(hart)


@export
def debug_changed(hart: Hart) -> None:
    """Breakpoints and watchpoints of the machine are others: none is in any slot, and pages are looked at anew."""
    for i in range(hart.code_used):
        page = at(CodePage, hart.code_pool + i * CODE_PAGE_STRIDE)
        if page.armed != 0:
            disarm(hart, page)
    flush_all(hart)


EXPORTS = (
    debug_changed,
    run,
    install,
    executed,
    reset_tlbs,
    raise_attention,
    *LATCH_EXPORTS,
    *MESSAGE_EXPORTS,
    *COHERENCE_EXPORTS,
    *SHOOT_DOWN_EXPORTS,
)
