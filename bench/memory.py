"""Memory of the processes once Debian's shell waits, as the host's kernel counts it (proc(5), smaps).

PSS shares a page among those that map it, so that the processes add up; guest RAM that was touched is part of it. RSS
beyond RAM is that of all mappings but the one of guest RAM (the page flags stay in); a page that the cpu and the
translator both map, of a library say, counts twice there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import harness
from bench.harness import BenchError
from bench.report import Report, Row, Sample, held
from vmesh.machine import find

BEYOND_BAR = 1.5  # of QEMU's RSS beyond RAM

_NAME = "bench-memory"
_RAM = 512 << 20
_FLAGS = ("-m", f"{_RAM >> 20}M", "-smp", "1")
_PROMPT = b"~ # "
_SETTLE = 2.0  # seconds after the prompt
_CORE = ("cpu", "translator")
_TRANSLATOR = b"vmesh_services.cpu.core.translator"


@dataclass(frozen=True, slots=True)
class Usage:
    """Memory of a process in MB; `ram` is the part of `rss` that is guest RAM."""

    rss: float
    pss: float
    ram: float

    @property
    def beyond(self) -> float:
        return self.rss - self.ram


def measure(runs: int) -> Report:
    """Raises BenchError where guest RAM or the translator is not found."""
    return report(*harness.by_turns(_ours, _theirs, runs))


def report(ours: Sequence[Mapping[str, Usage]], theirs: Sequence[Usage]) -> Report:
    """`ours` by process, the cpu and the translator among them."""
    rows = [_row(f"{name}: PSS", [run[name].pss for run in ours]) for name in ours[0]]
    totals = [sum(each.pss for each in run.values()) for run in ours]
    rows.append(_row("all processes: PSS", totals, [run.pss for run in theirs]))
    largest = [max(each.rss for each in run.values()) for run in ours]
    rows.append(_row("largest process: RSS", largest, [run.rss for run in theirs]))
    rows.append(_row("guest RAM: RSS", [run["cpu"].ram for run in ours], [run.ram for run in theirs]))
    rows += [_row(f"{name}: RSS beyond RAM", [run[name].beyond for run in ours]) for name in _CORE]
    beyond = [sum(run[name].beyond for name in _CORE) for run in ours]
    both = _row(f"{' and '.join(_CORE)}: RSS beyond RAM", beyond, [run.beyond for run in theirs])
    rows.append(replace(both, bar=held(f"at most {BEYOND_BAR}x", (both.ratio or 0.0) <= BEYOND_BAR)))
    return Report(f"Memory after Debian's boot, {_RAM >> 20} MiB of RAM, {len(ours)} runs", rows)


def _row(what: str, ours: Sequence[float], theirs: Sequence[float] = ()) -> Row:
    return Row(what, "MB", Sample(tuple(ours)), Sample(tuple(theirs)) if theirs else None, digits=1)


def _ours() -> dict[str, Usage]:
    flags = [*_FLAGS, *harness.guest_flags(harness.debian()), "-name", _NAME]
    with harness.kept(harness.ours(*flags), _PROMPT) as launcher:
        time.sleep(_SETTLE)
        machine = find(_NAME)
        record = machine.read_record()
        pids = {"launcher": launcher, "monitor": record.pid, **{each.name: each.pid for each in record.services}}
        pids["translator"] = _translator(pids["cpu"])
        ram = str(machine.path / "ram.seg")
        used = {name: usage(_smaps(pid), lambda path, _: path == ram) for name, pid in pids.items()}
    if not used["cpu"].ram:
        raise BenchError(f"the cpu process does not map {ram}")
    return used


def _theirs() -> Usage:
    with harness.kept(harness.theirs(*_FLAGS, *harness.guest_flags(harness.debian())), _PROMPT) as pid:
        time.sleep(_SETTLE)
        used = usage(_smaps(pid), lambda path, size: not path and size == _RAM)
    if not used.ram:
        raise BenchError(f"QEMU has no anonymous mapping of {_RAM} bytes: where is its RAM?")
    return used


def usage(smaps: str, is_ram: Callable[[str, int], bool]) -> Usage:
    """Of the text of a process's smaps; `is_ram` tells guest RAM by a mapping's path (empty: no file) and bytes."""
    rss = pss = ram = 0
    for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", smaps, flags=re.MULTILINE)[1:]:
        # address, permissions, offset, device, inode; then the path, if there is one
        path = mapping.partition("\n")[0].split(maxsplit=5)[5:]
        sizes = {name: int(kib) << 10 for name, kib in re.findall(r"^(\w+): +(\d+) kB$", mapping, re.MULTILINE)}
        rss += sizes["Rss"]
        pss += sizes["Pss"]
        if is_ram("".join(path), sizes["Size"]):
            ram += sizes["Rss"]
    return Usage(rss / 1e6, pss / 1e6, ram / 1e6)


def _smaps(pid: int) -> str:
    return Path(f"/proc/{pid}/smaps").read_text()


def _translator(cpu: int) -> int:
    """The pid of the cpu's child that compiles. Raises BenchError."""
    for children in Path(f"/proc/{cpu}/task").glob("*/children"):
        for pid in map(int, children.read_text().split()):
            if _TRANSLATOR in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
    raise BenchError("the cpu process has no translator")
