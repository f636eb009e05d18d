"""How a migration is doing: what query-migrate tells, counted by the threads that do the work."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from vmesh.migration.outcome import ENDED
from vmesh.segment import PAGE
from vmesh.v1 import migration_pb2 as messages
from vmesh.v1.migration_pb2 import MigrationState, MigrationStatus

LATENCY_BUCKETS = 24


@dataclass(slots=True)
class Status:
    """Times are of time.monotonic(), in seconds; 0 before they come."""

    incoming: bool = False
    snapshot: bool = False
    uri: str = ""
    state: MigrationState.ValueType = messages.MIGRATION_SETUP
    error: str = ""
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    setup_done: float = 0.0
    stopped: float = 0.0  # when the guest was stopped for the switch
    went_on: float = 0.0
    total: int = 0  # bytes of RAM
    remaining: int = 0  # pages
    transferred: int = 0
    zero: int = 0  # pages
    normal: int = 0
    rounds: int = 0
    requests: int = 0
    expected_downtime: float = 0.0
    rate: float = 0.0  # bytes a second, of late
    page_rate: float = 0.0
    dirty_rate: float = 0.0  # pages a second
    throttle: int = 0  # percent
    package: int = 0
    precopy_bytes: int = 0
    downtime_bytes: int = 0
    postcopy_bytes: int = 0
    warnings: list[str] = field(default_factory=list)
    latencies: list[int] = field(default_factory=lambda: [0] * LATENCY_BUCKETS)

    @property
    def under_way(self) -> bool:
        return self.state not in ENDED

    def add_latency(self, seconds: float) -> None:
        """A page came so long after it was asked for."""
        bucket = int(seconds * 1e6).bit_length()
        self.latencies[min(bucket, LATENCY_BUCKETS - 1)] += 1

    def message(self) -> MigrationStatus:
        now = self.ended or time.monotonic()
        rate, page_rate = self.rate, self.page_rate
        if self.ended and now > self.began:  # of all of it, as QEMU has it then
            rate, page_rate = (each / (now - self.began) for each in (self.transferred, self.normal + self.zero))
        downtime = (self.went_on - self.stopped) * 1e3 if self.stopped and self.went_on else 0.0
        return MigrationStatus(
            state=self.state,
            incoming=self.incoming,
            snapshot=self.snapshot,
            uri=self.uri,
            error=self.error,
            total_time_ms=int((now - self.began) * 1e3),
            downtime_ms=downtime,
            expected_downtime_ms=self.expected_downtime * 1e3,
            setup_time_ms=max(0.0, self.setup_done - self.began) * 1e3,
            cpu_throttle_percentage=self.throttle,
            package_bytes=self.package,
            warnings=self.warnings,
            fault_latency_us=self.latencies if any(self.latencies) else [],
            ram=messages.RamStatistics(
                transferred=self.transferred,
                remaining=self.remaining * PAGE,
                total=self.total,
                duplicate=self.zero,
                normal=self.normal,
                mbps=rate * 8 / 1e6,
                dirty_sync_count=self.rounds,
                postcopy_requests=self.requests,
                page_size=PAGE,
                pages_per_second=page_rate,
                dirty_pages_rate=self.dirty_rate,
                precopy_bytes=self.precopy_bytes,
                downtime_bytes=self.downtime_bytes,
                postcopy_bytes=self.postcopy_bytes,
            ),
        )
