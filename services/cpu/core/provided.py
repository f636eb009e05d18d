"""What native code of the core asks of an instruction set and of interrupt controllers.

Each is declared here by its signature, and bound to who does it when a core is compiled (``image.build_core``).
"""

from __future__ import annotations

from ..native.lang import NativeOnly, provided, u32, u64
from .state import Hart, Machine, Slot

# the instruction set


@provided
def translate(hart: Hart, address: u64, size: u64, kind: u64) -> u64:
    """The physical address of a virtual one for an access (READ, WRITE, FETCH) of ``size`` bytes in one page, and
    ``hart.physical``, ``page_mask``, ``uniform``. Or 0, with ``hart.pending``: it traps, or a page is absent that says
    what is where (``memory.want_page``)."""
    raise NativeOnly


@provided
def refuse_access(hart: Hart, address: u64, kind: u64) -> u64:
    """An access that nobody takes is pending as a trap; gives 0."""
    raise NativeOnly


@provided
def refuse_misaligned(hart: Hart, address: u64, kind: u64) -> u64:
    """An access is pending as a trap as it is not naturally aligned, and not in memory; gives 0."""
    raise NativeOnly


@provided
def is_long(instruction: u32) -> bool:
    """Whether the instruction that begins with these two bytes has four, not two."""
    raise NativeOnly


@provided
def decode(hart: Hart, slot: Slot, instruction: u32, pc: u64, local: bool) -> None:
    """Fills a slot from the instruction at ``pc``; ``local``: branches within the page may go from slot to slot."""
    raise NativeOnly


@provided
def take_trap(hart: Hart, cause: u64, value: u64) -> None:
    """Enters the handler of the exception at ``hart.pc``."""
    raise NativeOnly


@provided
def take_interrupt(hart: Hart) -> bool:
    """Enters the handler of the interrupt that comes first, of those that are pending and allowed; False: of none."""
    raise NativeOnly


@provided
def is_woken(hart: Hart) -> bool:
    """Whether an interrupt is pending that ends the hart's wait for one."""
    raise NativeOnly


@provided
def space(hart: Hart) -> u64:
    """What names the address space that the hart translates in."""
    raise NativeOnly


@provided
def select(hart: Hart) -> u64:
    """Which TLBs the hart uses: ``tlb.UNTRANSLATED``, ``tlb.UNKEPT``, or those of its address space in a mode below
    MODES, as ``tlb.in_space`` says it."""
    raise NativeOnly


@provided
def look_at_own_timers(hart: Hart, now: u64) -> None:
    """The timers that are registers, at tick ``now``, by ``timers.timer``."""
    raise NativeOnly


# interrupt controllers


@provided
def controller_read(hart: Hart, number: u64, offset: u64, size: u64) -> u64:
    """A load from the controller of a number; PENDING_TRAP in ``hart.pending`` if it refuses."""
    raise NativeOnly


@provided
def controller_write(hart: Hart, number: u64, offset: u64, size: u64, value: u64) -> None:
    """A store to the controller of a number; PENDING_TRAP in ``hart.pending`` if it refuses."""
    raise NativeOnly


@provided
def controller_message(machine: Machine, number: u64, offset: u64, data: u64) -> bool:
    """An interrupt message, a store of 32 bits; False if the controller of that number takes none there."""
    raise NativeOnly


@provided
def look_at_timers(hart: Hart, now: u64) -> None:
    """The hart's timers that controllers have, at tick ``now``, by ``timers.timer``."""
    raise NativeOnly


@provided
def lock_sources(machine: Machine) -> None:
    """Takes the lock that guards what devices drive; any thread may."""
    raise NativeOnly


@provided
def unlock_sources(machine: Machine) -> None:
    raise NativeOnly


@provided
def drive_source(machine: Machine, source: u64, level: u64) -> None:
    """An interrupt source is high or low, by who has the lock."""
    raise NativeOnly
