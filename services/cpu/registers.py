"""A hart's registers by the names of the RISC-V manuals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from vmesh import errors
from vmesh.v1 import cpu_pb2

from .harts import Harts
from .isa.riscv.csr import CSRS
from .isa.riscv.features import FEATURE_BIT
from .isa.riscv.state import NOWHERE, SINK

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


_PRIVILEGES = (0, 1, 3)
#: CSRs that are there with an extension only; the counters behind ``_NO_COUNTERS`` count nothing and are left out.
_NEEDS = {"fflags": "f", "frm": "f", "fcsr": "f", "stimecmp": "sstc"}
_NO_COUNTERS = ("hpmcounter", "mhpmcounter", "mhpmevent")


@dataclass(frozen=True, slots=True)
class Register:
    """One that a debugger reads and writes: by hart number, and value."""

    description: cpu_pb2.RegisterDescription
    read: Callable[[int], int]
    write: Callable[[int, int], None]


class Registers:
    """All registers of the harts by name, in the order of cpu.proto's kinds. For harts that are at the gate."""

    def __init__(self, harts: Harts) -> None:
        self._harts = harts
        self._by_name: dict[str, Register] = {}
        features = {name for name, bit in FEATURE_BIT.items() if harts.machine.features >> bit & 1}
        for number, name in enumerate(X_NAMES):
            self._add(
                name, cpu_pb2.REGISTER_GENERAL, number, 64, partial(self._x, number), partial(self._set_x, number)
            )
        self._add("pc", cpu_pb2.REGISTER_GENERAL, 32, 64, self._pc, self._set_pc)
        for number in range(32) if "f" in features else ():
            bits = 64 if "d" in features else 32
            read, write = partial(self._f, number), partial(self._set_f, number)
            self._add(f"f{number}", cpu_pb2.REGISTER_FLOAT, number, bits, read, write)
        for csr in sorted(CSRS.values(), key=lambda csr: csr.number):
            if not csr.name.startswith(_NO_COUNTERS) and _NEEDS.get(csr.name, "i") in features:
                read, write = partial(self._csr, csr.number), partial(self._set_csr, csr.number)
                self._add(csr.name, cpu_pb2.REGISTER_CSR, csr.number, 64, read, write)
        self._add("priv", cpu_pb2.REGISTER_PRIVILEGE, 0, 64, self._privilege, self._set_privilege)

    def describe(self) -> cpu_pb2.RegisterSet:
        described = [each.description for each in self._by_name.values()]
        return cpu_pb2.RegisterSet(registers=described, harts=len(self._harts.hart))

    def read(self, request: cpu_pb2.ReadRegisters) -> cpu_pb2.HartRegisters:
        """Raises BadRequest for a hart or a name that is not there."""
        self._harts.record(request.hart)
        answer = cpu_pb2.HartRegisters(hart=request.hart)
        for name in request.names:
            answer.registers.add(name=name, value=self._find(name).read(request.hart))
        return answer

    def write(self, request: cpu_pb2.WriteRegisters) -> None:
        """Raises BadRequest, and then writes nothing."""
        self._harts.record(request.hart)
        found = [(self._find(each.name), each.value) for each in request.registers]
        for register, value in found:
            if register.description.kind == cpu_pb2.REGISTER_PRIVILEGE and value not in _PRIVILEGES:
                raise errors.BadRequest("priv", expected="0, 1 or 3", got=str(value))
        for register, value in found:
            register.write(request.hart, value)

    def _add(
        self,
        name: str,
        kind: cpu_pb2.RegisterKind.ValueType,
        number: int,
        bits: int,
        read: Callable[[int], int],
        write: Callable[[int, int], None],
    ) -> None:
        description = cpu_pb2.RegisterDescription(name=name, kind=kind, number=number, bits=bits)
        self._by_name[name] = Register(description, read, write)

    def _find(self, name: str) -> Register:
        if name not in self._by_name:
            raise errors.BadRequest("register", expected="the name of a register", got=name[:80])
        return self._by_name[name]

    def _x(self, number: int, hart: int) -> int:
        return int(self._harts.hart[hart].x[number]) if number else 0

    def _set_x(self, number: int, hart: int, value: int) -> None:
        self._harts.hart[hart].x[number or SINK] = value

    def _pc(self, hart: int) -> int:
        return int(self._harts.hart[hart].pc)

    def _set_pc(self, hart: int, value: int) -> None:
        record = self._harts.hart[hart]
        record.pc, record.waiting, record.passing = value & -self._harts.instruction_alignment, 0, NOWHERE

    def _f(self, number: int, hart: int) -> int:
        return int(self._harts.hart[hart].f[number])

    def _set_f(self, number: int, hart: int, value: int) -> None:
        self._harts.hart[hart].f[number] = value

    def _csr(self, number: int, hart: int) -> int:
        return self._harts.read_csr(hart, number)

    def _set_csr(self, number: int, hart: int, value: int) -> None:
        self._harts.write_csr(hart, number, value)

    def _privilege(self, hart: int) -> int:
        return int(self._harts.hart[hart].privilege)

    def _set_privilege(self, hart: int, value: int) -> None:
        self._harts.hart[hart].privilege = value
