"""Zba, Zbb, Zbc and Zbs (unprivileged specification, chapter 28, "B")."""

from __future__ import annotations

from ...native.lang import byte_swap, clz, ctz, i8, i16, i64, inline, native, popcount, u16, u32, u64
from .integer import word
from .isa import instruction

ZBA, ZBB, ZBC, ZBS = "zba", "zbb", "zbc", "zbs"


@instruction("add.uw", "0000100 rs2 rs1 000 rd 0111011", ZBA, result="rd")
def add_uw(rs1: u64, rs2: u64) -> u64:
    return u64(u32(rs1)) + rs2


def _shift_and_add(amount: int, funct3: str) -> None:
    @instruction(f"sh{amount}add", f"0010000 rs2 rs1 {funct3} rd 0110011", ZBA, result="rd")
    def sh_add(rs1: u64, rs2: u64) -> u64:
        return (rs1 << amount) + rs2

    @instruction(f"sh{amount}add.uw", f"0010000 rs2 rs1 {funct3} rd 0111011", ZBA, result="rd")
    def sh_add_uw(rs1: u64, rs2: u64) -> u64:
        return (u64(u32(rs1)) << amount) + rs2


for _amount, _funct3 in ((1, "010"), (2, "100"), (3, "110")):
    _shift_and_add(_amount, _funct3)


@instruction("slli.uw", "000010 shamt6 rs1 001 rd 0011011", ZBA, result="rd")
def slli_uw(rs1: u64, imm: i64) -> u64:
    return u64(u32(rs1)) << (imm & 63)


@instruction("andn", "0100000 rs2 rs1 111 rd 0110011", ZBB, result="rd")
def andn(rs1: u64, rs2: u64) -> u64:
    return rs1 & ~rs2


@instruction("orn", "0100000 rs2 rs1 110 rd 0110011", ZBB, result="rd")
def orn(rs1: u64, rs2: u64) -> u64:
    return rs1 | ~rs2


@instruction("xnor", "0100000 rs2 rs1 100 rd 0110011", ZBB, result="rd")
def xnor(rs1: u64, rs2: u64) -> u64:
    return ~(rs1 ^ rs2)


@instruction("clz", "0110000 00000 rs1 001 rd 0010011", ZBB, result="rd")
def clz_(rs1: u64) -> u64:
    return clz(rs1)


@instruction("ctz", "0110000 00001 rs1 001 rd 0010011", ZBB, result="rd")
def ctz_(rs1: u64) -> u64:
    return ctz(rs1)


@instruction("cpop", "0110000 00010 rs1 001 rd 0010011", ZBB, result="rd")
def cpop(rs1: u64) -> u64:
    return popcount(rs1)


@instruction("clzw", "0110000 00000 rs1 001 rd 0011011", ZBB, result="rd")
def clzw(rs1: u64) -> u64:
    return u64(clz(u32(rs1)))


@instruction("ctzw", "0110000 00001 rs1 001 rd 0011011", ZBB, result="rd")
def ctzw(rs1: u64) -> u64:
    return u64(ctz(u32(rs1)))


@instruction("cpopw", "0110000 00010 rs1 001 rd 0011011", ZBB, result="rd")
def cpopw(rs1: u64) -> u64:
    return u64(popcount(u32(rs1)))


@instruction("max", "0000101 rs2 rs1 110 rd 0110011", ZBB, result="rd")
def max_(rs1: u64, rs2: u64) -> u64:
    return rs1 if i64(rs1) > i64(rs2) else rs2


@instruction("maxu", "0000101 rs2 rs1 111 rd 0110011", ZBB, result="rd")
def maxu(rs1: u64, rs2: u64) -> u64:
    return rs1 if rs1 > rs2 else rs2


@instruction("min", "0000101 rs2 rs1 100 rd 0110011", ZBB, result="rd")
def min_(rs1: u64, rs2: u64) -> u64:
    return rs1 if i64(rs1) < i64(rs2) else rs2


@instruction("minu", "0000101 rs2 rs1 101 rd 0110011", ZBB, result="rd")
def minu(rs1: u64, rs2: u64) -> u64:
    return rs1 if rs1 < rs2 else rs2


@instruction("sext.b", "0110000 00100 rs1 001 rd 0010011", ZBB, result="rd")
def sext_b(rs1: u64) -> u64:
    return u64(i8(rs1))


@instruction("sext.h", "0110000 00101 rs1 001 rd 0010011", ZBB, result="rd")
def sext_h(rs1: u64) -> u64:
    return u64(i16(rs1))


@instruction("zext.h", "0000100 00000 rs1 100 rd 0111011", ZBB, result="rd")
def zext_h(rs1: u64) -> u64:
    return u64(u16(rs1))


@inline
def rotate_right(value: u64, amount: u64) -> u64:
    return (value >> (amount & 63)) | (value << (-amount & 63))


@inline
def rotate_right_word(value: u64, amount: u64) -> u64:
    low = u32(value)
    return word(u64((low >> (amount & 31)) | (low << (-amount & 31))))


@instruction("rol", "0110000 rs2 rs1 001 rd 0110011", ZBB, result="rd")
def rol(rs1: u64, rs2: u64) -> u64:
    return rotate_right(rs1, -rs2)


@instruction("ror", "0110000 rs2 rs1 101 rd 0110011", ZBB, result="rd")
def ror(rs1: u64, rs2: u64) -> u64:
    return rotate_right(rs1, rs2)


@instruction("rori", "011000 shamt6 rs1 101 rd 0010011", ZBB, result="rd")
def rori(rs1: u64, imm: i64) -> u64:
    return rotate_right(rs1, u64(imm))


@instruction("rolw", "0110000 rs2 rs1 001 rd 0111011", ZBB, result="rd")
def rolw(rs1: u64, rs2: u64) -> u64:
    return rotate_right_word(rs1, -rs2)


@instruction("rorw", "0110000 rs2 rs1 101 rd 0111011", ZBB, result="rd")
def rorw(rs1: u64, rs2: u64) -> u64:
    return rotate_right_word(rs1, rs2)


@instruction("roriw", "0110000 shamt5 rs1 101 rd 0011011", ZBB, result="rd")
def roriw(rs1: u64, imm: i64) -> u64:
    return rotate_right_word(rs1, u64(imm))


@instruction("orc.b", "001010000111 rs1 101 rd 0010011", ZBB, result="rd")
def orc_b(rs1: u64) -> u64:
    low = 0x7F7F7F7F7F7F7F7F
    # the top bit of each byte: whether any bit of that byte is set
    marks = (((rs1 & low) + low) | rs1) & ~low
    return (marks >> 7) * 255


@instruction("rev8", "011010111000 rs1 101 rd 0010011", ZBB, result="rd")
def rev8(rs1: u64) -> u64:
    return byte_swap(rs1)


@native
def carry_less_high(a: u64, b: u64) -> u64:
    """Bits 127..64 of the carry-less product."""
    result = u64(0)
    for i in range(1, 64):
        if (b >> i) & 1 != 0:
            result ^= a >> (64 - i)
    return result


@native
def carry_less_low(a: u64, b: u64) -> u64:
    """Bits 63..0 of the carry-less product."""
    result = u64(0)
    for i in range(64):
        if (b >> i) & 1 != 0:
            result ^= a << i
    return result


@instruction("clmul", "0000101 rs2 rs1 001 rd 0110011", ZBC, result="rd")
def clmul(rs1: u64, rs2: u64) -> u64:
    return carry_less_low(rs1, rs2)


@instruction("clmulh", "0000101 rs2 rs1 011 rd 0110011", ZBC, result="rd")
def clmulh(rs1: u64, rs2: u64) -> u64:
    return carry_less_high(rs1, rs2)


@instruction("clmulr", "0000101 rs2 rs1 010 rd 0110011", ZBC, result="rd")
def clmulr(rs1: u64, rs2: u64) -> u64:
    return (carry_less_high(rs1, rs2) << 1) | (carry_less_low(rs1, rs2) >> 63)


def _single_bit(name: str, funct7: str, funct3: str, combine: str) -> None:
    """A Zbs instruction with its bit number in a register, and its immediate form."""
    clear, invert, extract = combine == "clear", combine == "invert", combine == "extract"

    @inline
    def apply(value: u64, index: u64) -> u64:
        bit = u64(1) << (index & 63)
        if clear:
            return value & ~bit
        if invert:
            return value ^ bit
        if extract:
            return (value >> (index & 63)) & 1
        return value | bit

    @instruction(name, f"{funct7} rs2 rs1 {funct3} rd 0110011", ZBS, result="rd")
    def by_register(rs1: u64, rs2: u64) -> u64:
        return apply(rs1, rs2)

    @instruction(f"{name}i", f"{funct7[:6]} shamt6 rs1 {funct3} rd 0010011", ZBS, result="rd")
    def by_immediate(rs1: u64, imm: i64) -> u64:
        return apply(rs1, u64(imm))


_single_bit("bclr", "0100100", "001", "clear")
_single_bit("bext", "0100100", "101", "extract")
_single_bit("binv", "0110100", "001", "invert")
_single_bit("bset", "0010100", "001", "set")
