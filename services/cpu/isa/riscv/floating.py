"""The F and D extensions (unprivileged specification, chapters "F" and "D"): what is common to both is described once.

A single-precision value lies in a register with all upper bits set ("boxed"); a source that is not is read as the
canonical NaN.
"""

from __future__ import annotations

from collections.abc import Callable

from ...native.lang import i32, i64, inline, likely, u32, u64, unlikely
from ..semantics import Trap, load, store
from . import hostfloat
from .csr_bits import FS, FS_DIRTY, SD
from .isa import ILLEGAL, instruction
from .softfloat import DOUBLE, DYNAMIC, RMM, SINGLE, Format, double_to_single, single_to_double
from .state import Hart

BOX = 0xFFFF_FFFF_0000_0000

Unary = Callable[[int], int]
Arithmetic = Callable[[Hart, int, int, int], int]
Comparison = Callable[[Hart, int, int], int]


@inline
def require(hart: Hart, insn: u64) -> None:
    """The unit is on, and stays as clean as it is: the instruction writes neither f registers nor flags."""
    if unlikely(hart.mstatus & FS == 0):
        raise Trap(ILLEGAL, insn)


@inline
def modify(hart: Hart, insn: u64) -> None:
    """The unit is on, and dirty from now on (even if the instruction then raises no flag, or its access faults)."""
    if unlikely(hart.mstatus & FS != FS_DIRTY):
        require(hart, insn)
        hart.mstatus |= FS_DIRTY | SD


@inline
def rounding(hart: Hart, rm: u64, insn: u64) -> u64:
    """The rounding mode that the instruction asks for; the unit becomes dirty."""
    mode = u64(hart.frm) if rm == DYNAMIC else rm
    if unlikely(mode > RMM):
        raise Trap(ILLEGAL, insn)
    modify(hart, insn)
    return mode


@inline
def unbox(bits: u64) -> u64:
    """A single-precision source."""
    if likely(bits >= BOX):
        return u64(u32(bits))
    return SINGLE.nan


@inline
def box(value: u64) -> u64:
    """A single-precision result as it lies in the register."""
    return value | BOX


@inline
def whole(bits: u64) -> u64:
    """What fills a register."""
    return bits


@inline
def word(value: u64) -> u64:
    """The lower 32 bits, sign-extended."""
    return u64(i64(i32(u32(value))))


@inline
def unsigned_word(value: u64) -> u64:
    """The lower 32 bits, zero-extended."""
    return u64(u32(value))


def describe(suffix: str, extension: str, fmt: str, form: Format, read: Unary, write: Unary) -> None:
    """The instructions that every format has; ``fmt`` is its number in the encoding."""

    def arithmetic(name: str, code: str, operation: Arithmetic) -> None:
        @instruction(f"{name}.{suffix}", f"{code}{fmt} rs2 rs1 rm rd 1010011", extension, result="frd")
        def semantics(hart: Hart, frs1: u64, frs2: u64, rm: u64, insn: u64) -> u64:
            mode = rounding(hart, rm, insn)
            return write(operation(hart, read(frs1), read(frs2), mode))

    def fused(name: str, opcode: str, product_sign: int, addend_sign: int) -> None:
        operation = hostfloat.ternary(form, "fma", form.multiply_add)

        @instruction(f"{name}.{suffix}", f"rs3 {fmt} rs2 rs1 rm rd {opcode}", extension, result="frd")
        def semantics(hart: Hart, frs1: u64, frs2: u64, frs3: u64, rm: u64, insn: u64) -> u64:
            mode = rounding(hart, rm, insn)
            factor = read(frs1) ^ product_sign
            addend = read(frs3) ^ addend_sign
            return write(operation(hart, factor, read(frs2), addend, mode))

    def selection(name: str, code: str, operation: Comparison) -> None:
        @instruction(f"{name}.{suffix}", f"00101{fmt} rs2 rs1 {code} rd 1010011", extension, result="frd")
        def semantics(hart: Hart, frs1: u64, frs2: u64, insn: u64) -> u64:
            modify(hart, insn)
            return write(operation(hart, read(frs1), read(frs2)))

    def comparison(name: str, code: str, operation: Comparison) -> None:
        @instruction(f"{name}.{suffix}", f"10100{fmt} rs2 rs1 {code} rd 1010011", extension, result="rd")
        def semantics(hart: Hart, frs1: u64, frs2: u64, insn: u64) -> u64:
            modify(hart, insn)
            return operation(hart, read(frs1), read(frs2))

    def to_integer(name: str, code: str, lowest: int, highest: int, extend: Unary) -> None:
        operation = form.to_integer

        @instruction(f"fcvt.{name}.{suffix}", f"11000{fmt} {code} rs1 rm rd 1010011", extension, result="rd")
        def semantics(hart: Hart, frs1: u64, rm: u64, insn: u64) -> u64:
            mode = rounding(hart, rm, insn)
            return extend(operation(hart, read(frs1), mode, lowest, highest))

    def from_integer(name: str, code: str, sign: int, extend: Unary) -> None:
        operation = form.from_integer

        @instruction(f"fcvt.{suffix}.{name}", f"11010{fmt} {code} rs1 rm rd 1010011", extension, result="frd")
        def semantics(hart: Hart, rs1: u64, rm: u64, insn: u64) -> u64:
            mode = rounding(hart, rm, insn)
            value = extend(rs1)
            if value & sign != 0:
                return write(operation(hart, 1, 0 - value, mode))
            return write(operation(hart, 0, value, mode))

    arithmetic("fadd", "00000", hostfloat.binary(form, "fadd", form.add))
    arithmetic("fsub", "00001", hostfloat.binary(form, "fsub", form.subtract))
    arithmetic("fmul", "00010", hostfloat.binary(form, "fmul", form.multiply))
    arithmetic("fdiv", "00011", hostfloat.binary(form, "fdiv", form.divide))
    fused("fmadd", "1000011", 0, 0)
    fused("fmsub", "1000111", 0, form.sign)
    fused("fnmsub", "1001011", form.sign, 0)
    fused("fnmadd", "1001111", form.sign, form.sign)
    selection("fmin", "000", form.minimum)
    selection("fmax", "001", form.maximum)
    comparison("fle", "000", form.less_equal)
    comparison("flt", "001", form.less)
    comparison("feq", "010", form.equal)
    to_integer("w", "00000", 1 << 31, (1 << 31) - 1, word)
    to_integer("wu", "00001", 0, (1 << 32) - 1, word)
    to_integer("l", "00010", 1 << 63, (1 << 63) - 1, whole)
    to_integer("lu", "00011", 0, (1 << 64) - 1, whole)
    from_integer("w", "00000", 1 << 63, word)
    from_integer("wu", "00001", 0, unsigned_word)
    from_integer("l", "00010", 1 << 63, whole)
    from_integer("lu", "00011", 0, whole)

    root = hostfloat.unary(form, "sqrt", form.square_root)

    @instruction(f"fsqrt.{suffix}", f"01011{fmt} 00000 rs1 rm rd 1010011", extension, result="frd")
    def square_root(hart: Hart, frs1: u64, rm: u64, insn: u64) -> u64:
        mode = rounding(hart, rm, insn)
        return write(root(hart, read(frs1), mode))

    @instruction(f"fsgnj.{suffix}", f"00100{fmt} rs2 rs1 000 rd 1010011", extension, result="frd")
    def inject_sign(hart: Hart, frs1: u64, frs2: u64, insn: u64) -> u64:
        modify(hart, insn)
        return write(read(frs1) & (form.sign - 1) | read(frs2) & form.sign)

    @instruction(f"fsgnjn.{suffix}", f"00100{fmt} rs2 rs1 001 rd 1010011", extension, result="frd")
    def inject_negated_sign(hart: Hart, frs1: u64, frs2: u64, insn: u64) -> u64:
        modify(hart, insn)
        return write(read(frs1) & (form.sign - 1) | ~read(frs2) & form.sign)

    @instruction(f"fsgnjx.{suffix}", f"00100{fmt} rs2 rs1 010 rd 1010011", extension, result="frd")
    def multiply_sign(hart: Hart, frs1: u64, frs2: u64, insn: u64) -> u64:
        modify(hart, insn)
        return write(read(frs1) ^ read(frs2) & form.sign)

    @instruction(f"fclass.{suffix}", f"11100{fmt} 00000 rs1 001 rd 1010011", extension, result="rd")
    def classify(hart: Hart, frs1: u64, insn: u64) -> u64:
        require(hart, insn)
        return form.classify(read(frs1))


describe("s", "f", "00", SINGLE, unbox, box)
describe("d", "d", "01", DOUBLE, whole, whole)


@instruction("fcvt.s.d", "0100000 00001 rs1 rm rd 1010011", "d", result="frd")
def fcvt_s_d(hart: Hart, frs1: u64, rm: u64, insn: u64) -> u64:
    mode = rounding(hart, rm, insn)
    return box(double_to_single(hart, frs1, mode))


@instruction("fcvt.d.s", "0100001 00000 rs1 rm rd 1010011", "d", result="frd")
def fcvt_d_s(hart: Hart, frs1: u64, rm: u64, insn: u64) -> u64:
    mode = rounding(hart, rm, insn)
    return single_to_double(hart, unbox(frs1), mode)


# transfers: raw bits, whatever they mean


@instruction("fmv.x.w", "1110000 00000 rs1 000 rd 1010011", "f", result="rd")
def fmv_x_w(hart: Hart, frs1: u64, insn: u64) -> u64:
    require(hart, insn)
    return word(frs1)


@instruction("fmv.w.x", "1111000 00000 rs1 000 rd 1010011", "f", result="frd")
def fmv_w_x(hart: Hart, rs1: u64, insn: u64) -> u64:
    modify(hart, insn)
    return box(rs1)


@instruction("fmv.x.d", "1110001 00000 rs1 000 rd 1010011", "d", result="rd")
def fmv_x_d(hart: Hart, frs1: u64, insn: u64) -> u64:
    require(hart, insn)
    return frs1


@instruction("fmv.d.x", "1111001 00000 rs1 000 rd 1010011", "d", result="frd")
def fmv_d_x(hart: Hart, rs1: u64, insn: u64) -> u64:
    modify(hart, insn)
    return rs1


@instruction("flw", "imm12 rs1 010 rd 0000111", "f", result="frd")
def flw(hart: Hart, rs1: u64, imm: i64, insn: u64) -> u64:
    modify(hart, insn)
    return box(u64(load(u32, rs1 + u64(imm))))


@instruction("fsw", "simm7 rs2 rs1 010 simm5 0100111", "f")
def fsw(hart: Hart, rs1: u64, frs2: u64, imm: i64, insn: u64) -> None:
    require(hart, insn)
    store(u32, rs1 + u64(imm), u32(frs2))


@instruction("fld", "imm12 rs1 011 rd 0000111", "d", result="frd")
def fld(hart: Hart, rs1: u64, imm: i64, insn: u64) -> u64:
    modify(hart, insn)
    return load(u64, rs1 + u64(imm))


@instruction("fsd", "simm7 rs2 rs1 011 simm5 0100111", "d")
def fsd(hart: Hart, rs1: u64, frs2: u64, imm: i64, insn: u64) -> None:
    require(hart, insn)
    store(u64, rs1 + u64(imm), frs2)
