"""The core with another instruction set than the board's (``models.toy``): not a line of the core knows."""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from tests.models.tiers import BOTH, INTERPRET, MODES, EagerHarts
from tests.models.toy.definition import ISA
from tests.models.toy.instructions import INSTRUCTIONS, TOKENS
from tests.models.toy.registers import CALLED, EXTERNAL, ILLEGAL, INTERRUPT, SOFTWARE, TIMER
from vmesh import errors
from vmesh.v1 import cpu_pb2
from vmesh_services.cpu.controllers.virt import NATIVE, VirtControllers
from vmesh_services.cpu.core import saved
from vmesh_services.cpu.core.image import CoreImage, build_core
from vmesh_services.cpu.core.registers import Registers
from vmesh_services.cpu.core.state import ACCESS_DONE, ACCESS_FAILED, EXIT_ACCESS, EXIT_STOP
from vmesh_services.cpu.engine import HostSegment
from vmesh_services.cpu.isa.description import encode

BASE, SIZE, HANDLER, DATA = 0x10_0000, 1 << 16, 0x10_2000, 0x10_4000
ACLINT, PLIC, DEVICE = 0x200_0000, 0xC00_0000, 0x400_0000
MTIMECMP, MTIME = ACLINT + 0x4000, ACLINT + 0xBFF8
#: A program ends by a load from here.
END = 0x1_F000
_BY_NAME = {item.name: item for item in INSTRUCTIONS}


@cache
def core() -> CoreImage:
    return build_core(ISA, NATIVE)


class Toy:
    """One hart of the toy, with RAM, the board's interrupt controllers, and a device that is a list."""

    def __init__(self, mode: str) -> None:
        self.ram = mmap.mmap(-1, SIZE)
        host = ctypes.addressof(ctypes.c_char.from_buffer(self.ram))
        self.controllers = VirtControllers(ACLINT, PLIC)
        self.harts = EagerHarts(core(), ISA, self.controllers, 2, frozenset(ISA.features), [])
        self.harts._place_memory([HostSegment(BASE, SIZE, host)])
        self.harts.add_controllers()
        self.harts.add_region(DEVICE, 0x1000, 7, 0)
        self.harts.reset(BASE)
        if mode != INTERPRET:
            self.harts.be_eager(mixed=mode == BOTH)
        self.hart: Any = self.harts.hart[0]
        self.seen: list[tuple[int, bool, int]] = []

    def place(self, at: int, *program: tuple[Any, ...]) -> None:
        """Instructions by name and operands: ("addi", dict(rd=1, imm=2))."""
        words = [encode(_BY_NAME[name], TOKENS, operands) for name, operands in program]
        self.ram[at - BASE : at - BASE + 4 * len(words)] = struct.pack(f"<{len(words)}I", *words)
        self.harts.code_written(at, 4 * len(words))

    def run(self, answer: Callable[[int], int] = lambda offset: 0) -> None:
        """Until it loads from END."""
        while (reason := self.harts.run(0)) != EXIT_STOP:
            assert reason == EXIT_ACCESS
            hart = self.hart
            if hart.access_offset == END:
                hart.access_state = ACCESS_FAILED
                return
            assert hart.access_device == 7
            self.seen.append((hart.access_offset, bool(hart.access_write), hart.access_value))
            if not hart.access_write:
                hart.access_value = answer(hart.access_offset)
            hart.access_state = ACCESS_DONE


def value(register: int, number: int) -> list[tuple[str, dict[str, int]]]:
    """Instructions that put a number below 2^34 into a register."""
    return [
        ("li", {"rd": register, "imm": number >> 17}),
        ("li", {"rd": 7, "imm": 17}),
        ("shl", {"rd": register, "ra": register, "rb": 7}),
        ("li", {"rd": 7, "imm": number & 0x1FFFF}),
        ("or", {"rd": register, "ra": register, "rb": 7}),
    ]


FINISH = ("li", {"rd": 7, "imm": END}), ("ld8", {"rd": 7, "ra": 7})


@pytest.fixture(params=MODES)
def toy(request: pytest.FixtureRequest) -> Toy:
    return Toy(request.param)


def test_it_has_32_instructions() -> None:
    assert len(INSTRUCTIONS) == 32


def test_a_loop(toy: Toy) -> None:
    """1 + 2 + ... + 1000, kept in memory in four sizes."""
    toy.place(
        BASE,
        ("li", {"rd": 1, "imm": 1000}),
        ("add", {"rd": 2, "ra": 2, "rb": 1}),
        ("addi", {"rd": 1, "ra": 1, "imm": -1}),
        ("bne", {"ra": 1, "rb": 0, "imm": -8}),
        *value(3, DATA),
        ("st64", {"ra": 3, "rb": 2}),
        ("st32", {"ra": 3, "rb": 2, "imm": 8}),
        ("st16", {"ra": 3, "rb": 2, "imm": 12}),
        ("st8", {"ra": 3, "rb": 2, "imm": 14}),
        ("ld16", {"rd": 4, "ra": 3}),
        *FINISH,
    )
    toy.run()
    assert toy.hart.r[2] == 500500
    assert toy.hart.r[4] == 500500 & 0xFFFF
    found = toy.ram[DATA - BASE : DATA - BASE + 15]
    assert found == struct.pack("<QIHB", 500500, 500500, 500500 & 0xFFFF, 500500 & 0xFF)
    assert bool(toy.harts.installed) == bool(toy.harts.machine.eager)


def test_a_device(toy: Toy) -> None:
    """A load and a store of a device's registers."""
    toy.place(
        BASE,
        *value(1, DEVICE),
        ("ld32", {"rd": 2, "ra": 1, "imm": 4}),
        ("addi", {"rd": 2, "ra": 2, "imm": 1}),
        ("st32", {"ra": 1, "rb": 2, "imm": 8}),
        ("settle", {}),
        *FINISH,
    )
    toy.run(lambda offset: 41)
    assert toy.seen == [(4, False, 0), (8, True, 42)]


def test_a_timer_interrupt(toy: Toy) -> None:
    """The board's timer, which the toy waits for; its handler counts, and puts it off."""
    toy.place(
        BASE,
        *value(1, HANDLER),
        ("put", {"ra": 1, "imm": 2}),
        ("li", {"rd": 1, "imm": TIMER}),
        ("put", {"ra": 1, "imm": 3}),
        *value(1, MTIME),
        *value(2, MTIMECMP),
        ("ld64", {"rd": 3, "ra": 1}),
        ("addi", {"rd": 3, "ra": 3, "imm": 1000}),
        ("st64", {"ra": 2, "rb": 3}),
        ("wait", {}),
        ("switch", {"imm": 1}),
        *FINISH,
    )
    toy.place(
        HANDLER,
        ("addi", {"rd": 6, "ra": 6, "imm": 1}),
        ("get", {"rd": 5, "imm": 1}),
        ("li", {"rd": 4, "imm": -1}),
        ("st64", {"ra": 2, "rb": 4}),
        ("back", {}),
    )
    toy.run()
    assert (toy.hart.r[6], toy.hart.r[5]) == (1, INTERRUPT | TIMER)
    assert toy.harts.machine.counter_offset == 0
    assert toy.hart.count_interrupts == 1


def test_lines_of_the_other_controllers(toy: Toy) -> None:
    """A software interrupt by a message, and a source of the PLIC: they drive the bits that the ISA has named."""
    assert toy.harts.take_message(ACLINT, 1)
    assert toy.hart.lines == SOFTWARE
    toy.controllers.plic.priority[3], toy.controllers.plic.enable[0] = 1, 1 << 3
    toy.harts.set_level(3, True)
    assert toy.hart.lines == SOFTWARE | EXTERNAL
    toy.harts.set_level(3, False)


def test_traps(toy: Toy) -> None:
    toy.place(BASE, *value(1, HANDLER), ("put", {"ra": 1, "imm": 2}), ("trap", {"imm": 5}), ("illegal", {}))
    toy.place(
        HANDLER,
        ("get", {"rd": 2, "imm": 0}),
        ("addi", {"rd": 2, "ra": 2, "imm": 4}),
        ("put", {"ra": 2, "imm": 0}),
        ("add", {"rd": 4, "ra": 4, "rb": 5}),
        ("get", {"rd": 5, "imm": 1}),
        ("addi", {"rd": 6, "ra": 6, "imm": 1}),
        ("li", {"rd": 3, "imm": 2}),
        ("beq", {"ra": 6, "rb": 3, "imm": 8}),
        ("back", {}),
        *FINISH,
    )
    toy.run()
    assert (toy.hart.r[6], toy.hart.r[4], toy.hart.r[5]) == (2, CALLED, ILLEGAL)


def test_state_registers_and_reset_follow_from_the_declarations(toy: Toy) -> None:
    registers = Registers(toy.harts)
    names = [each.name for each in registers.describe().registers]
    assert names == [*(f"r{n}" for n in range(8)), "pc", "epc", "cause", "vector", "mask", "scratch"]
    for number, name in enumerate(names, 1):
        wanted = cpu_pb2.RegisterValue(name=name, value=8 + 4 * number if name != "mask" else 5)
        registers.write(cpu_pb2.WriteRegisters(hart=1, registers=[wanted]))
    before = saved.save(toy.harts, 0)
    saved.check(toy.harts, before)
    assert list(before.harts[1].files["r"].values) == [8 + 4 * number for number in range(1, 9)]
    shown = {each.name: each.value for each in registers.all(1).registers}
    assert shown["mask"] == 5
    assert shown["r7"] == 40
    toy.harts.reset(BASE)
    after = {each.name: each.value for each in registers.all(1).registers}
    assert set(after.values()) == {0, BASE}
    saved.load(toy.harts, before)
    assert saved.save(toy.harts, 0).harts == before.harts
    before.harts[0].values["mask"] = 16
    with pytest.raises(errors.BadState, match="mask"):
        saved.check(toy.harts, before)
