"""A latch: what the device raises and the guest clears, kept by the cpu (bus.proto: READ_LATCH)."""

from __future__ import annotations

import pytest

from services.cpu.bus import Device
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

STATUS, ACK = 0x60, 0x64
KEY = (0, STATUS, 4)


class Cpu:
    """A device as the cpu knows it, and the level of its line."""

    def __init__(self, status: Register | None = None, latch: int = STATUS) -> None:
        self.level: bool | None = None
        registers = [
            status or Register(name="status", offset=STATUS, size=4, read=READ_LATCH, line=0),
            Register(name="ack", offset=ACK, size=4, write=WRITE_CLEARS, latch=latch),
        ]
        region = Region(name="r", base=0x1000, size=0x100, access_sizes=4, registers=registers)
        description = Description(name="d", epoch=1, regions=[region], lines=[Line(name="l", irq=7)])
        self.device = Device(0, description, self._set_level)

    def _set_level(self, irq: int, level: bool) -> None:
        assert irq == 7
        self.level = level

    def take(self, sequence: int, value: int, *, raised: bool, epoch: int = 1) -> None:
        shadow = ShadowValue(offset=STATUS, size=4, value=value, raised=raised)
        self.device.apply(DeviceUpdate(epoch=epoch, sequence=sequence, shadows=[shadow]))

    def clear(self, value: int) -> bool:
        return self.device.clear(0, ACK, 4, value)

    @property
    def value(self) -> int:
        return bytes(self.device.tables[0]._values)[STATUS]


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
    assert not cpu.device.clear(0, STATUS, 4, 1)
    assert not cpu.device.clear(0, ACK, 2, 1)
    assert not cpu.device.clear(1, ACK, 4, 1)
    assert cpu.level


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
