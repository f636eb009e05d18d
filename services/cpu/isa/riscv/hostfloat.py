"""Arithmetic by the host's floating-point unit where it is certain to give what RISC-V asks for; soft-float elsewhere.

Both follow IEEE 754, so a normal result of normal operands, rounded to nearest even, is the same on both, and the
only flag it can
raise is inexact. So where that flag is raised already (it is sticky, and programs hardly ever clear it) nothing else
need be known.
The smallest normal numbers are left to soft-float too: whether they underflowed depends on more than the result.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...native.lang import float_operation, inline, likely, u64
from .softfloat import Format
from .state import Hart

Unary = Callable[[Hart, int, int], int]
Binary = Callable[[Hart, int, int, int], int]
Ternary = Callable[[Hart, int, int, int, int], int]

NEAREST_EVEN = 0
INEXACT = 1


def host_has_fma() -> bool:
    """Whether the host rounds a multiplication and an addition once."""
    try:
        return any(" fma " in f"{line} " for line in Path("/proc/cpuinfo").read_text().splitlines())
    except OSError:
        return False


HOST_FMA = host_has_fma()


def _checks(form: Format) -> tuple[Callable[[int], bool], Callable[[int], bool]]:
    """Whether an operand is a normal number, and whether a result is one above the smallest."""
    fraction = {32: 23, 64: 52}[form.width]
    special = (1 << (form.width - 1 - fraction)) - 1

    @inline
    def normal(value: u64) -> bool:
        return ((value >> fraction) + 1) & special > 1

    @inline
    def safe(value: u64) -> bool:
        return ((value >> fraction) + 1) & special > 2

    return normal, safe


@inline
def simple(hart: Hart, mode: u64) -> bool:
    return mode == NEAREST_EVEN and hart.fflags & INEXACT != 0


def unary(form: Format, name: str, soft: Unary) -> Unary:
    """The operation on one positive operand (square root)."""
    normal, safe = _checks(form)
    width, sign = form.width, form.sign

    @inline
    def operation(hart: Hart, a: u64, mode: u64) -> u64:
        if likely(simple(hart, mode) and a < sign and normal(a)):
            result = float_operation(name, width, a)
            if likely(safe(result)):
                return result
        return soft(hart, a, mode)

    return operation


def binary(form: Format, name: str, soft: Binary) -> Binary:
    """The operation on two operands."""
    normal, safe = _checks(form)
    width = form.width

    @inline
    def operation(hart: Hart, a: u64, b: u64, mode: u64) -> u64:
        if likely(simple(hart, mode) and normal(a) and normal(b)):
            result = float_operation(name, width, a, b)
            if likely(safe(result)):
                return result
        return soft(hart, a, b, mode)

    return operation


def ternary(form: Format, name: str, soft: Ternary) -> Ternary:
    """The fused operation on three operands; soft-float on a host that does not have it."""
    if not HOST_FMA:
        return soft
    normal, safe = _checks(form)
    width = form.width

    @inline
    def operation(hart: Hart, a: u64, b: u64, c: u64, mode: u64) -> u64:
        if likely(simple(hart, mode) and normal(a) and normal(b) and normal(c)):
            result = float_operation(name, width, a, b, c)
            if likely(safe(result)):
                return result
        return soft(hart, a, b, c, mode)

    return operation
