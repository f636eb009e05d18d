"""`-device vmesh-external`: a device that is a program of the user's, from the flag to the processes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from vmesh.board import virt
from vmesh.board.external import External
from vmesh.board.parts import Range
from vmesh.qdev import names

DRIVER = "vmesh-external"
USAGE = (
    f"{DRIVER},id=NAME,base=ADDRESS[,irq=N][,size=BYTES][,kind=KIND][,compatible=TEXT][,command=TEXT][,wait=SECONDS]"
)

_PAGE = 4096


def parse(properties: Mapping[str, str]) -> External:
    """The device that the flag's properties describe. Raises ValueError."""
    known = {"id", "base", "size", "irq", "kind", "compatible", "command", "wait"}
    if unknown := [key for key in properties if key not in known]:
        raise ValueError(f"no property '{unknown[0]}'; expected {USAGE}")
    name, kind = properties.get("id", ""), properties.get("kind", "")
    if not names.is_name(name) or name in names.TAKEN:
        raise ValueError(f"expected {names.USAGE}, and none of {', '.join(names.TAKEN)}")
    if kind and (not names.is_name(kind) or kind in names.SERVICES):
        raise ValueError(f"expected kind=KIND, at most 31 letters, digits and ._-, got '{kind}'")
    if "base" not in properties:
        raise ValueError("expected base=ADDRESS, where the guest finds the device")
    base, size = _number(properties, "base", 0), _number(properties, "size", _PAGE)
    if base % 4 or not 0 < size <= 1 << 40 or base + size > 1 << 56:
        raise ValueError(f"expected a base that is a multiple of 4, and a size, below 2^56, got {base:#x}+{size:#x}")
    irq = _number(properties, "irq", 0)
    if irq >= virt.PLIC_SOURCES or ("irq" in properties and not irq):
        raise ValueError(f"expected an irq of 1 to {virt.PLIC_SOURCES - 1}, got {irq}")
    compatible = tuple(filter(None, properties.get("compatible", "").split(" ")))
    try:
        command = shlex.join(shlex.split(properties.get("command", "")))
        wait = float(properties.get("wait", "60"))
    except ValueError as error:
        raise ValueError(f"command= or wait= cannot be read: {error}") from None
    if not 0 < wait < 1e6:
        raise ValueError(f"expected wait=SECONDS above 0, got {wait:g}")
    return External(name, Range(base, size), irq, kind, compatible, command, wait)


def place(device: External) -> str:
    """What memory's --place takes: what the device has to say of itself when it attaches."""
    return f"{device.name}={device.kind}@{device.range.option}/{device.irq}"


def note(device: External, machine: Path) -> str:
    """For the user, who has to start it."""
    irq = f" --irq {device.irq}" if device.irq else ""
    arguments = f"--machine {machine} --name {device.name} --base {device.range.base:#x}{irq}"
    return f"waiting for the device {device.name}: start it with {arguments}"


def _number(properties: Mapping[str, str], key: str, default: int) -> int:
    text = properties.get(key, str(default))
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise ValueError(f"expected {key} to be a number such as 20 or 0x4000000, got '{text}'")
    return value
