"""The F and D extensions, each instruction against Unicorn (QEMU) in every rounding mode, and what Unicorn cannot tell.

``VMESH_FLOAT_CASES`` sets the operands per instruction and mode, ``VMESH_FLOAT_SEED`` what they are made from.
"""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Callable
from functools import cache

import pytest

from tests.unit.float_oracle import (
    ARITHMETIC,
    BOX,
    DOUBLE,
    FLOATING,
    SINGLE,
    Native,
    Operands,
    Outcome,
    Shape,
    Unicorn,
    integers,
    unpack,
)
from vmesh_services.cpu.isa.description import Instruction
from vmesh_services.cpu.isa.riscv.isa import ILLEGAL
from vmesh_services.cpu.isa.riscv.softfloat import DYNAMIC, DZ, NV, NX, OF, RDN, RMM, RNE, RTZ, RUP, UF

CASES = int(os.environ.get("VMESH_FLOAT_CASES", "20000"))
SEED = int(os.environ.get("VMESH_FLOAT_SEED") or random.getrandbits(32))
MODES = (RNE, RTZ, RDN, RUP, RMM)
FS_INITIAL, FS_DIRTY, SD = 1 << 13, 3 << 13, 1 << 63


@pytest.fixture(scope="session")
def compiled() -> Native:
    return Native()


@pytest.fixture
def native(compiled: Native) -> Native:
    """The unit is on and dirty."""
    compiled.set("mstatus", FS_DIRTY)
    compiled.set("frm", 0)
    return compiled


@pytest.fixture(scope="session")
def unicorn() -> Unicorn:
    return Unicorn()


@cache
def operands(shape: Shape | None) -> list[Operands]:
    """Of the integers, when there is no format."""
    rng = random.Random(SEED)
    return list(integers(rng, CASES) if shape is None else shape.operands(rng, CASES))


def source(instruction: Instruction) -> Shape | None:
    """The format of the operands."""
    if "rs1" in instruction.operands:
        return None
    return SINGLE if instruction.name.endswith((".s", ".x.w")) else DOUBLE


def modes(instruction: Instruction) -> tuple[int, ...]:
    return MODES if instruction.has("rm") else (RNE,)


def named(condition: Callable[[Instruction], bool] = lambda item: True) -> pytest.MarkDecorator:
    """Runs a test with each instruction that meets the condition."""
    chosen = [item for item in ARITHMETIC if condition(item)]
    return pytest.mark.parametrize("instruction", chosen, ids=lambda item: item.name)


def by_specification(instruction: Instruction, triple: Operands, outcome: Outcome) -> Outcome:
    """Unicorn's outcome, put right where its QEMU (5.0) is older than the specification.

    fmin and fmax of a signaling NaN and a number gave NaN (as IEEE 754-2008 has it), and since version 2.2 of F and D
    give the number. Infinity times zero is invalid even when the addend is a quiet NaN.
    """
    value, flags = outcome
    shape = source(instruction)
    if shape is not None and instruction.name.startswith(("fmin", "fmax")) and flags & NV:
        numbers = [bits for bits in triple[:2] if bits & (shape.sign - 1) <= shape.infinity]
        value = numbers[0] if numbers else shape.register(shape.infinity | shape.quiet)
    if shape is not None and instruction.has("rs3"):
        magnitudes = {
            bits & (shape.sign - 1) for bits in triple[:2] if shape.register(bits & (1 << shape.width) - 1) == bits
        }
        if magnitudes == {0, shape.infinity}:
            flags |= NV
    return value, flags


@named(lambda item: item.has("rm"))
def test_what_the_host_computes_is_what_soft_float_computes(instruction: Instruction, native: Native) -> None:
    """With inexact raised before, the host's unit does what it can; without, soft-float does all (see hostfloat)."""
    cases = operands(source(instruction))
    for mode in modes(instruction):
        soft = native.run_all(instruction, mode, cases)
        host = native.run_all(instruction, mode, cases, flags=NX)
        assert soft is not None
        assert host is not None
        for triple, (value, flags), other in zip(cases, unpack(soft), unpack(host), strict=True):
            assert other == (value, flags | NX), (
                f"{instruction.name} {' '.join(f'{bits:#x}' for bits in triple)} in mode {mode}: "
                f"soft-float gives {value:#x} flags {flags | NX:#x}, "
                f"the host {other[0]:#x} flags {other[1]:#x} (seed {SEED})"
            )


@named()
def test_softfloat_instruction_agrees_with_unicorn(instruction: Instruction, native: Native, unicorn: Unicorn) -> None:
    cases = operands(source(instruction))
    for mode in modes(instruction):
        ours = native.run_all(instruction, mode, cases)
        theirs = unicorn.run_all(instruction, mode, cases)
        assert ours is not None
        if ours == theirs:
            continue
        for triple, mine, other in zip(cases, unpack(ours), unpack(theirs), strict=True):
            value, flags = by_specification(instruction, triple, other)
            assert mine == (value, flags), (
                f"{instruction.name} {' '.join(f'{bits:#x}' for bits in triple)} in mode {mode}: "
                f"expected {value:#x} flags {flags:#x}, got {mine[0]:#x} flags {mine[1]:#x} (seed {SEED})"
            )


def s(value: float) -> int:
    """The register of a single-precision number."""
    return BOX | int.from_bytes(bytes(ctypes.c_float(value)), "little")


def d(value: float) -> int:
    return int.from_bytes(bytes(ctypes.c_double(value)), "little")


INF, NAN, SIGNALING = float("inf"), 0x7FF8 << 48, 0x7FF0 << 48 | 1
S_NAN, S_SIGNALING = BOX | 0x7FC0_0000, BOX | 0x7F80_0001
MAX, TINY = 0x7FEF_FFFF_FFFF_FFFF, 1


@pytest.mark.parametrize(
    ("name", "mode", "arguments", "value", "flags"),
    [
        ("fadd.d", RNE, (d(1), d(2**-53)), d(1), NX),
        ("fadd.d", RMM, (d(1), d(2**-53)), d(1 + 2**-52), NX),
        ("fadd.d", RUP, (d(1), TINY), d(1 + 2**-52), NX),
        ("fadd.d", RDN, (d(1), d(-1)), d(-0.0), 0),
        ("fadd.d", RTZ, (d(1), d(-1)), 0, 0),
        ("fadd.d", RNE, (d(INF), d(-INF)), NAN, NV),
        ("fadd.d", RTZ, (MAX, MAX), MAX, OF | NX),
        ("fadd.d", RDN, (MAX | 1 << 63, MAX | 1 << 63), d(-INF), OF | NX),
        ("fmul.s", RNE, (s(2**-80), s(2**-80)), s(0), UF | NX),
        # both round up to the smallest normal number; with an unbounded exponent only the first would
        ("fmul.d", RNE, (0x000F_FFFF_FFFF_FFFF, d(1 + 2**-52)), 0x0010_0000_0000_0000, NX),
        ("fmul.d", RNE, (0x0010_0000_0000_0000, 0x3FEF_FFFF_FFFF_FFFF), 0x0010_0000_0000_0000, UF | NX),
        ("fmul.d", RUP, (0x0010_0000_0000_0001, 0x3FEF_FFFF_FFFF_FFFF), 0x0010_0000_0000_0001, NX),
        ("fdiv.d", RNE, (d(1), d(-0.0)), d(-INF), DZ),
        ("fdiv.d", RNE, (d(0), d(0)), NAN, NV),
        ("fsqrt.d", RNE, (d(-0.0),), d(-0.0), 0),
        ("fsqrt.d", RNE, (d(-1),), NAN, NV),
        ("fsqrt.d", RNE, (d(2),), d(2**0.5), NX),
        # the product is invalid whatever the addend
        ("fmadd.d", RNE, (d(INF), d(0), NAN), NAN, NV),
        ("fmadd.d", RNE, (d(1), d(0), NAN), NAN, 0),
        ("fnmadd.d", RNE, (d(2), d(3), d(4)), d(-10), 0),
        ("fnmsub.d", RNE, (d(2), d(3), d(4)), d(-2), 0),
        ("fmin.d", RNE, (d(0), d(-0.0)), d(-0.0), 0),
        ("fmax.d", RNE, (d(-0.0), d(0)), d(0), 0),
        ("fmin.d", RNE, (SIGNALING, d(1)), d(1), NV),
        ("fmax.s", RNE, (s(1), S_SIGNALING), s(1), NV),
        ("fmax.s", RNE, (S_NAN, S_SIGNALING), S_NAN, NV),
        ("feq.d", RNE, (NAN, d(1)), 0, 0),
        ("feq.d", RNE, (SIGNALING, d(1)), 0, NV),
        ("fle.d", RNE, (NAN, d(1)), 0, NV),
        ("fcvt.w.d", RTZ, (d(2**31),), (1 << 31) - 1, NV),
        ("fcvt.wu.d", RTZ, (d(-0.75),), 0, NX),
        ("fcvt.wu.d", RDN, (d(-0.75),), 0, NV),
        ("fcvt.wu.d", RTZ, (d(2**32 - 1),), (1 << 64) - 1, 0),
        ("fcvt.lu.s", RNE, (S_NAN,), (1 << 64) - 1, NV),
        ("fcvt.l.d", RNE, (d(2.5),), 2, NX),
        ("fcvt.l.d", RMM, (d(2.5),), 3, NX),
        ("fcvt.s.d", RNE, (SIGNALING,), S_NAN, NV),
        ("fclass.d", RNE, (SIGNALING,), 1 << 8, 0),
    ],
)
def test_softfloat_known_value(
    native: Native, name: str, mode: int, arguments: tuple[int, ...], value: int, flags: int
) -> None:
    assert native.run(name, mode, *arguments) == (value, flags)


def test_softfloat_flags_accumulate(native: Native) -> None:
    assert native.run("fdiv.d", RNE, d(1), d(3), flags=NV | DZ) == (d(1 / 3), NV | DZ | NX)


@named(lambda item: item.has("rm"))
def test_softfloat_dynamic_mode_is_that_of_frm(instruction: Instruction, native: Native) -> None:
    cases = operands(source(instruction))[:500]
    for mode in MODES:
        native.set("frm", mode)
        assert native.run_all(instruction, DYNAMIC, cases) == native.run_all(instruction, mode, cases)


@named(lambda item: item.has("rm"))
@pytest.mark.parametrize(("mode", "frm"), [(5, 0), (6, 0), (DYNAMIC, 5), (DYNAMIC, 6), (DYNAMIC, 7)])
def test_softfloat_reserved_mode_is_illegal(instruction: Instruction, native: Native, mode: int, frm: int) -> None:
    native.set("frm", frm)
    native.set("mstatus", FS_INITIAL)
    assert native.run(instruction.name, mode, d(1), d(1), d(1)) is None
    assert (native.get("cause"), native.get("trap_value")) == (ILLEGAL, Native.INSN)
    assert native.get("mstatus") == FS_INITIAL


@pytest.mark.parametrize("instruction", FLOATING, ids=lambda item: item.name)
def test_softfloat_instruction_is_illegal_when_the_unit_is_off(instruction: Instruction, native: Native) -> None:
    native.set("mstatus", 0)
    assert native.run(instruction.name, RNE, 0, 0, 0) is None
    assert (native.get("cause"), native.get("trap_value")) == (ILLEGAL, Native.INSN)
    assert (native.get("mstatus"), native.get("fflags")) == (0, 0)


@named()
def test_softfloat_unit_is_dirty_after_what_may_write_it(instruction: Instruction, native: Native) -> None:
    native.set("mstatus", FS_INITIAL)
    assert native.run(instruction.name, RNE, d(1), d(1), d(1)) is not None
    only_reads = instruction.name.startswith(("fclass", "fmv.x"))
    assert native.get("mstatus") == (FS_INITIAL if only_reads else FS_DIRTY | SD)


@named(lambda item: source(item) is SINGLE and not item.name.startswith("fmv"))
def test_softfloat_single_source_without_box_is_nan(instruction: Instruction, native: Native) -> None:
    """And so is not the number in its lower half, which one of three numbers at least must show."""
    one = s(1)
    for position in range(sum(name.startswith("frs") for name in instruction.operands)):
        told_apart = False
        for number in (s(-2), s(1), s(3)):
            boxed, nan = ([one] * position + [bits] + [one] * (2 - position) for bits in (number, S_NAN))
            told_apart |= native.run(instruction.name, RNE, *boxed) != native.run(instruction.name, RNE, *nan)
            for upper in (0, 0xFFFF_FFFE, 0x7FFF_FFFF):
                loose = [*nan[:position], upper << 32 | number & ~BOX, *nan[position + 1 :]]
                assert native.run(instruction.name, RNE, *loose) == native.run(instruction.name, RNE, *nan)
        assert told_apart


def test_softfloat_transfers_take_the_raw_bits(native: Native) -> None:
    assert native.run("fmv.x.w", 0, 0x1234_5678_8000_0001) == (0xFFFF_FFFF_8000_0001, 0)
    assert native.run("fmv.w.x", 0, 0x1234_5678_8000_0001) == (0xFFFF_FFFF_8000_0001, 0)


def test_softfloat_loads_and_stores(native: Native) -> None:
    memory = (ctypes.c_uint64 * 3)(~0, 0x1122_3344_8899_AABB, ~0)
    base = ctypes.addressof(memory) + 8 - Native.IMM
    assert native.run("flw", 0, base) == (BOX | 0x8899_AABB, 0)
    assert native.run("fld", 0, base) == (0x1122_3344_8899_AABB, 0)
    native.run("fsw", 0, base, 0x0102_0304_0506_0708)
    assert list(memory) == [(1 << 64) - 1, 0x1122_3344_0506_0708, (1 << 64) - 1]
    native.run("fsd", 0, base, 0x0102_0304_0506_0708)
    assert list(memory) == [(1 << 64) - 1, 0x0102_0304_0506_0708, (1 << 64) - 1]
