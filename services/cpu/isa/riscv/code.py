"""RISC-V to who compiles it: the instructions, and what the core asks of an instruction set."""

from __future__ import annotations

from ...core import provided
from ..interface import BitsOperand, Code, Operand, RegisterOperand, Step
from . import decoder, translation, trap
from .compressed import expansion_table
from .csr import read_control, write_control
from .decoder import FIRST, HANDLER_BASE, ILLEGAL_INSTRUCTION, ROWS, SHORT, SHORT_OFFSET, VARIANTS, can_misalign
from .definition import instruction_length
from .encoding import encode
from .instructions import INSTRUCTIONS
from .isa import FETCH_MISALIGNED

_PAGE = 4096


def identify(word: int) -> int:
    """The row of the decoder's tables for a 32-bit word."""
    row = FIRST.values[word >> 2 & 31]
    while ROWS[row] is not ILLEGAL_INSTRUCTION and word & ROWS[row].mask != ROWS[row].match:
        row += 1
    return row


def step_at(page: bytes, offset: int) -> Step | None:
    """The instruction at ``offset`` of a page; None if it is not whole in the page."""
    length = instruction_length(page[offset])
    if offset + length > _PAGE:
        return None
    bits = int.from_bytes(page[offset : offset + length], "little")
    word = bits if length == 4 else expansion_table()[bits >> 2 | (bits & 3) << 14]
    instruction = ROWS[identify(word)]
    handler = HANDLER_BASE[instruction.name]
    if length == 2:
        handler += SHORT_OFFSET if instruction.is_relative else SHORT
    return Step(offset, length, instruction, bits, word, handler)


def fits_region(step: Step, features: frozenset[str]) -> bool:
    """Whether its extensions are on, and where it goes an instruction can be."""
    needed = {step.instruction.extension, "c"} if step.length == 2 else {step.instruction.extension}
    return needed <= features and not can_misalign(step.instruction, step.target, features)


CODE = Code(
    instructions=INSTRUCTIONS,
    variants=VARIANTS,
    operands={
        "rs1": RegisterOperand("x", "rs1", zero=True),
        "rs2": RegisterOperand("x", "rs2", zero=True),
        "rd": RegisterOperand("x", "rd", zero=True),
        "frs1": RegisterOperand("f", "rs1"),
        "frs2": RegisterOperand("f", "rs2"),
        "frs3": RegisterOperand("f", "rs3"),
        "frd": RegisterOperand("f", "rd"),
        "rm": BitsOperand(12, 3),
        "imm": Operand.IMMEDIATE,
        "insn": Operand.BITS,
        "pc": Operand.PC,
        "next_pc": Operand.NEXT_PC,
        "hart": Operand.HART,
        "retired": Operand.RETIRED,
    },
    bindings={
        provided.translate: translation.translate,
        provided.refuse_access: translation.refuse_access,
        provided.refuse_misaligned: translation.refuse_misaligned,
        provided.space: translation.space,
        provided.select: translation.select,
        provided.is_long: decoder.is_long,
        provided.decode: decoder.decode,
        provided.take_trap: trap.take_trap,
        provided.take_interrupt: trap.take_interrupt,
        provided.is_woken: trap.is_woken,
        provided.look_at_own_timers: trap.look_at_own_timers,
    },
    exports=(read_control, write_control),
    jump_cause=FETCH_MISALIGNED,
    jump_alignment=4,
    step_at=step_at,
    fits_region=fits_region,
    warming=encode("addi", rd=10, rs1=10, imm=1).to_bytes(4, "little"),
)
