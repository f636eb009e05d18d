"""The -gdb flag: where a gdb can connect, in QEMU's words."""

from __future__ import annotations

from dataclasses import replace

from vmesh import endpoint
from vmesh.endpoint import Endpoint

DEFAULT = "tcp::1234"
USAGE = "tcp:[HOST]:PORT on this host's loopback, unix:PATH, or none"


def parse(text: str) -> Endpoint | None:
    """None for none. A gdb server always listens, and never waits: -S does. Raises ConfigError."""
    return None if text == "none" else replace(endpoint.parse(text), server=True, wait=False)
