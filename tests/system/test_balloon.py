"""Debian's driver of the balloon: what QMP asks for it does, and the host has the memory."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.conftest import BRIEF, PROMPT, Host, Terminal
from tests.waiting import wait_for
from vmesh.client import MachineClient
from vmesh.guest import Guest
from vmesh.machine import MachineDirectory

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]
RAM = 512 << 20
SMALL = 128 << 20
FLAGS = ("-name", "air", "-m", "512M", "-append", BRIEF, "-device", "virtio-balloon-device")
FILL = "dd if=/dev/urandom of=/tmp/fill bs=1M count=200 2>/dev/null; md5sum </tmp/fill; rm /tmp/fill"


class Door:
    """A QMP client that keeps the events it sees."""

    def __init__(self, host: Host) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(str(host.runtime / "air" / "qmp.sock"))
        self.lines = self.socket.makefile("rb")
        self.events: list[dict[str, Any]] = []
        json.loads(self.lines.readline())
        self.ask("qmp_capabilities")

    def ask(self, name: str, **arguments: object) -> Any:
        """What it returns, or its error."""
        self.socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode())
        while "event" in (said := json.loads(self.lines.readline())):
            self.events.append(said)
        return said["return"] if "return" in said else said["error"]

    def actual(self) -> int:
        found: int = self.ask("query-balloon")["actual"]
        return found


def held(host: Host) -> int:
    """Bytes of the host's memory that guest memory takes."""
    return (host.runtime / "air" / "ram.seg").stat().st_blocks * 512
