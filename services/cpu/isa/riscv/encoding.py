"""From operands to instruction words: the assembler's half of the descriptions."""

from __future__ import annotations

from functools import cache

from .. import description
from ..description import Instruction
from .instructions import INSTRUCTIONS
from .isa import TOKENS


@cache
def by_name() -> dict[str, Instruction]:
    return {instruction.name: instruction for instruction in INSTRUCTIONS}


def encode(name: str, **operands: int) -> int:
    """The word of an instruction; register operands are numbers, ``imm`` is the value that the semantics see. Raises
    OperandError.

    >>> hex(encode("addi", rd=1, rs1=2, imm=-1))
    '0xfff10093'
    """
    return description.encode(by_name()[name], TOKENS, operands)
