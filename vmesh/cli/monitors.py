"""`-qmp`, `-monitor`, `-mon`: where QMP and HMP are spoken. Source: QEMU's manual page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmesh import endpoint
from vmesh.endpoint import Endpoint

USAGE = f"stdio, none, {endpoint.USAGE}"


@dataclass(frozen=True, slots=True)
class Monitor:
    """`mode` is control (QMP), control-pretty or readline (HMP). It is at `endpoint`, on the `chardev` of that name, or
    with neither on the launcher's terminal."""

    mode: str
    endpoint: Endpoint | None = None
    chardev: str = ""


def parse_device(mode: str, text: str) -> Monitor | None:
    """What -qmp, -qmp-pretty and -monitor take; None for a monitor that nobody wants.

    Raises ValueError or ConfigError.
    """
    kind, _, rest = text.partition(":")
    match kind:
        case "none" | "null" if not rest:
            return None
        case "stdio" if not rest:
            return Monitor(mode)
        case "chardev" if rest:
            return Monitor(mode, chardev=rest)
        case "unix" | "tcp" if rest:
            return Monitor(mode, endpoint.parse(text))
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
    return Monitor(pretty_mode, chardev=properties["chardev"])
