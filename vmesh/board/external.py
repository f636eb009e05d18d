"""Devices that the user adds to the board: programs of their own."""

from __future__ import annotations

from dataclasses import dataclass

from vmesh.board import virt
from vmesh.board.parts import Node, Part, Range


@dataclass(frozen=True, slots=True)
class External:
    """A device that is a program of its own. `irq` is 0 if it has no wire.

    `kind` is what it has to say it is, empty: anything. With `compatible` strings it is in the device tree. `command`
    is what starts it; if empty the machine waits up to `wait_seconds` for somebody to do so.
    """

    name: str
    range: Range
    irq: int = 0
    kind: str = ""
    compatible: tuple[str, ...] = ()
    command: str = ""
    wait_seconds: float = 60.0

    @property
    def part(self) -> Part:
        """What it is on the board."""
        started = ("--command", self.command) if self.command else ("--wait", f"{self.wait_seconds:g}")
        node = Node(self.kind or self.name, self.compatible) if self.compatible else None
        wire = virt.wire(self.irq) if self.irq else None
        return Part(
            self.name,
            self.kind or "external",
            self.range,
            wire,
            node=node,
            module="vmesh_services.external",
            arguments=started,
        )
