"""Zba, Zbb, Zbc, Zbs and Zicond in plain Python over numbers and strings of bits, from the text of the
specification."""

from __future__ import annotations

from collections.abc import Callable

XLEN = 64
MASK = (1 << XLEN) - 1


def signed(value: int, width: int = XLEN) -> int:
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


def _bits(value: int, width: int) -> str:
    """The low bits of a value, the highest first."""
    return format(value & ((1 << width) - 1), f"0{width}b")


def _number(bits: str) -> int:
    return int(bits, 2)


def _leading(value: int, width: int) -> int:
    bits = _bits(value, width)
    return len(bits) - len(bits.lstrip("0"))


def _trailing(value: int, width: int) -> int:
    bits = _bits(value, width)
    return len(bits) - len(bits.rstrip("0"))


def _rotate_left(value: int, amount: int, width: int) -> int:
    bits = _bits(value, width)
    amount %= width
    return signed(_number(bits[amount:] + bits[:amount]), width)


def _carry_less(a: int, b: int) -> int:
    """The product of two polynomials over GF(2), of up to 127 bits."""
    return 0 if b == 0 else (a if b & 1 else 0) ^ _carry_less(a << 1, b >> 1)


def _or_combine(value: int) -> int:
    return int.from_bytes(bytes(255 if byte else 0 for byte in (value & MASK).to_bytes(8, "little")), "little")


def _set_bit(value: int, index: int, bit: str) -> int:
    bits = list(_bits(value, XLEN)[::-1])
    bits[index % XLEN] = bit
    return _number("".join(bits)[::-1])


def _bit(value: int, index: int) -> int:
    return int(_bits(value, XLEN)[::-1][index % XLEN])


def _low(value: int) -> int:
    return value % (1 << 32)


#: By name: the result (of any sign and size) from rs1 and rs2, or the immediate.
MODEL: dict[str, Callable[[int, int], int]] = {
    "add.uw": lambda a, b: _low(a) + b,
    "slli.uw": lambda a, b: _low(a) * 2**b,
    "sh1add": lambda a, b: a * 2 + b,
    "sh2add": lambda a, b: a * 4 + b,
    "sh3add": lambda a, b: a * 8 + b,
    "sh1add.uw": lambda a, b: _low(a) * 2 + b,
    "sh2add.uw": lambda a, b: _low(a) * 4 + b,
    "sh3add.uw": lambda a, b: _low(a) * 8 + b,
    "andn": lambda a, b: a & (MASK - b),
    "orn": lambda a, b: a | (MASK - b),
    "xnor": lambda a, b: MASK - (a ^ b),
    "czero.eqz": lambda a, b: 0 if b == 0 else a,
    "czero.nez": lambda a, b: a if b == 0 else 0,
    "clz": lambda a, b: _leading(a, 64),
    "clzw": lambda a, b: _leading(a, 32),
    "ctz": lambda a, b: _trailing(a, 64),
    "ctzw": lambda a, b: _trailing(a, 32),
    "cpop": lambda a, b: _bits(a, 64).count("1"),
    "cpopw": lambda a, b: _bits(a, 32).count("1"),
    "max": lambda a, b: max(signed(a), signed(b)),
    "maxu": max,
    "min": lambda a, b: min(signed(a), signed(b)),
    "minu": min,
    "sext.b": lambda a, b: signed(a, 8),
    "sext.h": lambda a, b: signed(a, 16),
    "zext.h": lambda a, b: a % (1 << 16),
    "rol": lambda a, b: _rotate_left(a, b, 64),
    "rolw": lambda a, b: _rotate_left(a, b, 32),
    "ror": lambda a, b: _rotate_left(a, -b, 64),
    "rori": lambda a, b: _rotate_left(a, -b, 64),
    "rorw": lambda a, b: _rotate_left(a, -b, 32),
    "roriw": lambda a, b: _rotate_left(a, -b, 32),
    "orc.b": lambda a, b: _or_combine(a),
    "rev8": lambda a, b: int.from_bytes((a & MASK).to_bytes(8, "little"), "big"),
    "clmul": _carry_less,
    "clmulh": lambda a, b: _carry_less(a, b) >> 64,
    "clmulr": lambda a, b: _carry_less(a, b) >> 63,
    **dict.fromkeys(("bclr", "bclri"), lambda a, b: _set_bit(a, b, "0")),
    **dict.fromkeys(("bset", "bseti"), lambda a, b: _set_bit(a, b, "1")),
    **dict.fromkeys(("binv", "binvi"), lambda a, b: _set_bit(a, b, "01"[1 - _bit(a, b)])),
    **dict.fromkeys(("bext", "bexti"), _bit),
}
