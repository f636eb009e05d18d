"""Names that users give to parts of a machine; with them go processes, files and nodes of the device tree."""

from __future__ import annotations

import re

#: The machine's own services.
SERVICES = ("monitor", "gateway", "memory", "cache", "cpu", "migration", "keeper")
#: What a device cannot be called: the machine's own services, and files in its directory.
TAKEN = (*SERVICES, "qmp", "hmp", "terminal-monitor", "handover", "machine", "services", "ram", "rom")
USAGE = "id=NAME, at most 31 letters, digits and ._-"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,30}")  # also that of a node: Devicetree Specification 0.4, 2.2.1


def said(text: str) -> str:
    """What somebody gave for a name, in a message."""
    return f"'{text}'" if text else "none"


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None
