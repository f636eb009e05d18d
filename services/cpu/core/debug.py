"""Breakpoints, watchpoints and single steps in native code. What is not used costs nothing.

* A decoded page is *armed* when it is entered at a virtual page that has breakpoints: regions leave it, and the slots
  of its breakpoints hold a handler that looks at the pc. Other pages, and machines without breakpoints, run as ever.
* Data of a page that has watchpoints never gets a TLB entry, so that its accesses take the slow path, which looks here.
  An access that is watched is done by a step of its own, and the hart stops behind it, as gdb expects of RISC-V.
* A step runs one instruction from the scratch slot, whose ways all lead back to ``go``.
"""

from __future__ import annotations

from ..native.lang import at, cold, inline, native, u64
from .state import (
    DEBUG_BREAKPOINT,
    DEBUG_STEP,
    DEBUG_WATCH,
    EXIT_DEBUG,
    NOWHERE,
    PAGE_SLOTS,
    PENDING_STEP,
    STEP_NONE,
    STEP_WANTED,
    CodePage,
    Hart,
    Machine,
)

OFFSET = 4095
#: What a watchpoint watches, and an access does: bits. An atomic access does both.
WATCH_WRITE, WATCH_READ = 1, 2


@native
def is_breakpoint(hart: Hart, pc: u64) -> bool:
    machine = at(Machine, hart.machine)
    found = False
    for i in range(machine.breakpoint_count):
        if machine.breakpoints[i] == pc:
            found = True
    return found


@inline
def stop(hart: Hart, reason: u64) -> None:
    """The hart leaves for Python, and says why (DEBUG_*)."""
    hart.debug_reason = reason
    hart.exit_reason = EXIT_DEBUG


@native
def breaks(hart: Hart, pc: u64) -> bool:
    """Whether the hart stops before the instruction at ``pc``."""
    if not is_breakpoint(hart, pc):
        return False
    if hart.passing == pc:
        hart.passing = NOWHERE
        return False
    stop(hart, u64(DEBUG_BREAKPOINT))
    return True


@native
def disarm(hart: Hart, page: CodePage) -> None:
    """Slots are decoded when they are next run; regions may come back."""
    machine = at(Machine, hart.machine)
    for i in range(PAGE_SLOTS):
        page.slots[i].handler = machine.decode_handler
    for i in range(PAGE_SLOTS // 64):
        page.covered[i] = 0
    page.armed = 0
    page.fresh = 1


@cold
def arm(hart: Hart, page: CodePage, virtual: u64) -> None:
    """Puts the breakpoints of a virtual page into the decoded page that it is now run from."""
    machine = at(Machine, hart.machine)
    for i in range(machine.breakpoint_count):
        address = machine.breakpoints[i]
        if address & ~OFFSET == virtual:
            if page.armed == 0:
                disarm(hart, page)
                page.armed = 1
            page.slots[(address & OFFSET) >> 1].handler = machine.breakpoint_handler


@cold
def end_step(hart: Hart, trapped: bool) -> None:
    """The instruction of a step is behind the hart, or a trap was taken instead of it."""
    reason = u64(0)
    if hart.watch_hit != 0 and not trapped:
        reason = DEBUG_WATCH + hart.watch_hit
    elif hart.step != 0 and (hart.pc - hart.step_low >= hart.step_high - hart.step_low or is_breakpoint(hart, hart.pc)):
        reason = u64(DEBUG_STEP)
    hart.watch_hit = 0
    if reason == 0:
        hart.stepping = STEP_WANTED if hart.step != 0 else STEP_NONE
    else:
        hart.step = 0
        hart.stepping = STEP_NONE
        stop(hart, reason)


@cold
def page_watched(hart: Hart, address: u64) -> bool:
    """Whether a watchpoint is in the page of an address."""
    machine = at(Machine, hart.machine)
    for i in range(machine.watchpoint_count):
        watchpoint = machine.watchpoints[i]
        if watchpoint.first <= address | OFFSET and watchpoint.last >= address & ~OFFSET:
            return True
    return False


@cold
def watched(hart: Hart, address: u64, size: u64, access: u64) -> bool:
    """Whether an access is to be done by a step of its own, as somebody watches it; not if this is that step."""
    if hart.watch_hit != 0:
        return False
    machine = at(Machine, hart.machine)
    for i in range(machine.watchpoint_count):
        watchpoint = machine.watchpoints[i]
        if watchpoint.kinds & access != 0 and watchpoint.first <= address + (size - 1) and watchpoint.last >= address:
            hart.watch_hit = watchpoint.kinds
            hart.watch_address = address if address > watchpoint.first else watchpoint.first
            hart.pending = PENDING_STEP
            return True
    return False
