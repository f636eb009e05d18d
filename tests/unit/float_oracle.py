"""Two runners of one floating-point instruction over a list of operands: ours, and QEMU's as Unicorn embeds it."""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import unicorn
from unicorn import riscv_const

from vmesh_services.cpu.isa.description import Instruction
from vmesh_services.cpu.isa.riscv.encoding import encode
from vmesh_services.cpu.isa.riscv.instructions import INSTRUCTIONS
from vmesh_services.cpu.isa.riscv.state import Hart
from vmesh_services.cpu.native.blob import Blob
from vmesh_services.cpu.native.build import build
from vmesh_services.cpu.native.builder import Builder
from vmesh_services.cpu.native.compiler import Module
from vmesh_services.cpu.native.frame import call
from vmesh_services.cpu.native.lang import Ptr, PtrType, call_host, export, ref, u32, u64
from vmesh_services.cpu.native.values import Value

#: Three operands, raw 64 bits each; those an instruction does not have are ignored.
Operands = tuple[int, int, int]
#: What is written to the register (64 bits), and fflags.
Outcome = tuple[int, int]

FLOATING = tuple(item for item in INSTRUCTIONS if item.extension in ("f", "d"))
#: Those that do not access memory.
ARITHMETIC = tuple(item for item in FLOATING if "imm" not in item.operands)
BOX = 0xFFFF_FFFF << 32


def is_single_result(instruction: Instruction) -> bool:
    """Whether it writes a single-precision value."""
    return instruction.result == "frd" and (instruction.extension == "f" or instruction.name == "fcvt.s.d")


@export
def run_all(
    function: u64, hart: Hart, mode: u64, flags: u64, operands: Ptr[u64], outcomes: Ptr[u64], count: u64
) -> u64:
    """Runs one instruction on all operands, with ``flags`` raised before each; gives the number of traps."""
    trapped: u64 = 0
    for i in range(count):
        hart.fflags = u32(flags)
        hart.cause = 0
        outcomes[2 * i] = call_host(function, ref(hart), mode, ref(operands[3 * i]))
        outcomes[2 * i + 1] = u64(hart.fflags)
        trapped += u64(hart.cause != 0)
    return trapped


class _Hooks:
    """``raise`` leaves the cause and value in the hart's record; guest memory is the host's."""

    def emit(self, builder: Builder, name: str, args: list[Any]) -> Value | None:
        hart = Value("%hart", PtrType(Hart))
        if name == "load":
            return builder.load(builder.pointer(args[1], args[0]))
        if name == "store":
            builder.store(builder.pointer(args[1], args[0]), args[2])
            return None
        assert name == "trap"
        builder.store(builder.field(hart, "cause"), args[0])
        builder.store(builder.field(hart, "trap_value"), args[1])
        builder.end("ret i64 0")
        return None


class Native:
    """The semantics of all instructions of ``FLOATING``, compiled."""

    #: The operands ``insn`` and ``imm``.
    INSN, IMM = 0x1234_5678, 8

    def __init__(self) -> None:
        module = Module()
        module.function(run_all)
        for number, instruction in enumerate(FLOATING):
            builder = Builder(module, _Hooks())
            result = call(builder, instruction.semantics, [self._operand(builder, n) for n in instruction.operands])
            builder.end(f"ret i64 {result.ref if result is not None else 0}")
            module.functions.append(
                f"define dso_local i64 @op{number}(ptr %hart, i64 %mode, ptr %operands) {{\n{builder.text()}\n}}\n"
            )
        code = build(module.text())
        self._blob = Blob(code.image, code.symbols)
        self._run = self._blob.function("run_all", 7)
        self._hart = ctypes.create_string_buffer(Hart.size)
        self.set("mstatus", 3 << 13)

    def _operand(self, builder: Builder, name: str) -> Any:
        pointer = Value("%operands", PtrType(u64))
        match name:
            case "hart":
                return Value("%hart", PtrType(Hart))
            case "rm":
                return Value("%mode", u64)
            case "insn":
                return self.INSN
            case "imm":
                return self.IMM
            case _:
                return builder.load(builder.element(pointer, int(name[-1]) - 1))

    def _field(self, name: str) -> Any:
        offset, type_ = Hart.fields[name]
        return {4: ctypes.c_uint32, 8: ctypes.c_uint64}[type_.size].from_buffer(self._hart, offset)

    def get(self, name: str) -> int:
        """A field of the hart's record."""
        return int(self._field(name).value)

    def set(self, name: str, value: int) -> None:
        self._field(name).value = value

    def run(self, name: str, mode: int, *operands: int, flags: int = 0) -> Outcome | None:
        """One execution of the instruction of that name; None when it trapped."""
        instruction = next(item for item in FLOATING if item.name == name)
        first, second, third = (*operands, 0, 0)[:3]
        outcomes = self.run_all(instruction, mode, [(first, second, third)], flags)
        return unpack(outcomes)[0] if outcomes is not None else None

    def run_all(
        self, instruction: Instruction, mode: int, operands: Sequence[Operands], flags: int = 0
    ) -> bytes | None:
        """Outcomes (see ``unpack``) with ``mode`` in the rm field and ``flags`` raised before; None if one trapped."""
        values = _flat(operands)
        outcomes = (ctypes.c_uint64 * (2 * len(operands)))()
        hart, *pointers = (ctypes.addressof(item) for item in (self._hart, values, outcomes))
        function = self._blob.address(f"op{FLOATING.index(instruction)}")
        trapped = self._run(function, hart, mode, flags, *pointers, len(operands))
        return None if trapped else bytes(outcomes)


def _flat(operands: Sequence[Operands]) -> ctypes.Array[ctypes.c_uint64]:
    return (ctypes.c_uint64 * (3 * len(operands)))(*(value for triple in operands for value in triple))


def unpack(outcomes: bytes) -> list[Outcome]:
    """What ``run_all`` gives, as pairs."""
    return list(struct.iter_unpack("<QQ", outcomes))


class Unicorn:
    """The same by Unicorn: a loop in guest code.

    Its QEMU (5.0) is older than NaN boxing leaving the upper half of single-precision results unset;
    the loop sets it.
    """

    CODE, OPERANDS, OUTCOMES, SPACE = 0x1_0000, 0x100_0000, 0x800_0000, 0x200_0000

    @cached_property
    def _machine(self) -> Any:
        machine = unicorn.Uc(unicorn.UC_ARCH_RISCV, unicorn.UC_MODE_RISCV64)
        for base in (self.CODE, self.OPERANDS, self.OUTCOMES):
            machine.mem_map(base, self.SPACE if base != self.CODE else 0x1000)
        return machine

    def run_all(self, instruction: Instruction, mode: int, operands: Sequence[Operands]) -> bytes:
        """Every outcome (see ``unpack``), with ``mode`` in the rm field."""
        machine = self._machine
        source, target, count, integer, flags = 10, 11, 12, 13, 14
        fields = {f.name: {"rd": 4, "rs1": 1, "rs2": 2, "rs3": 3}.get(f.name, mode) for f in instruction.fields}
        if "rs1" in instruction.operands:
            fields["rs1"] = integer
        if instruction.result == "rd":
            fields["rd"] = integer
        store = [encode("fsd", rs1=target, rs2=4)]
        if instruction.result == "rd":
            store = [encode("sd", rs1=target, rs2=integer)]
        elif is_single_result(instruction):
            store += [encode("addi", rd=integer, imm=-1), encode("sw", rs1=target, rs2=integer, imm=4)]
        loop = [
            *(encode("fld", rd=n + 1, rs1=source, imm=8 * n) for n in range(3)),
            encode("ld", rd=integer, rs1=source),
            encode("csrrwi", csr=1),
            encode(instruction.name, **fields),
            encode("csrrs", rd=flags, csr=1),
            *store,
            encode("sd", rs1=target, rs2=flags, imm=8),
            encode("addi", rd=source, rs1=source, imm=24),
            encode("addi", rd=target, rs1=target, imm=16),
            encode("addi", rd=count, rs1=count, imm=-1),
        ]
        code = [encode("csrrs", csr=0x300, rs1=flags), *loop, encode("bne", rs1=count, imm=-4 * len(loop))]
        image = b"".join(word.to_bytes(4, "little") for word in code)
        machine.mem_write(self.CODE, image)
        machine.ctl_remove_cache(self.CODE, self.CODE + 0x1000)
        machine.mem_write(self.OPERANDS, bytes(_flat(operands)))
        registers = {source: self.OPERANDS, target: self.OUTCOMES, count: len(operands), flags: 3 << 13}
        for register, value in registers.items():
            machine.reg_write(riscv_const.UC_RISCV_REG_X0 + register, value)
        machine.emu_start(self.CODE, self.CODE + len(image))
        return bytes(machine.mem_read(self.OUTCOMES, 16 * len(operands)))


@dataclass(frozen=True)
class Shape:
    """A binary format, as the tests see it."""

    exponent_bits: int
    fraction_bits: int

    @property
    def width(self) -> int:
        return 1 + self.exponent_bits + self.fraction_bits

    @property
    def infinity(self) -> int:
        return ((1 << self.exponent_bits) - 1) << self.fraction_bits

    @property
    def quiet(self) -> int:
        return 1 << (self.fraction_bits - 1)

    @property
    def sign(self) -> int:
        return 1 << (self.width - 1)

    def register(self, bits: int) -> int:
        """A value as it lies in an f register."""
        return bits | BOX if self.width == 32 else bits

    def edges(self) -> list[int]:
        """Values at which something changes."""
        binade = 1 << self.fraction_bits
        one, ones = self.infinity >> 1 & self.infinity, binade - 1
        integers = [one + (power << self.fraction_bits) + step for power in (31, 32, 63, 64) for step in (-2, -1, 0, 1)]
        positive = [
            0, 1, 2, 3, self.quiet, ones - 1, ones, binade, binade + 1, 2 * binade - 1, 2 * binade,
            one - binade, one - 1, one, one + 1, one + self.quiet, one + binade,
            one + binade + self.quiet // 2, one - binade + self.quiet,
            one + (self.fraction_bits << self.fraction_bits) + 1,
            self.infinity - binade, self.infinity - 1, self.infinity, self.infinity + 1, self.infinity + self.quiet - 1,
            self.infinity + self.quiet, self.infinity + self.quiet + 1, self.infinity + ones, *integers,
        ]  # fmt: skip
        return [value | sign for value in positive for sign in (0, self.sign)]

    def random_value(self, rng: random.Random) -> int:
        """Any bits, or few significant ones (halfway cases), or an exponent near the middle or near an end."""
        value = rng.getrandbits(self.width)
        fraction = rng.choice(
            (
                value,
                1 << rng.randrange(self.fraction_bits),
                -1 << rng.randrange(self.fraction_bits),
                (1 << rng.randrange(self.fraction_bits)) - 1,
                rng.getrandbits(6) << rng.randrange(self.fraction_bits - 5),
            )
        ) & ((1 << self.fraction_bits) - 1)
        top = (1 << self.exponent_bits) - 1
        middle = top >> 1
        exponent = rng.choice(
            (
                value >> self.fraction_bits & top,
                rng.randrange(middle - 3, middle + 4),
                rng.randrange(middle - self.fraction_bits - 3, middle + self.fraction_bits + 4),
                rng.randrange(middle // 2 - 3, middle // 2 + 4),
                rng.randrange(4),
                top - rng.randrange(1, 4),
            )
        )
        return value & self.sign | exponent << self.fraction_bits | fraction

    def operands(self, rng: random.Random, count: int) -> Iterator[Operands]:
        """Every pair of edges, then random values: independent ones, and an addend near the product of the others."""
        edges = self.edges()
        pairs = [(a, b) for a in edges for b in edges]
        rng.shuffle(pairs)
        for i in range(count):
            if i < min(len(pairs), count // 2):
                a, b = pairs[i]
                c = rng.choice(edges)
            else:
                a, b, c = (self.random_value(rng) if rng.random() < 0.95 else rng.choice(edges) for _ in range(3))
                if rng.random() < 0.3:
                    c = self._near_product(rng, a, b)
            yield self.register(a), self.register(b), self.register(c)

    def _near_product(self, rng: random.Random, a: int, b: int) -> int:
        """The exponent of a·b, or one close by, so that the sum cancels or just does not reach."""
        top = (1 << self.exponent_bits) - 1
        exponent = (a >> self.fraction_bits & top) + (b >> self.fraction_bits & top) - (top >> 1)
        exponent += rng.choice((-2 * self.fraction_bits, -self.fraction_bits, -1, 0, 1, 2, self.fraction_bits))
        exponent = min(max(exponent, 0), top - 1)
        return self.random_value(rng) & ~self.infinity | exponent << self.fraction_bits


SINGLE, DOUBLE = Shape(8, 23), Shape(11, 52)


def integers(rng: random.Random, count: int) -> Iterator[Operands]:
    """Integers around the powers of two, and random ones of every length."""
    powers = [(1 << power) + step for power in range(65) for step in (-1, 0, 1)]
    edges = [sign * value % (1 << 64) for value in powers for sign in (1, -1)]
    for i in range(count):
        value = edges[i] if i < len(edges) else rng.getrandbits(rng.randint(1, 64)) * rng.choice((1, -1)) % (1 << 64)
        yield value, 0, 0
