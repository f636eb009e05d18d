"""From parts to command lines: what services are told of where things are."""

from __future__ import annotations

from pathlib import Path

from vmesh.board.parts import Board, Carrier, Part, Space
from vmesh.spawn import ServiceCommand


def device(part: Part, machine: Path, *more: str) -> ServiceCommand:
    """The service that is this part, in the machine directory `machine`, with `more` arguments."""
    arguments = ["--machine", str(machine), "--name", part.name, "--base", f"{part.range.base:#x}"]
    if part.irq:
        arguments += ["--irq", str(part.irq)]
    module = part.module or f"vmesh_services.devices.{part.kind.replace('-', '_')}"
    return ServiceCommand(part.name, part.kind, module, (*arguments, *part.arguments, *more))


def memory(board: Board) -> list[str]:
    """What memory is told of the address map: its own parts, and what it has to keep free for the cpu's."""
    words = ["--ram", str(board.ram.size), "--ram-base", f"{board.ram.base:#x}", "--rom", board.rom.option]
    for part in board.carried_by(Carrier.CPU):
        words += ["--reserve", f"{part.name}={part.range.option}"]
    return words


def cpu(board: Board) -> list[str]:
    """What the cpu is told of its own parts, and of transports where a device may come."""
    words: list[str] = []
    for part in board.carried_by(Carrier.CPU):
        if part.window is Space.MEMORY:
            words += [f"--{part.kind}", f"{part.range.base:#x}"]
        else:
            words += ["--window", f"{part.window.value}={part.range.option}"]
    words += ["--timebase", str(board.timebase_hz), "--sources", str(board.sources)]
    if buses := board.carried_by(Carrier.NOBODY):
        words += ["--transports", ",".join(f"{bus.range.base:#x}" for bus in buses)]
    return words
