"""What tests without processes share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from vmesh import machine
from vmesh.machine import MachineDirectory


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[MachineDirectory]:
    """A machine directory, `m`, in a runtime directory of its own."""
    with tempfile.TemporaryDirectory(prefix="vmesh-") as directory:  # pytest's are too long for a socket
        monkeypatch.setenv("VMESH_RUNTIME", directory + "/run")
        created = machine.create("m")
        yield created
        os.close(created.lock_fd)
