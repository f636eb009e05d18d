"""A machine whose cpu is on another host than RAM and devices: network namespaces, joined by a relay that delays."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import cpu, harness, hosts
from bench.harness import BenchError
from bench.hosts import FAR, FLAGS, LATENCIES, LOCAL, name_of
from bench.report import Report, Row, Sample
from tests.hosts import HERE, Host
from vmesh.cli.plan import CACHE
from vmesh.deploy.description import CPU, MONITOR

APART = {CPU: FAR, CACHE: FAR}
_LOOPS_LATENCY = 0.001
_LOOPS_LIMIT = 240.0


@dataclass(frozen=True, slots=True)
class Boot:
    """Seconds from the first byte on the console to the power-off; what cpu and cache have counted."""

    guest: float
    cpu: Mapping[str, str]
    cache: Mapping[str, str]
    bytes: int

    def counted(self, name: str) -> float:
        return float(self.cache.get(name) or self.cpu[name])

    @property
    def hit_rate(self) -> float:
        """Of the pages that a hart made a TLB entry for, those that were there, in per cent."""
        fills, waits = self.counted("tlb_fills"), self.counted("page_faults")
        return 100 * fills / (fills + waits)

    @property
    def wait(self) -> float:
        """The median time that a hart waited for a page, in milliseconds, up to a power of two."""
        return float(self.cpu.get("page_faults_p50_us", 0)) / 1000


def measure(runs: int) -> Report:
    """Raises BenchError where there can be no network namespaces."""
    local: list[hosts.Boot] = []
    boots: dict[float, list[Boot]] = {latency: [] for latency in LATENCIES}
    with hosts.made_hosts((HERE, FAR)) as made:
        hosts.boot(made, 0.0, {})  # the cache of code is filled
        for _ in range(runs):
            local.append(hosts.boot(made, 0.0, {}))
            for latency, done in boots.items():
                done.append(boot(made, latency))
        with harness.scratch() as scratch:
            flags = ("-bios", "none", "-kernel", str(cpu.build(scratch)), "-nographic")
            turns = [(loops(made, flags, {}), loops(made, flags, APART)) for _ in range(max(1, runs // 2))]
    rows = [Row(f"{LOCAL}: first byte to power-off", "s", Sample(tuple(each.guest for each in local)))]
    for latency, done in boots.items():
        rows += _rows(name_of(latency), done, Sample(tuple(each.guest for each in local)))
    for name, what in cpu.LOOPS.items():
        apart, together = (Sample(tuple(1e-6 / each for turn in turns for each in turn[at][name])) for at in (1, 0))
        rows.append(Row(f"{name_of(_LOOPS_LATENCY)}: {what}", "MIPS", apart, together, digits=0))
    notes = [
        "Local: the same on one host, over Unix sockets, by turns with the others.",
        "Hits: of the pages that a hart made a TLB entry for, those that were there. Empty pages need no transfer.",
    ]
    return Report(f"Debian boots with its cpu on another host than RAM, {runs} boots each", rows, notes, peer="local")


def boot(made: Sequence[Host], latency: float) -> Boot:
    """One boot to the power-off. Raises BenchError."""
    flags = [*FLAGS, "-cpu-apart", *harness.guest_flags(harness.debian(), "vmesh.run=true")]
    with hosts.spread(flags, made, latency, APART) as machine:
        machine.start()
        first = hosts.when(machine, b"")
        end = hosts.when(machine, b"reboot: Power down")
        if status := machine.processes[MONITOR].wait(30):
            raise BenchError(f"status {status}: {machine.said(MONITOR)}")
        lines = harness.read_log(machine.log(CPU))
        counted = [harness.logged(lines, service, "counted").fields for service in (CPU, CACHE)]
        return Boot(end - first, counted[0], counted[1], machine.relay.bytes)


def loops(made: Sequence[Host], flags: Sequence[str], where: Mapping[str, str]) -> dict[str, list[float]]:
    """The guest of bench/cpu.py: seconds for one piece of work, of each pass, by loop."""
    apart = ("-cpu-apart",) if where else ()
    every = [*flags, *apart, "-accel", "tcg,translate=off"]
    with hosts.spread(every, made, _LOOPS_LATENCY if where else 0.0, where) as machine:
        machine.start()
        deadline = time.monotonic() + _LOOPS_LIMIT
        while machine.processes[MONITOR].poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return cpu.results(machine.console.decode())


def _rows(name: str, boots: Sequence[Boot], local: Sample) -> list[Row]:
    guest = Sample(tuple(each.guest for each in boots))
    figures = {
        ("pages that went to the cache", "count", 0): [each.counted("pages_fetched") for each in boots],
        ("pages a second", "count", 0): [each.counted("pages_fetched") / each.guest for each in boots],
        ("round trips for them", "count", 0): [each.counted("faults") for each in boots],
        ("hits", "%", 3): [each.hit_rate for each in boots],
        ("a hart's wait for a page, at most", "ms", 2): [each.wait for each in boots],
        ("all that went between the hosts", "KiB", 0): [each.bytes / 1024 for each in boots],
    }
    rows = [Row(f"{name}: first byte to power-off", "s", guest, local)]
    for (what, unit, digits), values in figures.items():
        rows.append(Row(f"{name}: {what}", unit, Sample(tuple(values)), digits=digits))
    return rows
