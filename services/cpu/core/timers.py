"""Guest time in native code, and the timers that look at it (vmesh.time says what it is)."""

from __future__ import annotations

from ..native.host import CLOCK_MONOTONIC
from ..native.lang import at, call_host, inline, native, ref, u64
from .attention import raise_attention
from .provided import look_at_own_timers, look_at_timers
from .state import ATTENTION_INTERRUPT, Hart, Machine

#: Nanoseconds of a tick of the board's counter (10 MHz, the `virt` board's timebase-frequency).
TICK = 100
NEVER = (1 << 64) - 1


@native
def host_time(hart: Hart) -> u64:
    """The host's CLOCK_MONOTONIC in nanoseconds."""
    call_host(at(Machine, hart.machine).clock_gettime, CLOCK_MONOTONIC, ref(hart.timespec))
    return hart.timespec[0] * 1_000_000_000 + hart.timespec[1]


@native
def counter(hart: Hart) -> u64:
    """The value of the board's counter, in ticks."""
    machine = at(Machine, hart.machine)
    return (host_time(hart) - machine.time_base) // TICK + machine.counter_offset


@native
def guest_ns(hart: Hart) -> u64:
    """Guest time in nanoseconds: what software that writes the counter does not change."""
    return host_time(hart) - at(Machine, hart.machine).time_base


@native
def set_counter(hart: Hart, value: u64) -> None:
    """Software writes the board's counter. All harts' timers are about another time now."""
    machine = at(Machine, hart.machine)
    machine.counter_offset += value - counter(hart)
    for number in range(machine.hart_count):
        raise_attention(at(Hart, machine.harts[number]), ATTENTION_INTERRUPT)


@inline
def timer(hart: Hart, now: u64, compare: u64, line: u64) -> None:
    """A timer drives its line from tick ``compare`` on; until then the hart looks again at that tick."""
    if now >= compare:
        hart.timers |= line
    elif compare < hart.deadline:
        hart.deadline = compare


@native
def look_at_clock(hart: Hart) -> u64:
    """Brings the hart's timers and its next deadline up to date; gives the tick that it is."""
    now = counter(hart)
    hart.timers = 0
    hart.deadline = NEVER
    look_at_timers(hart, now)
    look_at_own_timers(hart, now)
    return now
