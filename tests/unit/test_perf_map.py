"""Names for perf: what `perf report` reads (start, size, name; in hex)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmesh_services.cpu.core.perf_map import PerfMap


def names(path: Path) -> list[tuple[int, int, str]]:
    found = []
    for line in path.read_text().splitlines():
        start, size, name = line.split(" ")
        found.append((int(start, 16), int(size, 16), name))
    return found


def test_functions_of_the_core_fill_it(tmp_path: Path) -> None:
    perf_map = PerfMap(tmp_path)
    perf_map.core(0x7000, 0x100, {"op_add": 0x40, "run": 0, "op_sub": 0x60})
    assert names(perf_map.path) == [(0x7000, 0x40, "run"), (0x7040, 0x20, "op_add"), (0x7060, 0xA0, "op_sub")]
    perf_map.close()


def test_a_region_is_named_by_where_it_came_first(tmp_path: Path) -> None:
    perf_map = PerfMap(tmp_path)
    perf_map.region(0x9000, 0x80, 0x8020_0010)
    perf_map.region(0x9000, 0x80, 0x8120_0010)
    perf_map.region(0x9100, 0x40, 0x8020_0020)
    assert names(perf_map.path) == [(0x9000, 0x80, "guest_80200010"), (0x9100, 0x40, "guest_80200020")]
    perf_map.close()


def test_the_file_is_ours(tmp_path: Path) -> None:
    """An old one is replaced; nothing is written through what somebody else has put there."""
    path = tmp_path / f"perf-{os.getpid()}.map"
    path.write_text("old")
    PerfMap(tmp_path).close()
    assert path.read_text() == ""
    assert path.stat().st_mode & 0o777 == 0o600
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.unlink()
    path.symlink_to(victim)
    PerfMap(tmp_path).close()
    assert victim.read_text() == "precious"
    assert not path.is_symlink()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PerfMap(tmp_path / "none")
