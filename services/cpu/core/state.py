"""What native code knows of a machine and its harts: records of a fixed layout, for native code and Python alike.

No instruction set is in them: an ISA extends :class:`Hart` by its registers and :class:`Slot` by its operands
(``isa.interface``), and what the core compiles has its records in their place.
"""

from __future__ import annotations

from ..native.lang import Ptr, Record, array, u16, u32, u64

#: Why a slow path gave no result: nothing, an exception, a stop in Python before the instruction can go on,
#: a watched access, which is to be done by a step.
PENDING_NONE, PENDING_TRAP, PENDING_EXIT, PENDING_STEP = 0, 1, 2, 3

#: Why ``run`` came back to Python.
EXIT_NONE, EXIT_ACCESS, EXIT_FLUSH, EXIT_DRAIN, EXIT_STOP, EXIT_REGIONS, EXIT_PAGE, EXIT_DEBUG = range(8)

#: What an access does.
READ, WRITE, FETCH = 0, 1, 2

#: Progress of the access in ``Hart.access_*`` that Python makes for the hart.
ACCESS_NONE, ACCESS_WANTED, ACCESS_DONE, ACCESS_FAILED = 0, 1, 2, 3

#: Bits of ``Hart.attention``: what other threads ask of a running hart.
ATTENTION_INTERRUPT, ATTENTION_STOP, ATTENTION_REGIONS, ATTENTION_CODE, ATTENTION_SHOOT_DOWN = 1, 2, 4, 8, 16

#: Why a hart stopped for the debugger; DEBUG_WATCH is added to what the watchpoint watches (1 write, 2 read, 3 both).
DEBUG_NONE, DEBUG_BREAKPOINT, DEBUG_STEP, DEBUG_WATCH = 0, 1, 2, 4
#: Progress of a step: none, wanted next, its instruction is being run.
STEP_NONE, STEP_WANTED, STEP_UNDERWAY = 0, 1, 2
BREAKPOINTS, WATCHPOINTS = 512, 64
MOST_HARTS = 512
#: No address of an instruction.
NOWHERE = (1 << 64) - 1

#: Entries of each software TLB (a power of two): data reads, data writes, fetches.
TLB_ENTRIES, FETCH_ENTRIES = 1024, 512
#: Address spaces whose TLBs are kept at once; a switch back to one of them costs no refill.
CONTEXTS = 8
#: TLBs of one address space: one for each way in which the ISA may see it.
MODES = 3
RING_ENTRIES = 256
REGIONS = 64
SEGMENTS = 8
LATCHES = 64
#: Values that a doorbell takes; larger ones are posted.
DOORBELL_VALUES = 64
#: A raise as it comes through a FIFO (bus.proto: Description.interrupts): words of 8 bytes at most, and how many are
#: read at once. So many raises from one device make ``listen`` give Python a look.
RAISE_WORDS, RAISES, RAISES_LOOKED_AT = 4, 64, 2000


class TlbEntry(Record):
    """A page of guest virtual memory: ``tag`` is its address (all ones when free); host address = guest address +
    ``addend``.

    In a fetch TLB ``addend`` is the host address of the page's decoded slots.
    """

    tag: u64
    addend: u64


class Tlb(Record):
    """The TLBs of one address space in one mode."""

    read: Ptr[TlbEntry] = array(TlbEntry, TLB_ENTRIES)
    write: Ptr[TlbEntry] = array(TlbEntry, TLB_ENTRIES)
    fetch: Ptr[TlbEntry] = array(TlbEntry, FETCH_ENTRIES)


class Context(Record):
    """An address space known to the TLBs: what the ISA names it by, and the range its superpages cover."""

    space: u64
    used: u64
    superpage_low: u64
    superpage_high: u64


class PageUse(Record):
    """How harts use a page of RAM that may hold code (see ``coherence``)."""

    #: 1: a write TLB may have an entry of it
    entries: u32
    #: stores to it as a page that holds code until it is to be none, and what ``left`` begins with
    left: u16
    patience: u16
    #: bit n % 64: hart n may have it decoded
    holders: u64
    #: the shoot-down of fetches after which it holds no code
    number: u64


class Segment(Record):
    """A range of guest physical addresses backed by host memory. ``dirty``, ``present`` and ``code`` are the host
    addresses of its page flags, or 0, ``news`` that of the number that devices change when they have written to a page
    that holds code, ``uses`` that of its :class:`PageUse` records."""

    base: u64
    size: u64
    host: u64
    dirty: u64
    present: u64
    code: u64
    news: u64
    uses: u64
    writable: u64


class Region(Record):
    """A range of guest physical addresses answered by a device.

    ``kinds`` is the host address of one byte per offset (or 0): its low nibble has the access sizes (1, 2, 4, 8) with
    which a write there
    is posted, its high nibble those with which a read comes from ``shadow``, which holds the values at the same
    offsets. ``device`` numbers the owner: from ``DEVICE_CONTROLLER`` on it is an interrupt controller, which native
    code answers for.
    """

    base: u64
    size: u64
    kinds: u64
    shadow: u64
    device: u32
    index: u32
    #: its doorbell: offset of the register, its size (0: there is none), the file to ring, bytes of a record there
    #: (with the time, or 1: without), the values rung so far
    doorbell_offset: u64
    doorbell_size: u64
    doorbell_file: u64
    doorbell_record: u64
    rung: u64
    #: its latches, by their place among the machine's
    first_latch: u64
    latch_count: u64


class Latch(Record):
    """An interrupt status of 4 bytes that the cpu keeps for a device: host addresses of its value (in the region's
    ``shadow``) and of its byte in ``kinds``, the interrupt source that it drives, and the register that clears its
    bits.

    ``sequence`` is the number of the device's update that said all of it last. The lock of the sources guards it.
    """

    value: u64
    kind: u64
    source: u64
    sequence: u64
    clears_offset: u64
    clears_size: u64


class Listener(Record):
    """The cpu's end of the FIFO through which a device raises its latches; ``lock`` guards it."""

    lock: u64
    file: u64
    epoch: u64
    #: number of the last raise taken
    sequence: u64
    first_latch: u64
    latch_count: u64
    #: raises since Python looked, and reads that were no records
    taken: u64
    nonsense: u64
    #: words of a record: RAISE_WORDS, one less without the time; the time of the last one, in guest nanoseconds
    words: u64
    time: u64
    records: Ptr[u64] = array(u64, RAISE_WORDS * RAISES)


#: The base of a region that is nowhere.
ABSENT = (1 << 64) - 1
#: Nobody, and the first of the numbers of interrupt controllers.
DEVICE_UNMAPPED, DEVICE_CONTROLLER = 0xFFFF_FFFF, 0xFFFF_FFF0
CONTROLLERS = DEVICE_UNMAPPED - DEVICE_CONTROLLER
SHADOW_SHIFT = 4


class Slot(Record):
    """A decoded instruction; slot i of a page stands for the instruction at offset 2 * i. Behind the handler are
    ``SLOT_BYTES - 8`` bytes of the ISA's."""

    handler: u64
    operands: u64


SLOT_BYTES = Slot.size
PAGE_SLOTS = 2048


class CodePage(Record):
    """A page of decoded guest code; ``copy`` is what was decoded. Placed at multiples of ``CODE_PAGE_STRIDE``.

    The slot behind the last one leads into the next page. ``Hart.code_lock`` guards all but the operands of slots.
    """

    slots: Ptr[Slot] = array(Slot, PAGE_SLOTS + 1)
    copy: Ptr[u64] = array(u64, 512)
    #: a bit for each slot whose instruction is in a region
    covered: Ptr[u64] = array(u64, PAGE_SLOTS // 64)
    #: a hash of the copy, to tell cheaply that nothing is known of a page; and the count of the copy's changes
    fingerprint: u64
    version: u64
    physical: u64
    next: u64
    #: 1: code has changed, and regions may be known of what it is now
    fresh: u64
    #: the generation in which it was last looked up
    generation: u64
    #: 1: there are breakpoints in its slots, and regions are not
    armed: u64


class Sample(Record):
    """How often the clock found a hart about to run a slot."""

    slot: u64
    count: u64


#: Pages decoded in a generation. A page that was not looked up in this one or the one before may be given up for
#: another, if a hart has ``CODE_KEPT``: Linux needs most of its pages once, to boot. If of a generation more than
#: ``CODE_RETURNED`` had been given up before, as many more are kept.
CODE_GENERATION, CODE_KEPT, CODE_RETURNED = 128, 512, 96
#: Slots counted at a time; hot slots and new pages that wait for Python.
SAMPLES, HOT, FRESH = 256, 16, 64
#: Bits of ``Machine.known``.
KNOWN = 1 << 20
#: Functions of the core that regions may call.
FUNCTIONS = 128

#: Ways out of a region that are not the guest's own jumps, by their number in ``Hart.count_exits``: to an instruction
#: that it does not have, because the TLB does not hold an address, because of a trap or what else only the interpreter
#: does, and because somebody wants the hart's attention.
EXITS = ("outside", "miss", "interpret", "look")

#: Index in ``Hart.scratch`` of the bits of the instruction in the scratch slot.
SCRATCH_BITS = 8

CODE_PAGE_STRIDE = 65536
CODE_HASH = 4096


class Posted(Record):
    """A posted write in the hart's ring."""

    device: u32
    region: u32
    offset: u64
    value: u64
    size: u64


class Watchpoint(Record):
    """Virtual addresses that are watched, and for what (bits: 1 write, 2 read)."""

    first: u64
    last: u64
    kinds: u64


class Machine(Record):
    """What all harts of a machine share."""

    harts: Ptr[u64] = array(u64, MOST_HARTS)
    hart_count: u64
    segment_count: u64
    segments: Ptr[Segment] = array(Segment, SEGMENTS)
    region_count: u64
    regions: Ptr[Region] = array(Region, REGIONS)
    latch_count: u64
    latches: Ptr[Latch] = array(Latch, LATCHES)
    listener_count: u64
    listeners: Ptr[Listener] = array(Listener, LATCHES)
    #: a struct pollfd for each listener, and the last one for who wants ``listen`` to come back
    polls: Ptr[u64] = array(u64, LATCHES + 1)
    #: C functions of the host: clock_gettime(clock, timespec*), syscall(number, ...), and read, write, poll.
    clock_gettime: u64
    syscall: u64
    read: u64
    write: u64
    poll: u64
    #: Host CLOCK_MONOTONIC nanoseconds at which guest time was 0 (grows while the machine is paused).
    time_base: u64
    #: What the board's counter is ahead of guest time, in ticks modulo 2**64: software may write it.
    counter_offset: u64
    #: Host addresses of the interrupt controllers' records.
    controllers: Ptr[u64] = array(u64, CONTROLLERS)
    #: The ISA's: bits of what is on.
    features: u64
    handlers: Ptr[u64] = array(u64, 1024)
    #: The slow twins, by the same numbers; where an instruction has none, the handler itself.
    slow_handlers: Ptr[u64] = array(u64, 1024)
    #: Handlers that are no instruction: decode, page end, straddling instruction, attention, go.
    decode_handler: u64
    page_end_handler: u64
    breakpoint_handler: u64
    straddle_handler: u64
    attention_handler: u64
    #: Samples that make a slot hot; 0: there is no translator.
    hot_samples: u64
    #: The host address of a bit for each fingerprint (modulo ``KNOWN``) of pages that regions may be known of, or 0.
    known: u64
    #: Where the core's code is: handlers elsewhere are regions.
    core: u64
    core_size: u64
    #: 1: a slot is hot when it is decoded, before it is run (tests: all code that can be in a region runs from one).
    eager: u64
    functions: Ptr[u64] = array(u64, FUNCTIONS)
    go_handler: u64
    #: shoot-downs asked for, and a struct timespec for whoever waits for them
    shoot_downs: u64
    shot_wait: Ptr[u64] = array(u64, 2)
    #: shoot-downs of fetches asked for; who has the lock changes what pages hold code
    fetch_shoot_downs: u64
    code_lock: u64
    #: what the debugger has set; changed while all harts are at the gate
    breakpoint_count: u64
    breakpoints: Ptr[u64] = array(u64, BREAKPOINTS)
    watchpoint_count: u64
    watchpoints: Ptr[Watchpoint] = array(Watchpoint, WATCHPOINTS)


class Hart(Record):
    """One hart, but for its ISA's registers."""

    #: its number among the machine's
    number: u64
    pc: u64
    # interpreter's view of pc; valid between instructions
    ip: u64
    bias: u64
    tlb: u64
    #: retired instructions; ``stop_at`` is the count at which native code looks up
    retired: u64
    stop_at: u64
    attention: u32
    #: 1 while the hart waits for an interrupt
    waiting: u32
    #: 1: when it last looked up, somebody had asked it for something
    was_asked: u32
    exit_reason: u32
    # exception in flight
    cause: u64
    trap_value: u64
    pending: u32
    #: 1 when an instruction changed what later ones mean: privilege, translation, interrupts
    changed: u32
    #: Interrupt lines driven from outside, by the ISA's bits; changed atomically by any thread.
    lines: u64
    #: Timer interrupts as of the last look at the clock, by the same bits, and the tick when the next look is due.
    timers: u64
    deadline: u64
    # reservation of a load for a conditional store: the host address, or all ones
    reserved_address: u64
    reserved_value: u64
    # the access that waits for Python
    access_state: u32
    access_device: u32
    access_region: u32
    access_write: u32
    access_offset: u64
    access_size: u64
    access_value: u64
    # the ring of posted writes
    ring_count: u64
    ring_since: u64
    ring: Ptr[Posted] = array(Posted, RING_ENTRIES)
    #: a doorbell on its way: the value, guest time in nanoseconds
    doorbell: u64
    doorbell_time: u64
    #: where in its region the device access is that was looked up last
    region_offset: u64
    # what a translation found: the physical address, its page's bytes less one, and 1 if what protects memory says the
    # same of all of the small page
    physical: u64
    page_mask: u64
    uniform: u64
    # memory system
    machine: u64
    tlbs: u64
    context: u64
    next_context: u64
    #: 1 while the hart may use its TLBs; the last shoot-down that it has answered, and whether somebody waits for that
    inside: u32
    awaited: u32
    shot: u64
    fetch_shot: u64
    #: guest physical address of the absent page that EXIT_PAGE is about
    absent_page: u64
    #: the segment of a store to a page that holds code, while it is made; the sum of ``Segment.news`` as last seen
    code_store: u64
    news: u64
    code_lock: u64
    code_pool: u64
    code_pages: u64
    code_used: u64
    code_hash: u64
    code_generation: u64
    #: where the next page to be given up is looked for
    code_hand: u64
    #: pages that are kept at least, those of this generation that had been given up, and by bucket the last that was
    code_kept: u64
    code_returned: u64
    code_forgotten: Ptr[u64] = array(u64, CODE_HASH)
    contexts: Ptr[Context] = array(Context, CONTEXTS)
    scratch: Ptr[u64] = array(u64, 16)
    timespec: Ptr[u64] = array(u64, 2)
    pauses: u64
    # what the translator is told: where time goes, and which pages have been decoded anew
    samples: Ptr[Sample] = array(Sample, SAMPLES)
    hot_count: u64
    hot: Ptr[u64] = array(u64, HOT)
    fresh_count: u64
    fresh: Ptr[u64] = array(u64, FRESH)
    # counters
    count_sync: u64
    count_posted: u64
    count_doorbell: u64
    count_shadow: u64
    count_local: u64
    count_traps: u64
    count_interrupts: u64
    count_tlb_fills: u64
    count_tlb_flushes: u64
    count_shoot_downs: u64
    count_code_pages: u64
    count_code_checks: u64
    count_code_stores: u64
    count_decoded: u64
    #: instructions that the looks at the clock found to be run by regions (an estimate by sampling), and ``retired``
    #: at the last look
    count_translated: u64
    looked: u64
    #: the slot at which a region was last left for an instruction that it does not have, or that ``go`` found last
    outside: u64
    #: host nanoseconds: when the hart left native code for work of Python's own, and the longest time until it was back
    left_at: u64
    longest_pause: u64
    count_exits: Ptr[u64] = array(u64, len(EXITS))
    # the debugger: why the hart stopped; whether it is to make a step, and go on as long as pc is in a range; whether
    # it takes interrupts meanwhile; how far the step is
    debug_reason: u64
    step: u64
    step_low: u64
    step_high: u64
    step_interrupts: u64
    stepping: u64
    #: kinds of the watchpoint that the access under way has hit, and the address that it was hit at
    watch_hit: u64
    watch_address: u64
    #: the breakpoint that the hart goes on from, or NOWHERE
    passing: u64
