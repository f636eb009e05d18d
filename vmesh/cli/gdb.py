"""The -gdb flag: where a gdb can connect, in QEMU's words."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from pathlib import Path

DEFAULT = "tcp::1234"
USAGE = "tcp:[HOST]:PORT on this host's loopback, unix:PATH, or none"
#: What QEMU's users write behind it. A gdb server always listens, and never waits: -S does.
_FLAGS = frozenset({"server", "server=on", "nowait", "wait=off", "nodelay", "nodelay=on"})


def parse(text: str) -> str:
    """The endpoint for the monitor; empty for none. Raises ValueError."""
    if text == "none":
        return ""
    address, *flags = text.split(",")
    if wrong := [flag for flag in flags if flag not in _FLAGS]:
        raise ValueError(f"expected server=on or wait=off behind it, got '{wrong[0]}'")
    kind, _, where = address.partition(":")
    if kind == "unix" and where:
        return f"unix:{Path(where).absolute()}"
    host, _, port = where.rpartition(":")
    if kind != "tcp" or not (port.isascii() and port.isdecimal() and int(port) < 65536):
        raise ValueError(f"expected {USAGE}")
    host = host.strip("[]") or "127.0.0.1"
    if not _loopback(host):
        raise ValueError(f"expected an address of this host's loopback, got '{host}': a debugger may do anything")
    return f"tcp:{host}:{port}"


def _loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
