"""Memory of the processes once Debian's shell waits, as the host's kernel counts it (proc(5), smaps_rollup).

PSS shares a page among those that map it, so that the processes add up; guest RAM that was touched is part of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from bench import harness
from bench.report import Report, Row, Sample
from vmesh.machine import find

_NAME = "bench-memory"
_FLAGS = ("-m", "512M", "-smp", "1")
_PROMPT = b"~ # "
_SETTLE = 2.0  # seconds after the prompt


def measure(runs: int) -> Report:
    ours, theirs = harness.by_turns(_ours, _theirs, runs)
    qemu_rss, qemu_pss = (Sample(tuple(run[place] for run in theirs)) for place in (0, 1))
    rows = []
    for service in ours[0]:
        rows.append(Row(f"{service}: PSS", "MB", Sample(tuple(run[service][1] for run in ours)), digits=1))
    total = Sample(tuple(sum(pss for _, pss in run.values()) for run in ours))
    rows.append(Row("all processes: PSS", "MB", total, qemu_pss, digits=1))
    largest = Sample(tuple(max(rss for rss, _ in run.values()) for run in ours))
    rows.append(Row("largest process: RSS", "MB", largest, qemu_rss, digits=1))
    return Report(f"Memory after Debian's boot, 512 MiB of RAM, {runs} runs", rows)


def _ours() -> dict[str, tuple[float, float]]:
    flags = [*_FLAGS, *harness.guest_flags(harness.debian()), "-name", _NAME]
    with harness.kept(harness.ours(*flags), _PROMPT) as launcher:
        time.sleep(_SETTLE)
        record = find(_NAME).read_record()
        pids = {"launcher": launcher, "monitor": record.pid, **{each.name: each.pid for each in record.services}}
        return {name: _memory(pid) for name, pid in pids.items()}


def _theirs() -> tuple[float, float]:
    with harness.kept(harness.theirs(*_FLAGS, *harness.guest_flags(harness.debian())), _PROMPT) as pid:
        time.sleep(_SETTLE)
        return _memory(pid)


def _memory(pid: int) -> tuple[float, float]:
    """RSS and PSS in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes: Mapping[str, str] = dict(line.split(":", 1) for line in lines)
    rss, pss = (int(sizes[name].split()[0]) * 1024 / 1e6 for name in ("Rss", "Pss"))
    return rss, pss
