"""The decoder, made from the descriptions: from an instruction's bits to its slot."""

from __future__ import annotations

from collections.abc import Collection

from ...core.segments import machine_of
from ...native.lang import Dispatch, Table, i32, inline, native, u8, u32, u64
from ..description import Flow, Instruction
from ..interface import Variant, Way
from .compressed import compressed_targets, expansion_table
from .features import FEATURE_BIT
from .instructions import INSTRUCTIONS
from .isa import instruction as instruction_set
from .state import SINK, Hart, Slot

#: Handlers of an instruction, in order. Branches and jal: to another page, forward in the page, backward in the page;
#: the same for compressed ones; to no multiple of four without the C extension. jalr: one that looks for that.
LONG, SHORT, CHECKED = 0, 1, 2
FAR, FORWARD, BACKWARD, SHORT_OFFSET, MISALIGNED = 0, 1, 2, 3, 6

#: Formats of immediates by number; those without one keep their own bits instead.
RAW = 0
FORMATS = tuple(instruction_set.immediates.values())


def format_of(instruction: Instruction) -> int:
    """Which immediate an instruction has."""
    return RAW if instruction.immediate is None else 1 + FORMATS.index(instruction.immediate)


def can_misalign(instruction: Instruction, target: int, features: Collection[str]) -> bool:
    """Whether it may go to an address at which no instruction can be: 2 modulo 4 without the C extension (unprivileged
    specification 2.5); ``target`` is where a branch or jal goes, as far as its low bits are concerned."""
    indirect = instruction.flow is Flow.INDIRECT
    return "c" not in features and (indirect or (instruction.is_relative and target & 2 != 0))


def variants(instruction: Instruction) -> int:
    return 7 if instruction.is_relative else 3 if instruction.flow is Flow.INDIRECT else 2


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
RELATIVE = Table(u8, tuple(int(i.is_relative) for i in ROWS))
INDIRECT = Table(u8, tuple(int(i.flow is Flow.INDIRECT) for i in ROWS))
WRITES_RD = Table(u8, tuple(int(i.result == "rd") for i in ROWS))
EXPANSION = Table(u32, expansion_table())
SHORT_TARGETS = compressed_targets()
RD, RS1, RS2, RS3 = (instruction_set.place(name) for name in ("rd", "rs1", "rs2", "rs3"))


@inline
def own_bits(word: u32) -> i32:
    return i32(word)


_IMMEDIATE = Dispatch({number: item.native for number, item in enumerate(FORMATS, 1)}, own_bits)


@native
def immediate(word: u32, form: u8) -> i32:
    """The immediate of an instruction word, sign-extended."""
    return _IMMEDIATE(u64(form), word)  # type: ignore[no-any-return]


@inline
def is_long(instruction: u32) -> bool:
    """Unprivileged specification 1.5: the lowest two bits are 11."""
    return instruction & 3 == 3


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
    rd = u8(word >> RD.low) & 31
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
    slot.rs1 = u8(word >> RS1.low) & 31
    slot.rs2 = u8(word >> RS2.low) & 31
    slot.rs3 = u8(word >> RS3.low) & 31
    slot.imm = imm
    slot.handler = machine.handlers[handler]


def _ways(item: Instruction) -> list[tuple[int, int, Way]]:
    """Number beside the first, bytes and way of each handler of an instruction."""
    short = item.name in SHORT_TARGETS or item is ILLEGAL_INSTRUCTION
    if not item.is_relative:
        found = [(LONG, 4, Way.NEXT), *([(SHORT, 2, Way.NEXT)] if short else [])]
        return [*found, (CHECKED, 4, Way.CHECKED)] if item.flow is Flow.INDIRECT else found
    ways = ((FAR, Way.FAR), (FORWARD, Way.FORWARD), (BACKWARD, Way.BACKWARD))
    found = [(number, 4, way) for number, way in ways]
    if short:
        found += [(SHORT_OFFSET + number, 2, way) for number, way in ways]
    return [*found, (MISALIGNED, 4, Way.MISALIGNED)]


#: All handlers of the interpreter.
VARIANTS = tuple(
    Variant(item, HANDLER_BASE[item.name] + number, f"op_{item.name.replace('.', '_')}_{number}", length, way)
    for item in INSTRUCTIONS
    for number, length, way in _ways(item)
)
