"""A device for a machine that runs: from QEMU's words to the process, among those that are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from vmesh import properties
from vmesh.board import commands, virt
from vmesh.errors import said
from vmesh.qdev import net, virtio
from vmesh.qdev.added import Added, follow
from vmesh.spawn import ServiceCommand

_SLOTS = {bus.range.base: slot for slot, bus in enumerate(virt.TRANSPORTS)}
_PATHS = ("file", "path", "addr.path")


def service(
    device: str,
    drives: Sequence[str],
    netdevs: Sequence[str],
    fsdevs: Sequence[str],
    machine: Path,
    there: Sequence[ServiceCommand],
) -> ServiceCommand:
    """The process of the device that -device TEXT asks for, in the machine directory `machine`; the other texts are
    those behind -drive, -netdev and -fsdev. `there` are the machine's processes. Raises ValueError and
    properties.HelpRequested."""
    if properties.split(device)[0] in (virtio.SERIAL, virtio.CONSOLE):
        raise ValueError("a console cannot be added to a machine that runs: expected another device")
    asked = Added()
    for flag, texts in (("-drive", drives), ("-netdev", netdevs), ("-fsdev", fsdevs), ("-device", (device,))):
        for text in texts:
            asked = follow(asked, flag, text)
    try:
        command = _external(asked, machine) if asked.external else _virtio(asked, machine, there)
    except OSError as error:  # of a file that it names
        raise ValueError(f"-device {device}: {said(error)}") from error
    if command.name in {each.name for each in there}:
        raise ValueError(f"id={command.name}: expected an id that no device has")
    return command


def absolute(text: str) -> str:
    """The same text with paths that no longer depend on where it was written."""
    return properties.join(map(_absolute, properties.split(text)))


def place(command: ServiceCommand) -> tuple[int, int]:
    """Where the guest finds a device: address and interrupt (0: it has none)."""
    return int(_value(command, "--base") or "0", 0), int(_value(command, "--irq") or "0", 0)


def _absolute(part: str) -> str:
    key, equals, value = part.partition("=")
    if not equals or key not in _PATHS or value.startswith("nbd"):
        return part
    return f"{key}={Path(value).absolute()}"


def _external(asked: Added, machine: Path) -> ServiceCommand:
    asked.parts()  # which refuses what no device uses
    (device,) = asked.external
    if not device.command:
        raise ValueError("expected command=TEXT: a machine that runs does not wait for a device started by hand")
    return commands.device(device.part, machine)


def _virtio(asked: Added, machine: Path, there: Sequence[ServiceCommand]) -> ServiceCommand:
    cards = sum(each.kind == virtio.DRIVERS[net.DRIVER].kind for each in there)
    made = asked.parts(dict(_occupied(there)), cards)
    if len(made) != 1:
        raise ValueError("-drive: expected an id= that the device names, and no if=virtio")
    (part,) = made.values()
    if part.kind == virtio.DRIVERS[virtio.BALLOON].kind and any(each.kind == part.kind for each in there):
        raise ValueError("the machine has a balloon: expected another device")
    return commands.device(part, machine)


def _occupied(there: Sequence[ServiceCommand]) -> Iterator[tuple[int, str]]:
    for command in there:
        base, _ = place(command)
        if base in _SLOTS:
            yield _SLOTS[base], command.name


def _value(command: ServiceCommand, option: str) -> str | None:
    """Of the first option of that name."""
    words = command.arguments
    return next((value for word, value in pairwise(words) if word == option), None)
