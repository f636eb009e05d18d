"""The cpu's native code for machines that have a cache of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

from services.cpu import core


def share_core(cache: Path) -> None:
    """Have this cache contain the cpu's native code, lest each machine compile its own: seconds of a core."""
    core.load_core()
    folder = cache / "vmesh" / "native"
    folder.mkdir(0o700, parents=True)
    shutil.copy(core.cache_folder() / f"{core.key()}.core", folder)
