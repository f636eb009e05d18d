"""RV64I and M: integer computation, loads and stores, branches (unprivileged specification, chapters 2, 4 and 12)."""

from __future__ import annotations

from ...core.shoot_down import look_at_news
from ...native.host import order
from ...native.lang import i8, i16, i32, i64, i128, inline, quotient, remainder, u8, u16, u32, u64, u128
from ..description import Flow
from ..semantics import Trap, drain_posted, jump, load, store
from .isa import BREAKPOINT, ECALL_USER, ILLEGAL, instruction
from .state import Hart

BASE, MUL = "i", "m"
PRED_O = 1 << 26


@inline
def word(value: u64) -> u64:
    """The low 32 bits, sign-extended."""
    return u64(i32(value))


@instruction("lui", "uimm20 rd 0110111", BASE, result="rd")
def lui(imm: i64) -> u64:
    return u64(imm)


@instruction("auipc", "uimm20 rd 0010111", BASE, result="rd")
def auipc(pc: u64, imm: i64) -> u64:
    return pc + u64(imm)


@instruction("jal", "jimm20 rd 1101111", BASE, result="rd", flow=Flow.JUMP, links="rd")
def jal(pc: u64, next_pc: u64, imm: i64) -> u64:
    jump(pc + u64(imm))
    return next_pc


@instruction("jalr", "imm12 rs1 000 rd 1100111", BASE, result="rd", flow=Flow.INDIRECT, links="rd")
def jalr(rs1: u64, next_pc: u64, imm: i64) -> u64:
    jump((rs1 + u64(imm)) & ~1)
    return next_pc


@instruction("beq", "bimm7 rs2 rs1 000 bimm5 1100011", BASE, result="branch", flow=Flow.BRANCH)
def beq(rs1: u64, rs2: u64) -> bool:
    return rs1 == rs2


@instruction("bne", "bimm7 rs2 rs1 001 bimm5 1100011", BASE, result="branch", flow=Flow.BRANCH)
def bne(rs1: u64, rs2: u64) -> bool:
    return rs1 != rs2


@instruction("blt", "bimm7 rs2 rs1 100 bimm5 1100011", BASE, result="branch", flow=Flow.BRANCH)
def blt(rs1: u64, rs2: u64) -> bool:
    return i64(rs1) < i64(rs2)


@instruction("bge", "bimm7 rs2 rs1 101 bimm5 1100011", BASE, result="branch", flow=Flow.BRANCH)
def bge(rs1: u64, rs2: u64) -> bool:
    return i64(rs1) >= i64(rs2)


@instruction("bltu", "bimm7 rs2 rs1 110 bimm5 1100011", BASE, result="branch", flow=Flow.BRANCH)
def bltu(rs1: u64, rs2: u64) -> bool:
    return rs1 < rs2


@instruction("bgeu", "bimm7 rs2 rs1 111 bimm5 1100011", BASE, result="branch", flow=Flow.BRANCH)
def bgeu(rs1: u64, rs2: u64) -> bool:
    return rs1 >= rs2


@instruction("lb", "imm12 rs1 000 rd 0000011", BASE, result="rd")
def lb(rs1: u64, imm: i64) -> u64:
    return u64(i8(load(u8, rs1 + u64(imm))))


@instruction("lh", "imm12 rs1 001 rd 0000011", BASE, result="rd")
def lh(rs1: u64, imm: i64) -> u64:
    return u64(i16(load(u16, rs1 + u64(imm))))


@instruction("lw", "imm12 rs1 010 rd 0000011", BASE, result="rd")
def lw(rs1: u64, imm: i64) -> u64:
    return u64(i32(load(u32, rs1 + u64(imm))))


@instruction("ld", "imm12 rs1 011 rd 0000011", BASE, result="rd")
def ld(rs1: u64, imm: i64) -> u64:
    return load(u64, rs1 + u64(imm))


@instruction("lbu", "imm12 rs1 100 rd 0000011", BASE, result="rd")
def lbu(rs1: u64, imm: i64) -> u64:
    return u64(load(u8, rs1 + u64(imm)))


@instruction("lhu", "imm12 rs1 101 rd 0000011", BASE, result="rd")
def lhu(rs1: u64, imm: i64) -> u64:
    return u64(load(u16, rs1 + u64(imm)))


@instruction("lwu", "imm12 rs1 110 rd 0000011", BASE, result="rd")
def lwu(rs1: u64, imm: i64) -> u64:
    return u64(load(u32, rs1 + u64(imm)))


@instruction("sb", "simm7 rs2 rs1 000 simm5 0100011", BASE)
def sb(rs1: u64, rs2: u64, imm: i64) -> None:
    store(u8, rs1 + u64(imm), u8(rs2))


@instruction("sh", "simm7 rs2 rs1 001 simm5 0100011", BASE)
def sh(rs1: u64, rs2: u64, imm: i64) -> None:
    store(u16, rs1 + u64(imm), u16(rs2))


@instruction("sw", "simm7 rs2 rs1 010 simm5 0100011", BASE)
def sw(rs1: u64, rs2: u64, imm: i64) -> None:
    store(u32, rs1 + u64(imm), u32(rs2))


@instruction("sd", "simm7 rs2 rs1 011 simm5 0100011", BASE)
def sd(rs1: u64, rs2: u64, imm: i64) -> None:
    store(u64, rs1 + u64(imm), rs2)


@instruction("addi", "imm12 rs1 000 rd 0010011", BASE, result="rd")
def addi(rs1: u64, imm: i64) -> u64:
    return rs1 + u64(imm)


@instruction("slti", "imm12 rs1 010 rd 0010011", BASE, result="rd")
def slti(rs1: u64, imm: i64) -> u64:
    return u64(i64(rs1) < imm)


@instruction("sltiu", "imm12 rs1 011 rd 0010011", BASE, result="rd")
def sltiu(rs1: u64, imm: i64) -> u64:
    return u64(rs1 < u64(imm))


@instruction("xori", "imm12 rs1 100 rd 0010011", BASE, result="rd")
def xori(rs1: u64, imm: i64) -> u64:
    return rs1 ^ u64(imm)


@instruction("ori", "imm12 rs1 110 rd 0010011", BASE, result="rd")
def ori(rs1: u64, imm: i64) -> u64:
    return rs1 | u64(imm)


@instruction("andi", "imm12 rs1 111 rd 0010011", BASE, result="rd")
def andi(rs1: u64, imm: i64) -> u64:
    return rs1 & u64(imm)


@instruction("slli", "000000 shamt6 rs1 001 rd 0010011", BASE, result="rd")
def slli(rs1: u64, imm: i64) -> u64:
    return rs1 << (imm & 63)


@instruction("srli", "000000 shamt6 rs1 101 rd 0010011", BASE, result="rd")
def srli(rs1: u64, imm: i64) -> u64:
    return rs1 >> (imm & 63)


@instruction("srai", "010000 shamt6 rs1 101 rd 0010011", BASE, result="rd")
def srai(rs1: u64, imm: i64) -> u64:
    return u64(i64(rs1) >> (imm & 63))


@instruction("add", "0000000 rs2 rs1 000 rd 0110011", BASE, result="rd")
def add(rs1: u64, rs2: u64) -> u64:
    return rs1 + rs2


@instruction("sub", "0100000 rs2 rs1 000 rd 0110011", BASE, result="rd")
def sub(rs1: u64, rs2: u64) -> u64:
    return rs1 - rs2


@instruction("sll", "0000000 rs2 rs1 001 rd 0110011", BASE, result="rd")
def sll(rs1: u64, rs2: u64) -> u64:
    return rs1 << (rs2 & 63)


@instruction("slt", "0000000 rs2 rs1 010 rd 0110011", BASE, result="rd")
def slt(rs1: u64, rs2: u64) -> u64:
    return u64(i64(rs1) < i64(rs2))


@instruction("sltu", "0000000 rs2 rs1 011 rd 0110011", BASE, result="rd")
def sltu(rs1: u64, rs2: u64) -> u64:
    return u64(rs1 < rs2)


@instruction("xor", "0000000 rs2 rs1 100 rd 0110011", BASE, result="rd")
def xor(rs1: u64, rs2: u64) -> u64:
    return rs1 ^ rs2


@instruction("srl", "0000000 rs2 rs1 101 rd 0110011", BASE, result="rd")
def srl(rs1: u64, rs2: u64) -> u64:
    return rs1 >> (rs2 & 63)


@instruction("sra", "0100000 rs2 rs1 101 rd 0110011", BASE, result="rd")
def sra(rs1: u64, rs2: u64) -> u64:
    return u64(i64(rs1) >> (rs2 & 63))


@instruction("or", "0000000 rs2 rs1 110 rd 0110011", BASE, result="rd")
def or_(rs1: u64, rs2: u64) -> u64:
    return rs1 | rs2


@instruction("and", "0000000 rs2 rs1 111 rd 0110011", BASE, result="rd")
def and_(rs1: u64, rs2: u64) -> u64:
    return rs1 & rs2


@instruction("addiw", "imm12 rs1 000 rd 0011011", BASE, result="rd")
def addiw(rs1: u64, imm: i64) -> u64:
    return word(rs1 + u64(imm))


@instruction("slliw", "0000000 shamt5 rs1 001 rd 0011011", BASE, result="rd")
def slliw(rs1: u64, imm: i64) -> u64:
    return word(rs1 << (imm & 31))


@instruction("srliw", "0000000 shamt5 rs1 101 rd 0011011", BASE, result="rd")
def srliw(rs1: u64, imm: i64) -> u64:
    return u64(i32(u32(rs1) >> (imm & 31)))


@instruction("sraiw", "0100000 shamt5 rs1 101 rd 0011011", BASE, result="rd")
def sraiw(rs1: u64, imm: i64) -> u64:
    return u64(i32(rs1) >> (imm & 31))


@instruction("addw", "0000000 rs2 rs1 000 rd 0111011", BASE, result="rd")
def addw(rs1: u64, rs2: u64) -> u64:
    return word(rs1 + rs2)


@instruction("subw", "0100000 rs2 rs1 000 rd 0111011", BASE, result="rd")
def subw(rs1: u64, rs2: u64) -> u64:
    return word(rs1 - rs2)


@instruction("sllw", "0000000 rs2 rs1 001 rd 0111011", BASE, result="rd")
def sllw(rs1: u64, rs2: u64) -> u64:
    return word(rs1 << (rs2 & 31))


@instruction("srlw", "0000000 rs2 rs1 101 rd 0111011", BASE, result="rd")
def srlw(rs1: u64, rs2: u64) -> u64:
    return u64(i32(u32(rs1) >> (rs2 & 31)))


@instruction("sraw", "0100000 rs2 rs1 101 rd 0111011", BASE, result="rd")
def sraw(rs1: u64, rs2: u64) -> u64:
    return u64(i32(rs1) >> (rs2 & 31))


@instruction("fence", "fm4 pred4 succ4 rs1 000 rd 0001111", BASE)
def fence_(insn: u64) -> None:
    order(insn >> 24, insn >> 20)  # bits 1 and 0 of each field are reads and writes of memory
    # what another hart does to a device after it has seen our later writes must come after our posted ones
    if insn & PRED_O != 0:
        drain_posted()


@instruction("fence.i", "imm12 rs1 001 rd 0001111", BASE, system=True)
def fence_i(hart: Hart) -> None:
    # fetches see stores as they are made (see ``coherence``): only what devices have written is left to look at
    if look_at_news(hart):
        hart.changed = 1


@instruction("ecall", "000000000000 00000 000 00000 1110011", BASE, system=True)
def ecall(hart: Hart) -> None:
    raise Trap(u64(ECALL_USER) + u64(hart.privilege), 0)


@instruction("ebreak", "000000000001 00000 000 00000 1110011", BASE, traps=True)
def ebreak(pc: u64) -> None:
    raise Trap(BREAKPOINT, pc)


@instruction("mul", "0000001 rs2 rs1 000 rd 0110011", MUL, result="rd")
def mul(rs1: u64, rs2: u64) -> u64:
    return rs1 * rs2


@instruction("mulh", "0000001 rs2 rs1 001 rd 0110011", MUL, result="rd")
def mulh(rs1: u64, rs2: u64) -> u64:
    return u64((i128(i64(rs1)) * i128(i64(rs2))) >> 64)


@instruction("mulhsu", "0000001 rs2 rs1 010 rd 0110011", MUL, result="rd")
def mulhsu(rs1: u64, rs2: u64) -> u64:
    return u64((i128(i64(rs1)) * i128(u128(rs2))) >> 64)


@instruction("mulhu", "0000001 rs2 rs1 011 rd 0110011", MUL, result="rd")
def mulhu(rs1: u64, rs2: u64) -> u64:
    return u64((u128(rs1) * u128(rs2)) >> 64)


@instruction("div", "0000001 rs2 rs1 100 rd 0110011", MUL, result="rd")
def div(rs1: u64, rs2: u64) -> u64:
    if rs2 == 0:
        return u64(-1)
    if i64(rs2) == -1:
        return -rs1
    return u64(quotient(i64(rs1), i64(rs2)))


@instruction("divu", "0000001 rs2 rs1 101 rd 0110011", MUL, result="rd")
def divu(rs1: u64, rs2: u64) -> u64:
    if rs2 == 0:
        return u64(-1)
    return rs1 // rs2


@instruction("rem", "0000001 rs2 rs1 110 rd 0110011", MUL, result="rd")
def rem(rs1: u64, rs2: u64) -> u64:
    if rs2 == 0:
        return rs1
    if i64(rs2) == -1:
        return 0
    return u64(remainder(i64(rs1), i64(rs2)))


@instruction("remu", "0000001 rs2 rs1 111 rd 0110011", MUL, result="rd")
def remu(rs1: u64, rs2: u64) -> u64:
    if rs2 == 0:
        return rs1
    return rs1 % rs2


@instruction("mulw", "0000001 rs2 rs1 000 rd 0111011", MUL, result="rd")
def mulw(rs1: u64, rs2: u64) -> u64:
    return word(rs1 * rs2)


@instruction("divw", "0000001 rs2 rs1 100 rd 0111011", MUL, result="rd")
def divw(rs1: u64, rs2: u64) -> u64:
    if u32(rs2) == 0:
        return u64(-1)
    if i32(rs2) == -1:
        return word(-rs1)
    return u64(quotient(i32(rs1), i32(rs2)))


@instruction("divuw", "0000001 rs2 rs1 101 rd 0111011", MUL, result="rd")
def divuw(rs1: u64, rs2: u64) -> u64:
    if u32(rs2) == 0:
        return u64(-1)
    return u64(i32(u32(rs1) // u32(rs2)))


@instruction("remw", "0000001 rs2 rs1 110 rd 0111011", MUL, result="rd")
def remw(rs1: u64, rs2: u64) -> u64:
    if u32(rs2) == 0:
        return word(rs1)
    if i32(rs2) == -1:
        return 0
    return u64(remainder(i32(rs1), i32(rs2)))


@instruction("remuw", "0000001 rs2 rs1 111 rd 0111011", MUL, result="rd")
def remuw(rs1: u64, rs2: u64) -> u64:
    if u32(rs2) == 0:
        return word(rs1)
    return u64(i32(u32(rs1) % u32(rs2)))


@instruction("illegal", "imm12 rs1 000 rd 0000000", BASE, traps=True)
def illegal(insn: u64) -> None:
    """What the decoder gives for every encoding that nothing else describes."""
    raise Trap(ILLEGAL, insn)
