"""What the cpu knows of a device: its description, and its lines, shadows and places as it last said them."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vmesh import errors, limits
from vmesh.spaces import can_be_at
from vmesh.v1 import bus_pb2 as messages
from vmesh.v1 import common_pb2 as common

from .spaces import NO_WINDOWS, Spaces

#: Larger regions are reached by round trips only.
LARGEST_TABLE = 1 << 20
_LATCH_SIZE = 4
_MASK32 = (1 << 32) - 1
TIMED_MINOR = 1  # of the protocol, from which on records in FIFOs have guest time


class RegisterTable:
    """A region's register kinds and shadow values, one byte an offset, read by native code (``state.Region``)."""

    def __init__(self, region: messages.Region) -> None:
        self._shadow_kinds: set[tuple[int, int]] = set()
        size = region.size if region.size <= LARGEST_TABLE else 0
        self._kinds = (ctypes.c_uint8 * size)()
        self._values = (ctypes.c_uint8 * (size + 8))()
        if not size:
            return
        for register in region.registers:
            for index in range(register.count or 1):
                offset = register.offset + index * register.size
                if register.size not in (1, 2, 4, 8) or offset + register.size > size:
                    raise errors.BadRequest(
                        f"register {register.name} of {region.name}", expected=f"inside {size:#x} bytes"
                    )
                if register.write in (messages.WRITE_POSTED, messages.WRITE_DOORBELL):
                    self._kinds[offset] |= register.size
                if register.read == messages.READ_SHADOW:
                    self._shadow_kinds.add((offset, register.size))

    @property
    def kinds(self) -> int:
        return ctypes.addressof(self._kinds) if len(self._kinds) else 0

    @property
    def values(self) -> int:
        return ctypes.addressof(self._values)

    def kinds_of(self, offset: int) -> int:
        """As native code finds it there."""
        return self._kinds[offset] if offset < len(self._kinds) else 0

    def value(self, offset: int, size: int) -> int:
        """The shadow value of a register."""
        return int.from_bytes(bytes(self._values[offset : offset + size]), "little")

    def has(self, offset: int, size: int) -> bool:
        """Whether the description calls that a shadow."""
        return (offset, size) in self._shadow_kinds

    def set(self, offset: int, size: int, value: int | None) -> None:
        """Takes a shadow value, or withdraws it; what the description does not call a shadow is ignored."""
        if not self.has(offset, size):
            return
        if value is None:
            self._kinds[offset] &= ~(size << 4)
            return
        raw = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        self._values[offset : offset + size] = list(raw)
        self._kinds[offset] |= size << 4

    def withdraw(self) -> None:
        """No shadow is known any more; latches are the cpu's own."""
        for offset, size in self._shadow_kinds:
            self._kinds[offset] &= ~(size << 4)


class Lines(Protocol):
    """Where devices are put, drive their lines and latches, send messages, and move (`harts.Harts`).

    Regions are by the numbers of device and region; without a base they are nowhere. Kinds and shadow are the host
    addresses of a `RegisterTable`. ValueError is for what there is no more room for.
    """

    def add_region(
        self, base: int | None, size: int, device: int, index: int, kinds: int = 0, shadow: int = 0
    ) -> None: ...

    def remove_device(self, device: int) -> None: ...

    def set_level(self, source: int, level: bool) -> None: ...

    def take_message(self, address: int, data: int) -> bool: ...

    def move_region(self, device: int, index: int, base: int | None) -> None: ...

    def add_latch(self, device: int, index: int, offset: int, source: int, clears: tuple[int, int]) -> int: ...

    def latch_set(self, latch: int, sequence: int, value: int) -> None: ...

    def latch_raise(self, latch: int, sequence: int, bits: int) -> None: ...

    def latch_begin(self, latch: int) -> None: ...

    def listener_begin(self, listener: int, epoch: int) -> None: ...


class BusDevice:
    """A device on the bus: its description, and the lines and shadows as it last drove them.

    Updates come by the harts' links and by the irqchip's connection; each value keeps the sequence number that set it.
    Latches are the irqchip's. `epoch` is that of the life that the irqchip has met last: its connection is one pipe, so
    the last Welcome in it is of the last life, whatever number that says. Links that are of another connect anew. Its
    regions are on the board before it.
    """

    def __init__(
        self,
        number: int,
        description: messages.Description,
        irqchip: Lines,
        tables: list[RegisterTable],
        spaces: Spaces = NO_WINDOWS,
    ) -> None:
        """Raises BadRequest for registers that cannot be."""
        self.number = number
        self.description = description
        self.name = description.name
        self.tables = tables
        self.last_update = 0
        self.epoch = description.epoch
        self.timed = True  # guest time is in what goes through its FIFOs: since 1.1
        self.seen: Callable[[BusDevice, messages.DeviceUpdate], None] | None = None  # gets each update that is taken
        self.complain: Callable[[str, str], None] = lambda what, text: None
        self._irqchip, self._spaces = irqchip, spaces
        self._seen: dict[tuple[int | str, ...], int] = {}
        rows = _latches(description)
        self.latches = [
            irqchip.add_latch(number, row.region, row.offset, description.lines[row.line].irq, row.clears)
            for row in rows
        ]
        self._latch_at = {(row.region, row.offset): latch for row, latch in zip(rows, self.latches, strict=True)}
        self._latch_lines = {row.line for row in rows}
        self.doorbell = _doorbell(description)
        self.listener = -1  # its number at the irqchip, if the device may raise latches through a FIFO
        self._lock = threading.Lock()

    def begin(self, welcome: common.Welcome) -> None:
        """The device has said Welcome to the irqchip. Of another life the shadows are not known yet."""
        with self._lock:
            self.timed = welcome.minor >= TIMED_MINOR
            self._begin(welcome.epoch)

    def apply(self, update: messages.DeviceUpdate) -> None:
        """Takes what is newer than what is known: shadows first, so that a hart that takes the interrupt reads them."""
        with self._lock:
            if update.epoch != self.epoch:  # of a former life
                return
            if self.seen is not None:
                self.seen(self, update)
            sequence = update.sequence
            for shadow in sorted(update.shadows, key=self._is_latch):
                latch = self._latch_at.get((shadow.region, shadow.offset))
                if latch is not None:
                    change = self._irqchip.latch_raise if shadow.raised else self._irqchip.latch_set
                    change(latch, sequence, shadow.value & _MASK32)
                elif self._is_shadow(shadow) and self._newer((shadow.region, shadow.offset), sequence):
                    value = None if shadow.withdrawn else shadow.value
                    self.tables[shadow.region].set(shadow.offset, shadow.size, value)
            for place in update.places:
                if self._newer(("place", place.region), sequence):
                    self._move(place)
            for line in update.lines:
                if line.line in self._latch_lines:
                    continue
                if line.line < len(self.description.lines) and self._newer((line.line,), sequence):
                    self._irqchip.set_level(self.description.lines[line.line].irq, line.level)
            lost = [each for each in update.messages if not self._irqchip.take_message(each.address, each.data)]
            if lost:
                self.complain("a message to no interrupt controller", f"{len(lost)}, the first to {lost[0].address:#x}")
            self.last_update = max(self.last_update, sequence)

    def _move(self, place: messages.RegionPlace) -> None:
        regions = self.description.regions
        region = regions[place.region] if place.region < len(regions) else messages.Region()
        if not region.aperture_size or not (place.absent or can_be_at(region, place.base)):
            self.complain(limits.BROKEN, f"region {place.region} cannot be at {place.base:#x}")
            return
        base = None if place.absent else self._spaces.address(region, place.base)
        self._irqchip.move_region(self.number, place.region, base)

    def _is_latch(self, shadow: messages.ShadowValue) -> bool:
        return (shadow.region, shadow.offset) in self._latch_at

    def _is_shadow(self, value: messages.ShadowValue) -> bool:
        return value.region < len(self.tables) and self.tables[value.region].has(value.offset, value.size)

    def _begin(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch = epoch
            self._seen.clear()
            self.last_update = 0
            for latch in self.latches:
                self._irqchip.latch_begin(latch)
            if self.listener >= 0:
                self._irqchip.listener_begin(self.listener, epoch)
            for table in self.tables:
                table.withdraw()

    def _newer(self, key: tuple[int | str, ...], sequence: int) -> bool:
        if self._seen.get(key, 0) > sequence:
            return False
        self._seen[key] = sequence
        return True


@dataclass(frozen=True, slots=True)
class _LatchRow:
    """A latch of a description: `clears` is offset and size of the register that clears its bits (0 and 0: none)."""

    region: int
    offset: int
    line: int
    clears: tuple[int, int]


def _latches(description: messages.Description) -> list[_LatchRow]:
    """The latches in the order in which the description has them."""
    rows = []
    for number, region in enumerate(description.regions):
        clearing = {
            register.latch: register for register in region.registers if register.write == messages.WRITE_CLEARS
        }
        for register in region.registers:
            if register.read != messages.READ_LATCH:
                continue
            if register.size != _LATCH_SIZE or register.line >= len(description.lines) or region.size > LARGEST_TABLE:
                expected = f"{_LATCH_SIZE} bytes and a line"
                raise errors.BadRequest(f"latch {register.name} of {description.name}", expected=expected)
            clears = clearing.pop(register.offset, None)
            place = (0, 0) if clears is None else (clears.offset, clears.size)
            rows.append(_LatchRow(number, register.offset, register.line, place))
        for offset, register in clearing.items():
            name = f"register {register.name} of {description.name}"
            raise errors.BadRequest(name, expected="a latch", got=hex(offset))
    return rows


def _doorbell(description: messages.Description) -> tuple[int, int, int] | None:
    """Region, offset and size of the doorbell, if the device has one."""
    found = [
        (number, register.offset, register.size)
        for number, region in enumerate(description.regions)
        for register in region.registers
        if register.write == messages.WRITE_DOORBELL
        for _ in range(register.count or 1)
    ]
    if len(found) > 1:
        raise errors.BadRequest(f"doorbells of {description.name}", expected="at most one", got=str(len(found)))
    return found[0] if found else None


def cause(error: errors.PeerError) -> str:
    """What a complaint about a packet that could not be received is about."""
    return limits.BROKEN if isinstance(error, errors.OutsideLimits) else "nonsense"
