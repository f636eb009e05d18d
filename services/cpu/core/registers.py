"""A hart's registers by name, as a debugger reads and writes them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from vmesh import errors
from vmesh.v1 import cpu_pb2

from ..isa.registers import Kind, Register, registers_of
from .harts import Harts
from .state import NOWHERE

_KINDS = {
    Kind.GENERAL: cpu_pb2.REGISTER_GENERAL,
    Kind.FLOAT: cpu_pb2.REGISTER_FLOAT,
    Kind.CONTROL: cpu_pb2.REGISTER_CSR,
    Kind.PRIVILEGE: cpu_pb2.REGISTER_PRIVILEGE,
}
_PRIVILEGE = cpu_pb2.REGISTER_PRIVILEGE
#: What a debugger calls pc, and its number among general registers, behind those of 32 that have their own.
PC, _PC_NUMBER = "pc", 32


@dataclass(frozen=True, slots=True)
class Access:
    """How a debugger reads and writes a register: by hart number, and value, which must be a legal one."""

    description: cpu_pb2.RegisterDescription
    read: Callable[[int], int]
    write: Callable[[int, int], None]
    legal: Container[int] | None = None


class Registers:
    """All registers of the harts by name, in the order of cpu.proto's kinds. For harts that are at the gate."""

    def __init__(self, harts: Harts) -> None:
        self._harts = harts
        self._by_name: dict[str, Access] = {}
        self._add_declared(Kind.GENERAL)
        self._add(PC, Kind.GENERAL, _PC_NUMBER, 64, self._pc, self._set_pc)
        self._add_declared(Kind.FLOAT)
        for control in harts.isa.controls:
            if not control.needs or control.needs in harts.features:
                read, write = partial(self._control, control.number), partial(self._set_control, control.number)
                self._add(control.name, Kind.CONTROL, control.number, 64, read, write)
        self._add_declared(Kind.PRIVILEGE)

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
        for access, value in found:
            if access.legal is not None and value not in access.legal:
                name = access.description.name
                raise errors.BadRequest(name, expected=_said(access.legal), got=str(value))
        for access, value in found:
            access.write(request.hart, value)

    def privilege(self, number: int) -> int:
        """What a hart runs in, which may run meanwhile; 0 where there are no privileges."""
        return next((each.read(number) for each in self._by_name.values() if each.description.kind == _PRIVILEGE), 0)

    def all(self, number: int) -> cpu_pb2.HartRegisters:
        """What ``info registers`` shows of a hart, which may run. Raises BadRequest for one that is not there."""
        hart = self._harts.record(number)
        answer = cpu_pb2.HartRegisters(hart=number)
        answer.registers.add(name=PC, value=hart.pc)
        for name, value in values_shown(registers_of(self._harts.isa.hart), hart):
            answer.registers.add(name=name, value=value)
        return answer

    def _add_declared(self, kind: Kind) -> None:
        for field, register in registers_of(self._harts.isa.hart).items():
            if register.kind is not kind or not (bits := register.bits(self._harts.features)):
                continue
            for index, name in enumerate(register.names or (field,)):
                number = register.number + index
                read: Callable[[int], int] = partial(self._element, field, index)
                write: Callable[[int, int], None] = partial(self._set_element, field, index)
                if register.array is None:
                    read, write = partial(self._field, field), partial(self._set_field, field)
                elif register.zero and not index:
                    read, write = self._zero, self._drop
                self._add(name, kind, number, bits, read, write, register.legal)

    def _add(
        self,
        name: str,
        kind: Kind,
        number: int,
        bits: int,
        read: Callable[[int], int],
        write: Callable[[int, int], None],
        legal: Container[int] | None = None,
    ) -> None:
        description = cpu_pb2.RegisterDescription(name=name, kind=_KINDS[kind], number=number, bits=bits)
        self._by_name[name] = Access(description, read, write, legal)

    def _find(self, name: str) -> Access:
        if name not in self._by_name:
            raise errors.BadRequest("register", expected="the name of a register", got=name[:80])
        return self._by_name[name]

    def _zero(self, hart: int) -> int:
        return 0

    def _drop(self, hart: int, value: int) -> None:
        pass

    def _element(self, field: str, index: int, hart: int) -> int:
        return int(getattr(self._harts.hart[hart], field)[index])

    def _set_element(self, field: str, index: int, hart: int, value: int) -> None:
        getattr(self._harts.hart[hart], field)[index] = value

    def _field(self, field: str, hart: int) -> int:
        return int(getattr(self._harts.hart[hart], field))

    def _set_field(self, field: str, hart: int, value: int) -> None:
        setattr(self._harts.hart[hart], field, value)

    def _pc(self, hart: int) -> int:
        return int(self._harts.hart[hart].pc)

    def _set_pc(self, hart: int, value: int) -> None:
        record = self._harts.hart[hart]
        record.pc, record.waiting, record.passing = value & -self._harts.instruction_alignment, 0, NOWHERE

    def _control(self, number: int, hart: int) -> int:
        return self._harts.read_control(hart, number)

    def _set_control(self, number: int, hart: int, value: int) -> None:
        self._harts.write_control(hart, number, value)


def values_shown(declared: dict[str, Register], hart: Any) -> Iterator[tuple[str, int]]:
    """Name and value of each declared register of a hart's record."""
    for field, register in declared.items():
        if register.array is not None:
            yield from zip(register.names, getattr(hart, field), strict=False)  # behind them, what takes writes to none
        elif register.kind is not Kind.STATE:
            value = getattr(hart, field) if register.shown is None else register.shown(hart)
            yield register.names[0] if register.names else field, value


def _said(legal: Container[int]) -> str:
    if isinstance(legal, tuple):
        *first, last = map(str, legal)
        return f"{', '.join(first)} or {last}"
    return "its values"
