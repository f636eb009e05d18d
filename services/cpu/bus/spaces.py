"""Where harts find what devices have in spaces that are not memory (proto/vmesh/v1/bus.proto: Space)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmesh import spaces
from vmesh.v1 import bus_pb2 as messages

#: Those that windows lead to, as the command line says them: "io", "pci-config".
NAMES = {name: space for space, name in spaces.NAMES.items() if space}


@dataclass(frozen=True, slots=True)
class Spaces:
    """`windows` are the guest physical addresses behind which a space is, from its address 0 on, by space."""

    windows: Mapping[int, range] = field(default_factory=dict)

    def address(self, region: messages.Region, base: int) -> int | None:
        """The guest physical address of a region that is at `base` of its space; None: harts cannot reach it."""
        if region.space == messages.SPACE_MEMORY:
            return base
        window = self.windows.get(region.space, range(0))
        return window.start + base if base + region.size <= len(window) else None


NO_WINDOWS = Spaces()
