"""A hart's registers by the names of the RISC-V manuals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

X_NAMES = (
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7",
    "s2", "s3", "s4", "s5", "s6",
    "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
)  # fmt: skip
CSR_FIELDS = (
    "fflags", "frm", "mstatus", "misa", "medeleg", "mideleg", "mie", "mtvec", "mcounteren", "menvcfg", "mscratch",
    "mepc", "mcause", "mtval",
    "stvec", "scounteren", "senvcfg", "sscratch", "sepc", "scause", "stval", "satp", "stimecmp", "mhartid",
)  # fmt: skip


def registers(hart: Any) -> Iterator[tuple[str, int]]:
    """Name and value of pc, x, f and control registers of a hart's record."""
    yield "pc", hart.pc
    for number, name in enumerate(X_NAMES):
        yield name, hart.x[number] if number else 0
    for number in range(32):
        yield f"f{number}", hart.f[number]
    for name in CSR_FIELDS:
        yield name, getattr(hart, name)
    yield "mip", hart.mip | hart.lines | hart.timers
    yield "priv", hart.privilege
