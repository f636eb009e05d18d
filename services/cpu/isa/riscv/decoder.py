"""The decoder, made from the descriptions: from an instruction's bits to its slot."""

from __future__ import annotations

from collections.abc import Collection

from ...native.lang import Table, at, i32, native, peek, ref, u8, u32, u64
from ..description import Instruction
from .compressed import compressed_targets, expansion_table
from .features import FEATURE_BIT
from .instructions import INSTRUCTIONS
from .segments import machine_of
from .state import CODE_PAGE_STRIDE, SINK, CodePage, Hart, Slot

#: Handlers of an instruction, in order. Branches and jal: to another page, forward in the page, backward in the page;
#: the same for compressed ones; to no multiple of four without the C extension. jalr: one that looks for that.
LONG, SHORT, CHECKED = 0, 1, 2
FAR, FORWARD, BACKWARD, SHORT_OFFSET, MISALIGNED = 0, 1, 2, 3, 6

FORMATS = ("raw", "imm12", "simm7", "bimm7", "uimm20", "jimm20", "shamt6", "shamt5")
RAW, FORMAT_I, FORMAT_S, FORMAT_B, FORMAT_U, FORMAT_J, FORMAT_SHAMT6, FORMAT_SHAMT5 = range(8)


def format_of(instruction: Instruction) -> int:
    """Which immediate an instruction has; those without one keep their own bits instead."""
    return next((i for i, name in enumerate(FORMATS) if i and instruction.has(name)), RAW)


def is_relative(instruction: Instruction) -> bool:
    """Whether it goes to pc + imm."""
    return instruction.result == "branch" or instruction.has("jimm20")


def is_indirect(instruction: Instruction) -> bool:
    """Whether it goes to an address in a register."""
    return instruction.name == "jalr"


def can_misalign(instruction: Instruction, target: int, features: Collection[str]) -> bool:
    """Whether it may go to an address at which no instruction can be: 2 modulo 4 without the C extension (unprivileged
    specification 2.5); ``target`` is where a branch or jal goes, as far as its low bits are concerned."""
    return "c" not in features and (is_indirect(instruction) or (is_relative(instruction) and target & 2 != 0))


def variants(instruction: Instruction) -> int:
    return 7 if is_relative(instruction) else 3 if is_indirect(instruction) else 2


ILLEGAL_INSTRUCTION = next(item for item in INSTRUCTIONS if item.name == "illegal")
_FIRST: list[int] = []
ROWS: list[Instruction] = []
for _opcode in range(32):
    _FIRST.append(len(ROWS))
    ROWS += [i for i in INSTRUCTIONS if i.match >> 2 & 31 == _opcode and i.mask & 3 == 3 and i.match & 3 == 3]
    ROWS.append(ILLEGAL_INSTRUCTION)
HANDLER_BASE: dict[str, int] = {}
_count = 0
for _item in INSTRUCTIONS:
    HANDLER_BASE[_item.name] = _count
    _count += variants(_item)
HANDLER_COUNT = _count

FIRST = Table(u32, tuple(_FIRST))
MASK = Table(u32, tuple(0 if i is ILLEGAL_INSTRUCTION else i.mask for i in ROWS))
MATCH = Table(u32, tuple(0 if i is ILLEGAL_INSTRUCTION else i.match for i in ROWS))
BASE = Table(u32, tuple(HANDLER_BASE[i.name] for i in ROWS))
FORMAT = Table(u8, tuple(format_of(i) for i in ROWS))
FEATURE = Table(u8, tuple(FEATURE_BIT[i.extension] for i in ROWS))
RELATIVE = Table(u8, tuple(int(is_relative(i)) for i in ROWS))
INDIRECT = Table(u8, tuple(int(is_indirect(i)) for i in ROWS))
WRITES_RD = Table(u8, tuple(int(i.result == "rd") for i in ROWS))
EXPANSION = Table(u32, expansion_table())
SHORT_TARGETS = compressed_targets()


@native
def immediate(word: u32, form: u8) -> i32:
    """The immediate of an instruction word (unprivileged specification 2.3), sign-extended."""
    signed = i32(word)
    if form == FORMAT_I:
        return signed >> 20
    if form == FORMAT_S:
        return ((signed >> 25) << 5) | i32((word >> 7) & 31)
    if form == FORMAT_B:
        return (
            ((signed >> 31) << 12)
            | i32(((word >> 7) & 1) << 11)
            | i32(((word >> 25) & 63) << 5)
            | i32(((word >> 8) & 15) << 1)
        )
    if form == FORMAT_U:
        return i32(word & 0xFFFFF000)
    if form == FORMAT_J:
        return (
            ((signed >> 31) << 20)
            | i32(word & 0xFF000)
            | i32(((word >> 20) & 1) << 11)
            | i32(((word >> 21) & 1023) << 1)
        )
    if form == FORMAT_SHAMT6:
        return i32((word >> 20) & 63)
    if form == FORMAT_SHAMT5:
        return i32((word >> 20) & 31)
    return signed


@native
def decode(hart: Hart, slot: Slot, insn: u32, pc: u64, local: bool) -> None:
    """Fills a slot from the instruction at ``pc``; ``local``: branches within the page may go from slot to slot."""
    machine = machine_of(hart)
    hart.count_decoded += 1
    word = insn
    short = insn & 3 != 3
    compressed = (machine.features >> FEATURE_BIT["c"]) & 1 != 0
    if short:
        word = EXPANSION[((insn & 0xFFFF) >> 2) | ((insn & 3) << 14)]
        if not compressed:
            word = 0
    row = FIRST[(word >> 2) & 31]
    while word & MASK[row] != MATCH[row] or (machine.features >> FEATURE[row]) & 1 == 0:
        row += 1
    form = FORMAT[row]
    imm = immediate(word, form)
    if form == RAW:
        imm = i32(insn & 0xFFFF) if short else i32(insn)
    rd = u8(word >> 7) & 31
    if rd == 0 and WRITES_RD[row] != 0:
        rd = SINK
    handler = BASE[row]
    if RELATIVE[row] != 0:
        if short:
            handler += SHORT_OFFSET
        if not compressed and imm & 2 != 0:
            handler += MISALIGNED
        elif local and ((pc + u64(imm)) ^ pc) >> 12 == 0:
            handler += u32(FORWARD) if imm > 0 else u32(BACKWARD)
            imm = imm << 3
    elif short:
        handler += SHORT
    elif not compressed and INDIRECT[row] != 0:
        handler += CHECKED
    slot.rd = rd
    slot.rs1 = u8(word >> 15) & 31
    slot.rs2 = u8(word >> 20) & 31
    slot.rs3 = u8(word >> 27)
    slot.imm = imm
    slot.handler = machine.handlers[handler]


@native
def instruction_bits(hart: Hart, slot: u64) -> u64:
    """The bits of the instruction of a slot, from its page's copy (or, alone in the scratch slot, from beside it)."""
    if slot == ref(hart.scratch):
        return hart.scratch[SCRATCH_BITS]
    page = slot & ~(CODE_PAGE_STRIDE - 1)
    insn = peek(u32, ref(at(CodePage, page).copy) + ((slot - page) >> 3))
    return u64(insn) if insn & 3 == 3 else u64(insn & 0xFFFF)


#: Index in ``Hart.scratch`` of the bits of the instruction in the scratch slot.
SCRATCH_BITS = 8
