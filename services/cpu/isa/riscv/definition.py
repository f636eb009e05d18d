"""RISC-V to the core: RV64GC with the extensions the `virt` board offers, in M, S and U mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ...core import provided
from ..interface import BitsOperand, Control, Isa, Lines, Operand, RegisterOperand, Step
from ..registers import Kind, registers_of
from . import decoder, translation, trap
from .compressed import expansion_table
from .csr import CSRS, read_control, write_control
from .csr_bits import MEIP, MSIP, MTIP, SEIP
from .decoder import FIRST, HANDLER_BASE, ILLEGAL_INSTRUCTION, ROWS, SHORT, SHORT_OFFSET, VARIANTS, can_misalign
from .encoding import encode
from .features import FEATURES
from .instructions import INSTRUCTIONS
from .isa import FETCH_MISALIGNED
from .lookup import look_up
from .state import PMP_ENTRIES, Hart, Slot

#: CSRs that are there with an extension only; the counters behind ``_NO_COUNTERS`` count nothing and are left out.
_NEEDS = {"fflags": "f", "frm": "f", "fcsr": "f", "stimecmp": "sstc"}
_NO_COUNTERS = ("hpmcounter", "mhpmcounter", "mhpmevent")
_NUMBERS = {csr.name: csr.number for csr in CSRS.values()}
_PAGE = 4096


def identify(word: int) -> int:
    """The row of the decoder's tables for a 32-bit word."""
    row = FIRST.values[word >> 2 & 31]
    while ROWS[row] is not ILLEGAL_INSTRUCTION and word & ROWS[row].mask != ROWS[row].match:
        row += 1
    return row


def instruction_length(first: int) -> int:
    """Bytes of the instruction that begins with this byte (unprivileged specification 1.5)."""
    return 4 if first & 3 == 3 else 2


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


def alignment(features: frozenset[str]) -> int:
    """Bytes to a multiple of which every pc is (IALIGN of the unprivileged specification, 1.5)."""
    return 2 if "c" in features else 4


def writes(values: Mapping[str, int], files: Mapping[str, Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Control registers in the order of their declaration, and PMP's: addresses first, which a configuration locks."""
    for name, register in registers_of(Hart).items():
        if register.kind is Kind.CONTROL and register.saved:
            yield register.number, values[name]
    for index, value in enumerate(files["pmpaddr"]):
        if value:
            yield _NUMBERS["pmpaddr0"] + index, value
    for first in range(0, PMP_ENTRIES, 8):
        if any(part := bytes(files["pmpcfg"][first : first + 8])):
            yield _NUMBERS[f"pmpcfg{first // 4}"], int.from_bytes(part, "little")


ISA = Isa(
    name="riscv",
    features=FEATURES,
    hart=Hart,
    slot=Slot,
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
    controls=tuple(
        Control(csr.number, csr.name, _NEEDS.get(csr.name, ""))
        for csr in sorted(CSRS.values(), key=lambda csr: csr.number)
        if not csr.name.startswith(_NO_COUNTERS)
    ),
    lines=Lines(software=MSIP, timer=MTIP, external=(MEIP, SEIP)),
    jump_cause=FETCH_MISALIGNED,
    jump_alignment=4,
    alignment=alignment,
    step_at=step_at,
    length=instruction_length,
    fits_region=fits_region,
    warming=encode("addi", rd=10, rs1=10, imm=1).to_bytes(4, "little"),
    look_up=look_up,
    writes=writes,
)
