"""Shoot-downs: every hart drops what its write TLBs hold, without a pause (proto/vmesh/v1/cpu.proto: ShootDown).

Whoever clears flags ``dirty`` asks for one before it copies the pages. ``Machine.shoot_downs`` counts them,
``Hart.shot`` is the count that a hart has answered. Why no write is missed:

* A hart sets the flag, then makes the entry, then writes, all within one instruction. It drops its entries between two
  instructions, where nothing of an entry is kept: not in registers, and not by a region, which ends there. So what it
  wrote by an entry from before is in memory when it answers, and what it writes later sets the flag again.
* Page walks that set A or D set the flag in the same instruction.
* Entries for fetches are dropped in the same way, for ``Machine.fetch_shoot_downs`` (see ``coherence``), and when
  devices have written to code.
* A hart that is outside of native code, or sleeps in WFI, is not waited for. It says so in ``Hart.inside``, and looks
  at ``shoot_downs`` when it comes in again, before it does anything. Both sides store first and then load
  (sequentially consistent), so at least one of the two sees the other.
"""

from __future__ import annotations

from ..native.host import FUTEX, FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE
from ..native.lang import at, atomic_load, atomic_rmw, atomic_store, call_host, export, native, ref, u32, u64
from .attention import raise_attention
from .segments import machine_of
from .state import ATTENTION_SHOOT_DOWN, Hart, Machine
from .tlb import flush_fetch, flush_writes

#: How long ``await_shot`` waits for one hart at a time, in nanoseconds.
WAIT = 500_000


@native
def look_at_news(hart: Hart) -> bool:
    """Whether devices have written to pages that hold code; then these are looked up, and compared, when they are next
    entered."""
    machine = machine_of(hart)
    news = u64(0)
    for i in range(machine.segment_count):
        if machine.segments[i].news != 0:
            news += atomic_load(u64, machine.segments[i].news)
    if news == hart.news:
        return False
    hart.news = news
    flush_fetch(hart)
    return True


@native
def answer_shoot_downs(hart: Hart) -> None:
    """The hart is between two instructions: does what was asked for."""
    fetch = atomic_load(u64, ref(machine_of(hart).fetch_shoot_downs))
    if hart.fetch_shot != fetch:
        flush_fetch(hart)
        atomic_store(u64, ref(hart.fetch_shot), fetch)
    wanted = atomic_load(u64, ref(machine_of(hart).shoot_downs))
    if hart.shot == wanted:
        return
    flush_writes(hart)
    hart.count_shoot_downs += 1
    atomic_store(u64, ref(hart.shot), wanted)
    if atomic_load(u32, ref(hart.awaited)) != 0:
        machine = machine_of(hart)
        call_host(machine.syscall, FUTEX, ref(hart.shot), FUTEX_WAKE_PRIVATE, 1, 0, 0, 0)


@native
def come_in(hart: Hart) -> None:
    """The hart is about to use its TLBs."""
    atomic_store(u32, ref(hart.inside), 1)
    answer_shoot_downs(hart)
    look_at_news(hart)


@native
def stay_out(hart: Hart) -> None:
    """The hart does not use its TLBs until it has come in again."""
    answer_shoot_downs(hart)
    atomic_store(u32, ref(hart.inside), 0)


@native
def ask_shoot_down(machine: Machine) -> u64:
    """Asks all harts; gives the number to wait for."""
    number = atomic_rmw("add", u64, ref(machine.shoot_downs), 1) + 1
    for i in range(machine.hart_count):
        hart = at(Hart, machine.harts[i])
        if atomic_load(u32, ref(hart.inside)) != 0:
            raise_attention(hart, ATTENTION_SHOOT_DOWN)
    return number


@export
def shoot_down(machine: Machine) -> u64:
    """Asks all harts, from any thread; gives the number to wait for."""
    return ask_shoot_down(machine)


@native
def has_answered(hart: Hart, number: u64) -> bool:
    """Whether a hart cannot use an entry any more that is older than a shoot-down."""
    return atomic_load(u64, ref(hart.shot)) >= number or atomic_load(u32, ref(hart.inside)) == 0


@export
def await_shot(machine: Machine, number: u64, patience: u64) -> u64:
    """Waits, in one thread at a time, until all harts have answered a shoot-down; gives 0 if one has not after
    ``patience`` waits for it."""
    machine.shot_wait[0] = 0
    machine.shot_wait[1] = WAIT
    for i in range(machine.hart_count):
        hart = at(Hart, machine.harts[i])
        waits = u64(0)
        atomic_store(u32, ref(hart.awaited), 1)
        while not has_answered(hart, number) and waits < patience:
            seen = atomic_load(u64, ref(hart.shot))
            if seen < number:
                call_host(
                    machine.syscall,
                    FUTEX,
                    ref(hart.shot),
                    FUTEX_WAIT_PRIVATE,
                    seen & 0xFFFF_FFFF,
                    ref(machine.shot_wait),
                    0,
                    0,
                )
            waits += 1
        atomic_store(u32, ref(hart.awaited), 0)
        if not has_answered(hart, number):
            return 0
    return 1


EXPORTS = (shoot_down, await_shot)
