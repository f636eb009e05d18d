"""A hart's registers, and what of an instruction its slot holds."""

from __future__ import annotations

from typing import Any

from ...core import state as core
from ...native.lang import Ptr, i32, u8, u32, u64
from ..registers import Kind, register, register_file
from .csr_bits import ADUE, SEIP, SSIP, STIP, SXL, UXL

XLEN = 64
#: Index in ``Hart.x`` that takes the writes to x0.
SINK = 32
USER, SUPERVISOR, MACHINE = 0, 1, 3
PMP_ENTRIES = 16
ALL = (1 << 64) - 1
ANY = range(1 << 64)
MISA_MXL64 = 2 << 62
SUPERVISOR_INTERRUPTS = SSIP | STIP | SEIP
# fmt: off
X_NAMES = (
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7",
    "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
)
# fmt: on
F_NAMES = tuple(f"f{number}" for number in range(32))


def _misa(features: frozenset[str], hart: int) -> int:
    """Privileged specification 3.1.1: the letters of the extensions, and that there are S and U mode."""
    letters = sum(1 << ord(name) - ord("a") for name in features if len(name) == 1)
    return MISA_MXL64 | letters | 1 << ord("s") - ord("a") | 1 << ord("u") - ord("a")


def _float_bits(features: frozenset[str]) -> int:
    return 64 if "d" in features else 32 if "f" in features else 0


def _hardware_updates(features: frozenset[str], hart: int) -> int:
    return ADUE if "svadu" in features else 0


def _pending(hart: Any) -> int:
    return int(hart.mip | hart.lines | hart.timers)


def csr(number: int, writable: int | None = None, **known: Any) -> Any:
    return register(Kind.CONTROL, number, writable=writable, **known)


class Hart(core.Hart):
    """One hart.

    Control registers are in an order in which they can be written: what one lets another be comes first. Behind them
    is what they are computed from. The control registers that are no field here, and what reads and writes of all of
    them do, are in ``csr``.
    """

    x: Ptr[u64] = register_file(Kind.GENERAL, u64, 33, names=X_NAMES, zero=True, legal=ANY)
    f: Ptr[u64] = register_file(Kind.FLOAT, u64, 32, names=F_NAMES, seen=_float_bits, legal=ANY)
    fflags: u32 = csr(0x001)
    frm: u32 = csr(0x002)
    mstatus: u64 = csr(0x300, reset=UXL | SXL)
    misa: u64 = csr(0x301, 0, reset=_misa, saved=False)
    menvcfg: u64 = csr(0x30A, reset=_hardware_updates)
    senvcfg: u64 = csr(0x10A)
    medeleg: u64 = csr(0x302, 0xB3FF)
    mideleg: u64 = csr(0x303, SUPERVISOR_INTERRUPTS)
    mie: u64 = csr(0x304)
    mip: u64 = csr(0x344, shown=_pending)
    mtvec: u64 = csr(0x305)
    stvec: u64 = csr(0x105)
    mcounteren: u64 = csr(0x306, 0xFFFF_FFFF)
    scounteren: u64 = csr(0x106, 0xFFFF_FFFF)
    mcountinhibit: u64 = csr(0x320, since=2)
    mscratch: u64 = csr(0x340, ALL)
    sscratch: u64 = csr(0x140, ALL)
    mepc: u64 = csr(0x341)
    sepc: u64 = csr(0x141)
    mcause: u64 = csr(0x342, ALL)
    scause: u64 = csr(0x142, ALL)
    mtval: u64 = csr(0x343, ALL)
    stval: u64 = csr(0x143, ALL)
    satp: u64 = csr(0x180)
    stimecmp: u64 = csr(0x14D, reset=ALL)
    mhartid: u64 = csr(0xF14, 0, reset=lambda features, hart: hart, saved=False)
    pmpaddr: Ptr[u64] = register_file(Kind.STATE, u64, PMP_ENTRIES)
    pmpcfg: Ptr[u8] = register_file(Kind.STATE, u8, PMP_ENTRIES)
    privilege: u32 = register(Kind.PRIVILEGE, names=("priv",), reset=MACHINE, legal=(USER, SUPERVISOR, MACHINE))
    #: what a counter is ahead of ``retired``; its value, while mcountinhibit has it stand still
    cycle_offset: u64 = register(Kind.STATE, legal=ANY)
    instret_offset: u64 = register(Kind.STATE, legal=ANY)


class Slot(core.Slot, instead_of="operands"):
    """Where an instruction finds its operands."""

    rd: u8
    rs1: u8
    rs2: u8
    rs3: u8
    imm: i32
