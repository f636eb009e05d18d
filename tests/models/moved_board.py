"""vmesh with a board whose parts are elsewhere: a copy of the sources in which one file is edited."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from tests.conftest import ROOT

_EDITED = "vmesh/board/virt.py"
# What each part has there, and what it gets instead.
MOVES: Mapping[str, tuple[str, str]] = {
    "ram": ("DRAM_BASE = 0x8000_0000", "DRAM_BASE = 0xA000_0000"),
    "mrom": ("Range(0x1000, 0xF000)", "Range(0x11_0000, 0xF000)"),
    "test": ("Range(0x10_0000, 0x1000)", "Range(0x300_0000, 0x1000)"),
    "rtc": ("Range(0x10_1000, 0x1000), wire(11)", "Range(0x301_0000, 0x1000), wire(41)"),
    "clint": ("Range(0x200_0000, 0x1_0000)", "Range(0x400_0000, 0x1_0000)"),
    "plic": ("Range(0xC00_0000, 0x60_0000)", "Range(0x3000_0000, 0x60_0000)"),
    "uart0": ("Range(0x1000_0000, 0x100), wire(10)", "Range(0x2000_0000, 0x100), wire(40)"),
    "fw_cfg": ("Range(0x1010_0000, 0x18)", "Range(0x2010_0000, 0x18)"),
    "virtio-mmio": (
        "Range(0x1000_1000 + 0x1000 * slot, 0x1000), wire(1 + slot)",
        "Range(0x5000_1000 + 0x3000 * slot, 0x1000), wire(51 + slot)",
    ),
}


def make(folder: Path, moved: Collection[str]) -> dict[str, str]:
    """Put it into `folder`; gives what the environment needs for Python to find it first."""
    for room in ("vmesh", "vmesh_services"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / _EDITED
    text = file.read_text()
    for part in moved:
        here, there = MOVES[part]
        assert text.count(here) == 1, f"expected {here} once in {_EDITED}"
        text = text.replace(here, there)
    file.write_text(text)
    return {"PYTHONPATH": str(folder)}
