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

from ....native.lang import native, u64
from ..state import Hart
from .arithmetic import Arithmetic, arithmetic
from .integers import Integers, integers
from .order import Order, order
from .values import DYNAMIC, DZ, NV, NX, OF, RDN, RMM, RNE, RTZ, RUP, UF, Layout, Values, shift_sticky, values

__all__ = [
    "DOUBLE", "DYNAMIC", "DZ", "NV", "NX", "OF", "RDN", "RMM", "RNE", "RTZ", "RUP", "SINGLE", "UF", "Format",
    "double_to_single", "single_to_double",
]  # fmt: skip


@dataclass(frozen=True)
class Format(Values, Arithmetic, Order, Integers):
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


def make(exponent_bits: int, fraction_bits: int) -> Format:
    """The operations of the format with so many bits; at most 64 in all."""
    layout = Layout(exponent_bits, fraction_bits)
    of_values = values(layout)
    parts = (of_values, arithmetic(layout, of_values), order(layout, of_values), integers(layout, of_values))
    return Format(
        **{name: function for part in parts for name, function in vars(part).items()},
        width=layout.width,
        bias=layout.bias,
        sign=layout.sign,
        infinity=layout.infinity,
        nan=layout.nan,
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
