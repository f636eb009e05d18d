"""A binary format's values: where its bits are, what they stand for, and how a result is rounded and packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ....native.lang import Table, boolean, clz, cold, i64, inline, likely, native, u64, u128, unlikely
from ..state import Hart

#: Bits of fflags: inexact, underflow, overflow, division by zero, invalid operation.
NX, UF, OF, DZ, NV = 1, 2, 4, 8, 16

#: Rounding modes: to nearest even, to zero, down, up, to nearest with ties away from zero; and "what frm says".
RNE, RTZ, RDN, RUP, RMM, DYNAMIC = 0, 1, 2, 3, 4, 7

ONE = 1 << 62  # the highest bit of what goes to ``round_pack``


class Layout:
    """Where the bits of a format are, with at most 64 in all."""

    def __init__(self, exponent_bits: int, fraction_bits: int) -> None:
        self.fraction = fraction_bits
        self.sign_bit = exponent_bits + fraction_bits
        self.width = self.sign_bit + 1
        self.special = (1 << exponent_bits) - 1
        self.bias = self.special >> 1
        self.sign = 1 << self.sign_bit
        self.magnitude = self.sign - 1
        self.infinity = self.special << fraction_bits
        self.quiet = 1 << (fraction_bits - 1)
        self.nan = self.infinity | self.quiet
        self.fraction_mask = (1 << fraction_bits) - 1
        #: Bits of round_pack's significand below the one that is kept.
        self.extra = 62 - fraction_bits
        self.tail = (1 << self.extra) - 1
        self.half = 1 << (self.extra - 1)
        #: What rounding adds before it truncates, by mode and sign.
        increments = (self.half, self.half, 0, 0, 0, self.tail, self.tail, 0, self.half, self.half)
        self.increment = Table(u64, increments)
        #: Steps of 32 bits that division needs; the last step of the square root, and what brings its root to bit 62.
        self.digits = 1 if fraction_bits < 30 else 2
        self.last_root_step, self.root_shift = (15, 32) if fraction_bits < 29 else (31, 1)


@dataclass(frozen=True)
class Values:
    """Functions of a format's values."""

    special: Callable[[int], bool]
    is_nan: Callable[[int], bool]
    significand: Callable[[int], int]
    exponent: Callable[[int], int]
    invalid: Callable[[Hart], int]
    not_a_number: Callable[[Hart, int, int, int], int]
    round_pack: Callable[[Hart, int, int, int, int], int]


@inline
def shift_sticky(value: u64, count: u64) -> u64:
    """``value >> count`` for any count; a bit that is lost sets the lowest one."""
    if count > 63:
        return u64(value != 0)
    return value >> count | u64(value & ((1 << count) - 1) != 0)


@inline
def shift_sticky_wide(value: u128, count: u64) -> u128:
    """``shift_sticky`` of 128 bits."""
    if count > 127:
        return u128(value != 0)
    shifted = value >> count
    return shifted | u128(shifted << count != value)


@inline
def narrow(value: u128) -> u64:
    """The upper half; the lower one is sticky."""
    return u64(value >> 64) | u64(u64(value) != 0)


def values(f: Layout) -> Values:
    """The functions, of a format with this layout."""
    INCREMENT = f.increment

    @native
    def round_pack(hart: Hart, negative: u64, exponent: i64, significand: u64, mode: u64) -> u64:
        increment = INCREMENT[mode << 1 | negative]
        tiny: boolean = False
        if unlikely(exponent <= 0):
            # with an unbounded exponent, would it round up to the smallest normal number?
            tiny = exponent < 0 or significand + increment < 1 << 63
            significand = shift_sticky(significand, u64(1 - exponent))
            exponent = 1
        tail = significand & f.tail
        rounded = (significand + increment) >> f.extra
        if tail == f.half and mode == RNE:
            rounded &= ~1
        # the integer bit of `rounded` counts one up in the exponent, as a carry out of it does
        magnitude = (u64(exponent - 1) << f.fraction) + rounded
        if unlikely(exponent >= f.special - 1) and (exponent >= f.special or magnitude >= f.infinity):
            hart.fflags |= OF | NX
            return negative << f.sign_bit | (f.infinity - u64(increment == 0))
        if tail != 0:
            hart.fflags |= NX
            if tiny:
                hart.fflags |= UF
        return negative << f.sign_bit | magnitude

    @inline
    def special(a: u64) -> boolean:
        """Zero, infinity or NaN: what has no significand."""
        return (a & f.magnitude) - 1 >= f.infinity - 1

    @inline
    def is_nan(a: u64) -> boolean:
        return a & f.magnitude > f.infinity

    @inline
    def signaling(a: u64) -> boolean:
        return a & f.magnitude > f.infinity and a & f.quiet == 0

    @inline
    def significand(a: u64) -> u64:
        """Of a value that is not special, its highest bit at bit 63."""
        fraction = a & f.fraction_mask
        if likely(a & f.infinity != 0):
            return (fraction << (63 - f.fraction)) | 1 << 63
        return fraction << clz(fraction)

    @inline
    def exponent(a: u64) -> i64:
        """Biased, of a value that is not special; zero and below for subnormal numbers."""
        field = a >> f.fraction & f.special
        if likely(field != 0):
            return i64(field)
        return 64 - f.fraction - i64(clz(a & f.fraction_mask))

    @cold
    def invalid(hart: Hart) -> u64:
        hart.fflags |= NV
        return f.nan

    @cold
    def not_a_number(hart: Hart, a: u64, b: u64, c: u64) -> u64:
        """The result of an operation with a NaN operand."""
        if signaling(a) or signaling(b) or signaling(c):
            hart.fflags |= NV
        return f.nan

    return Values(special, is_nan, significand, exponent, invalid, not_a_number, round_pack)
