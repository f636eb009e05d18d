"""RISC-V instruction words for the few lines of machine code that the project writes itself.

The reset vector and the built-in guest need a dozen instructions, too few to ask every user for a cross assembler.
Functions are named after the mnemonics and return one 32-bit word. Registers are numbers; the ABI names are constants.
Source: RISC-V unprivileged manual, "RV32/64G Instruction Set Listings".

Raises ValueError where an immediate does not fit its field.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

ZERO, RA, T0, T1, T2, S0, S1 = 0, 1, 5, 6, 7, 8, 9
A0, A1, A2, A3, A4, A5 = 10, 11, 12, 13, 14, 15
S2, S3, S4, S5 = 18, 19, 20, 21
MIE, MISA, MCYCLE, MHARTID = 0x304, 0x301, 0xB00, 0xF14


def words(code: Iterable[int]) -> bytes:
    """The bytes of instruction words, as they lie in memory."""
    return b"".join(struct.pack("<I", word) for word in code)


def auipc(rd: int, imm20: int) -> int:
    return _upper(0x17, rd, imm20)


def lui(rd: int, imm20: int) -> int:
    return _upper(0x37, rd, imm20)


def addi(rd: int, rs1: int, imm: int) -> int:
    return _i(0x13, 0, rd, rs1, imm)


def andi(rd: int, rs1: int, imm: int) -> int:
    return _i(0x13, 7, rd, rs1, imm)


def slli(rd: int, rs1: int, amount: int) -> int:
    return _i(0x13, 1, rd, rs1, _shift(amount))


def srli(rd: int, rs1: int, amount: int) -> int:
    return _i(0x13, 5, rd, rs1, _shift(amount))


def add(rd: int, rs1: int, rs2: int) -> int:
    return rs2 << 20 | rs1 << 15 | rd << 7 | 0x33


def lw(rd: int, rs1: int, imm: int) -> int:
    return _i(0x03, 2, rd, rs1, imm)


def ld(rd: int, rs1: int, imm: int) -> int:
    return _i(0x03, 3, rd, rs1, imm)


def lbu(rd: int, rs1: int, imm: int) -> int:
    return _i(0x03, 4, rd, rs1, imm)


def sb(rs2: int, rs1: int, imm: int) -> int:
    return _s(0, rs2, rs1, imm)


def sh(rs2: int, rs1: int, imm: int) -> int:
    return _s(1, rs2, rs1, imm)


def sw(rs2: int, rs1: int, imm: int) -> int:
    return _s(2, rs2, rs1, imm)


def sd(rs2: int, rs1: int, imm: int) -> int:
    return _s(3, rs2, rs1, imm)


def jal(rd: int, offset: int) -> int:
    field = _signed(offset, 21, step=2)
    high = (field >> 20 & 1) << 31 | (field >> 1 & 0x3FF) << 21
    low = (field >> 11 & 1) << 20 | (field >> 12 & 0xFF) << 12
    return high | low | rd << 7 | 0x6F


def jalr(rd: int, rs1: int, imm: int) -> int:
    return _i(0x67, 0, rd, rs1, imm)


def beq(rs1: int, rs2: int, offset: int) -> int:
    return _b(0, rs1, rs2, offset)


def bne(rs1: int, rs2: int, offset: int) -> int:
    return _b(1, rs1, rs2, offset)


def bltu(rs1: int, rs2: int, offset: int) -> int:
    return _b(6, rs1, rs2, offset)


def csrw(csr: int, rs1: int) -> int:
    """csrrw x0, csr, rs1."""
    return csr << 20 | rs1 << 15 | 1 << 12 | 0x73


def csrr(rd: int, csr: int) -> int:
    """csrrs rd, csr, x0."""
    return csr << 20 | 2 << 12 | rd << 7 | 0x73


def wfi() -> int:
    return 0x1050_0073


def _upper(opcode: int, rd: int, imm20: int) -> int:
    if not 0 <= imm20 < 1 << 20:
        raise ValueError(f"immediate {imm20:#x}: expected 20 bits")
    return imm20 << 12 | rd << 7 | opcode


def _i(opcode: int, funct3: int, rd: int, rs1: int, imm: int) -> int:
    return _signed(imm, 12) << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode


def _s(funct3: int, rs2: int, rs1: int, imm: int) -> int:
    field = _signed(imm, 12)
    return (field >> 5) << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | (field & 0x1F) << 7 | 0x23


def _b(funct3: int, rs1: int, rs2: int, offset: int) -> int:
    field = _signed(offset, 13, step=2)
    high = (field >> 12 & 1) << 31 | (field >> 5 & 0x3F) << 25
    low = (field >> 1 & 0xF) << 8 | (field >> 11 & 1) << 7
    return high | rs2 << 20 | rs1 << 15 | funct3 << 12 | low | 0x63


def _shift(amount: int) -> int:
    if not 0 <= amount < 64:
        raise ValueError(f"immediate {amount}: expected a shift of 0 to 63")
    return amount


def _signed(value: int, bits: int, step: int = 1) -> int:
    """`value` as a two's-complement field of `bits`."""
    if not -(1 << bits - 1) <= value < 1 << bits - 1 or value % step:
        raise ValueError(f"immediate {value}: expected {bits} signed bits, a multiple of {step}")
    return value & (1 << bits) - 1
