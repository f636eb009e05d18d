"""What gdb is told of the registers: the target description (gdb's manual, appendix G; G.5.12 for RISC-V).

Made from the cpu's own description of its registers; gdb's features and numbers are given to them here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

from vmesh.v1 import cpu_pb2
from vmesh.v1.cpu_pb2 import REGISTER_CSR, REGISTER_FLOAT, REGISTER_GENERAL, REGISTER_PRIVILEGE, RegisterDescription

#: gdb's number of the first register of a kind (gdb's riscv-tdep.h); ours count from there.
_FIRST = {REGISTER_GENERAL: 0, REGISTER_FLOAT: 33, REGISTER_CSR: 65, REGISTER_PRIVILEGE: 65 + 4096}
_FEATURES = {
    REGISTER_GENERAL: "org.gnu.gdb.riscv.cpu",
    REGISTER_FLOAT: "org.gnu.gdb.riscv.fpu",
    REGISTER_CSR: "org.gnu.gdb.riscv.csr",
    REGISTER_PRIVILEGE: "org.gnu.gdb.riscv.virtual",
}
_POINTERS = {"ra": "code_ptr", "pc": "code_ptr", "sp": "data_ptr", "gp": "data_ptr", "tp": "data_ptr"}
_DOUBLE = (
    '<union id="riscv_double"><field name="float" type="ieee_single"/><field name="double" type="ieee_double"/></union>'
)


@dataclass(frozen=True, slots=True)
class Target:
    """`registers` by gdb's numbers; `general` are those of the packets g and G, in order; `xml` describes them all."""

    registers: dict[int, RegisterDescription]
    general: tuple[RegisterDescription, ...]
    harts: int
    xml: bytes


def describe(found: cpu_pb2.RegisterSet) -> Target:
    """The target as the cpu describes it."""
    registers = {_FIRST[each.kind] + each.number: each for each in found.registers if each.kind in _FIRST}
    general = tuple(each for _, each in sorted(registers.items()) if each.kind == REGISTER_GENERAL)
    xml = "\n".join(['<?xml version="1.0"?>', '<!DOCTYPE target SYSTEM "gdb-target.dtd">', *_lines(registers), ""])
    return Target(registers, general, found.harts, xml.encode())


def _lines(registers: dict[int, RegisterDescription]) -> Iterator[str]:
    yield '<target version="1.0">'
    yield "<architecture>riscv:rv64</architecture>"
    for kind, feature in _FEATURES.items():
        members = [(number, each) for number, each in sorted(registers.items()) if each.kind == kind]
        if not members:
            continue
        yield f'<feature name="{feature}">'
        if kind == REGISTER_FLOAT and any(each.bits == 64 for _, each in members):
            yield _DOUBLE
        for number, each in members:
            extra = ' group="csr"' if kind == REGISTER_CSR else ""
            name = quoteattr(each.name)
            yield f'<reg name={name} bitsize="{each.bits}" regnum="{number}" type="{_type(each)}"{extra}/>'
        yield "</feature>"
    yield "</target>"


def _type(register: RegisterDescription) -> str:
    if register.kind == REGISTER_FLOAT:
        return "riscv_double" if register.bits == 64 else "ieee_single"
    return _POINTERS.get(register.name, "int") if register.kind == REGISTER_GENERAL else "int"
