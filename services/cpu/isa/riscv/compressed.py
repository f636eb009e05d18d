"""The C extension: each 16-bit encoding stands for a 32-bit instruction (unprivileged specification, chapter 26).

``COMPRESSED`` describes them; ``expansion_table`` gives the 32-bit instruction of every 16-bit encoding, for the
decoder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import product

from .encoding import by_name, encode

REGISTERS = {"rd": 5, "rs1": 5, "rs2": 5, "rd'": 3, "rs1'": 3, "rs2'": 3}
RETURN_ADDRESS, STACK = 1, 2


@dataclass(frozen=True)
class Compressed:
    """A 16-bit encoding, from the highest bit down, and what it stands for.

    ``uimm[5:3|2]`` and ``simm[...]`` are bits of an unsigned or signed immediate. ``operands`` gives the expansion's
    operands: a number,
    or the name of a field. Encodings in which a field of ``nonzero`` is 0 are reserved.
    """

    name: str
    encoding: str
    target: str
    operands: dict[str, int | str]
    nonzero: tuple[str, ...] = ()


def _c(name: str, encoding: str, target: str, nonzero: str = "", **operands: int | str) -> Compressed:
    return Compressed(name, encoding, target, operands, tuple(nonzero.split()))


COMPRESSED = (
    _c("c.addi4spn", "000 uimm[5:4|9:6|2|3] rd' 00", "addi", "imm", rd="rd'", rs1=STACK),
    _c("c.fld", "001 uimm[5:3] rs1' uimm[7:6] rd' 00", "fld", rd="rd'", rs1="rs1'"),
    _c("c.lw", "010 uimm[5:3] rs1' uimm[2|6] rd' 00", "lw", rd="rd'", rs1="rs1'"),
    _c("c.ld", "011 uimm[5:3] rs1' uimm[7:6] rd' 00", "ld", rd="rd'", rs1="rs1'"),
    _c("c.fsd", "101 uimm[5:3] rs1' uimm[7:6] rs2' 00", "fsd", rs1="rs1'", rs2="rs2'"),
    _c("c.sw", "110 uimm[5:3] rs1' uimm[2|6] rs2' 00", "sw", rs1="rs1'", rs2="rs2'"),
    _c("c.sd", "111 uimm[5:3] rs1' uimm[7:6] rs2' 00", "sd", rs1="rs1'", rs2="rs2'"),
    _c("c.addi", "000 simm[5] rd simm[4:0] 01", "addi", rd="rd", rs1="rd"),
    _c("c.addiw", "001 simm[5] rd simm[4:0] 01", "addiw", "rd", rd="rd", rs1="rd"),
    _c("c.li", "010 simm[5] rd simm[4:0] 01", "addi", rd="rd", rs1=0),
    _c("c.addi16sp", "011 simm[9] 00010 simm[4|6|8:7|5] 01", "addi", "imm", rd=STACK, rs1=STACK),
    _c("c.lui", "011 simm[17] rd simm[16:12] 01", "lui", "imm", rd="rd"),
    _c("c.srli", "100 uimm[5] 00 rd' uimm[4:0] 01", "srli", rd="rd'", rs1="rd'"),
    _c("c.srai", "100 uimm[5] 01 rd' uimm[4:0] 01", "srai", rd="rd'", rs1="rd'"),
    _c("c.andi", "100 simm[5] 10 rd' simm[4:0] 01", "andi", rd="rd'", rs1="rd'"),
    _c("c.sub", "100 0 11 rd' 00 rs2' 01", "sub", rd="rd'", rs1="rd'", rs2="rs2'"),
    _c("c.xor", "100 0 11 rd' 01 rs2' 01", "xor", rd="rd'", rs1="rd'", rs2="rs2'"),
    _c("c.or", "100 0 11 rd' 10 rs2' 01", "or", rd="rd'", rs1="rd'", rs2="rs2'"),
    _c("c.and", "100 0 11 rd' 11 rs2' 01", "and", rd="rd'", rs1="rd'", rs2="rs2'"),
    _c("c.subw", "100 1 11 rd' 00 rs2' 01", "subw", rd="rd'", rs1="rd'", rs2="rs2'"),
    _c("c.addw", "100 1 11 rd' 01 rs2' 01", "addw", rd="rd'", rs1="rd'", rs2="rs2'"),
    _c("c.j", "101 simm[11|4|9:8|10|6|7|3:1|5] 01", "jal", rd=0),
    _c("c.beqz", "110 simm[8|4:3] rs1' simm[7:6|2:1|5] 01", "beq", rs1="rs1'", rs2=0),
    _c("c.bnez", "111 simm[8|4:3] rs1' simm[7:6|2:1|5] 01", "bne", rs1="rs1'", rs2=0),
    _c("c.slli", "000 uimm[5] rd uimm[4:0] 10", "slli", rd="rd", rs1="rd"),
    _c("c.fldsp", "001 uimm[5] rd uimm[4:3|8:6] 10", "fld", rd="rd", rs1=STACK),
    _c("c.lwsp", "010 uimm[5] rd uimm[4:2|7:6] 10", "lw", "rd", rd="rd", rs1=STACK),
    _c("c.ldsp", "011 uimm[5] rd uimm[4:3|8:6] 10", "ld", "rd", rd="rd", rs1=STACK),
    _c("c.jr", "100 0 rs1 00000 10", "jalr", "rs1", rd=0, rs1="rs1"),
    _c("c.mv", "100 0 rd rs2 10", "add", "rs2", rd="rd", rs1=0, rs2="rs2"),
    _c("c.ebreak", "100 1 00000 00000 10", "ebreak"),
    _c("c.jalr", "100 1 rs1 00000 10", "jalr", "rs1", rd=RETURN_ADDRESS, rs1="rs1"),
    _c("c.add", "100 1 rd rs2 10", "add", "rs2", rd="rd", rs1="rd", rs2="rs2"),
    _c("c.fsdsp", "101 uimm[5:3|8:6] rs2 10", "fsd", rs1=STACK, rs2="rs2"),
    _c("c.swsp", "110 uimm[5:2|7:6] rs2 10", "sw", rs1=STACK, rs2="rs2"),
    _c("c.sdsp", "111 uimm[5:3|8:6] rs2 10", "sd", rs1=STACK, rs2="rs2"),
)


def _immediate_bits(text: str) -> list[int]:
    """Bit numbers of ``5:3|2``, the highest encoded first."""
    bits: list[int] = []
    for part in text.split("|"):
        first, _, last = part.partition(":")
        bits.extend(range(int(first), int(last or first) - 1, -1))
    return bits


def _expand(item: Compressed) -> dict[int, int]:
    """All 16-bit encodings of one description with their expansions."""
    base, position = 0, 16
    fields: list[tuple[str, int, int]] = []
    immediate: list[tuple[int, int]] = []
    signed = False
    for token in item.encoding.split():
        if match := re.fullmatch(r"([us])imm\[(.*)\]", token):
            signed = match[1] == "s"
            for bit in _immediate_bits(match[2]):
                position -= 1
                immediate.append((bit, position))
        elif token in REGISTERS:
            position -= REGISTERS[token]
            fields.append((token, position, REGISTERS[token]))
        else:
            position -= len(token)
            base |= int(token, 2) << position
    assert position == 0, item.name
    top = max((bit for bit, _ in immediate), default=0)
    target = by_name()[item.target].immediate
    values: list[tuple[int, int]] = []  # bits of the encoding, and of the word that it stands for
    for choice in product((0, 1), repeat=len(immediate)):
        encoded = sum(on << position for on, (_, position) in zip(choice, immediate, strict=True))
        value = sum(on << bit for on, (bit, _) in zip(choice, immediate, strict=True))
        if value or "imm" not in item.nonzero:
            signed_value = value - (2 << top) if signed and value >> top & 1 else value
            values.append((encoded, target.encode(item.target, signed_value) if target is not None else 0))
    expansions: dict[int, int] = {}
    for numbers in product(*(range(1 << width) for _, _, width in fields)):
        encoded = base
        found: dict[str, int] = {}
        for (name, position, _), number in zip(fields, numbers, strict=True):
            encoded |= number << position
            found[name] = number + 8 if name.endswith("'") else number
        if any(name != "imm" and found[name] == 0 for name in item.nonzero):
            continue
        operands = {k: found[v] if isinstance(v, str) else v for k, v in item.operands.items()}
        word = encode(item.target, **operands)
        for bits, value in values:
            expansions[encoded | bits] = word | value
    return expansions


@cache
def expansion_table() -> tuple[int, ...]:
    """The 32-bit instruction of every 16-bit encoding e at index ``e >> 2 | (e & 3) << 14``; 0 where there is none."""
    table = [0] * (3 << 14)
    for item in COMPRESSED:
        for encoded, expanded in _expand(item).items():
            index = encoded >> 2 | (encoded & 3) << 14
            table[index] = table[index] or expanded
    return tuple(table)


def compressed_targets() -> set[str]:
    """The instructions that have a compressed form."""
    return {item.target for item in COMPRESSED}
