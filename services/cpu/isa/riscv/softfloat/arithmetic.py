"""Addition, multiplication, division, square root, and multiplication with addition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ....native.lang import clz, cold, i64, inline, native, u64, u128, unlikely
from ..state import Hart
from .values import DZ, ONE, RDN, Layout, Values, narrow, shift_sticky, shift_sticky_wide


@dataclass(frozen=True)
class Arithmetic:
    add: Callable[[Hart, int, int, int], int]
    subtract: Callable[[Hart, int, int, int], int]
    multiply: Callable[[Hart, int, int, int], int]
    divide: Callable[[Hart, int, int, int], int]
    square_root: Callable[[Hart, int, int], int]
    multiply_add: Callable[[Hart, int, int, int, int], int]


def arithmetic(f: Layout, v: Values) -> Arithmetic:
    """The functions, of a format with this layout and these values."""

    @native
    def add(hart: Hart, a: u64, b: u64, mode: u64) -> u64:
        if a & f.magnitude < b & f.magnitude:
            swapped = a
            a = b
            b = swapped
        opposite = (a ^ b) >> f.sign_bit
        field = a >> f.fraction & f.special
        if unlikely(field == f.special):
            if v.is_nan(a):
                return v.not_a_number(hart, a, b, 0)
            if opposite != 0 and b & f.magnitude == f.infinity:
                return v.invalid(hart)
            return a
        if unlikely(field == 0):
            # both are zero or subnormal: exact in the format's own units
            if opposite == 0:
                return a + (b & f.magnitude)
            if a & f.magnitude == b & f.magnitude:
                return f.sign if mode == RDN else 0
            return a - (b & f.magnitude)
        large = (a & f.fraction_mask) << f.extra | ONE
        small = (b & f.fraction_mask) << f.extra
        small_field = b >> f.fraction & f.special
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
            return v.round_pack(hart, a >> f.sign_bit, i64(field), large, mode)
        large -= small
        if large == 0:
            return f.sign if mode == RDN else 0
        shift = clz(large) - 1
        return v.round_pack(hart, a >> f.sign_bit, i64(field - shift), large << shift, mode)

    @inline
    def subtract(hart: Hart, a: u64, b: u64, mode: u64) -> u64:
        return add(hart, a, b ^ f.sign, mode)

    @cold
    def multiply_special(hart: Hart, a: u64, b: u64) -> u64:
        if v.is_nan(a) or v.is_nan(b):
            return v.not_a_number(hart, a, b, 0)
        sign = (a ^ b) & f.sign
        zero = a & f.magnitude == 0 or b & f.magnitude == 0
        if a & f.magnitude == f.infinity or b & f.magnitude == f.infinity:
            return v.invalid(hart) if zero else sign | f.infinity
        return sign

    @native
    def multiply(hart: Hart, a: u64, b: u64, mode: u64) -> u64:
        if unlikely(v.special(a)) or unlikely(v.special(b)):
            return multiply_special(hart, a, b)
        power = v.exponent(a) + v.exponent(b) - f.bias
        product = narrow(u128(v.significand(a)) * u128(v.significand(b)))
        if product >> 63 != 0:
            product = shift_sticky(product, 1)
            power += 1
        return v.round_pack(hart, (a ^ b) >> f.sign_bit, power, product, mode)

    @cold
    def divide_special(hart: Hart, a: u64, b: u64) -> u64:
        if v.is_nan(a) or v.is_nan(b):
            return v.not_a_number(hart, a, b, 0)
        sign = (a ^ b) & f.sign
        if a & f.magnitude == f.infinity:
            return v.invalid(hart) if b & f.magnitude == f.infinity else sign | f.infinity
        if b & f.magnitude == f.infinity:
            return sign
        if b & f.magnitude == 0:
            if a & f.magnitude == 0:
                return v.invalid(hart)
            hart.fflags |= DZ
            return sign | f.infinity
        return sign

    @native
    def divide(hart: Hart, a: u64, b: u64, mode: u64) -> u64:
        if unlikely(v.special(a)) or unlikely(v.special(b)):
            return divide_special(hart, a, b)
        power = v.exponent(a) - v.exponent(b) + f.bias
        # 56 bits leave room for a remainder that is off by a few divisors
        rest = v.significand(a) >> 8
        divisor = v.significand(b) >> 8
        if rest < divisor:
            power -= 1
        else:
            rest >>= 1
        quotient: u64 = 0
        for _ in range(f.digits):
            # by the divisor's upper half: never too small, at most two too large
            digit = (rest << 8) // (divisor >> 24)
            rest = (rest << 32) - digit * divisor
            while i64(rest) < 0:
                digit -= 1
                rest += divisor
            quotient = quotient << 32 | digit
        quotient = shift_sticky(quotient << (64 - 32 * f.digits), 1) | u64(rest != 0)
        return v.round_pack(hart, (a ^ b) >> f.sign_bit, power, quotient, mode)

    @native
    def square_root(hart: Hart, a: u64, mode: u64) -> u64:
        if unlikely(v.special(a)) or a >= f.sign:
            if v.is_nan(a):
                return v.not_a_number(hart, a, 0, 0)
            return a if a & f.magnitude == 0 or a == f.infinity else v.invalid(hart)
        power = v.exponent(a) - f.bias
        # an even exponent, and the highest bit at 60 or 61
        value = v.significand(a) >> u64(3 - (power & 1))
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
        while width <= f.last_root_step:
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
        root = root << f.root_shift | u64(rest != 0)
        return v.round_pack(hart, 0, (power >> 1) + f.bias, root, mode)

    @cold
    def multiply_add_special(hart: Hart, a: u64, b: u64, c: u64, mode: u64) -> u64:
        """One of the factors is special, or the addend is not finite."""
        infinite = a & f.magnitude == f.infinity or b & f.magnitude == f.infinity
        if infinite and (a & f.magnitude == 0 or b & f.magnitude == 0):
            return v.invalid(hart)
        if v.is_nan(a) or v.is_nan(b) or v.is_nan(c):
            return v.not_a_number(hart, a, b, c)
        sign = (a ^ b) & f.sign
        if infinite:
            return v.invalid(hart) if c == f.infinity | (sign ^ f.sign) else sign | f.infinity
        if c & f.magnitude != 0 or c == sign:
            return c
        return f.sign if mode == RDN else 0

    @native
    def multiply_add(hart: Hart, a: u64, b: u64, c: u64, mode: u64) -> u64:
        if unlikely(v.special(a)) or unlikely(v.special(b)) or unlikely(c & f.infinity == f.infinity):
            return multiply_add_special(hart, a, b, c, mode)
        negative = (a ^ b) >> f.sign_bit
        power = v.exponent(a) + v.exponent(b) - f.bias
        # exact: its highest bit goes to bit 126
        large = u128(v.significand(a)) * u128(v.significand(b))
        if large >> 127 != 0:
            large >>= 1
            power += 1
        if c & f.magnitude == 0:
            return v.round_pack(hart, negative, power, narrow(large), mode)
        small = u128(v.significand(c)) << 63
        distance = power - v.exponent(c)
        opposite = negative ^ c >> f.sign_bit
        if distance < 0 or (distance == 0 and large < small):
            swapped = large
            large = small
            small = swapped
            power -= distance
            distance = -distance
            negative = c >> f.sign_bit
        small = shift_sticky_wide(small, u64(distance))
        if opposite == 0:
            large += small
            if large >> 127 != 0:
                large = large >> 1 | large & 1
                power += 1
        else:
            large -= small
            if large == 0:
                return f.sign if mode == RDN else 0
            shift = clz(large) - 1
            large <<= shift
            power -= i64(shift)
        return v.round_pack(hart, negative, power, narrow(large), mode)

    return Arithmetic(add, subtract, multiply, divide, square_root, multiply_add)
