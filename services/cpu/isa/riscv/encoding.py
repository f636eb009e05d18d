"""From operands to instruction words: the assembler's half of the descriptions."""

from __future__ import annotations

from functools import cache

from ..description import Instruction
from .instructions import INSTRUCTIONS


class OperandError(Exception):
    """An operand does not fit its field; says which, and what would."""


@cache
def by_name() -> dict[str, Instruction]:
    return {instruction.name: instruction for instruction in INSTRUCTIONS}


#: Immediate fields: (lowest bit, width, alignment) of the range, and the pieces (from bit, width, to bit) of each
#: field.
_IMMEDIATES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "imm12": ((0, 12, 20),),
    "simm7": ((5, 7, 25),),
    "simm5": ((0, 5, 7),),
    "bimm7": ((12, 1, 31), (5, 6, 25)),
    "bimm5": ((1, 4, 8), (11, 1, 7)),
    "uimm20": ((12, 20, 12),),
    "jimm20": ((20, 1, 31), (1, 10, 21), (11, 1, 20), (12, 8, 12)),
    "shamt6": ((0, 6, 20),),
    "shamt5": ((0, 5, 20),),
}
#: What an immediate may be: (least, most, multiple of), by the field that tells the format.
_RANGES = {
    "imm12": (-2048, 2047, 1), "simm7": (-2048, 2047, 1), "bimm7": (-4096, 4094, 2), "uimm20": (-(1 << 31), (1 << 31)
    - 4096, 4096),
    "jimm20": (-(1 << 20), (1 << 20) - 2, 2), "shamt6": (0, 63, 1), "shamt5": (0, 31, 1),
}  # fmt: skip


def immediate_of(word: int, form: str) -> int:
    """The immediate of a word, whose format is named by its first immediate field; 0 without one. The inverse of
    ``encode``."""
    if form not in _RANGES:
        return 0
    fields = {"simm7": ("simm7", "simm5"), "bimm7": ("bimm7", "bimm5")}.get(form, (form,))
    value = 0
    for name in fields:
        for low, width, at in _IMMEDIATES[name]:
            value |= (word >> at & ((1 << width) - 1)) << low
    top = max(low + width for name in fields for low, width, _ in _IMMEDIATES[name])
    signed = _RANGES[form][0] < 0
    return value - (1 << top) if signed and value >> top - 1 else value


def encode(name: str, **operands: int) -> int:
    """The word of an instruction; register operands are numbers, ``imm`` is the value that the semantics see.

    >>> hex(encode("addi", rd=1, rs1=2, imm=-1))
    '0xfff10093'
    """
    instruction = by_name()[name]
    word = instruction.match
    for field in instruction.fields:
        if field.name in _IMMEDIATES:
            value = operands.get("imm", 0)
            if field.name in _RANGES:
                least, most, step = _RANGES[field.name]
                if not least <= value <= most or value % step:
                    raise OperandError(
                        f"{name}: expected an immediate from {least} to {most} in steps of {step}, got {value}"
                    )
            for low, width, to in _IMMEDIATES[field.name]:
                word |= (value >> low & ((1 << width) - 1)) << to
        else:
            value = operands.get({"csr12": "csr", "zimm5": "zimm"}.get(field.name, field.name), 0)
            if not 0 <= value < 1 << field.width:
                raise OperandError(f"{name}: expected {field.name} from 0 to {(1 << field.width) - 1}, got {value}")
            word |= value << field.low
    return word
