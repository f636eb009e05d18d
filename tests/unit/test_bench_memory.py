"""bench/memory: what of a process is guest RAM and what is beyond it, and when that is little enough."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from bench import memory
from bench.memory import Usage

SMAPS = """\
5598944c9000-559894570000 r--p 00000000 fd:01 393222                     /usr/bin/an emulator
Size:               1000 kB
KernelPageSize:        4 kB
Rss:                 500 kB
Pss:                 250 kB
Pss_Dirty:             0 kB
THPeligible:           0
VmFlags: rd mr mw me sd
7f7873e00000-7f7893e00000 rw-p 00000000 00:00 0
Size:               2000 kB
Rss:                1000 kB
Pss:                1000 kB
VmFlags: rd wr mr mw me ac hg sd
7f84d8000000-7f84f8000000 rw-s 00000000 00:19 77                         /dev/shm/machine/ram.seg
Size:               2000 kB
Rss:                 300 kB
Pss:                 100 kB
VmFlags: rd wr sh mr mw me ms sd
"""


def test_usage_adds_the_mappings_and_tells_ram_by_path_or_size() -> None:
    in_file = memory.usage(SMAPS, lambda path, _: path == "/dev/shm/machine/ram.seg")
    anonymous = memory.usage(SMAPS, lambda path, size: not path and size == 2000 << 10)
    spaced = memory.usage(SMAPS, lambda path, _: path == "/usr/bin/an emulator")

    assert in_file == Usage(1800 * 1024 / 1e6, 1350 * 1024 / 1e6, 300 * 1024 / 1e6)
    assert in_file.beyond == pytest.approx(1500 * 1024 / 1e6)
    assert anonymous.ram == 1000 * 1024 / 1e6
    assert spaced.ram == 500 * 1024 / 1e6


def test_usage_of_a_process_that_lives(tmp_path: Path) -> None:
    """What the kernel really writes: a file of 8 MiB, mapped, of which 2 MiB were touched."""
    with (tmp_path / "ram.seg").open("w+b") as file:
        file.truncate(8 << 20)
        with mmap.mmap(file.fileno(), 8 << 20) as mapped:
            mapped[: 2 << 20] = bytes([1]) * (2 << 20)
            used = memory.usage(Path("/proc/self/smaps").read_text(), lambda path, _: path == file.name)
    assert 2 << 20 <= used.ram * 1e6 < 8 << 20
    assert used.ram < used.rss


@pytest.mark.parametrize(("cpu", "verdict"), [(80.0, "yes"), (120.0, "NO")])
def test_the_bar_is_on_what_cpu_and_translator_have_beyond_ram(cpu: float, verdict: str) -> None:
    ours = {
        "monitor": Usage(500.0, 30.0, 0.0),
        "cpu": Usage(cpu + 70.0, 40.0, 70.0),
        "translator": Usage(60.0, 50.0, 0.0),
    }
    rows = {row.what: row for row in memory.report([ours], [Usage(200.0, 190.0, 100.0)]).rows}

    beyond = rows["cpu and translator: RSS beyond RAM"]
    assert beyond.ratio == pytest.approx((cpu + 60.0) / 100.0)
    assert beyond.bar.endswith(verdict)
    assert rows["cpu: RSS beyond RAM"].ours.median == cpu
    assert rows["guest RAM: RSS"].ours.median == 70.0
    assert rows["guest RAM: RSS"].ratio == pytest.approx(0.7)
    assert rows["translator: PSS"].ours.median == 50.0
    assert rows["all processes: PSS"].ours.median == 120.0
    assert rows["all processes: PSS"].ratio == pytest.approx(120.0 / 190.0)
