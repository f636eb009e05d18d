"""The address map: which guest physical addresses and interrupt lines belong to which device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vmesh import doorbell, errors
from vmesh.limits import MOST_LIVES
from vmesh.spaces import NAMES
from vmesh.v1.bus_pb2 import READ_SHADOW, SPACE_IO, SPACE_MEMORY, SPACE_PCI_CONFIG, Description, Region
from vmesh.wire import is_tcp
from vmesh_services.memory.layout import ADDRESS_LIMIT, Place, Range, check_disjoint

# Beyond what the fields themselves have as limits (bus.proto), over all of a device's regions.
_MAX_REGISTERS = 65536
_MAX_SHADOWS = 4096
_FARTHEST = 1 << 62  # the first address where no region that moves can be
#: The first address that a space has not.
_LIMITS = {SPACE_MEMORY: ADDRESS_LIMIT, SPACE_IO: 1 << 16, SPACE_PCI_CONFIG: 1 << 28}


class AddressMap:
    """What is attached. `fixed` are the ranges that no device can have: memory, and what the cpu answers itself.

    `places` says, by name, what has been promised of a device that comes from outside.
    """

    def __init__(self, fixed: Sequence[Range], places: Mapping[str, Place]) -> None:
        self._fixed = tuple(fixed)
        self._places = places
        self.devices: dict[str, Description] = {}
        self._due: dict[str, int] = {}  # the number of a life that is about to come

    def attach(self, device: Description, *, again: bool = False) -> None:
        """Put a device on the map, or in the place of its earlier epoch; `again`: the same life may come once more.

        Raises BadRequest, Overlap or Duplicate, also for a successor that is not the same to the guest; nothing was
        changed then.
        """
        _check(device)
        if device.name in self._places:
            _check_place(device, self._places[device.name])
        former = self.devices.get(device.name)
        if again and former == device:
            return
        least = self._due.get(device.name, former.epoch + 1 if former else 1)
        if former is not None and device.epoch < least:
            raise errors.Duplicate(
                f"device {device.name} is attached", expected=f"an epoch from {least} on", got=str(device.epoch)
            )
        lives = f"{least} to {least + MOST_LIVES}"
        _need(device, least <= device.epoch <= least + MOST_LIVES, "epoch", lives, str(device.epoch))
        if former is not None:
            _check_successor(former, device)
        others = [other for other in self.devices.values() if other.name != device.name]
        self._check_room(device, others)
        irqs = {line.irq: f"{other.name} {line.name}" for other in others for line in other.lines}
        for line in device.lines:
            if line.irq in irqs:
                raise errors.Duplicate(f"{device.name} {line.name}: interrupt {line.irq} is taken by {irqs[line.irq]}")
            irqs[line.irq] = f"{device.name} {line.name}"
        kept = Description()
        kept.CopyFrom(device)
        self.devices[device.name] = kept
        self._due.pop(device.name, None)

    def _check_room(self, device: Description, others: Sequence[Description]) -> None:
        """Raises Overlap. Regions that move may lie over each other, as BARs do while a guest places them, but over
        nothing else."""
        there = [(other, region) for other in others for region in other.regions]
        for region in device.regions:
            room = _room(device, region)
            taken = list(self._fixed) if region.space == SPACE_MEMORY else []
            taken += [
                _room(other, each)
                for other, each in there
                if each.space == region.space and not (_moves(each) and _moves(region))
            ]
            check_disjoint(room, taken)
            there.append((device, region))

    def expect(self, name: str, epoch: int) -> None:
        """Which life of a device comes next, says who starts it: an earlier one may have given itself any number."""
        self._due[name] = epoch

    def detach(self, name: str) -> None:
        self.devices.pop(name, None)
        self._due.pop(name, None)


def _moves(region: Region) -> bool:
    return region.aperture_size > 0


def _room(device: Description, region: Region) -> Range:
    """Where the region may ever be."""
    name = f"{device.name} {region.name}"
    if _moves(region):
        return Range(name, region.aperture_base, region.aperture_size)
    return Range(name, region.base, region.size)


def _check_successor(former: Description, device: Description) -> None:
    """Raises BadRequest unless the guest and the cpu find in `device` what they know of `former`."""
    _need(device, device.kind == former.kind, "kind of its next life", former.kind, repr(device.kind[:80]))
    for what, before, after in (("regions", former.regions, device.regions), ("lines", former.lines, device.lines)):
        _need(device, list(before) == list(after), what, "those of its former life", "others")
    _need(device, device.dma == former.dma, "dma of its next life", str(former.dma), str(device.dma))


def _check(device: Description) -> None:
    """Raises BadRequest for a description that no device can have."""
    _need(device, 0 < len(device.kind) <= 64, "kind", "1 to 64 characters", repr(device.kind[:80]))
    there = device.endpoint.startswith("ipc://") or (is_tcp(device.endpoint) and "*" not in device.endpoint)
    _need(device, there, "endpoint", "ipc://... or tcp://HOST:PORT", repr(device.endpoint[:80]))
    for fifo in filter(None, (device.doorbell, device.interrupts)):
        _need(device, doorbell.is_name(fifo), "name of a FIFO", doorbell.NAMES, repr(fifo[:80]))
    for line in device.lines:
        _need(device, line.irq >= 1, f"irq of {line.name}", "1 to 1023", str(line.irq))
    for region in device.regions:
        _check_region(device, region)
    registers = [register for region in device.regions for register in region.registers]
    count = sum(max(register.count, 1) for register in registers)
    _need(device, count <= _MAX_REGISTERS, "registers", f"at most {_MAX_REGISTERS}", str(count))
    shadows = sum(max(register.count, 1) for register in registers if register.read == READ_SHADOW)
    _need(device, shadows <= _MAX_SHADOWS, "registers of READ_SHADOW", f"at most {_MAX_SHADOWS}", str(shadows))


def _check_region(device: Description, region: Region) -> None:
    name = f"region {region.name}"
    limit = _LIMITS.get(region.space, 0)
    _need(device, bool(limit), name, f"a space, 0 to {max(_LIMITS)}", str(region.space))
    placed = region.size > 0 and region.base % 4 == 0 and region.base + region.size <= limit
    _need(device, placed, name, "a size, and a base that is a multiple of 4", f"{region.base:#x}+{region.size:#x}")
    if _moves(region):
        room, place = _room(device, region), Range(name, region.base, region.size)
        got = f"{place.base:#x}+{place.size:#x} of {room.base:#x}+{room.size:#x}"
        _need(device, room.end <= min(limit, _FARTHEST), f"aperture of {name}", "inside its space", got)
        _need(device, region.absent or room.contains(place), name, "a place in its aperture", got)
    else:
        _need(device, not region.absent, name, "an aperture, as it is absent", "none")
    _need(device, 1 <= region.access_sizes <= 15, name, "access sizes of 1, 2, 4, 8", str(region.access_sizes))
    for register in region.registers:
        length = register.size * max(register.count, 1)
        inside = register.size in (1, 2, 4, 8) and register.offset + length <= region.size
        got = f"{register.offset:#x}, {max(register.count, 1)} of {register.size} bytes"
        _need(device, inside, f"register {register.name} of {name}", "1, 2, 4 or 8 bytes inside the region", got)


def _check_place(device: Description, place: Place) -> None:
    """Raises BadRequest if the device is not what was promised: the guest would not find it."""
    _need(device, place.kind in ("", device.kind), "kind", place.kind, repr(device.kind[:80]))
    for region in device.regions:
        room = _room(device, region)
        inside = region.space == SPACE_MEMORY and place.range.contains(room)
        name = f"{'aperture of ' if _moves(region) else ''}region {region.name}"
        expected = f"memory inside {place.range.base:#x}+{place.range.size:#x}"
        _need(device, inside, name, expected, f"{NAMES[region.space]} {room.base:#x}+{room.size:#x}")
    for line in device.lines:
        _need(device, line.irq == place.irq, f"irq of {line.name}", str(place.irq or "no line"), str(line.irq))


def _need(device: Description, met: bool, what: str, expected: str, got: str) -> None:
    if not met:
        raise errors.BadRequest(f"{device.name}: {what}", expected=expected, got=got)
