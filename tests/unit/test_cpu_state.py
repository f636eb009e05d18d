"""The harts' state as a message: what harts can come to is taken, anything else is refused or harmless."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cpu_harness import Cpu
from tests.models.tiers import BOTH, INTERPRET, TRANSLATE
from vmesh import errors
from vmesh.v1.cpu_pb2 import CpuState, RegisterValue, WriteRegisters
from vmesh_services.cpu.core import saved
from vmesh_services.cpu.core.registers import Registers
from vmesh_services.cpu.core.state import ACCESS_FAILED, EXIT_ACCESS, EXIT_STOP
from vmesh_services.cpu.isa.riscv.csr import CSRS
from vmesh_services.cpu.isa.riscv.encoding import encode
from vmesh_services.cpu.isa.riscv.features import FEATURES

U64 = (1 << 64) - 1
HARTS = 2
WITHOUT_C = tuple(name for name in FEATURES if name not in ("c", "sstc", "svadu", "sv57"))
words = st.one_of(
    st.integers(0, U64),
    st.integers(0, 8),
    st.integers(0, 63).map(lambda bit: 1 << bit),
    st.integers(0, 63).map(lambda bit: U64 ^ 1 << bit),
    st.integers(0, 1 << 12).map(lambda offset: 0x8000_0000 + offset),
)


@cache
def machine(features: tuple[str, ...] = FEATURES, mode: str = INTERPRET) -> Cpu:
    """Harts over RAM that is full of what looks at the loaded state."""
    cpu = Cpu(size=1 << 16, features=set(features), count=HARTS, mode=mode)
    jump = encode("jal", rd=0, imm=-16)
    program = [encode("mret"), encode("sret"), encode("wfi"), encode("lr.d", rd=5, rs1=6), encode("sd", rs1=6, rs2=7)]
    program += [encode("csrrw", rd=5, csr=0x300, rs1=6), encode("fadd.d", rd=1, rs1=2, rs2=3), jump]
    cpu.place(cpu.base, *program * (cpu.size // 4 // len(program)))
    return cpu


def fresh(cpu: Cpu) -> CpuState:
    cpu.harts.reset(cpu.base + 16)
    return saved.save(cpu.harts, 10**9)


def run_a_little(cpu: Cpu) -> None:
    """Hart 1, whose accesses to what is no memory fail."""
    hart = cpu.harts.hart[1]
    timer = threading.Timer(0.002, cpu.harts.stop)
    timer.start()
    while (reason := cpu.harts.run(1)) != EXIT_STOP:
        if reason == EXIT_ACCESS:
            hart.access_state = ACCESS_FAILED
    timer.join()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([FEATURES, WITHOUT_C]),
    st.lists(st.tuples(st.sampled_from(sorted(CSRS)), words), max_size=30),
    words,
)
def test_whatever_csrs_are_written_the_state_is_legal(
    features: tuple[str, ...], writes: list[tuple[int, int]], offset: int
) -> None:
    cpu = machine(features)
    fresh(cpu)
    for csr, value in writes:
        cpu.harts.write_control(1, csr, value)
    cpu.hart.pc, cpu.harts.machine.counter_offset = cpu.base + 8, offset
    before = saved.save(cpu.harts, 10**9)
    saved.check(cpu.harts, before)
    fresh(cpu)
    saved.load(cpu.harts, before)
    again = saved.save(cpu.harts, 10**9)
    again.time = before.time
    assert again == before


def _value(name: str, value: int) -> Callable[[CpuState], None]:
    def change(message: CpuState) -> None:
        message.harts[1].values[name] = value

    return change


def _element(field: str, index: int, value: int) -> Callable[[CpuState], None]:
    def change(message: CpuState) -> None:
        values: Any = getattr(message.harts[1] if hasattr(message.harts[1], field) else message.plic, field)
        if field == "pmpcfg":
            message.harts[1].pmpcfg = bytes(value if at == index else byte for at, byte in enumerate(values))
        else:
            values[index] = value

    return change


def _time(message: CpuState) -> None:
    message.time = (1 << 64) // 100


ILLEGAL = {
    **{f"{name} {value:#x}": _value(name, value) for name, value in (
        ("pc", 0x8000_0001), ("mepc", 0x8000_0001), ("sepc", U64), ("privilege", 2), ("privilege", 1 << 32),
        ("waiting", 2), ("retired", 1 << 62), ("software_interrupt", 2), ("fflags", 32), ("frm", 8),
        ("mstatus", 2 << 11), ("mstatus", 0), ("mstatus", 1 << 38), ("medeleg", 1 << 11), ("mideleg", 1 << 3),
        ("mie", 1), ("mip", 1 << 7), ("mtvec", 2), ("stvec", 0x8000_0003), ("mcounteren", 1 << 32),
        ("scounteren", 1 << 32), ("menvcfg", 1 << 8), ("menvcfg", 2 << 4), ("senvcfg", 1 << 63),
        ("satp", 1 << 60), ("satp", 11 << 60), ("no such register", 1),
    )},
    **{f"{name}{index} {value:#x}": _element(name, index, value) for name, index, value in (
        ("pmpaddr", 3, 1 << 54), ("pmpcfg", 2, 0x20), ("pmpcfg", 15, 0x02), ("priority", 5, 8), ("priority", 0, 1),
        ("level", 0, 1), ("pending", 0, 1), ("claimed", 0, 1), ("enable", 3, 1), ("threshold", 1, 8),
    )},
    "time": _time,
}  # fmt: skip


@pytest.mark.parametrize("change", ILLEGAL.values(), ids=ILLEGAL)
def test_what_no_hart_can_come_to_is_refused(change: Callable[[CpuState], None]) -> None:
    cpu = machine()
    message = fresh(cpu)
    saved.check(cpu.harts, message)
    change(message)
    with pytest.raises(errors.BadState, match=r"expected .*got "):
        saved.check(cpu.harts, message)


@pytest.mark.parametrize("name", ["pc", "mepc", "sepc"])
def test_without_compressed_instructions_addresses_of_code_are_multiples_of_four(name: str) -> None:
    cpu = machine(WITHOUT_C)
    message = fresh(cpu)
    message.harts[0].values[name] = 0x8000_0004
    saved.check(cpu.harts, message)
    message.harts[0].values[name] = 0x8000_0002
    with pytest.raises(errors.BadState, match=name):
        saved.check(cpu.harts, message)


@st.composite
def changes(draw: st.DrawFn) -> list[Callable[[CpuState], None]]:
    """A few changes of a good state."""
    element = st.one_of(
        st.tuples(st.sampled_from(["x", "f"]), st.integers(0, 31), words),
        st.tuples(st.just("pmpaddr"), st.integers(0, 15), words),
        st.tuples(st.just("pmpcfg"), st.integers(0, 15), st.integers(0, 255)),
        st.tuples(
            st.sampled_from(["priority", "level", "pending", "claimed", "enable", "threshold"]),
            st.integers(0, 2),
            st.one_of(st.integers(0, 7), st.integers(0, (1 << 32) - 1)),
        ),
    ).map(lambda each: _element(*each))
    scalar = st.tuples(st.sampled_from(sorted(fresh(machine()).harts[0].values)), words)
    return draw(st.lists(st.one_of(element, scalar.map(lambda each: _value(*each))), min_size=1, max_size=5))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([INTERPRET, TRANSLATE, BOTH]), st.sampled_from([FEATURES, WITHOUT_C]), changes())
def test_any_message_is_refused_or_runs(
    mode: str, features: tuple[str, ...], changed: list[Callable[[CpuState], None]]
) -> None:
    cpu = machine(features, mode)
    message = fresh(cpu)
    for change in changed:
        change(message)
    try:
        saved.check(cpu.harts, message)
    except errors.BadState:
        return
    saved.load(cpu.harts, message)
    run_a_little(cpu)
    saved.check(cpu.harts, saved.save(cpu.harts, 10**9))


@settings(max_examples=40)
@given(st.sampled_from([FEATURES, WITHOUT_C]), st.data())
def test_whatever_a_debugger_writes_the_state_is_legal(features: tuple[str, ...], data: st.DataObject) -> None:
    cpu = machine(features)
    fresh(cpu)
    registers = Registers(cpu.harts)
    names = [each.name for each in registers.describe().registers]
    written = data.draw(st.lists(st.tuples(st.sampled_from(["pc", "priv", *names]), words), max_size=8))
    wanted = WriteRegisters(hart=1, registers=[RegisterValue(name=name, value=value) for name, value in written])
    with suppress(errors.BadRequest):  # no privilege of that number
        registers.write(wanted)
    saved.check(cpu.harts, saved.save(cpu.harts, 10**9))
    run_a_little(cpu)
