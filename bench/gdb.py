"""What a debugger costs the guest: plain loops (bench/guest), translated, in machines that differ in nothing else.

With no gdb server; with one where nobody connects; with Debian's gdb, a breakpoint and a watchpoint in pages that the
loops do not use; and after a breakpoint in each loop was met once and removed. By the guest's clock, which stands still
while gdb holds the machine.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from bench import cpu, harness
from bench.harness import BenchError
from bench.report import Report, Row, Sample, held

LOOPS = {"alu": "arithmetic", "memory": "loads and stores over 4 pages", "branch": "data-dependent branches",
         "call": "calls and returns", "double": "floating point, double"}  # fmt: skip
BAR = 0.95
_ELSEWHERE = 0x8010_0000
_PLAIN, _SERVER = "no gdb server", "-gdb, nobody there"
_ATTACHED, _REMOVED = "gdb, breakpoint and watchpoint elsewhere", "gdb, breakpoint in the loop met and removed"
#: By what is measured: gdb's commands once it has connected, or None where nobody does.
_SCRIPTS: dict[str, Sequence[str] | None] = {
    _PLAIN: None,
    _SERVER: None,
    _ATTACHED: (f"hbreak *{_ELSEWHERE:#x}", f"watch *(long *){_ELSEWHERE:#x}", "continue"),
    _REMOVED: (*(command for loop in LOOPS for command in (f"tbreak loop_{loop}", "continue")), "continue"),
}


def measure(runs: int) -> Report:
    """Raises BenchError, also where there is no gdb."""
    gdb = shutil.which("gdb-multiarch")
    if gdb is None:
        raise BenchError("gdb-multiarch is not installed (make test-peers)")
    found: dict[str, list[dict[str, list[float]]]] = {name: [] for name in _SCRIPTS}
    with harness.scratch() as scratch:
        elf = cpu.build(scratch)
        _run(elf, scratch, gdb, _PLAIN)  # fills the cache of compiled code
        for _ in range(runs):
            for name in _SCRIPTS:
                found[name].append(_run(elf, scratch, gdb, name))
    rows = []
    for loop, what in LOOPS.items():
        plain = _sample(found[_PLAIN], loop)
        for name, each in found.items():
            rate = _sample(each, loop)
            share = rate.median / plain.median
            bar = "" if name == _PLAIN else held(f"{BAR:.0%} of {plain.median:,.0f}", share >= BAR)
            rows.append(Row(f"{what}: {name}", "MIPS", rate, digits=0, bar=bar))
    return Report(f"What a gdb server costs, {runs} runs of 2 passes after the first, by turns", rows)


def _run(elf: Path, scratch: Path, gdb: str, name: str) -> dict[str, list[float]]:
    flags = ["-bios", "none", "-kernel", str(elf)]
    script, socket = _SCRIPTS[name], scratch / "gdb"
    if name == _PLAIN:
        return cpu.run(harness.ours(*flags))
    flags += ["-gdb", f"unix:{socket}"]
    if script is None:
        return cpu.run(harness.ours(*flags))
    client = threading.Thread(target=_debug, args=(gdb, elf, socket, script))
    client.start()
    try:
        return cpu.run(harness.ours(*flags, "-S"))
    finally:
        client.join()


def _debug(gdb: str, elf: Path, socket: Path, script: Sequence[str]) -> None:
    deadline = time.monotonic() + harness.LIMIT
    while not socket.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    command = [gdb, "--batch", "-nx"]
    for each in ("set confirm off", f"target remote {socket}", *script):
        command += ["-ex", each]
    subprocess.run([*command, str(elf)], capture_output=True, check=False, timeout=harness.LIMIT)


def _sample(runs: Sequence[dict[str, list[float]]], loop: str) -> Sample:
    """Millions of instructions a second, without a run's first pass, in which code gets hot and gdb begins."""
    return Sample(tuple(1e-6 / seconds for run in runs for seconds in run[loop][1:]))
