"""Guest time and the ACLINT: software interrupts and machine timers (RISC-V ACLINT specification 1.0, SiFive CLINT
layout)."""

from __future__ import annotations

from ...native.lang import at, call_host, inline, native, ref, u32, u64
from .attention import raise_attention, set_line
from .csr_bits import MSIP, MTIP, STCE, STIP
from .state import ATTENTION_INTERRUPT, PENDING_TRAP, Hart, Machine

MSIP_BASE, MTIMECMP_BASE, MTIME = 0x0, 0x4000, 0xBFF8
#: Host nanoseconds per tick of guest time (10 MHz, the `virt` board's timebase-frequency).
TICK = 100
CLOCK_MONOTONIC = 1
NEVER = (1 << 64) - 1


@native
def host_time(hart: Hart) -> u64:
    """The host's CLOCK_MONOTONIC in nanoseconds."""
    call_host(at(Machine, hart.machine).clock_gettime, CLOCK_MONOTONIC, ref(hart.timespec))
    return hart.timespec[0] * 1_000_000_000 + hart.timespec[1]


@native
def guest_time(hart: Hart) -> u64:
    """The value of mtime in ticks."""
    machine = at(Machine, hart.machine)
    return (host_time(hart) - machine.time_base) // TICK + machine.mtime_offset


@native
def guest_ns(hart: Hart) -> u64:
    """Guest time in nanoseconds: what software that writes mtime does not change."""
    return host_time(hart) - at(Machine, hart.machine).time_base


@inline
def hart_number(hart: Hart, number: u64) -> Hart:
    return at(Hart, at(Machine, hart.machine).harts[number])


@native
def set_guest_time(hart: Hart, value: u64) -> None:
    """Writes mtime. All harts' timers are about another time now."""
    machine = at(Machine, hart.machine)
    machine.mtime_offset += value - guest_time(hart)
    for number in range(machine.hart_count):
        raise_attention(hart_number(hart, number), ATTENTION_INTERRUPT)


@native
def look_at_clock(hart: Hart) -> u64:
    """Brings the timer interrupts and the next deadline up to date; gives guest time."""
    now = guest_time(hart)
    timers = u64(0)
    deadline = u64(NEVER)
    if now >= hart.mtimecmp:
        timers |= MTIP
    else:
        deadline = hart.mtimecmp
    if hart.menvcfg & STCE != 0:
        if now >= hart.stimecmp:
            timers |= STIP
        elif hart.stimecmp < deadline:
            deadline = hart.stimecmp
    hart.timers = timers
    hart.deadline = deadline
    return now


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
    if size < 4:
        hart.pending = PENDING_TRAP
        return 0
    if offset < MSIP_BASE + 4 * machine.hart_count:
        return u64(hart_number(hart, offset >> 2).lines & MSIP != 0)
    value = u64(0)
    if offset >= MTIMECMP_BASE and offset < MTIMECMP_BASE + 8 * machine.hart_count:
        value = hart_number(hart, (offset - MTIMECMP_BASE) >> 3).mtimecmp
    elif offset & ~7 == MTIME:
        value = guest_time(hart)
    if size == 4:
        value = u64(u32(value >> (8 * (offset & 4))))
    return value


@native
def aclint_write(hart: Hart, offset: u64, size: u64, value: u64) -> None:
    """A store to the ACLINT; words and double words, others are refused."""
    machine = at(Machine, hart.machine)
    if size < 4:
        hart.pending = PENDING_TRAP
    elif offset < MSIP_BASE + 4 * machine.hart_count:
        set_line(hart_number(hart, offset >> 2), MSIP, value & 1 != 0)
    elif offset >= MTIMECMP_BASE and offset < MTIMECMP_BASE + 8 * machine.hart_count:
        other = hart_number(hart, (offset - MTIMECMP_BASE) >> 3)
        other.mtimecmp = merge(other.mtimecmp, offset & 7, size, value)
        raise_attention(other, ATTENTION_INTERRUPT)
    elif offset & ~7 == MTIME:
        set_guest_time(hart, merge(guest_time(hart), offset & 7, size, value))
