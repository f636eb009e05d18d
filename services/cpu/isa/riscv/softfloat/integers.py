"""Conversions from and to integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ....native.lang import clz, i64, native, u64
from ..state import Hart
from .values import NV, NX, RDN, RMM, RNE, RTZ, Layout, Values, shift_sticky


@dataclass(frozen=True)
class Integers:
    from_integer: Callable[[Hart, int, int, int], int]
    to_integer: Callable[[Hart, int, int, int, int], int]


def integers(f: Layout, v: Values) -> Integers:
    """The functions, of a format with this layout and these values."""

    @native
    def from_integer(hart: Hart, negative: u64, magnitude: u64, mode: u64) -> u64:
        if magnitude == 0:
            return 0
        shift = clz(magnitude)
        return v.round_pack(hart, negative, f.bias + 63 - i64(shift), shift_sticky(magnitude << shift, 1), mode)

    @native
    def to_integer(hart: Hart, a: u64, mode: u64, lowest: u64, highest: u64) -> u64:
        if a & f.magnitude == 0:
            return 0
        if v.is_nan(a):
            hart.fflags |= NV
            return highest
        negative = a >> f.sign_bit
        limit = lowest if negative != 0 else highest
        # bits of the significand behind the binary point
        behind = f.bias + 63 - v.exponent(a)
        whole: u64 = 0
        fraction: u64 = 0
        if behind >= 64:
            fraction = shift_sticky(v.significand(a), u64(behind - 64))
        elif behind > 0:
            whole = v.significand(a) >> u64(behind)
            fraction = v.significand(a) << u64(64 - behind)
        elif behind == 0:
            whole = v.significand(a)
        if mode == RNE:
            whole += u64(fraction > 1 << 63 or (fraction == 1 << 63 and whole & 1 != 0))
        elif mode == RMM:
            whole += fraction >> 63
        elif mode != RTZ:
            whole += u64(fraction != 0 and (mode == RDN) == (negative != 0))
        if behind < 0 or whole > limit:
            hart.fflags |= NV
            whole = limit
        elif fraction != 0:
            hart.fflags |= NX
        return 0 - whole if negative != 0 else whole

    return Integers(from_integer, to_integer)
