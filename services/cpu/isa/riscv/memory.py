"""Guest memory as a hart sees it: PMP, page walks, TLBs and the slow path of every access.

Privileged specification: 3.7 (physical memory protection), 12.2 to 12.6 (supervisor memory management, Sv39 to Sv57),
11 (Svadu),
14 (Svpbmt). The fast path is in the interpreter: a TLB entry of exactly the page that the access is in.
"""

from __future__ import annotations

from ...native.lang import (
    at,
    atomic_load,
    atomic_rmw,
    atomic_store,
    call_host,
    cold,
    compare_exchange,
    i64,
    inline,
    native,
    peek,
    peek_aligned,
    poke,
    ref,
    u8,
    u16,
    u32,
    u64,
    unlikely,
)  # fmt: skip
from .clint import aclint_read, aclint_write, guest_ns, guest_time
from .coherence import code_stored, is_free, may_hold_code
from .csr_bits import (
    ADUE,
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
    SATP_MODE_SHIFT,
    SUM,
)  # fmt: skip
from .debug import WATCH_READ, WATCH_WRITE, page_watched, watched
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
from .latch import clear_latch
from .plic import plic_read, plic_write
from .segments import machine_of, segment_of
from .state import (
    ABSENT,
    ACCESS_FAILED,
    ACCESS_NONE,
    ACCESS_WANTED,
    DEVICE_ACLINT,
    DEVICE_PLIC,
    DEVICE_UNMAPPED,
    DOORBELL_VALUES,
    EXIT_ACCESS,
    EXIT_FLUSH,
    EXIT_PAGE,
    MACHINE,
    PENDING_EXIT,
    PENDING_NONE,
    PENDING_TRAP,
    PMP_ENTRIES,
    RING_ENTRIES,
    SHADOW_SHIFT,
    SUPERVISOR,
    USER,
    Hart,
    Region,
    Segment,
    Tlb,
)  # fmt: skip
from .tlb import OFFSET, PAGE, TLB_MPRV, WATCHED, data_index, data_privilege

READ, WRITE, FETCH = 0, 1, 2


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
def pmp_allows(hart: Hart, physical: u64, size: u64, kind: u64, privilege: u64) -> bool:
    """Whether PMP lets an access happen; ``hart.pmp_uniform`` says if the answer holds for the whole page."""
    first_page = physical & ~OFFSET
    last_page = first_page + OFFSET
    last = physical + size - 1
    hart.pmp_uniform = 1
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
                hart.pmp_uniform = 0
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
    hart.walk_level = 0
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
        hart.walk_level = level
        return ((((entry >> PTE_PPN_SHIFT) & PPN_MASK) << 12) & ~mask) | (address & mask)
    return fault(hart, kind, address, True)


@inline
def mark_dirty(segment: Segment, physical: u64) -> None:
    """Sets the dirty flag of a page that is about to be written."""
    if segment.dirty != 0:
        poke(u8, segment.dirty + ((physical - segment.base) >> 12), 1)


@inline
def is_absent(segment: Segment, physical: u64) -> bool:
    """Whether a page's content is not here yet: then nothing of it may be used, nor a TLB entry be made."""
    return segment.present != 0 and peek_aligned(u8, segment.present + ((physical - segment.base) >> 12)) == 0


@cold
def want_page(hart: Hart, physical: u64) -> u64:
    """Leaves for Python, which waits for an absent page and runs the instruction again; gives 0."""
    hart.absent_page = physical & ~OFFSET
    hart.exit_reason = EXIT_PAGE
    hart.pending = PENDING_EXIT
    return 0


@native
def host_address(hart: Hart, address: u64, size: u64, kind: u64) -> u64:
    """The host address of a virtual one, and a TLB entry for it.

    0 if an exception is pending or a page is absent (then an exit is), or if no memory is there (then
    ``hart.physical`` is the device's address). ``size`` bytes must be in one page. Whoever has stored there calls
    ``settle_store``.
    """
    privilege = u64(hart.privilege) if kind == FETCH else data_privilege(hart)
    physical = walk(hart, address, kind, privilege)
    if hart.pending != PENDING_NONE:
        return 0
    level = hart.walk_level
    hart.physical = physical
    if not pmp_allows(hart, physical, size, kind, privilege):
        return fault(hart, kind, address, False)
    segment_address = segment_of(hart, physical)
    if segment_address == 0:
        return 0
    segment = at(Segment, segment_address)
    if is_absent(segment, physical):
        return want_page(hart, physical)
    if kind == WRITE:
        if segment.writable == 0:
            return 0
        mark_dirty(segment, physical)
        hart.code_store = ref(segment) if may_hold_code(segment, physical) else u64(0)
    host = segment.host + (physical - segment.base)
    cached = hart.pmp_uniform != 0 and kind != FETCH and hart.tlb != hart.tlbs + TLB_MPRV * Tlb.size
    if cached and unlikely(machine_of(hart).watchpoint_count != 0):
        cached = not page_watched(hart, address)
    if cached:
        tlb = at(Tlb, hart.tlb)
        index = data_index(address)
        entry = tlb.write[index] if kind == WRITE else tlb.read[index]
        entry.tag = address & ~OFFSET
        if kind == WRITE and hart.code_store != 0:
            entry.tag |= WATCHED
        entry.addend = host - address
        hart.count_tlb_fills += 1
    if level != 0:
        note_superpage(hart, address, level)
    return host


@native
def settle_store(hart: Hart) -> None:
    """Behind a store to where ``host_address`` led: all fetches see it."""
    if unlikely(hart.code_store != 0):
        code_stored(hart, at(Segment, hart.code_store), hart.physical)


@native
def note_superpage(hart: Hart, address: u64, level: u64) -> None:
    """Widens the range of the context's superpages: a flush of one address inside of it must flush all."""
    if hart.privilege == MACHINE:
        return
    context = hart.contexts[hart.context]
    mask = (u64(PAGE) << (9 * level)) - 1
    low = address & ~mask
    high = address | mask
    if context.superpage_high < context.superpage_low:
        context.superpage_low = low
        context.superpage_high = high
    if low < context.superpage_low:
        context.superpage_low = low
    if high > context.superpage_high:
        context.superpage_high = high


# slow paths of data accesses


@native
def device_access(hart: Hart, device: u32, region: u32, offset: u64, size: u64, write: u32, value: u64) -> u64:
    """Leaves for Python, which makes the access and runs the instruction again."""
    hart.access_device = device
    hart.access_region = region
    hart.access_offset = offset
    hart.access_size = size
    hart.access_write = write
    hart.access_value = value
    hart.access_state = ACCESS_WANTED
    hart.exit_reason = EXIT_ACCESS
    hart.pending = PENDING_EXIT
    return 0


@native
def region_of(hart: Hart, physical: u64, size: u64) -> u64:
    """The host address of the :class:`Region` that holds an access, or 0; ``hart.region_offset`` is the access's place
    in it. A region may move meanwhile: where it is, is read once."""
    machine = machine_of(hart)
    for i in range(machine.region_count):
        region = machine.regions[i]
        base = atomic_load(u64, ref(region.base))
        offset = physical - base
        if offset < region.size and offset + size <= region.size and base != ABSENT:
            hart.region_offset = offset
            return ref(region)
    return 0


@native
def device_read(hart: Hart, address: u64, physical: u64, size: u64) -> u64:
    """A load from no memory."""
    found = region_of(hart, physical, size)
    if found == 0:
        return device_access(hart, DEVICE_UNMAPPED, 0, physical, size, 0, 0)
    region = at(Region, found)
    offset = hart.region_offset
    if region.device == DEVICE_ACLINT or region.device == DEVICE_PLIC:
        hart.count_local += 1
        value = aclint_read(hart, offset, size) if region.device == DEVICE_ACLINT else plic_read(hart, offset, size)
        if hart.pending != PENDING_NONE:
            return fault(hart, READ, address, False)
        return value
    if region.kinds != 0 and (u64(peek(u8, region.kinds + offset)) >> SHADOW_SHIFT) & size != 0:
        hart.count_shadow += 1
        return peek_sized(region.shadow + offset, size)
    hart.count_sync += 1
    return device_access(hart, region.device, region.index, offset, size, 0, 0)


@native
def ring_doorbell(hart: Hart, region: Region, value: u64) -> bool:
    """Rings a device at once, whoever of it lives; False if it cannot be, and the write is to be posted.

    The value is noted first: whoever opens the FIFO of another life rings what has been noted.
    """
    if value >= DOORBELL_VALUES:
        return False
    machine = machine_of(hart)
    atomic_rmw("or", u64, ref(region.rung), u64(1) << value)
    hart.doorbell = value
    size = region.doorbell_record
    if size != 1:
        hart.doorbell_time = guest_ns(hart)
    # not if nobody reads (EPIPE) or nobody has read for long (EAGAIN)
    if call_host(machine.write, region.doorbell_file, ref(hart.doorbell), size) != size:
        return False
    hart.count_doorbell += 1
    return True


@native
def device_write(hart: Hart, address: u64, physical: u64, size: u64, value: u64) -> None:
    """A store to no writable memory; one to a read-only segment is dropped, as on QEMU's board."""
    if segment_of(hart, physical) != 0:
        return
    found = region_of(hart, physical, size)
    if found == 0:
        device_access(hart, DEVICE_UNMAPPED, 0, physical, size, 1, value)
        return
    region = at(Region, found)
    offset = hart.region_offset
    if region.device == DEVICE_ACLINT or region.device == DEVICE_PLIC:
        hart.count_local += 1
        if region.device == DEVICE_ACLINT:
            aclint_write(hart, offset, size, value)
        else:
            plic_write(hart, offset, size, value)
        if hart.pending != PENDING_NONE:
            fault(hart, WRITE, address, False)
        return
    if region.latch_count != 0 and clear_latch(hart, region, offset, size, value):
        hart.count_local += 1
        return
    if region.doorbell_size == size and region.doorbell_offset == offset and ring_doorbell(hart, region, value):
        return
    if region.kinds != 0 and u64(peek(u8, region.kinds + offset)) & size != 0:
        if hart.ring_count == RING_ENTRIES:
            hart.exit_reason = EXIT_FLUSH
            hart.pending = PENDING_EXIT
            return
        if hart.ring_count == 0:
            # how long it waits is looked at from now on
            hart.ring_since = guest_time(hart)
            atomic_store(u64, ref(hart.stop_at), 0)
        posted = hart.ring[hart.ring_count]
        posted.device = region.device
        posted.region = region.index
        posted.offset = offset
        posted.size = size
        posted.value = value
        hart.ring_count += 1
        hart.count_posted += 1
        return
    hart.count_sync += 1
    device_access(hart, region.device, region.index, offset, size, 1, value)


@inline
def peek_sized(host: u64, size: u64) -> u64:
    """A little-endian value of 1, 2, 4 or 8 bytes."""
    if size == 8:
        return peek(u64, host)
    if size == 4:
        return u64(peek(u32, host))
    if size == 2:
        return u64(peek(u16, host))
    return u64(peek(u8, host))


@inline
def poke_sized(host: u64, size: u64, value: u64) -> None:
    if size == 8:
        poke(u64, host, value)
    elif size == 4:
        poke(u32, host, u32(value))
    elif size == 2:
        poke(u16, host, u16(value))
    else:
        poke(u8, host, u8(value))


@inline
def finish_access(hart: Hart, kind: u64, address: u64) -> u64:
    """Takes the answer to the access that Python made."""
    failed = hart.access_state == ACCESS_FAILED
    hart.access_state = ACCESS_NONE
    if failed:
        return fault(hart, kind, address, False)
    return hart.access_value


@native
def misaligned(hart: Hart, kind: u64, address: u64) -> u64:
    hart.cause = u64(STORE_MISALIGNED) if kind == WRITE else u64(LOAD_MISALIGNED)
    hart.trap_value = address
    hart.pending = PENDING_TRAP
    return 0


@native
def ends_in_memory(hart: Hart, address: u64, size: u64, kind: u64) -> bool:
    """Looks up both ends of an access that is not naturally aligned; if memory does not hold both, an exception is
    pending."""
    first = host_address(hart, address, 1, kind)
    last = u64(0)
    if hart.pending == PENDING_NONE:
        last = host_address(hart, address + size - 1, 1, kind)
    if hart.pending != PENDING_NONE:
        # the value is the address of the portion that faults: the whole access, or what is in the second page
        hart.trap_value = address if (hart.trap_value ^ address) & ~OFFSET == 0 else hart.trap_value & ~OFFSET
        return False
    if first == 0 or last == 0:
        misaligned(hart, kind, address)
        return False
    return True


@native
def read_misaligned(hart: Hart, address: u64, size: u64) -> u64:
    """A load that is not naturally aligned: done in memory, across pages (and PMP's borders) byte by byte; refused at
    devices."""
    value = u64(0)
    if (address & OFFSET) + size <= PAGE:
        host = host_address(hart, address, 1, READ)
        if host != 0 and hart.pmp_uniform != 0:
            return peek_sized(host, size)
        if hart.pending != PENDING_NONE:
            return 0
    if ends_in_memory(hart, address, size, READ):
        for i in range(size):
            host = host_address(hart, address + i, 1, READ)
            if host == 0:
                return 0
            value |= u64(peek(u8, host)) << (8 * i)
    return value


@native
def write_misaligned(hart: Hart, address: u64, size: u64, value: u64) -> None:
    """A store that is not naturally aligned; across pages, and to code, byte by byte. PMP may end it in the middle
    (3.7.1 allows that)."""
    if (address & OFFSET) + size <= PAGE:
        host = host_address(hart, address, 1, WRITE)
        if host != 0 and hart.pmp_uniform != 0 and hart.code_store == 0:
            poke_sized(host, size, value)
            return
        if hart.pending != PENDING_NONE:
            return
    if ends_in_memory(hart, address, size, WRITE):
        for i in range(size):
            host = host_address(hart, address + i, 1, WRITE)
            if host == 0:
                return
            poke(u8, host, u8(value >> (8 * i)))
            settle_store(hart)


@cold
def memory_read(hart: Hart, address: u64, size: u64) -> u64:
    """A load that its TLB entry did not answer."""
    if unlikely(hart.access_state != ACCESS_NONE):
        return finish_access(hart, READ, address)
    if unlikely(machine_of(hart).watchpoint_count != 0) and watched(hart, address, size, WATCH_READ):
        return 0
    if address & (size - 1) != 0:
        return read_misaligned(hart, address, size)
    host = host_address(hart, address, size, READ)
    if host != 0:
        return peek_sized(host, size)
    if hart.pending != PENDING_NONE:
        return 0
    return device_read(hart, address, hart.physical, size)


@native
def watched_store(hart: Hart, host: u64, size: u64, value: u64) -> bool:
    """A store to a page of which the TLB says that it holds code; False if it holds none any more."""
    machine = machine_of(hart)
    for i in range(machine.segment_count):
        segment = machine.segments[i]
        if host - segment.host < segment.size:
            physical = segment.base + (host - segment.host)
            if is_free(segment, physical):
                return False
            poke_sized(host, size, value)
            code_stored(hart, segment, physical)
            return True
    return False


@cold
def memory_write(hart: Hart, address: u64, size: u64, value: u64) -> None:
    """A store that its TLB entry did not answer."""
    if unlikely(hart.access_state != ACCESS_NONE):
        finish_access(hart, WRITE, address)
        return
    if unlikely(machine_of(hart).watchpoint_count != 0) and watched(hart, address, size, WATCH_WRITE):
        return
    if address & (size - 1) != 0:
        write_misaligned(hart, address, size, value)
        return
    entry = at(Tlb, hart.tlb).write[data_index(address)]
    if entry.tag == (address & ~OFFSET) | WATCHED and watched_store(hart, address + entry.addend, size, value):
        return
    host = host_address(hart, address, size, WRITE)
    if host != 0:
        poke_sized(host, size, value)
        settle_store(hart)
    elif hart.pending == PENDING_NONE:
        device_write(hart, address, hart.physical, size, value)


@cold
def memory_locate(hart: Hart, address: u64, size: u64, kind: u64) -> u64:
    """The host address for an atomic access; devices and misaligned addresses are refused. Whoever has stored there
    calls ``settle_store``."""
    if address & (size - 1) != 0:
        return misaligned(hart, kind, address)
    if unlikely(machine_of(hart).watchpoint_count != 0):
        access = u64(WATCH_READ) if kind == READ else u64(WATCH_READ | WATCH_WRITE)
        if watched(hart, address, size, access):
            return 0
    host = host_address(hart, address, size, kind)
    if host == 0 and hart.pending == PENDING_NONE:
        return fault(hart, kind, address, False)
    return host
