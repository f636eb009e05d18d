"""What is an instruction and what is not: all 16-bit encodings, and 32-bit ones over opcode, funct3, funct7 and rs2.

Compared with lists written from the specification, with Unicorn (RV64GC, no Zb*, no Zicbo*), and with QEMU where it is
installed. Every class of difference has a name and a reason in ``KNOWN``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from tests.models.operands import CENTRE, Generator, disassemble, report
from tests.models.oracle import ILLEGAL, WINDOW, Case, Ours, Qemu, State, Unicorn
from tests.models.tiers import portion

SEED = 7_016
#: All but C.J to itself, which never ends.
COMPRESSED = portion([encoding for encoding in range(1 << 16) if encoding & 3 != 3 and encoding != 0xA001])
#: Major opcodes (bits 6..2).
MISC_MEM, OP_IMM, OP_IMM_32, AMO, OP, OP_32, OP_FP, BRANCH, JALR, JAL, SYSTEM = 3, 4, 6, 11, 12, 14, 20, 24, 25, 27, 28
#: Those in which rs2, or all of funct7, says what the instruction is.
UNARY, FUNCT7 = (OP_IMM, OP_IMM_32, OP_FP), (OP, OP_32, AMO, MISC_MEM)


#: Reserved until Zcb; QEMU 5.0, hence Unicorn, takes these for instructions that do nothing.
ZCB = "reserved (Zcb has it)"


@pytest.fixture(scope="module")
def ours() -> Ours:
    return Ours()


def reserved(encoding: int) -> str | None:
    """Why a 16-bit encoding is no instruction of RV64C (unprivileged specification, tables of the C extension)."""
    quadrant, funct3 = encoding & 3, encoding >> 13
    rd, rs2, bit12 = encoding >> 7 & 31, encoding >> 2 & 31, encoding >> 12 & 1
    match quadrant, funct3:
        case 0, 0 if encoding >> 5 & 0xFF == 0:
            return "c.addi4spn of 0, among them the illegal instruction of all zeros"
        case 0, 4:
            return ZCB
        case 1, 1 if rd == 0:
            return "c.addiw to x0"
        case 1, 3 if bit12 == 0 and rs2 == 0:
            return "c.lui or c.addi16sp of 0"
        case 1, 4 if encoding >> 10 & 7 == 7 and encoding >> 6 & 1:
            return ZCB
        case 2, 2 | 3 if rd == 0:
            return "c.lwsp or c.ldsp to x0"
        case 2, 4 if bit12 == 0 and rs2 == 0 and rd == 0:
            return "c.jr to x0"
    return None


def picked(encoding: int, layout: str) -> int:
    """A signed immediate; ``layout``: its bit numbers as they lie in the encoding from bit 12 down, ``.`` for none."""
    value, most = 0, 0
    for position, name in zip(range(12, 1, -1), layout.split(), strict=True):
        if name != ".":
            value |= (encoding >> position & 1) << int(name)
            most = max(most, int(name))
    return value - (2 << most) if value >> most & 1 else value


def compressed_case(generator: Generator, encoding: int) -> Case:
    """A case of one 16-bit encoding, with addresses in the registers where it may access memory or jump."""
    quadrant, funct3 = encoding & 3, encoding >> 13
    code = encoding.to_bytes(2, "little")
    case = generator.code(code)
    x = list(case.x)
    if quadrant != 1 and funct3 in (1, 2, 3, 5, 6, 7):
        x = [CENTRE - 8 * generator.random.randrange(64) for _ in x]
    elif quadrant == 2 and funct3 == 4 and encoding >> 2 & 31 == 0:
        x[encoding >> 7 & 31] = generator.target()
    elif quadrant == 1 and funct3 >= 5:
        layout = "11 4 9 8 10 6 7 3 2 1 5" if funct3 == 5 else "8 4 3 . . . 7 6 2 1 5"
        offset = picked(encoding, layout)
        if offset == 0:
            x = [int(funct3 == 6)] * 32  # a branch to itself is not taken
        while offset != 0 and not generator.reserve(case.pc + offset):
            case = generator.code(code)
    x[0] = 0
    return Case(case.pc, code, x, case.f, case.fcsr, case.address, case.window)


@cache
def compressed_cases() -> tuple[Case, ...]:
    generator = Generator(SEED)
    return tuple(compressed_case(generator, encoding) for encoding in COMPRESSED)


def is_illegal(state: State, case: Case) -> bool:
    return state.cause == ILLEGAL and state.pc == case.pc


def test_compressed_encodings_are_reserved_as_specified(ours: Ours) -> None:
    found, count = [], 0
    for encoding, case, state in zip(COMPRESSED, compressed_cases(), ours.run(compressed_cases()), strict=True):
        count += is_illegal(state, case)
        if is_illegal(state, case) != (reserved(encoding) is not None):
            found.append(f"{encoding:#06x} {disassemble(case.code, case.pc)}: {state.cause=}, {reserved(encoding)}")
        elif state.cause == ILLEGAL and state.value != encoding:
            found.append(f"{encoding:#06x}: mtval {state.value:#x}")
    assert not found, report(found)
    assert count == 8 + 2048 + 64 + 32 + 128 + 2 * 64 + 1 or len(COMPRESSED) < 1 << 15


def test_compressed_instructions_agree_with_unicorn(ours: Ours) -> None:
    cases = compressed_cases()[SEED % 4 :: 4]
    oracle = Unicorn()
    found = []
    for case, mine, theirs in zip(cases, ours.run(cases), oracle.run(cases), strict=True):
        if theirs is None or reserved(int.from_bytes(case.code, "little")) == ZCB:
            continue
        if differences := mine.differences(theirs):
            found.append(f"{case.code.hex()} {disassemble(case.code, case.pc)}: ours / Unicorn {differences}")
    assert not found, f"seed {SEED}: {report(found)}"
    assert ours.memory == oracle.memory


@pytest.mark.peer
def test_compressed_instructions_agree_with_qemu(ours: Ours, peer: Callable[[str], str]) -> None:
    peer(Qemu.PROGRAM)
    oracle = Qemu()
    cases = compressed_cases()
    found = []
    for case, mine, theirs in zip(cases, ours.run(cases), oracle.run(cases), strict=True):
        if differences := mine.differences(theirs):
            found.append(f"{case.code.hex()} {disassemble(case.code, case.pc)}: ours / QEMU {differences}")
    assert not found, f"seed {SEED}: {report(found)}"
    assert ours.memory == oracle.memory


# 32-bit encodings


def words(thorough: bool) -> list[int]:
    """Encodings with rd = x5 and rs1 = x6 over all other bits that select an instruction; jumps go forward."""
    found = []
    for opcode in range(32):
        if opcode == SYSTEM:
            continue
        every = thorough or opcode in UNARY + FUNCT7
        for funct7 in (0,) if opcode in (BRANCH, JAL, JALR) else range(0, 128, 1 if every else 17):
            for rs2 in (0, 1, 2, 3, 4, 5, 7, 24, 31) if opcode in UNARY else (0, 7):
                for funct3 in range(8):
                    found.append(funct7 << 25 | rs2 << 20 | 6 << 15 | funct3 << 12 | 5 << 7 | opcode << 2 | 3)
    return found


def privileged_words() -> list[int]:
    """SYSTEM with funct3 0, rd = rs1 = x0 and everything above, but for those that wait or change privilege."""
    skipped = {0x102, 0x302, 0x105, 0x000, 0x001}  # sret, mret, wfi, ecall, ebreak
    return [funct12 << 20 | SYSTEM << 2 | 3 for funct12 in range(1 << 12) if funct12 not in skipped]


@cache
def word_cases(thorough: bool) -> tuple[Case, ...]:
    generator = Generator(SEED + 1)
    made = []
    for word in portion(words(thorough) + privileged_words()):
        opcode = word >> 2 & 31
        case = generator.code(word.to_bytes(4, "little"))
        offset = {BRANCH: 0x804, JAL: 0x30000 + (word & 0x7000) + (word >> 20 & 1) * 0x800 + (word >> 20 & 0x7FE)}
        while opcode in offset and not generator.reserve(case.pc + offset[opcode]):
            case = generator.code(case.code)
        x = [0] * 32
        x[6], x[7] = CENTRE, 5
        if opcode == JALR:
            x[6] = generator.target() - (word >> 20)
        made.append(Case(case.pc, case.code, x, [0] * 32, 0, CENTRE - WINDOW // 2, bytes(WINDOW)))
    return tuple(made)


def opcode_of(case: Case) -> int:
    return case.code[0] >> 2 & 31


def word_of(case: Case) -> int:
    return int.from_bytes(case.code, "little")


Known = Callable[[int], bool]


def _bit_manipulation(word: int) -> bool:
    """Zba, Zbb, Zbc, Zbs: ours, not Unicorn's."""
    opcode, funct3, funct7, rs2 = word >> 2 & 31, word >> 12 & 7, word >> 25, word >> 20 & 31
    shift = funct7 & ~1
    return (opcode, funct3, funct7) in BIT_MANIPULATION or (
        opcode == OP_IMM
        and (
            (funct3 == 1 and (shift in (0x24, 0x34, 0x14) or (funct7 == 0x30 and rs2 in (0, 1, 2, 4, 5))))
            or (funct3 == 5 and (shift in (0x24, 0x30) or word >> 20 in (0x287, 0x6B8)))
        )
    ) or (
        opcode == OP_IMM_32
        and ((funct3 == 1 and (shift == 0x04 or (funct7 == 0x30 and rs2 < 3))) or (funct3 == 5 and funct7 == 0x30))
    ) or (opcode == OP_32 and funct3 == 4 and funct7 == 0x04 and rs2 == 0)  # fmt: skip


BIT_MANIPULATION = {
    *((OP, funct3, 0x20) for funct3 in (4, 6, 7)), *((OP, funct3, 0x05) for funct3 in range(1, 8)),
    *((OP, funct3, 0x10) for funct3 in (2, 4, 6)), *((OP, funct3, 0x30) for funct3 in (1, 5)),
    *((OP, funct3, 0x24) for funct3 in (1, 5)), (OP, 1, 0x34), (OP, 1, 0x14),
    (OP_32, 0, 0x04), *((OP_32, funct3, 0x10) for funct3 in (2, 4, 6)), *((OP_32, funct3, 0x30) for funct3 in (1, 5)),
}  # fmt: skip


def _cache_blocks(word: int) -> bool:
    """Zicbom, Zicboz: ours, not Unicorn's, nor QEMU's before 8.0."""
    return word >> 2 & 31 == MISC_MEM and word >> 12 & 7 == 2 and word >> 7 & 31 == 0 and word >> 20 in (0, 1, 2, 4)


def _zicond(word: int) -> bool:
    """Zicond: ours, not Unicorn's, nor QEMU's unless it is turned on, from 8.0."""
    return word & 0x7F == OP << 2 | 3 and word >> 25 == 7 and word >> 12 & 7 in (5, 7)


KNOWN: tuple[Known, ...] = (_bit_manipulation, _cache_blocks, _zicond)
#: Of these, what QEMU does not know either.
NEWER: tuple[Known, ...] = (_cache_blocks, _zicond)


def test_encodings_agree_with_unicorn(ours: Ours) -> None:
    cases = [case for case in word_cases(False) if opcode_of(case) != SYSTEM]
    found = []
    for case, mine, theirs in zip(cases, ours.run(cases), Unicorn().legal(cases), strict=True):
        if is_illegal(mine, case) == theirs and not any(known(word_of(case)) for known in KNOWN):
            found.append(
                f"{word_of(case):#010x} {disassemble(case.code, case.pc)}: legal to Unicorn: {theirs}, not to us"
            )
    assert not found, report(found)


@pytest.mark.peer
def test_encodings_agree_with_qemu(ours: Ours, peer: Callable[[str], str]) -> None:
    peer(Qemu.PROGRAM)
    cases = word_cases(True)
    found = []
    for case, mine, theirs in zip(cases, ours.run(cases), Qemu().run(cases), strict=True):
        legal, theirs_legal = not is_illegal(mine, case), not is_illegal(theirs, case)
        if legal != theirs_legal and not any(known(word_of(case)) for known in NEWER):
            found.append(
                f"{word_of(case):#010x} {disassemble(case.code, case.pc)}: legal to QEMU: {theirs_legal}, not to us"
            )
    assert not found, report(found)
