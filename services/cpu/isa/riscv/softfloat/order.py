"""Comparisons, minimum and maximum, and what kind of value one is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ....native.lang import boolean, cold, i64, inline, native, u64
from ..state import Hart
from .values import NV, Layout, Values


@dataclass(frozen=True)
class Order:
    equal: Callable[[Hart, int, int], int]
    less: Callable[[Hart, int, int], int]
    less_equal: Callable[[Hart, int, int], int]
    minimum: Callable[[Hart, int, int], int]
    maximum: Callable[[Hart, int, int], int]
    classify: Callable[[int], int]


def order(f: Layout, v: Values) -> Order:
    """The functions, of a format with this layout and these values."""

    @inline
    def order(a: u64) -> i64:
        """A number that grows with the value; that of -0 is below that of +0."""
        bits = i64(a << (63 - f.sign_bit))
        return bits ^ i64(u64(bits >> 63) >> 1)

    @inline
    def both_zero(a: u64, b: u64) -> boolean:
        return (a | b) & f.magnitude == 0

    @native
    def equal(hart: Hart, a: u64, b: u64) -> u64:
        if v.is_nan(a) or v.is_nan(b):
            v.not_a_number(hart, a, b, 0)
            return 0
        return u64(a == b or both_zero(a, b))

    @native
    def less(hart: Hart, a: u64, b: u64) -> u64:
        if v.is_nan(a) or v.is_nan(b):
            hart.fflags |= NV
            return 0
        return u64(order(a) < order(b) and not both_zero(a, b))

    @native
    def less_equal(hart: Hart, a: u64, b: u64) -> u64:
        if v.is_nan(a) or v.is_nan(b):
            hart.fflags |= NV
            return 0
        return u64(order(a) <= order(b) or both_zero(a, b))

    @cold
    def choose_number(hart: Hart, a: u64, b: u64) -> u64:
        """The operand that is a number."""
        v.not_a_number(hart, a, b, 0)
        if v.is_nan(a):
            return f.nan if v.is_nan(b) else b
        return a

    @native
    def minimum(hart: Hart, a: u64, b: u64) -> u64:
        if v.is_nan(a) or v.is_nan(b):
            return choose_number(hart, a, b)
        return a if order(a) < order(b) else b

    @native
    def maximum(hart: Hart, a: u64, b: u64) -> u64:
        if v.is_nan(a) or v.is_nan(b):
            return choose_number(hart, a, b)
        return b if order(a) < order(b) else a

    @native
    def classify(a: u64) -> u64:
        magnitude = a & f.magnitude
        if magnitude > f.infinity:
            return 1 << 8 if a & f.quiet == 0 else 1 << 9
        # from zero outwards: zero, subnormal, normal, infinity
        kind = u64(magnitude != 0) + u64(magnitude > f.fraction_mask) + u64(magnitude == f.infinity)
        return 1 << (4 + kind if a < f.sign else 3 - kind)

    return Order(equal, less, less_equal, minimum, maximum, classify)
