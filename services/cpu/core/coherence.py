"""Fetches see stores without FENCE.I, whoever makes them (Ziccid, and what guests of QEMU rely on).

A page of RAM is written through TLB entries or holds code, never both. Its flag ``holds-code`` (memory.proto: Segment)
says which:

    FREE      nobody runs decoded code of it; harts write it through entries of their write TLBs
    TRUSTED   what harts have decoded of it is what is in memory; a store takes the slow path, and brings up to date
              what every hart has decoded of that doubleword, before the instruction ends
    WRITTEN   as TRUSTED, but a device has written to it: nobody goes on to run it before it is compared
    CHECKING  it is being compared, and becomes TRUSTED
    LEAVING   it has been written often: when every hart has dropped its fetch TLBs it is FREE

Harts change the flag with ``Machine.code_lock``, devices without. Why no store is missed:

* A hart that is about to make an entry, or to write without one, says so in ``PageUse.entries`` and then looks at the
  flag. A hart that is about to run code sets the flag to CHECKING and then looks at ``entries``. Both store first and
  then load (sequentially consistent), so one of the two sees the other: there is no entry, or a shoot-down, and what
  was written through the entry is in memory when that has been answered (see ``shoot_down``). ``entries`` is cleared
  before the shoot-down is asked for, so that it stays for whoever says so later.
* After that all write on the slow path: the store, a fence, and then, with each hart's ``code_lock``, what that hart
  has decoded. A hart that decodes the page meanwhile first says so in ``PageUse.holders``, and then copies it with the
  same lock: it copies the new bytes, or is found in ``holders``.
* A slot that has changed is decoded when it is next run. A hart that is inside of a region is made to look up at its
  next backward branch; its own stores to code have it leave the region at once: the next instruction sees them.
* FREE comes after LEAVING only, when every hart has dropped its fetch TLBs between two instructions, or was outside of
  native code: to run the page again it has to look it up, finds the flag, and compares.
* A device writes, fences, and changes a flag that is not FREE to WRITTEN, and then ``Segment.news``. Harts look at that
  (``look_at_news``) before they take the interrupt that says so, at FENCE.I, when they come back from Python or WFI,
  and each time they look at the clock. While the flag is CHECKING, the change to TRUSTED fails, and the page is
  compared again. (A guest that polls the device's ring and runs at once what came, without FENCE.I, may run what was
  there until the next look at the clock.)

Code and data may share a page: stores beside code cost the slow path (and a TLB entry that is ``WATCHED``, which keeps
its translation). After ``PageUse.left`` of them the page leaves; if code of it runs again, and is for the most part
what it was, twice as many are borne the next time.
"""

from __future__ import annotations

from ..native.lang import (
    Ptr,
    at,
    atomic_load,
    atomic_rmw,
    atomic_store,
    cold,
    compare_exchange,
    export,
    fence,
    inline,
    native,
    peek,
    ref,
    u8,
    u16,
    u32,
    u64,
)  # fmt: skip
from .attention import raise_attention
from .code_pages import (
    REWRITTEN,
    UNCHANGED,
    add_page,
    check_page,
    find_page,
    lock_pages,
    refresh,
    relax,
    unlock_pages,
)  # fmt: skip
from .segments import segment_of
from .shoot_down import answer_shoot_downs, ask_shoot_down, has_answered
from .state import ATTENTION_SHOOT_DOWN, FRESH, KNOWN, CodePage, Hart, Machine, PageUse, Segment
from .tlb import OFFSET

FREE, TRUSTED, WRITTEN, CHECKING, LEAVING = range(5)
#: Stores to a page that holds code before it leaves: at first, at most, and between two looks at how far that is.
FEWEST, MOST, LOOK_AGAIN = 16, 32768, 8


@inline
def flag_of(segment: Segment, physical: u64) -> u64:
    return segment.code + ((physical - segment.base) >> 12)


@inline
def use_of(segment: Segment, physical: u64) -> PageUse:
    return at(Ptr[PageUse], segment.uses)[(physical - segment.base) >> 12]


@native
def may_hold_code(segment: Segment, physical: u64) -> bool:
    """Whether ``code_stored`` must follow the store that is made next; then there is to be no entry."""
    use = use_of(segment, physical)
    if atomic_load(u32, ref(use.entries)) == 0:
        atomic_store(u32, ref(use.entries), 1)
    return not is_free(segment, physical)


@inline
def is_free(segment: Segment, physical: u64) -> bool:
    return atomic_load(u8, flag_of(segment, physical)) == FREE


@native
def look_up(hart: Hart) -> None:
    """Has a hart leave its region at the next backward branch."""
    if atomic_load(u32, ref(hart.inside)) != 0:
        atomic_store(u64, ref(hart.stop_at), 0)


@native
def tell_holders(machine: Machine, segment: Segment, physical: u64, words: u64, writer: u64) -> None:
    """Brings up to date what harts have decoded of some doublewords of a page; ``writer`` is the record of the hart
    that wrote them, or 0."""
    holders = atomic_load(u64, ref(use_of(segment, physical).holders))
    host = segment.host + ((physical & ~OFFSET) - segment.base)
    first = (physical & OFFSET) >> 3
    for i in range(machine.hart_count):
        if (holders >> (i & 63)) & 1 != 0:
            hart = at(Hart, machine.harts[i])
            changed = False
            lock_pages(hart)
            found = find_page(hart, physical & ~OFFSET)
            if found != 0:
                for word in range(first, first + words):
                    if refresh(hart, at(CodePage, found), word, host):
                        changed = True
            unlock_pages(hart)
            if changed and ref(hart) != writer:
                look_up(hart)


@cold
def code_stored(hart: Hart, segment: Segment, physical: u64) -> None:
    """A hart has stored to a doubleword of a page that may hold code."""
    hart.count_code_stores += 1
    fence()
    tell_holders(at(Machine, hart.machine), segment, physical, 1, ref(hart))
    use = use_of(segment, physical)
    if use.left > 1:
        use.left -= 1
    else:
        use.left = u16(LOOK_AGAIN)
        leave(hart, segment, physical)


@native
def leave(hart: Hart, segment: Segment, physical: u64) -> None:
    """Has a page become FREE; called again, until it is."""
    machine = at(Machine, hart.machine)
    if compare_exchange(u64, ref(machine.code_lock), 0, 1) != 0:
        return
    flag = flag_of(segment, physical)
    use = use_of(segment, physical)
    found = atomic_load(u8, flag)
    if found == LEAVING:
        done = True
        for i in range(machine.hart_count):
            other = at(Hart, machine.harts[i])
            if atomic_load(u64, ref(other.fetch_shot)) < use.number and atomic_load(u32, ref(other.inside)) != 0:
                done = False
        if done:
            compare_exchange(u8, flag, u8(LEAVING), u8(FREE))
    elif found != FREE:
        atomic_store(u8, flag, u8(LEAVING))
        use.number = atomic_rmw("add", u64, ref(machine.fetch_shoot_downs), 1) + 1
        for i in range(machine.hart_count):
            other = at(Hart, machine.harts[i])
            if atomic_load(u32, ref(other.inside)) != 0:
                raise_attention(other, ATTENTION_SHOOT_DOWN)
    atomic_store(u64, ref(machine.code_lock), 0)


@native
def drop_entries(hart: Hart) -> None:
    """Returns when no hart has an entry for writes any more that is older than the call."""
    machine = at(Machine, hart.machine)
    number = ask_shoot_down(machine)
    for i in range(machine.hart_count):
        other = at(Hart, machine.harts[i])
        spins = u64(0)
        answer_shoot_downs(hart)
        while not has_answered(other, number):
            # the other may wait for this one
            answer_shoot_downs(hart)
            relax(hart, spins)
            spins += 1


@cold
def trust(hart: Hart, segment: Segment, physical: u64, host: u64) -> u64:
    """Makes a page TRUSTED for a hart that is about to run code of it, between two instructions; gives the host address
    of its decoded page."""
    machine = at(Machine, hart.machine)
    spins = u64(0)
    while compare_exchange(u64, ref(machine.code_lock), 0, 1) != 0:
        answer_shoot_downs(hart)
        relax(hart, spins)
        spins += 1
    flag = flag_of(segment, physical)
    use = use_of(segment, physical)
    own = find_page(hart, physical)
    found = atomic_load(u8, flag)
    leaving = found == LEAVING
    if found == FREE or leaving:
        patience = u64(use.patience) * 2
        use.patience = u16(MOST) if patience > MOST else u16(patience)
        if patience < FEWEST:
            use.patience = u16(FEWEST)
        use.left = use.patience
    while True:
        if found != TRUSTED:
            hart.count_code_checks += 1
            atomic_store(u8, flag, u8(CHECKING))
            if atomic_load(u32, ref(use.entries)) != 0:
                atomic_store(u32, ref(use.entries), 0)
                drop_entries(hart)
            holders = atomic_load(u64, ref(use.holders))
            for i in range(machine.hart_count):
                if (holders >> (i & 63)) & 1 != 0:
                    other = at(Hart, machine.harts[i])
                    changed = u64(0)
                    lock_pages(other)
                    place = find_page(other, physical)
                    if place != 0:
                        changed = check_page(other, at(CodePage, place), host)
                    unlock_pages(other)
                    if changed == REWRITTEN:
                        use.left = u16(FEWEST)
                        use.patience = u16(FEWEST)
                    if changed != UNCHANGED and ref(other) != ref(hart):
                        look_up(other)
        if own == 0:
            atomic_rmw("or", u64, ref(use.holders), u64(1) << (hart.number & 63))
            own = add_page(hart, physical, host)
        if found == TRUSTED or compare_exchange(u8, flag, u8(CHECKING), u8(TRUSTED)) == CHECKING:
            break
        found = u8(WRITTEN)
    atomic_store(u64, ref(machine.code_lock), 0)
    return own


@native
def code_page(hart: Hart, physical: u64, host: u64) -> CodePage:
    """The decoded page of a physical page of which the hart is about to run code."""
    segment = at(Segment, segment_of(hart, physical))
    address = find_page(hart, physical)
    if segment.writable == 0:
        if address == 0:
            address = add_page(hart, physical, host)
    elif address == 0 or atomic_load(u8, flag_of(segment, physical)) != TRUSTED:
        address = trust(hart, segment, physical, host)
    page = at(CodePage, address)
    page.generation = hart.code_generation
    if page.fresh != 0:
        tell_fresh(hart, page)
    return page


@native
def tell_fresh(hart: Hart, page: CodePage) -> None:
    """Python is told of new code, if it may know a region of it."""
    machine = at(Machine, hart.machine)
    if machine.known == 0 or hart.fresh_count == FRESH:
        return
    page.fresh = 0
    number = page.fingerprint & (KNOWN - 1)
    if (peek(u64, machine.known + ((number >> 6) << 3)) >> (number & 63)) & 1 != 0:
        hart.fresh[hart.fresh_count] = ref(page)
        hart.fresh_count += 1


@export
def code_written(machine: Machine, physical: u64, size: u64) -> None:
    """Somebody in this process has written to RAM."""
    fence()
    hart = at(Hart, machine.harts[0])
    done = u64(0)
    while done < size:
        address = physical + done
        length = OFFSET + 1 - (address & OFFSET)
        if length > size - done:
            length = size - done
        found = segment_of(hart, address)
        if found != 0 and at(Segment, found).writable != 0:
            words = (((address & OFFSET) + length - 1) >> 3) - ((address & OFFSET) >> 3) + 1
            tell_holders(machine, at(Segment, found), address, words, 0)
        done += length


EXPORTS = (code_written,)
