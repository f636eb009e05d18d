"""Registers as data: what is declared once is reset, saved, checked, loaded and shown."""

from __future__ import annotations

import pytest

from tests.cpu_harness import BASE, Cpu
from vmesh_services.cpu.core import saved
from vmesh_services.cpu.core.registers import Registers
from vmesh_services.cpu.engine import STATE_VERSION
from vmesh_services.cpu.isa.registers import Kind, registers_of
from vmesh_services.cpu.isa.riscv.csr import CSRS
from vmesh_services.cpu.isa.riscv.state import Hart

DECLARED = registers_of(Hart)
SCALARS = {name: register for name, register in DECLARED.items() if register.array is None}
FILES = {name: register for name, register in DECLARED.items() if register.array is not None}
#: Values that are neither what a reset gives nor what all registers can have: legal ones, another for each register.
LEGAL = {
    "fflags": 21, "frm": 4, "mstatus": 0xA0000_1880 | 1 << 63 | 3 << 13, "menvcfg": 0x50, "senvcfg": 0x10,
    "medeleg": 0x101, "mideleg": 0x20, "mie": 0x222, "mip": 0x202, "mcounteren": 5, "scounteren": 3,
    "mcountinhibit": 4, "satp": 8 << 60 | 77, "privilege": 1,
}  # fmt: skip


def legal(name: str) -> int:
    return LEGAL.get(name, 0x8000_0100 + 4 * list(SCALARS).index(name))


@pytest.fixture
def cpu() -> Cpu:
    return Cpu(count=2)


@pytest.mark.parametrize("name", SCALARS)
def test_a_register_is_forgotten_by_nobody(cpu: Cpu, name: str) -> None:
    """Reset gives it its value; it is shown; it is saved, unless it is constant, and is loaded again."""
    register, harts = SCALARS[name], cpu.harts
    harts.reset(BASE)
    hart = harts.hart[1]
    at_reset = register.reset_value(harts.features, 1)
    assert getattr(hart, name) == at_reset
    setattr(hart, name, legal(name))
    shown = {each.name: each.value for each in Registers(harts).all(1).registers}
    if register.kind is not Kind.STATE:
        assert shown[register.names[0] if register.names else name] == legal(name)
    before = saved.save(harts, 0)
    assert before.harts[1].values.get(name) == (legal(name) if register.saved else None)
    harts.reset(BASE)
    assert getattr(hart, name) == at_reset
    if register.saved:
        saved.check(harts, before)
        saved.load(harts, before)
        assert getattr(hart, name) == legal(name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_registers_is_forgotten_by_nobody(cpu: Cpu, name: str) -> None:
    harts, register = cpu.harts, FILES[name]
    harts.reset(BASE)
    values = getattr(harts.hart[1], name)
    for index in range(1, len(register.names) or len(values)):
        values[index] = 0x19 if name == "pmpcfg" else 100 + index
    kept = values[:]
    before = saved.save(harts, 0)
    if register.names:
        shown = {each.name: each.value for each in Registers(harts).all(1).registers}
        assert [shown[each] for each in register.names[1:]] == list(range(101, 100 + len(register.names)))
    harts.reset(BASE)
    assert not any(values[:])
    saved.check(harts, before)
    saved.load(harts, before)
    assert values[:] == kept


def test_every_declared_control_register_is_read_and_written_by_its_number() -> None:
    for name, register in DECLARED.items():
        if register.kind is Kind.CONTROL:
            assert CSRS[register.number].name == name


@pytest.mark.parametrize("version", range(1, STATE_VERSION))
def test_a_state_of_before_is_taken_and_what_it_lacks_is_as_after_a_reset(cpu: Cpu, version: int) -> None:
    cpu.harts.reset(BASE)
    state = saved.save(cpu.harts, 0)
    newer = [name for name, register in SCALARS.items() if register.since > version]
    assert newer
    for record in state.harts:
        for name in newer:
            del record.values[name]
    saved.upgrade(cpu.harts, state, version)
    saved.check(cpu.harts, state)
    assert all(state.harts[1].values[name] == SCALARS[name].reset_value(cpu.harts.features, 1) for name in newer)
