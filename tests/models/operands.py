"""Cases for single instructions, made from the fields of their encodings: edges, random values, aliased registers."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace

import capstone

from vmesh_services.cpu.isa.description import Instruction
from vmesh_services.cpu.isa.riscv.instructions import INSTRUCTIONS

from .oracle import CODE, CODE_SIZE, DATA, MASK, WINDOW, Case

#: The middle of every window: the first byte of a page.
CENTRE = DATA + 0x1000
LOAD, LOAD_FP, STORE, STORE_FP, AMO, MISC_MEM, JALR, SYSTEM = 0x03, 0x07, 0x23, 0x27, 0x2F, 0x0F, 0x67, 0x73
#: Control registers that keep what is written and mean nothing to what follows: fflags, frm, fcsr, sscratch, stval;
#: one that is read-only; two that do not exist.
CSRS = (0x001, 0x002, 0x003, 0x140, 0x143, 0xF14, 0x7C5, 0x000)
EDGES = sorted(
    {0, 1, 2, 3, 4, 7, 8, 31, 32, 33, 62, 63, 64, 65, 127, 128, 255, 256}
    | {0x5555_5555_5555_5555, 0x8000_0000_8000_0000, 0x0123_4567_89AB_CDEF}
    | {1 << n for n in (15, 16, 30, 31, 32, 33, 47, 48, 62, 63)}
    | {(1 << n) - 1 for n in (15, 16, 31, 32, 33, 63, 64)}
    | {-n & MASK for n in (1, 2, 3, 31, 32, 33, 63, 64, 128, 129, 1 << 31, (1 << 31) + 1, 1 << 15, (1 << 32) - 1)}
)  # fmt: skip
#: What is compared with itself and each other: around 0, and the ends of signed words and double words.
CRITICAL = (0, 1, 2, -1, -2, (1 << 31) - 1, 1 << 31, -1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, -1 << 63)
BOX = 0xFFFF_FFFF << 32
SINGLES = (
    0, 1, 0x7F_FFFF, 0x80_0000, 0x3F80_0000, 0x3F80_0001, 0x3F7F_FFFF, 0x7F7F_FFFF, 0x7F80_0000, 0x7F80_0001,
    0x7FC0_0000, 0x7FFF_FFFF, 0x4EFF_FFFF, 0x4F00_0000, 0x4F80_0000, 0x5EFF_FFFF, 0x5F00_0000, 0x5F80_0000,
    0x3F00_0000, 0x3FC0_0000, 0x4020_0000, 0x0D00_0000,
)  # fmt: skip
DOUBLES = (
    0, 1, 0x000F_FFFF_FFFF_FFFF, 0x0010_0000_0000_0000, 0x3FF0_0000_0000_0000, 0x3FF0_0000_0000_0001,
    0x3FEF_FFFF_FFFF_FFFF, 0x7FEF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000, 0x7FF0_0000_0000_0001, 0x7FF8_0000_0000_0000,
    0x7FFF_FFFF_FFFF_FFFF, 0x41DF_FFFF_FFC0_0000, 0x41E0_0000_0000_0000, 0x41EF_FFFF_FFE0_0000, 0x43E0_0000_0000_0000,
    0x43F0_0000_0000_0000,
    0x3FE0_0000_0000_0000, 0x3FF8_0000_0000_0000, 0x4004_0000_0000_0000, 0x3690_0000_0000_0000, 0x380F_FFFF_E000_0000,
    0x47EF_FFFF_F000_0000,
)  # fmt: skip
#: Bits of immediates that are not where the field's own bits are: (bits of the value, from the field's lowest bit up).
IMMEDIATES = {
    "imm12": tuple(range(12)), "simm7": tuple(range(5, 12)), "simm5": tuple(range(5)), "bimm7": (*range(5, 11), 12),
    "bimm5": (11, *range(1, 5)), "jimm20": (*range(12, 20), 11, *range(1, 11), 20), "uimm20": tuple(range(12, 32)),
    "shamt6": tuple(range(6)), "shamt5": tuple(range(5)),
}  # fmt: skip


def word_of(instruction: Instruction, values: dict[str, int], imm: int) -> int:
    """An instruction's bits from its fields and the value of its immediate."""
    word = instruction.match
    for field in instruction.fields:
        if field.name in IMMEDIATES:
            value = sum((imm >> bit & 1) << position for position, bit in enumerate(IMMEDIATES[field.name]))
        else:
            value = values[field.name]
        word |= value << field.low
    return word


class Generator:
    """Makes cases and gives each its place; no case lies where another one jumps to."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._next = CODE + (1 << 20)
        self._used: set[int] = set()
        self._targets: set[int] = set()
        self._integers = [self.integer() for _ in range(1000)]
        self._floating = [self.floating() for _ in range(32)]

    # values

    def integer(self) -> int:
        r = self.random
        match r.randrange(8):
            case 0 | 1 | 2:
                return r.choice(EDGES)
            case 3:
                return 1 << r.randrange(64)
            case 4:
                return (r.choice(EDGES) + r.randrange(-2, 3)) & MASK
            case 5:
                return (r.getrandbits(32) ^ 1 << 31) - (1 << 31) & MASK
            case _:
                return r.getrandbits(64)

    def floating(self) -> int:
        r = self.random
        match r.randrange(8):
            case 0 | 1:
                return BOX | r.choice(SINGLES) | r.getrandbits(1) << 31
            case 2:
                return BOX | r.getrandbits(32)
            case 3 | 4:
                return r.choice(DOUBLES) | r.getrandbits(1) << 63
            case 5:
                return BOX | (r.randrange(100, 156) << 23 | r.getrandbits(23)) | r.getrandbits(1) << 31
            case 6:
                return r.getrandbits(1) << 63 | r.randrange(990, 1060) << 52 | r.getrandbits(52)
            case _:
                return r.getrandbits(64)

    def immediate(self, instruction: Instruction) -> int:
        """An immediate with the extremes of its range among them; 0 where there is none."""
        bits = [bit for f in instruction.fields for bit in IMMEDIATES.get(f.name, ())]
        if not bits:
            return 0
        low, high = min(bits), max(bits)
        signed = not instruction.has("shamt6") and not instruction.has("shamt5")
        least, most = (-(1 << high), (1 << high) - (1 << low)) if signed else (0, (2 << high) - 1)
        step = 1 << low
        pick = self.random.randrange(10)
        edges = (least, most, 0, step, -step if signed else most // 2 + 1, least + step, most - step)
        return edges[pick] if pick < len(edges) else self.random.randrange(least, most + 1, step)

    def fields(self, instruction: Instruction, number: int) -> dict[str, int]:
        """Register numbers and the like; every so often x0 as the destination, or one register for all."""
        r = self.random
        values = {f.name: r.getrandbits(f.width) for f in instruction.fields if f.name not in IMMEDIATES}
        same = r.randrange(32)
        registers = [name for name in ("rd", "rs1", "rs2", "rs3") if name in values]
        match number % 8:
            case 0 if "rd" in values:
                values["rd"] = 0
            case 1:
                values.update(dict.fromkeys(registers, same))
            case 2 if "rd" in values and "rs1" in values:
                values["rd"] = values["rs1"]
            case 3 if "rd" in values and "rs2" in values:
                values["rd"] = values["rs2"]
            case 4 if "rs2" in values:
                values["rs2"] = values["rs1"]
            case 5 if "rs1" in values:
                values["rs1"] = 0
        if "rm" in values and r.randrange(8):
            values["rm"] = r.choice((0, 1, 2, 3, 4, 7))
        if "csr12" in values:
            values["csr12"] = r.choice(CSRS)
        return values

    # places

    def place(self, length: int = 4) -> int:
        """Where the next case's code may lie: at any even address, now and then across the end of a page."""
        while True:
            start, self._next = self._next, self._next + 32
            assert self._next < CODE + CODE_SIZE - (1 << 20), "too many cases"
            offset = 30 if self._next % 0x1000 == 0 else 2 * self.random.randrange(2, 16)
            places = range(start + offset, start + offset + length, 2)
            if self._targets.isdisjoint(places):
                self._used.update(places)
                return start + offset

    def free(self, address: int) -> bool:
        """Whether a jump may go to an address: C.EBREAK is there, and will be."""
        return CODE <= address < CODE + CODE_SIZE - 4 and address not in self._used

    def reserve(self, address: int) -> bool:
        """Keeps an address free for a jump to it; False if it is not."""
        if not self.free(address):
            return False
        self._targets.add(address)
        return True

    def target(self) -> int:
        """A free address anywhere, reserved."""
        while not self.reserve(address := CODE + 2 * self.random.randrange(CODE_SIZE // 2)):
            pass
        return address

    # cases

    def case(self, instruction: Instruction, number: int, **given: int) -> Case:
        """A case of one instruction; ``number`` varies how its registers are chosen, ``given`` gives fields."""
        r = self.random
        values = {**self.fields(instruction, number), **given}
        imm = self.immediate(instruction)
        x = [0, *(self.integer() for _ in range(31))]
        opcode = instruction.match & 127
        pc = self.place()
        if instruction.result == "branch" or instruction.has("jimm20"):
            while imm == 0 or not self.reserve(pc + imm):
                imm = self.immediate(instruction)
        elif opcode == JALR:
            x[values["rs1"]] = (self.target() + r.getrandbits(1) - imm) & MASK
        elif opcode in (LOAD, LOAD_FP, STORE, STORE_FP, AMO, MISC_MEM) and "rs1" in values:
            x[values["rs1"]] = (self.address(opcode == AMO) - imm) & MASK
        x[0] = 0
        return Case(
            pc, struct.pack("<I", word_of(instruction, values, imm)), x, [self.floating() for _ in range(32)],
            r.choice((0, 0, 0x1F, r.randrange(32), r.randrange(5) << 5, r.randrange(256))), CENTRE - WINDOW // 2,
            r.randbytes(WINDOW),
        )  # fmt: skip

    def varied(self, instruction: Instruction, case: Case, count: int) -> list[Case]:
        """The case, and the same code with other values in all registers but those of addresses."""
        kept = instruction.match & 127 in (LOAD, LOAD_FP, STORE, STORE_FP, AMO, MISC_MEM, JALR)
        address = int.from_bytes(case.code[:4], "little") >> 15 & 31
        made = [case]
        for _ in range(count - 1):
            x = [0, *self.random.choices(self._integers, k=31)]
            x[address] = case.x[address] if kept else x[address]
            f = [self.floating() for _ in range(32)]
            made.append(replace(case, x=x, f=f, fcsr=self.random.choice((0, 0x1F, self.random.randrange(256)))))
        return made

    def pairs(self, instructions: Iterable[Instruction]) -> list[tuple[Instruction, Case]]:
        """Every pair of ``CRITICAL`` values in the two source registers of computations and branches."""
        made = []
        for item in instructions:
            if not {"rs1", "rs2"} <= set(item.operands) or item.result is None or item.extension == "a":
                continue
            for first in CRITICAL:
                for second in CRITICAL:
                    case = self.case(item, 7, rd=5, rs1=6, rs2=7)
                    x = list(case.x)
                    x[6], x[7] = first & MASK, second & MASK
                    made.append((item, replace(case, x=x)))
        return made

    def address(self, aligned: bool) -> int:
        """An address near the page boundary in the window: aligned, or anything."""
        offset = self.random.randrange(-24, 17)
        if aligned or self.random.getrandbits(1):
            return CENTRE + (offset & ~7 | self.random.choice((0, 0, 4)))
        return CENTRE + offset

    def code(self, code: bytes) -> Case:
        """A case of given code with random registers."""
        pc = self.place(len(code))
        x = [0, *self.random.choices(self._integers, k=31)]
        return Case(pc, code, x, self._floating, 0, CENTRE - WINDOW // 2, self.random.randbytes(WINDOW))

    def cases(self, instructions: Iterable[Instruction], count: int) -> list[tuple[Instruction, Case]]:
        return [(item, self.case(item, number)) for item in instructions for number in range(count)]


def disassemble(code: bytes, pc: int) -> str:
    """The instructions in some code, as Capstone reads them; by our name where it knows none (Zb*)."""
    engine = capstone.Cs(capstone.CS_ARCH_RISCV, capstone.CS_MODE_RISCV64 | capstone.CS_MODE_RISCVC)
    lines = []
    while len(code) >= 2:
        length = 4 if code[0] & 3 == 3 else 2
        word = int.from_bytes(code[:length], "little")
        known = [f"{i.mnemonic} {i.op_str}".strip() for i in engine.disasm(code[:length], pc)]
        names = [f"{i.name} ({word:#x})" for i in INSTRUCTIONS if length == 4 and word & i.mask == i.match]
        lines.append(f"{pc:#x}: {(known or names or [hex(word)])[0]}")
        code, pc = code[length:], pc + length
    return "; ".join(lines)


def report(found: Sequence[str], limit: int = 12) -> str:
    """The first of many differences."""
    return f"{len(found)} differences\n" + "\n".join(found[:limit])
