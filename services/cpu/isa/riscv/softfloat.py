"""IEEE 754 binary arithmetic in integers, bit-exact as RISC-V wants it (unprivileged specification, "F" and "D").

Operands and results are the raw bits of a value, in a ``u64`` whose bits above the format's width are zero. Exception
flags accumulate in ``Hart.fflags``. Every NaN result is the canonical NaN; tininess is detected after rounding.

Inside, a finite value is ``negative`` (0 or 1), a biased ``exponent`` that may leave the format's range, and a
``significand`` whose highest bit stands for 1: bit 63 in an operand, bit 62 in what goes to ``round_pack``. Whatever is
lost to the right is kept in the lowest bit ("sticky"), which both formats have far below the bit they round at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...native.lang import Table, boolean, clz, cold, i64, inline, likely, native, u64, u128, unlikely
from .state import Hart

#: Bits of fflags: inexact, underflow, overflow, division by zero, invalid operation.
NX, UF, OF, DZ, NV = 1, 2, 4, 8, 16

#: Rounding modes: to nearest even, to zero, down, up, to nearest with ties away from zero; and "what frm says".
RNE, RTZ, RDN, RUP, RMM, DYNAMIC = 0, 1, 2, 3, 4, 7


@dataclass(frozen=True)
class Format:
    """A binary format and its operations.

    Operations take (hart, operands, rounding mode); comparisons, ``minimum`` and ``maximum`` have no mode, ``classify``
    takes the value only. ``from_integer`` takes (hart, negative, magnitude, mode), ``to_integer`` (hart, value, mode,
    lowest, highest): the integer, as 64 bits in two's complement, saturated to -lowest ... highest.
    """

    width: int
    bias: int
    sign: int
    infinity: int
    nan: int
    round_pack: Callable[[Hart, int, int, int, int], int]
    exponent: Callable[[int], int]
    significand: Callable[[int], int]
    not_a_number: Callable[[Hart, int, int, int], int]
    add: Callable[[Hart, int, int, int], int]
    subtract: Callable[[Hart, int, int, int], int]
    multiply: Callable[[Hart, int, int, int], int]
    divide: Callable[[Hart, int, int, int], int]
    square_root: Callable[[Hart, int, int], int]
    multiply_add: Callable[[Hart, int, int, int, int], int]
    equal: Callable[[Hart, int, int], int]
    less: Callable[[Hart, int, int], int]
    less_equal: Callable[[Hart, int, int], int]
    minimum: Callable[[Hart, int, int], int]
    maximum: Callable[[Hart, int, int], int]
    classify: Callable[[int], int]
    from_integer: Callable[[Hart, int, int, int], int]
    to_integer: Callable[[Hart, int, int, int, int], int]


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


def make(exponent_bits: int, fraction_bits: int) -> Format:
    """The operations of the format with so many bits; at most 64 in all."""
    FRACTION = fraction_bits
    SIGN_BIT = exponent_bits + FRACTION
    SPECIAL = (1 << exponent_bits) - 1
    BIAS = SPECIAL >> 1
    SIGN = 1 << SIGN_BIT
    MAGNITUDE = SIGN - 1
    INFINITY = SPECIAL << FRACTION
    QUIET = 1 << (FRACTION - 1)
    NAN = INFINITY | QUIET
    FRACTION_MASK = (1 << FRACTION) - 1
    ONE = 1 << 62
    # bits of round_pack's significand below the one that is kept
    EXTRA = 62 - FRACTION
    TAIL = (1 << EXTRA) - 1
    HALF = 1 << (EXTRA - 1)
    # what rounding adds before it truncates, by mode and sign
    INCREMENT = Table(u64, (HALF, HALF, 0, 0, 0, TAIL, TAIL, 0, HALF, HALF))
    # steps of 32 bits that division needs; the last step of the square root, and what brings its root to bit 62
    DIGITS = 1 if FRACTION < 30 else 2
    LAST_ROOT_STEP, ROOT_SHIFT = (15, 32) if FRACTION < 29 else (31, 1)

    @native
    def round_pack(hart: Hart, negative: u64, exponent: i64, significand: u64, mode: u64) -> u64:
        increment = INCREMENT[mode << 1 | negative]
        tiny: boolean = False
        if unlikely(exponent <= 0):
            # with an unbounded exponent, would it round up to the smallest normal number?
            tiny = exponent < 0 or significand + increment < 1 << 63
            significand = shift_sticky(significand, u64(1 - exponent))
            exponent = 1
        tail = significand & TAIL
        rounded = (significand + increment) >> EXTRA
        if tail == HALF and mode == RNE:
            rounded &= ~1
        # the integer bit of `rounded` counts one up in the exponent, as a carry out of it does
        magnitude = (u64(exponent - 1) << FRACTION) + rounded
        if unlikely(exponent >= SPECIAL - 1) and (exponent >= SPECIAL or magnitude >= INFINITY):
            hart.fflags |= OF | NX
            return negative << SIGN_BIT | (INFINITY - u64(increment == 0))
        if tail != 0:
            hart.fflags |= NX
            if tiny:
                hart.fflags |= UF
        return negative << SIGN_BIT | magnitude

    @inline
    def special(a: u64) -> boolean:
        """Zero, infinity or NaN: what has no significand."""
        return (a & MAGNITUDE) - 1 >= INFINITY - 1

    @inline
    def is_nan(a: u64) -> boolean:
        return a & MAGNITUDE > INFINITY

    @inline
    def signaling(a: u64) -> boolean:
        return a & MAGNITUDE > INFINITY and a & QUIET == 0

    @inline
    def significand(a: u64) -> u64:
        """Of a value that is not special, its highest bit at bit 63."""
        fraction = a & FRACTION_MASK
        if likely(a & INFINITY != 0):
            return (fraction << (63 - FRACTION)) | 1 << 63
        return fraction << clz(fraction)

    @inline
    def exponent(a: u64) -> i64:
        """Biased, of a value that is not special; zero and below for subnormal numbers."""
        field = a >> FRACTION & SPECIAL
        if likely(field != 0):
            return i64(field)
        return 64 - FRACTION - i64(clz(a & FRACTION_MASK))

    @cold
    def invalid(hart: Hart) -> u64:
        hart.fflags |= NV
        return NAN

    @cold
    def not_a_number(hart: Hart, a: u64, b: u64, c: u64) -> u64:
        """The result of an operation with a NaN operand."""
        if signaling(a) or signaling(b) or signaling(c):
            hart.fflags |= NV
        return NAN

    @native
    def add(hart: Hart, a: u64, b: u64, mode: u64) -> u64:
        if a & MAGNITUDE < b & MAGNITUDE:
            swapped = a
            a = b
            b = swapped
        opposite = (a ^ b) >> SIGN_BIT
        field = a >> FRACTION & SPECIAL
        if unlikely(field == SPECIAL):
            if is_nan(a):
                return not_a_number(hart, a, b, 0)
            if opposite != 0 and b & MAGNITUDE == INFINITY:
                return invalid(hart)
            return a
        if unlikely(field == 0):
            # both are zero or subnormal: exact in the format's own units
            if opposite == 0:
                return a + (b & MAGNITUDE)
            if a & MAGNITUDE == b & MAGNITUDE:
                return SIGN if mode == RDN else 0
            return a - (b & MAGNITUDE)
        large = (a & FRACTION_MASK) << EXTRA | ONE
        small = (b & FRACTION_MASK) << EXTRA
        small_field = b >> FRACTION & SPECIAL
        if small_field != 0:
            small |= ONE
        else:
            small_field = 1
        small = shift_sticky(small, field - small_field)
        if opposite == 0:
            large += small
            if large >> 63 != 0:
                large = shift_sticky(large, 1)
                field += 1
            return round_pack(hart, a >> SIGN_BIT, i64(field), large, mode)
        large -= small
        if large == 0:
            return SIGN if mode == RDN else 0
        shift = clz(large) - 1
        return round_pack(hart, a >> SIGN_BIT, i64(field - shift), large << shift, mode)

    @inline
    def subtract(hart: Hart, a: u64, b: u64, mode: u64) -> u64:
        return add(hart, a, b ^ SIGN, mode)

    @cold
    def multiply_special(hart: Hart, a: u64, b: u64) -> u64:
        if is_nan(a) or is_nan(b):
            return not_a_number(hart, a, b, 0)
        sign = (a ^ b) & SIGN
        zero = a & MAGNITUDE == 0 or b & MAGNITUDE == 0
        if a & MAGNITUDE == INFINITY or b & MAGNITUDE == INFINITY:
            return invalid(hart) if zero else sign | INFINITY
        return sign

    @native
    def multiply(hart: Hart, a: u64, b: u64, mode: u64) -> u64:
        if unlikely(special(a)) or unlikely(special(b)):
            return multiply_special(hart, a, b)
        power = exponent(a) + exponent(b) - BIAS
        product = narrow(u128(significand(a)) * u128(significand(b)))
        if product >> 63 != 0:
            product = shift_sticky(product, 1)
            power += 1
        return round_pack(hart, (a ^ b) >> SIGN_BIT, power, product, mode)

    @cold
    def divide_special(hart: Hart, a: u64, b: u64) -> u64:
        if is_nan(a) or is_nan(b):
            return not_a_number(hart, a, b, 0)
        sign = (a ^ b) & SIGN
        if a & MAGNITUDE == INFINITY:
            return invalid(hart) if b & MAGNITUDE == INFINITY else sign | INFINITY
        if b & MAGNITUDE == INFINITY:
            return sign
        if b & MAGNITUDE == 0:
            if a & MAGNITUDE == 0:
                return invalid(hart)
            hart.fflags |= DZ
            return sign | INFINITY
        return sign

    @native
    def divide(hart: Hart, a: u64, b: u64, mode: u64) -> u64:
        if unlikely(special(a)) or unlikely(special(b)):
            return divide_special(hart, a, b)
        power = exponent(a) - exponent(b) + BIAS
        # 56 bits leave room for a remainder that is off by a few divisors
        rest = significand(a) >> 8
        divisor = significand(b) >> 8
        if rest < divisor:
            power -= 1
        else:
            rest >>= 1
        quotient: u64 = 0
        for _ in range(DIGITS):
            # by the divisor's upper half: never too small, at most two too large
            digit = (rest << 8) // (divisor >> 24)
            rest = (rest << 32) - digit * divisor
            while i64(rest) < 0:
                digit -= 1
                rest += divisor
            quotient = quotient << 32 | digit
        quotient = shift_sticky(quotient << (64 - 32 * DIGITS), 1) | u64(rest != 0)
        return round_pack(hart, (a ^ b) >> SIGN_BIT, power, quotient, mode)

    @native
    def square_root(hart: Hart, a: u64, mode: u64) -> u64:
        if unlikely(special(a)) or a >= SIGN:
            if is_nan(a):
                return not_a_number(hart, a, 0, 0)
            return a if a & MAGNITUDE == 0 or a == INFINITY else invalid(hart)
        power = exponent(a) - BIAS
        # an even exponent, and the highest bit at 60 or 61
        value = significand(a) >> u64(3 - (power & 1))
        # 16 bits of the root one by one, then as many again as are there by a division
        rest = value >> 30
        root: u64 = 0
        bit: u64 = 16
        while bit != 0:
            bit -= 1
            step = (root << 1 | 1 << bit) << bit
            if step <= rest:
                rest -= step
                root |= 1 << bit
        below = value & ((1 << 30) - 1)
        width: u64 = 15
        while width <= LAST_ROOT_STEP:
            # (root·2^w + q)² = root²·4^w + 2·root·q·2^w + q²
            rest = rest << width | below >> width
            digit = rest // (root << 1)
            rest = (rest % (root << 1) << width | below & ((1 << width) - 1)) - digit * digit
            root = (root << width) + digit
            if i64(rest) < 0:
                root -= 1
                rest += root << 1 | 1
            below = 0
            width = width << 1 | 1
        root = root << ROOT_SHIFT | u64(rest != 0)
        return round_pack(hart, 0, (power >> 1) + BIAS, root, mode)

    @cold
    def multiply_add_special(hart: Hart, a: u64, b: u64, c: u64, mode: u64) -> u64:
        """One of the factors is special, or the addend is not finite."""
        infinite = a & MAGNITUDE == INFINITY or b & MAGNITUDE == INFINITY
        if infinite and (a & MAGNITUDE == 0 or b & MAGNITUDE == 0):
            return invalid(hart)
        if is_nan(a) or is_nan(b) or is_nan(c):
            return not_a_number(hart, a, b, c)
        sign = (a ^ b) & SIGN
        if infinite:
            return invalid(hart) if c == INFINITY | (sign ^ SIGN) else sign | INFINITY
        if c & MAGNITUDE != 0 or c == sign:
            return c
        return SIGN if mode == RDN else 0

    @native
    def multiply_add(hart: Hart, a: u64, b: u64, c: u64, mode: u64) -> u64:
        if unlikely(special(a)) or unlikely(special(b)) or unlikely(c & INFINITY == INFINITY):
            return multiply_add_special(hart, a, b, c, mode)
        negative = (a ^ b) >> SIGN_BIT
        power = exponent(a) + exponent(b) - BIAS
        # exact: its highest bit goes to bit 126
        large = u128(significand(a)) * u128(significand(b))
        if large >> 127 != 0:
            large >>= 1
            power += 1
        if c & MAGNITUDE == 0:
            return round_pack(hart, negative, power, narrow(large), mode)
        small = u128(significand(c)) << 63
        distance = power - exponent(c)
        opposite = negative ^ c >> SIGN_BIT
        if distance < 0 or (distance == 0 and large < small):
            swapped = large
            large = small
            small = swapped
            power -= distance
            distance = -distance
            negative = c >> SIGN_BIT
        small = shift_sticky_wide(small, u64(distance))
        if opposite == 0:
            large += small
            if large >> 127 != 0:
                large = large >> 1 | large & 1
                power += 1
        else:
            large -= small
            if large == 0:
                return SIGN if mode == RDN else 0
            shift = clz(large) - 1
            large <<= shift
            power -= i64(shift)
        return round_pack(hart, negative, power, narrow(large), mode)

    @inline
    def order(a: u64) -> i64:
        """A number that grows with the value; that of -0 is below that of +0."""
        bits = i64(a << (63 - SIGN_BIT))
        return bits ^ i64(u64(bits >> 63) >> 1)

    @inline
    def both_zero(a: u64, b: u64) -> boolean:
        return (a | b) & MAGNITUDE == 0

    @native
    def equal(hart: Hart, a: u64, b: u64) -> u64:
        if is_nan(a) or is_nan(b):
            not_a_number(hart, a, b, 0)
            return 0
        return u64(a == b or both_zero(a, b))

    @native
    def less(hart: Hart, a: u64, b: u64) -> u64:
        if is_nan(a) or is_nan(b):
            hart.fflags |= NV
            return 0
        return u64(order(a) < order(b) and not both_zero(a, b))

    @native
    def less_equal(hart: Hart, a: u64, b: u64) -> u64:
        if is_nan(a) or is_nan(b):
            hart.fflags |= NV
            return 0
        return u64(order(a) <= order(b) or both_zero(a, b))

    @cold
    def choose_number(hart: Hart, a: u64, b: u64) -> u64:
        """The operand that is a number."""
        not_a_number(hart, a, b, 0)
        if is_nan(a):
            return NAN if is_nan(b) else b
        return a

    @native
    def minimum(hart: Hart, a: u64, b: u64) -> u64:
        if is_nan(a) or is_nan(b):
            return choose_number(hart, a, b)
        return a if order(a) < order(b) else b

    @native
    def maximum(hart: Hart, a: u64, b: u64) -> u64:
        if is_nan(a) or is_nan(b):
            return choose_number(hart, a, b)
        return b if order(a) < order(b) else a

    @native
    def classify(a: u64) -> u64:
        magnitude = a & MAGNITUDE
        if magnitude > INFINITY:
            return 1 << 8 if a & QUIET == 0 else 1 << 9
        # from zero outwards: zero, subnormal, normal, infinity
        kind = u64(magnitude != 0) + u64(magnitude > FRACTION_MASK) + u64(magnitude == INFINITY)
        return 1 << (4 + kind if a < SIGN else 3 - kind)

    @native
    def from_integer(hart: Hart, negative: u64, magnitude: u64, mode: u64) -> u64:
        if magnitude == 0:
            return 0
        shift = clz(magnitude)
        return round_pack(hart, negative, BIAS + 63 - i64(shift), shift_sticky(magnitude << shift, 1), mode)

    @native
    def to_integer(hart: Hart, a: u64, mode: u64, lowest: u64, highest: u64) -> u64:
        if a & MAGNITUDE == 0:
            return 0
        if is_nan(a):
            hart.fflags |= NV
            return highest
        negative = a >> SIGN_BIT
        limit = lowest if negative != 0 else highest
        # bits of the significand behind the binary point
        behind = BIAS + 63 - exponent(a)
        whole: u64 = 0
        fraction: u64 = 0
        if behind >= 64:
            fraction = shift_sticky(significand(a), u64(behind - 64))
        elif behind > 0:
            whole = significand(a) >> u64(behind)
            fraction = significand(a) << u64(64 - behind)
        elif behind == 0:
            whole = significand(a)
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

    return Format(
        width=SIGN_BIT + 1,
        bias=BIAS,
        sign=SIGN,
        infinity=INFINITY,
        nan=NAN,
        round_pack=round_pack,
        exponent=exponent,
        significand=significand,
        not_a_number=not_a_number,
        add=add,
        subtract=subtract,
        multiply=multiply,
        divide=divide,
        square_root=square_root,
        multiply_add=multiply_add,
        equal=equal,
        less=less,
        less_equal=less_equal,
        minimum=minimum,
        maximum=maximum,
        classify=classify,
        from_integer=from_integer,
        to_integer=to_integer,
    )


def converter(source: Format, target: Format) -> Callable[[Hart, int, int], int]:
    """The conversion of a value of one format to another: (hart, value, mode)."""

    @native
    def convert(hart: Hart, a: u64, mode: u64) -> u64:
        magnitude = a & (source.sign - 1)
        negative = a >> (source.width - 1)
        if magnitude > source.infinity:
            source.not_a_number(hart, a, 0, 0)
            return target.nan
        if magnitude == source.infinity:
            return negative << (target.width - 1) | target.infinity
        if magnitude == 0:
            return negative << (target.width - 1)
        power = source.exponent(a) - source.bias + target.bias
        return target.round_pack(hart, negative, power, shift_sticky(source.significand(a), 1), mode)

    return convert


SINGLE = make(8, 23)
DOUBLE = make(11, 52)
single_to_double = converter(SINGLE, DOUBLE)
double_to_single = converter(DOUBLE, SINGLE)
