"""What Debian's boot costs on the bus: as the cpu service counts it, and device by device."""

from __future__ import annotations

from bench import boot, harness
from bench.report import Report, Row, Sample, held

ROUND_TRIPS_BAR = 2000

_COUNTERS = {
    "sync_round_trips": "round trips: a hart waited for a device",
    "posted_accesses": "posted writes",
    "shadow_reads": "reads answered from a shadow",
    "local_accesses": "accesses to ACLINT and PLIC, in the cpu itself",
    "batches": "batches sent",
    "faults": "access faults",
}
_DEVICES = ("uart0", "rtc", "test")


def measure(runs: int) -> Report:
    with harness.scratch() as scratch:
        logs = [boot.boot_ours(scratch / "log", boot.MODES[boot.WARM])[1] for _ in range(runs)]
    rows = []
    for name, what in _COUNTERS.items():
        count = _counted([harness.logged(lines, "cpu", "counted").fields[name] for lines in logs])
        bar = ""
        if name == "sync_round_trips":
            bar = held(f"at most {ROUND_TRIPS_BAR:,}", max(count.values) <= ROUND_TRIPS_BAR)
        rows.append(Row(what, "count", count, digits=0, bar=bar))
    for device in _DEVICES:
        for name in ("accesses", "batches", "updates"):
            count = _counted([harness.logged(lines, device, "counted").fields[name] for lines in logs])
            rows.append(Row(f"{device}: {name}", "count", count, digits=0))
    return Report(f"Messages of Debian's boot, {runs} runs", rows)


def _counted(texts: list[str]) -> Sample:
    return Sample(tuple(float(text) for text in texts))
