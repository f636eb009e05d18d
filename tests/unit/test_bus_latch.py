"""A latch: what the device raises and the guest clears, kept by the cpu (bus.proto: READ_LATCH)."""

from __future__ import annotations

import pytest

from tests.models.guest import CODE, put, virt
from vmesh import errors
from vmesh.device import Wires
from vmesh.v1.bus_pb2 import (
    READ_LATCH,
    WRITE_CLEARS,
    Description,
    DeviceUpdate,
    Line,
    LineLevel,
    Region,
    Register,
    ShadowValue,
)
from vmesh.v1.common_pb2 import Welcome
from vmesh_services.cpu.bus.device import BusDevice, RegisterTable

STATUS, ACK = 0x60, 0x64
KEY = (0, STATUS, 4)


BASE, IRQ = 0x1000_1000, 7


class Cpu:
    """A device as the cpu knows it, its line, and a hart that writes to it."""

    def __init__(self, status: Register | None = None, latch: int = STATUS) -> None:
        self._cpu = virt(1)
        self._cpu.reset()
        put(self._cpu, "sw a1, 0(a0)\n .word END\n sh a1, 0(a0)\n .word END\n lw a1, 0(a0)\n .word END")
        registers = [
            status or Register(name="status", offset=STATUS, size=4, read=READ_LATCH, line=0),
            Register(name="ack", offset=ACK, size=4, write=WRITE_CLEARS, latch=latch),
        ]
        region = Region(name="r", base=BASE, size=0x100, access_sizes=6, registers=registers)
        description = Description(name="d", epoch=1, regions=[region], lines=[Line(name="l", irq=IRQ)])
        table = RegisterTable(region)
        harts = self._cpu.harts
        harts.add_region(BASE, 0x100, 0, 0, table.kinds, table.values)
        self.device = BusDevice(0, description, harts, [table])

    def take(self, sequence: int, value: int, *, raised: bool, epoch: int = 1) -> None:
        shadow = ShadowValue(offset=STATUS, size=4, value=value, raised=raised)
        self.device.apply(DeviceUpdate(epoch=epoch, sequence=sequence, shadows=[shadow]))

    def run(self, place: int, offset: int, value: int = 0) -> bool:
        """An access of the hart; whether the cpu dealt with it by itself."""
        self._cpu.set(CODE + place, {10: BASE + offset, 11: value})
        return self._cpu.run().why == "end"

    def clear(self, value: int) -> bool:
        return self.run(0, ACK, value)

    @property
    def level(self) -> bool:
        return bool(self._cpu.controllers.plic.level[0] >> IRQ & 1)

    @property
    def value(self) -> int:
        assert self.run(16, STATUS)
        return int(self._cpu.hart.x[11])


def test_the_line_is_high_until_all_is_cleared() -> None:
    cpu = Cpu()
    cpu.take(1, 0, raised=False)
    assert (cpu.value, cpu.level) == (0, False)
    cpu.take(2, 1, raised=True)
    cpu.take(3, 2, raised=True)
    assert (cpu.value, cpu.level) == (3, True)
    assert cpu.clear(1)
    assert (cpu.value, cpu.level) == (2, True)
    assert cpu.clear(2)
    assert (cpu.value, cpu.level) == (0, False)
    cpu.take(4, 1, raised=True)
    assert (cpu.value, cpu.level) == (1, True)


def test_other_registers_clear_nothing() -> None:
    cpu = Cpu()
    cpu.take(1, 1, raised=True)
    assert not cpu.run(0, STATUS, 1)
    assert not cpu.run(8, ACK, 1)
    assert not cpu.run(0, ACK + 4, 1)
    assert (cpu.value, cpu.level) == (1, True)


def test_what_was_raised_before_a_reset_comes_too_late_after_it() -> None:
    cpu = Cpu()
    cpu.take(5, 0, raised=False)
    cpu.take(4, 1, raised=True)
    assert not cpu.level
    cpu.take(7, 1, raised=True)
    cpu.take(6, 2, raised=True)  # two ways may overtake each other
    assert cpu.value == 3


def test_a_successor_adds_to_what_the_guest_has_not_cleared() -> None:
    cpu = Cpu()
    cpu.take(9, 2, raised=True)
    cpu.device.begin(Welcome(epoch=2))
    cpu.take(1, 1, raised=True, epoch=2)
    assert cpu.value == 3
    cpu.take(10, 1, raised=True)  # of the life before
    assert cpu.clear(3)
    cpu.take(11, 1, raised=True)
    assert not cpu.level


def test_the_device_has_no_say_about_the_line() -> None:
    cpu = Cpu()
    cpu.take(1, 1, raised=True)
    cpu.device.apply(DeviceUpdate(epoch=1, sequence=2, lines=[LineLevel(line=0, level=False)]))
    assert cpu.level


def test_descriptions_that_cannot_be() -> None:
    with pytest.raises(errors.BadRequest, match="4 bytes and a line"):
        Cpu(Register(name="status", offset=STATUS, size=4, read=READ_LATCH, line=1))
    with pytest.raises(errors.BadRequest, match="4 bytes and a line"):
        Cpu(Register(name="status", offset=STATUS, size=2, read=READ_LATCH))
    with pytest.raises(errors.BadRequest, match="expected a latch"):
        Cpu(latch=0x40)


def said(wires: Wires, *, everything: bool = False) -> list[tuple[int, bool]]:
    update = DeviceUpdate()
    wires.fill(update, everything=everything)
    return [(each.value, each.raised) for each in update.shadows]


def test_wires_say_each_raise_once() -> None:
    wires = Wires()
    wires.clear_latch(*KEY)
    assert said(wires) == [(0, False)]
    assert not wires.changed
    wires.raise_latch(*KEY, 1)
    wires.raise_latch(*KEY, 2)
    assert said(wires) == [(3, True)]
    wires.raise_latch(*KEY, 1)
    assert wires.changed
    assert said(wires) == [(1, True)]
    assert said(wires, everything=True) == [(3, True)]
    wires.raise_latch(*KEY, 2)
    wires.clear_latch(*KEY)
    wires.raise_latch(*KEY, 1)
    assert said(wires) == [(1, False)]


def test_wires_say_again_what_reached_nobody() -> None:
    wires = Wires()
    wires.clear_latch(*KEY)
    wires.raise_latch(*KEY, 1)
    update = DeviceUpdate()
    wires.fill(update)
    wires.put_back(update)
    assert said(wires) == [(1, False)]
    wires.raise_latch(*KEY, 1)
    update = DeviceUpdate()
    wires.fill(update)
    wires.raise_latch(*KEY, 2)
    wires.put_back(update)
    assert said(wires) == [(3, True)]
