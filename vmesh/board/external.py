"""Devices that the user adds to the board: where they are, and that nothing else is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vmesh.board import virt
from vmesh.board.errors import BoardError


@dataclass(frozen=True, slots=True)
class External:
    """A device that is a program of its own. `region.irq` is 0 if it has no line.

    `kind` is what it has to say it is, empty: anything. With `compatible` strings it is in the device tree. `command`
    is what starts it; if empty the machine waits up to `wait_seconds` for somebody to do so.
    """

    name: str
    region: virt.Region
    kind: str = ""
    compatible: tuple[str, ...] = ()
    command: str = ""
    wait_seconds: float = 60.0


def check(devices: Sequence[External], ram_size: int) -> None:
    """Raises BoardError where a device lies over something else or has its interrupt line, naming both."""
    taken = list(_board(ram_size))
    for device in devices:
        region = device.region
        for name, other in taken:
            if region.base < other.end and other.base < region.end:
                place = f"{region.base:#x}+{region.size:#x} overlaps {name} at {other.base:#x}+{other.size:#x}"
                raise BoardError(f"-device vmesh-external,id={device.name}: {place}")
            if region.irq and region.irq == other.irq:
                raise BoardError(f"-device vmesh-external,id={device.name}: interrupt {region.irq} is {name}'s")
        taken.append((device.name, region))


def _board(ram_size: int) -> Iterator[tuple[str, virt.Region]]:
    yield "memory", virt.Region(virt.DRAM_BASE, ram_size)
    yield from virt.PARTS.items()
    for slot in range(virt.VIRTIO_SLOTS):
        yield f"virtio-mmio {slot}", virt.virtio(slot)
