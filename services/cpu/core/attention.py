"""Telling a running or sleeping hart, from any thread, that something changed."""

from __future__ import annotations

from ..native.host import FUTEX, FUTEX_WAKE_PRIVATE
from ..native.lang import at, atomic_rmw, atomic_store, call_host, export, native, ref, u32, u64
from .state import ATTENTION_INTERRUPT, Hart, Machine


@export
def raise_attention(hart: Hart, bits: u64) -> None:
    """Makes the hart look at ``bits`` (ATTENTION_*) soon: it leaves its loop at the next taken branch, or WFI."""
    atomic_rmw("or", u32, ref(hart.attention), u32(bits))
    atomic_store(u64, ref(hart.stop_at), 0)
    if hart.waiting != 0:
        machine = at(Machine, hart.machine)
        call_host(machine.syscall, FUTEX, ref(hart.attention), FUTEX_WAKE_PRIVATE, 1, 0, 0, 0)


@native
def set_line(hart: Hart, bit: u64, high: bool) -> None:
    """Drives an interrupt line (a bit of mip) of a hart."""
    if high:
        if atomic_rmw("or", u64, ref(hart.lines), bit) & bit == 0:
            raise_attention(hart, ATTENTION_INTERRUPT)
    else:
        atomic_rmw("and", u64, ref(hart.lines), ~bit)
