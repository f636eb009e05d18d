"""Flags that change more than one option, or add to what others have said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vmesh import properties
from vmesh.board import virt
from vmesh.cli import monitors
from vmesh.cli.flags import values
from vmesh.cli.flags.options import RunOptions

_OFF = ("off", "no", "false", "n")
_AS_IT_IS: Mapping[str, Sequence[str]] = {  # properties of QEMU's board that ask for what this one has
    "aclint": _OFF,
    "aia": ("none",),
    "acpi": _OFF,
    "usb": _OFF,
    "graphics": _OFF,
    "mem-merge": ("on", "off"),
    "dump-guest-core": ("on", "off"),
}
_ACTIONS: Mapping[str, tuple[str, ...]] = {
    "reboot": ("reset", "shutdown"),
    "shutdown": ("poweroff", "pause"),
    "device-failure": ("pause", "exit-failure"),
}
_NEVER: Mapping[str, Sequence[str]] = {  # what this board, as QEMU's, has no device to tell of
    "panic": ("none", "pause", "shutdown", "exit-failure"),
    "watchdog": ("reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"),
}


def machine(options: RunOptions, text: str) -> RunOptions:
    if text == "help":
        raise properties.HelpRequested("virt                 RISC-V VirtIO board (default)")
    for key, value in properties.parse(text, "type").items():
        match key:
            case "type" if value != "virt":
                raise ValueError("expected virt, the only board there is")
            case "type":
                pass
            case "dumpdtb":
                options = replace(options, dumpdtb=values.path(value))
            case "accel":
                options = accel(options, value)
            case _ if value in _AS_IT_IS.get(key, ()):
                pass
            case _:
                raise ValueError(f"expected virt[,dumpdtb=FILE], got '{key}'")
    return options


def accel(options: RunOptions, text: str) -> RunOptions:
    if text == "help":
        raise properties.HelpRequested("Accelerators supported:\ntcg (vmesh's own interpreter and translator)")
    for key, value in properties.parse(text, "accel").items():
        if key == "accel" and value != "tcg":
            raise ValueError("expected tcg: harts are emulated, never virtualised")
        if key == "translate":
            options = replace(options, translate=values.on_off(key, value))
        elif key == "cache":
            options = replace(options, cache=values.on_off(key, value))
        elif key not in ("accel", "thread", "tb-size", "one-insn-per-tb", "split-wx"):
            raise ValueError(f"expected tcg[,translate=on|off][,cache=on|off], got the property '{key}'")
    return options


def monitor(options: RunOptions, text: str) -> RunOptions:
    if text in ("none", "stdio"):
        return replace(options, monitor=text)
    return replace(_add_monitor(options, monitors.parse_device("readline", text)), monitor="none")


def qmp(options: RunOptions, text: str) -> RunOptions:
    return _add_monitor(options, monitors.parse_device("control", text))


def qmp_pretty(options: RunOptions, text: str) -> RunOptions:
    return _add_monitor(options, monitors.parse_device("control-pretty", text))


def mon(options: RunOptions, text: str) -> RunOptions:
    return _add_monitor(options, monitors.parse_mon(properties.parse(text, "chardev")))


def _add_monitor(options: RunOptions, monitor: monitors.Monitor | None) -> RunOptions:
    return options if monitor is None else replace(options, monitor_devices=(*options.monitor_devices, monitor))


def action(options: RunOptions, text: str) -> RunOptions:
    chosen: dict[str, str] = {}
    for part in text.split(","):
        event, _, action = part.partition("=")
        if action in _NEVER.get(event, ()):
            continue
        if action not in _ACTIONS.get(event, ()):
            wanted = ", ".join(f"{name}={'|'.join(actions)}" for name, actions in _ACTIONS.items())
            raise ValueError(f"expected {wanted}; got '{part}'")
        chosen[event.replace("device-failure", "failure")] = action
    return replace(options, actions={**options.actions, **chosen})


def chardev(options: RunOptions, text: str) -> RunOptions:
    return replace(options, chardevs=(*options.chardevs, values.chardev(text)))


def fw_cfg(options: RunOptions, text: str) -> RunOptions:
    item, others = values.firmware_item(text), options.firmware_items
    if any(item.name == other.name for other in others):
        raise ValueError(f"expected each name once, '{item.name}' has an item")
    if len(others) == (most := virt.FW_CFG_MOST - len(virt.FW_CFG_FILES)):
        raise ValueError(f"expected at most {most} items")
    return replace(options, firmware_items=(*others, item))


def log_items(options: RunOptions, text: str) -> RunOptions:
    return replace(options, log_items=options.log_items | values.log_items(text))
