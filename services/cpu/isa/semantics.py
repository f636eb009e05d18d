"""What instruction semantics may say beyond plain computation: guest memory, control flow, traps.

These are hooks: an interpreter and a translator give each its own meaning. An instruction whose memory access or trap
is
abandoned has not happened: no operand was written, and it will run again or be reported at its own pc.
"""

from __future__ import annotations

from ..native.lang import NativeException, NativeOnly, hook


class Trap(NativeException):
    """``raise Trap(cause, value)``: the instruction ends in an exception with that cause and trap value."""

    def __init__(self, cause: int, value: int) -> None:
        raise NativeOnly


@hook
def load(type_: type[int], address: int) -> int:
    """The value at a guest virtual address."""
    raise NativeOnly


@hook
def store(type_: type[int], address: int, value: int) -> None:
    """Stores a value at a guest virtual address."""
    raise NativeOnly


@hook
def atomic(operation: str, type_: type[int], address: int, value: int) -> int:
    """An atomic read-modify-write (LLVM's atomicrmw operations) in guest memory; gives the old value."""
    raise NativeOnly


@hook
def load_reserved(type_: type[int], address: int) -> int:
    """Loads and reserves."""
    raise NativeOnly


@hook
def store_conditional(type_: type[int], address: int, value: int) -> int:
    """Stores if the reservation holds: gives 0 when it stored, 1 when not."""
    raise NativeOnly


@hook
def drain_posted() -> None:
    """Waits until the hart's posted writes have reached their devices; before it, the instruction must not have done
    anything."""
    raise NativeOnly


@hook
def leave_if_pending() -> None:
    """Ends the instruction here, to be run again, if a page that it needs is absent; it must not have done anything."""
    raise NativeOnly


@hook
def jump(target: int) -> None:
    """Goes on at a guest virtual address once the result is written."""
    raise NativeOnly
