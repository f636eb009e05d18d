"""A small assembler for tests: the usual RISC-V syntax, labels, the pseudo-instructions that tests need.

Encodings come from the ISA's own descriptions, so a test of semantics must compare with something else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from vmesh_services.cpu.isa.riscv.csr import CSRS
from vmesh_services.cpu.isa.riscv.encoding import by_name, encode

_ABI = (
    *("zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1"), *(f"a{n}" for n in range(8)),
    *(f"s{n}" for n in range(2, 12)), *(f"t{n}" for n in range(3, 7)),
)  # fmt: skip
REGISTERS = {name: number for number, name in enumerate(_ABI)} | {f"x{n}": n for n in range(32)} | {"fp": 8}
CSR_NUMBERS = {csr.name: number for number, csr in CSRS.items()}
_LOADS = {"lb", "lh", "lw", "ld", "lbu", "lhu", "lwu", "jalr"}
_MEMORY = re.compile(r"(.*)\((\w+)\)$")


class AssemblyError(Exception):
    """A line that the assembler does not understand."""


@dataclass(frozen=True, slots=True)
class Program:
    """Machine code at ``base`` and the addresses of its labels."""

    base: int
    code: bytes
    labels: dict[str, int]


def load_immediate(rd: int, value: int) -> list[int]:
    """The words that put a 64-bit constant into a register."""
    value = ((value & (1 << 64) - 1) ^ 1 << 63) - (1 << 63)
    if -2048 <= value < 2048:
        return [encode("addi", rd=rd, imm=value)]
    low = ((value & 0xFFF) ^ 0x800) - 0x800
    if -(1 << 31) <= value < (1 << 31) - 2048:
        words = [encode("lui", rd=rd, imm=value - low)]
        return words + ([encode("addiw", rd=rd, rs1=rd, imm=low)] if low else [])
    words = load_immediate(rd, (value - low) >> 12)
    words.append(encode("slli", rd=rd, rs1=rd, imm=12))
    return words + ([encode("addi", rd=rd, rs1=rd, imm=low)] if low else [])


def _expand(name: str, args: list[str]) -> tuple[str, list[str]]:
    """The instruction that a pseudo-instruction stands for."""
    match name:
        case "nop":
            return "addi", ["x0", "x0", "0"]
        case "mv":
            return "addi", [*args, "0"]
        case "not":
            return "xori", [*args, "-1"]
        case "neg":
            return "sub", [args[0], "x0", args[1]]
        case "j":
            return "jal", ["x0", *args]
        case "call":
            return "jal", ["ra", *args]
        case "jr":
            return "jalr", ["x0", f"0({args[0]})"]
        case "ret":
            return "jalr", ["x0", "0(ra)"]
        case "beqz" | "bnez":
            return name[:-1], [args[0], "x0", args[1]]
        case "csrr":
            return "csrrs", [*args, "x0"]
        case "csrw" | "csrs" | "csrc":
            return f"csrr{name[3]}", ["x0", *args]
        case "csrwi" | "csrsi" | "csrci":
            return f"csrr{name[3:]}", ["x0", *args]
        case "sfence.vma" | "sinval.vma":
            return name, [*args, "x0", "x0"][:2]
    return name, args


class _Line:
    """One line of a program with its symbols."""

    def __init__(self, text: str, pc: int, symbols: Mapping[str, int]) -> None:
        self.text, self.pc, self.symbols = text, pc, symbols

    def number(self, text: str) -> int:
        if text in self.symbols:
            return self.symbols[text]
        try:
            return int(eval(text, {"__builtins__": {}}, dict(self.symbols)))
        except Exception as problem:
            raise AssemblyError(f"{self.text!r}: expected a number, got {text!r} ({problem})") from None

    def register(self, text: str) -> int:
        if text not in REGISTERS:
            raise AssemblyError(f"{self.text!r}: expected a register, got {text!r}")
        return REGISTERS[text]

    def words(self) -> list[int]:
        name, _, rest = self.text.partition(" ")
        args = [item.strip() for item in rest.split(",")] if rest.strip() else []
        if name == ".word":
            return [self.number(item) & 0xFFFF_FFFF for item in args]
        if name == ".dword":
            return [
                word for a in args for word in struct.unpack("<2I", struct.pack("<Q", self.number(a) & (1 << 64) - 1))
            ]
        if name == ".zero":
            return [0] * (self.number(args[0]) // 4)
        if name == "li":
            return load_immediate(self.register(args[0]), self.number(args[1]))
        if name == "la":
            offset = self.number(args[1]) - self.pc
            low = ((offset & 0xFFF) ^ 0x800) - 0x800
            rd = self.register(args[0])
            return [encode("auipc", rd=rd, imm=offset - low), encode("addi", rd=rd, rs1=rd, imm=low)]
        return [self.instruction(*_expand(name, args))]

    def instruction(self, name: str, args: list[str]) -> int:
        operands: dict[str, int] = {}
        for suffix, bits in ((".aqrl", ("aq", "rl")), (".aq", ("aq",)), (".rl", ("rl",))):
            if name.endswith(suffix):
                name = name.removesuffix(suffix)
                operands.update(dict.fromkeys(bits, 1))
                break
        if name not in by_name():
            raise AssemblyError(f"{self.text!r}: no instruction {name!r}")
        insn = by_name()[name]
        if name == "fence":
            sets = [sum(1 << "wroi".index(c) for c in item) for item in args or ["iorw", "iorw"]]
            return encode(name, pred4=sets[0], succ4=sets[1])
        if name == "fence.i":
            return encode(name)
        if insn.has("csr12"):
            operands["rd"] = self.register(args[0])
            operands["csr"] = CSR_NUMBERS[args[1]] if args[1] in CSR_NUMBERS else self.number(args[1])
            field = "rs1" if insn.has("rs1") else "zimm"
            operands[field] = self.register(args[2]) if field == "rs1" else self.number(args[2])
            return encode(name, **operands)
        if insn.has("bimm7") or insn.has("jimm20"):
            operands["imm"] = self.number(args.pop()) - self.pc
        elif insn.has("uimm20"):
            value = self.number(args.pop()) << 12
            operands["imm"] = (value ^ 1 << 31) - (1 << 31) if value < 1 << 32 else value
        elif (
            name not in _LOADS and (insn.has("imm12") or insn.has("shamt6") or insn.has("shamt5")) and name != "fence.i"
        ):
            operands["imm"] = self.number(args.pop())
        if args and (found := _MEMORY.match(args[-1])):
            args.pop()
            operands["rs1"] = self.register(found[2])
            if found[1]:
                operands["imm"] = self.number(found[1])
        order = [field for field in ("rd", "rs1", "rs2") if insn.has(field) and field not in operands]
        if len(args) != len(order):
            raise AssemblyError(f"{self.text!r}: expected {len(order)} registers ({', '.join(order)}), got {len(args)}")
        operands.update((field, self.register(arg)) for field, arg in zip(order, args, strict=True))
        return encode(name, **operands)


def assemble(text: str, base: int, **symbols: int) -> Program:
    """Assembles a program to be placed at ``base``; ``symbols`` are numbers that it may name."""
    lines: list[tuple[str | None, str]] = []
    for raw in re.sub("#.*", "", text).replace(";", "\n").splitlines():
        line = raw.strip()
        while found := re.match(r"(\w+):\s*", line):
            lines.append((found[1], ""))
            line = line[found.end() :]
        if line:
            lines.append((None, line))
    labels: dict[str, int] = {}
    for _ in range(2):
        code: list[int] = []
        for label, line in lines:
            pc = base + 4 * len(code)
            if label is not None:
                labels[label] = pc
            else:
                # first pass: a label that is not known yet is near
                known = {**{name: pc for name, _ in lines if name}, **labels, **symbols}
                code += _Line(line, pc, known).words()
    return Program(base, struct.pack(f"<{len(code)}I", *code), labels)
