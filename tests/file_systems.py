"""File systems of a test's own, as only root can mount them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(place: Path, *, size: str = "1m") -> Iterator[Path]:
    """A tmpfs of this size, in bytes or as mount(8) has it, at a folder that only its owner enters; skips who is not
    root."""
    mount = ["mount", "-t", "tmpfs", "-o", f"mode=700,size={size}", "none", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("a full file system: only root can mount one")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # of a test that failed, something may be open
