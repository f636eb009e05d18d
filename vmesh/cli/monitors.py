"""`-qmp`, `-monitor`, `-mon`: where QMP and HMP are spoken, from the flag to an argument of the monitor process.

Source: QEMU's manual page. TCP is for this host alone: whoever reaches a monitor has the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

USAGE = "stdio, none, unix:PATH[,server=on][,wait=off] or tcp:127.0.0.1:PORT[,server=on][,wait=off]"
_LOOPBACK = ("", "localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Monitor:
    """`mode` is control (QMP), control-pretty or readline (HMP); `where` is `stdio`, `chardev:NAME` or an endpoint."""

    mode: str
    where: str


def parse_device(mode: str, text: str) -> Monitor | None:
    """What -qmp, -qmp-pretty and -monitor take; None for a monitor that nobody wants. Raises ValueError."""
    kind, _, rest = text.partition(":")
    match kind:
        case "none" | "null" if not rest:
            return None
        case "stdio" if not rest:
            return Monitor(mode, "stdio")
        case "chardev" if rest:
            return Monitor(mode, text)
        case "unix" if rest.split(",")[0]:
            path, *flags = rest.split(",")
            return Monitor(mode, ",".join([f"unix:{Path(path).absolute()}", *_flags(flags)]))
        case "tcp" if rest:
            address, *flags = rest.split(",")
            return Monitor(mode, ",".join([f"tcp:{_address(*_host_port(address))}", *_flags(flags)]))
    raise ValueError(f"expected {USAGE}")


def parse_mon(properties: Mapping[str, str]) -> Monitor:
    """What -mon takes. Raises ValueError."""
    if unknown := properties.keys() - {"chardev", "mode", "pretty", "id"}:
        raise ValueError(f"expected chardev=NAME[,mode=readline|control][,pretty=on|off], got '{min(unknown)}'")
    mode, pretty = properties.get("mode", "readline"), properties.get("pretty", "off")
    if mode not in ("readline", "control") or pretty not in ("on", "off"):
        raise ValueError("expected mode=readline or mode=control, pretty=on or pretty=off")
    if not properties.get("chardev"):
        raise ValueError("expected chardev=NAME of a -chardev")
    pretty_mode = "control-pretty" if mode == "control" and pretty == "on" else mode
    return Monitor(pretty_mode, f"chardev:{properties['chardev']}")


def tcp_target(host: str, port: str) -> str:
    """HOST:PORT of a TCP chardev. Raises ValueError."""
    return _address(host, port)


def _host_port(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    return host, port


def _address(host: str, port: str) -> str:
    host = host.strip("[]")
    if host not in _LOOPBACK:
        raise ValueError(f"expected an address of this host alone, such as 127.0.0.1, got '{host}'")
    if not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ValueError(f"expected a port of 0 to 65535, got '{port}'")
    host = host if host not in ("", "localhost") else "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _flags(flags: list[str]) -> list[str]:
    for flag in flags:
        if flag not in ("server", "server=on", "server=off", "wait", "wait=on", "wait=off", "nowait"):
            raise ValueError(f"expected server=on|off or wait=on|off, got '{flag}'")
    return flags
