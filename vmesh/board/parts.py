"""What a machine is made of, as data: its parts, where the guest finds them, and who carries them.

A board is a module that lists parts (virt.py is QEMU's). All else follows from the list: command lines, the device
tree, what memory keeps free, the addresses of the interrupt controllers, names that are taken, hot plug.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmesh.board.errors import BoardError

if TYPE_CHECKING:
    from vmesh.board.cpu_model import CpuModel  # what it imports no device needs, and all know the board


class Space(enum.Enum):
    """Where an address is (proto/vmesh/v1/bus.proto: Space), as command lines say it."""

    MEMORY = "memory"
    IO = "io"
    PCI_CONFIG = "pci-config"


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses of a space, from `base` on; `size` in bytes."""

    base: int
    size: int
    space: Space = Space.MEMORY

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.base + self.size

    def overlaps(self, other: Range) -> bool:
        return self.space is other.space and self.base < other.end and other.base < self.end

    @property
    def option(self) -> str:
        """As command lines of services have it."""
        return f"{self.base:#x}:{self.size:#x}"

    def __str__(self) -> str:
        return f"{self.base:#x}+{self.size:#x}"


@dataclass(frozen=True, slots=True)
class Wire:
    """An input of an interrupt controller, which is a part too."""

    controller: str
    number: int


class Carrier(enum.Enum):
    """Who answers for a part."""

    SERVICE = "a service of its own, of the part's name"
    CPU = "the cpu service"
    MEMORY = "the memory service"
    NOBODY = "nobody: a bus with room for one device, and while there is none the cpu says so"


@dataclass(frozen=True, slots=True)
class EachHart:
    """The value of a property: these interrupts of each hart's local interrupt controller."""

    interrupts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A part in the device tree, whose `reg` and `interrupts` are the part's. A number is a cell, b"" a flag."""

    name: str
    compatible: tuple[str, ...]
    properties: tuple[tuple[str, int | bytes | EachHart], ...] = ()
    referred_to: bool = False  # by other nodes: it has a phandle
    in_soc: bool = True  # below /soc, else below the root


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a machine.

    `kind` is what a service says it is, or what the cpu or memory take it for. A service is `module`, of
    vmesh_services.devices if it is not said, with `arguments` besides those that say who and where it is. A device on
    a `bus` is where the part of that name is, which is in the device tree in its stead.
    """

    name: str
    kind: str
    range: Range
    interrupt: Wire | None = None
    carrier: Carrier = Carrier.SERVICE
    node: Node | None = None
    module: str = ""
    arguments: tuple[str, ...] = ()
    bus: str = ""
    window: Space = Space.MEMORY  # another one: what is behind the part's range is that space, from its address 0 on

    @property
    def irq(self) -> int:
        """The number of its wire; 0: it has none."""
        return self.interrupt.number if self.interrupt else 0


@dataclass(frozen=True, slots=True)
class Board:
    """A machine before anything starts.

    `console` and `power` name the parts that the guest is told to use as such.
    """

    parts: tuple[Part, ...]
    harts: int
    cpu: CpuModel
    console: str
    power: str
    timebase_hz: int  # ticks of guest time in a second
    sources: int  # inputs of the interrupt controller, 0 among them

    @property
    def ram(self) -> Range:
        return self.of_kind("ram").range

    @property
    def rom(self) -> Range:
        return self.of_kind("rom").range

    def __getitem__(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)

    def carried_by(self, carrier: Carrier) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.carrier is carrier)

    def of_kind(self, kind: str) -> Part:
        """The one part of that kind; services do not count, whose programs may say that they are of any."""
        (found,) = (part for part in self.parts if part.kind == kind and part.carrier is not Carrier.SERVICE)
        return found

    def with_devices(self, *devices: Part) -> Board:
        """The board with these. Raises BoardError where one lies over another part or has its interrupt or name."""
        parts = list(self.parts)
        for device in devices:
            for other in parts:
                if device.name == other.name and other.carrier is Carrier.SERVICE:
                    raise BoardError(f"-device id={device.name}: expected each id once, and none that the board has")
                if other.name == device.bus:
                    continue
                if device.range.overlaps(other.range):
                    place = f"{device.range} overlaps {other.name} at {other.range}"
                    raise BoardError(f"-device id={device.name}: {place}")
                if device.interrupt and device.interrupt == other.interrupt:
                    raise BoardError(f"-device id={device.name}: interrupt {device.irq} is {other.name}'s")
            parts.append(device)
        return replace(self, parts=tuple(parts))
