"""Debian on translated code: the same machine, and the next one begins with what the first compiled."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.native import share_core
from tests.system.conftest import NO_SELF_TESTS, Terminal, counters
from vmesh.guest import Guest
from vmesh.guest.cache import cache_directory

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]
#: Loops, pipes, processes, floating point, compression: what it prints is known.
WORK = (
    "i=0; while [ $i -lt 10000 ]; do i=$((i+1)); done; echo sum $i; seq 1 10000 | sha256sum;"
    "seq 1 1500 | awk '{s+=$1/7} END{print s}'; head -c 500000 /bin/busybox | md5sum;"
    "head -c 500000 /bin/busybox | gzip -1 | gunzip | md5sum;"
    "for n in 1 2 3 4 5 6 7 8; do (seq 1 1000 | sha256sum) & done; wait; echo harts $(nproc)"
)


def digest_of_numbers(count: int) -> str:
    return hashlib.sha256("".join(f"{n}\n" for n in range(1, count + 1)).encode()).hexdigest() + "  -"


def boot(run: Run, log: Path, cache: Path, harts: int) -> dict[str, int]:
    """Boots, works and powers off; gives the counters of the cpu."""
    append = f'loglevel=4 {NO_SELF_TESTS} vmesh.run="{WORK}"'
    flags = ("-accel", "tcg,translate=on", "-smp", str(harts), "-D", str(log), "-append", append)
    machine = run(*flags, pipes=True, XDG_CACHE_HOME=str(cache))
    assert machine.wait() == 0, machine.output[-2000:]
    lines = machine.output.splitlines()
    begin, end = lines.index("sum 10000"), lines.index(f"harts {harts}")
    numbers, total, first, second, *others = lines[begin + 1 : end]
    assert numbers == digest_of_numbers(10_000)
    assert float(total) == pytest.approx(1500 * 1501 / 2 / 7, rel=1e-5)
    assert first == second
    assert re.fullmatch("[0-9a-f]{32}  -", first)
    assert others == [digest_of_numbers(1000)] * 8
    assert not re.search("Oops|panic|segfault|unhandled signal|rcu.*stall", machine.output)
    return counters(log, "cpu")


def test_debian_runs_translated_and_again_from_the_store(run: Run, debian: Guest, tmp_path: Path) -> None:
    """On one hart; then on four, which begin with what the first machine compiled."""
    cache = tmp_path / "cache"
    (cache / "vmesh").mkdir(parents=True)
    (cache / "vmesh" / "guest").symlink_to(cache_directory().parent)
    share_core(cache)

    first = boot(run, tmp_path / "first.log", cache, 1)
    second = boot(run, tmp_path / "second.log", cache, 4)

    # how many depends on how much of the host the translator gets
    assert first["regions_from_store"] == 0
    assert first["regions_translated"] > 0
    assert second["regions_from_store"] > 0
    assert second["regions_installed"] > 0
    assert first["regions_refused"] == second["regions_refused"] == 0
    assert first["region_compile_us"] > 0
    for each in (first, second):
        assert 0 < each["instructions_in_regions"] < each["instructions"]
        assert each["region_exits_miss"] > 0
        assert each["longest_pause_us"] > 0
