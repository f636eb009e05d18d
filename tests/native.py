"""The cpu's native code for machines that have a cache of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

from vmesh_services.cpu.controllers.virt import NATIVE
from vmesh_services.cpu.core import image
from vmesh_services.cpu.isa.interface import load


def share_core(cache: Path) -> None:
    """Have this cache contain the cpu's native code, lest each machine compile its own: seconds of a core."""
    image.load_core(load(image.ISA), NATIVE)
    folder = cache / "vmesh" / "native"
    folder.mkdir(0o700, parents=True)
    shutil.copy(image.cache_folder() / f"{image.key()}.core", folder)
