"""The ACLINT: software interrupts and machine timers (RISC-V ACLINT specification 1.0, SiFive CLINT layout)."""

from __future__ import annotations

from ..core.attention import raise_attention, set_line
from ..core.state import ATTENTION_INTERRUPT, MOST_HARTS, PENDING_TRAP, Hart, Machine
from ..core.timers import counter, set_counter, timer
from ..native.lang import Ptr, Record, array, at, inline, native, u32, u64

NUMBER = 0
SIZE = 0x10000
MSIP_BASE, MTIMECMP_BASE, MTIME = 0x0, 0x4000, 0xBFF8


class Aclint(Record):
    """Its registers but MSIP, which is the line itself, and the lines that it drives of a hart."""

    software: u64
    timer: u64
    compare: Ptr[u64] = array(u64, MOST_HARTS)


@inline
def aclint_of(machine: Machine) -> Aclint:
    return at(Aclint, machine.controllers[NUMBER])


@inline
def hart_number(machine: Machine, number: u64) -> Hart:
    return at(Hart, machine.harts[number])


@native
def look_at_compare(hart: Hart, now: u64) -> None:
    """The hart's machine timer."""
    aclint = aclint_of(at(Machine, hart.machine))
    timer(hart, now, aclint.compare[hart.number], aclint.timer)


@native
def merge(old: u64, offset: u64, size: u64, value: u64) -> u64:
    """``old`` with ``size`` bytes at ``offset`` (0 to 7) replaced."""
    if size == 8:
        return value
    mask = ((u64(1) << (8 * size)) - 1) << (8 * offset)
    return (old & ~mask) | ((value << (8 * offset)) & mask)


@native
def aclint_read(hart: Hart, offset: u64, size: u64) -> u64:
    """A load from the ACLINT; words and double words, others are refused."""
    machine = at(Machine, hart.machine)
    aclint = aclint_of(machine)
    if size < 4:
        hart.pending = PENDING_TRAP
        return 0
    if offset < MSIP_BASE + 4 * machine.hart_count:
        return u64(hart_number(machine, offset >> 2).lines & aclint.software != 0)
    value = u64(0)
    if offset >= MTIMECMP_BASE and offset < MTIMECMP_BASE + 8 * machine.hart_count:
        value = aclint.compare[(offset - MTIMECMP_BASE) >> 3]
    elif offset & ~7 == MTIME:
        value = counter(hart)
    if size == 4:
        value = u64(u32(value >> (8 * (offset & 4))))
    return value


@native
def aclint_write(hart: Hart, offset: u64, size: u64, value: u64) -> None:
    """A store to the ACLINT; words and double words, others are refused."""
    machine = at(Machine, hart.machine)
    aclint = aclint_of(machine)
    if size < 4:
        hart.pending = PENDING_TRAP
    elif offset < MSIP_BASE + 4 * machine.hart_count:
        set_line(hart_number(machine, offset >> 2), aclint.software, value & 1 != 0)
    elif offset >= MTIMECMP_BASE and offset < MTIMECMP_BASE + 8 * machine.hart_count:
        number = (offset - MTIMECMP_BASE) >> 3
        aclint.compare[number] = merge(aclint.compare[number], offset & 7, size, value)
        raise_attention(hart_number(machine, number), ATTENTION_INTERRUPT)
    elif offset & ~7 == MTIME:
        set_counter(hart, merge(counter(hart), offset & 7, size, value))
