"""Guest memory as a hart sees it: TLBs, devices and the slow path of every access.

The fast path is in the interpreter: a TLB entry of exactly the page that the access is in. What a virtual address is,
and who may reach it, the ISA says (``provided.translate``).
"""

from __future__ import annotations

from ..native.lang import (
    at,
    atomic_load,
    atomic_rmw,
    atomic_store,
    call_host,
    cold,
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
from .coherence import code_stored, is_free, may_hold_code
from .debug import WATCH_READ, WATCH_WRITE, page_watched, watched
from .latch import clear_latch
from .provided import controller_read, controller_write, refuse_access, refuse_misaligned, translate
from .segments import machine_of, segment_of
from .state import (
    ABSENT,
    ACCESS_FAILED,
    ACCESS_NONE,
    ACCESS_WANTED,
    DEVICE_CONTROLLER,
    DEVICE_UNMAPPED,
    DOORBELL_VALUES,
    EXIT_ACCESS,
    EXIT_FLUSH,
    EXIT_PAGE,
    FETCH,
    PENDING_EXIT,
    PENDING_NONE,
    READ,
    RING_ENTRIES,
    SHADOW_SHIFT,
    WRITE,
    Hart,
    Region,
    Segment,
    Tlb,
)
from .timers import counter, guest_ns
from .tlb import OFFSET, PAGE, UNKEPT, WATCHED, data_index, keeps


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
    physical = translate(hart, address, size, kind)
    if hart.pending != PENDING_NONE:
        return 0
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
    cached = hart.uniform != 0 and kind != FETCH and hart.tlb != hart.tlbs + UNKEPT * Tlb.size
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
    if hart.page_mask != OFFSET:
        note_superpage(hart, address)
    return host


@native
def settle_store(hart: Hart) -> None:
    """Behind a store to where ``host_address`` led: all fetches see it."""
    if unlikely(hart.code_store != 0):
        code_stored(hart, at(Segment, hart.code_store), hart.physical)


@native
def note_superpage(hart: Hart, address: u64) -> None:
    """Widens the range of the context's superpages: a flush of one address inside of it must flush all."""
    if not keeps(hart):
        return
    context = hart.contexts[hart.context]
    low = address & ~hart.page_mask
    high = address | hart.page_mask
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
    if region.device >= DEVICE_CONTROLLER:
        hart.count_local += 1
        value = controller_read(hart, u64(region.device - DEVICE_CONTROLLER), offset, size)
        if hart.pending != PENDING_NONE:
            return refuse_access(hart, address, READ)
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
    if region.device >= DEVICE_CONTROLLER:
        hart.count_local += 1
        controller_write(hart, u64(region.device - DEVICE_CONTROLLER), offset, size, value)
        if hart.pending != PENDING_NONE:
            refuse_access(hart, address, WRITE)
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
            hart.ring_since = counter(hart)
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
        return refuse_access(hart, address, kind)
    return hart.access_value


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
        refuse_misaligned(hart, address, kind)
        return False
    return True


@native
def read_misaligned(hart: Hart, address: u64, size: u64) -> u64:
    """A load that is not naturally aligned: done in memory, across pages (and PMP's borders) byte by byte; refused at
    devices."""
    value = u64(0)
    if (address & OFFSET) + size <= PAGE:
        host = host_address(hart, address, 1, READ)
        if host != 0 and hart.uniform != 0:
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
        if host != 0 and hart.uniform != 0 and hart.code_store == 0:
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
        return refuse_misaligned(hart, address, kind)
    if unlikely(machine_of(hart).watchpoint_count != 0):
        access = u64(WATCH_READ) if kind == READ else u64(WATCH_READ | WATCH_WRITE)
        if watched(hart, address, size, access):
            return 0
    host = host_address(hart, address, size, kind)
    if host == 0 and hart.pending == PENDING_NONE:
        return refuse_access(hart, address, kind)
    return host
