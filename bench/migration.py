"""Live migration beside QEMU: a Linux guest with one process that writes to 64 MiB over and over, moved by turns.

Both move over loopback TCP, with no limit to their bandwidth, and tell their own figures (query-migrate).
"""

from __future__ import annotations

import json
import select
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import harness, programs
from bench.harness import BenchError
from bench.report import Report, Row, Sample, held
from vmesh.client import GatewayError, MachineClient
from vmesh.guest import initramfs
from vmesh.machine import MachineError, find
from vmesh.v1 import migration_pb2

DIRTY_MEBIBYTES = 64
RAM = "512M"
PRECOPY_FIRST = 0.2  # seconds before a post-copy switches over
_LIMIT = 60.0
_SETTLE = 1.0  # seconds that the guest writes before it moves
_SOURCE = Path(__file__).with_suffix(".c")
_UNLIMITED = 1 << 40  # bytes a second, for QEMU
_QEMU_TRIES = 3
_QEMU_ANSWERS = 20.0


class QemuHangs(BenchError):
    """It does not answer."""


@dataclass(frozen=True, slots=True)
class Move:
    """What a migration took: milliseconds, bytes; `latencies` are pages by the power of two of their µs."""

    total: float
    downtime: float
    moved: int
    requests: int
    latencies: tuple[int, ...] = ()


def measure(runs: int) -> Report:
    """Raises BenchError."""
    rows: list[Row] = []
    notes: list[str] = []
    with harness.scratch() as scratch:
        initrd = guest_initrd(scratch)
        for postcopy in (False, True):
            ours, theirs = harness.by_turns(
                _once(scratch, initrd, _vmesh, postcopy), _once(scratch, initrd, _qemu, postcopy), runs
            )
            rows += _rows(ours, theirs, postcopy)
            if postcopy:
                notes += histogram(ours)
        rows.append(_handover_row([_handover(initrd) for _ in range(runs)]))
        rows += _restore(scratch, initrd, runs)
    return Report(f"live migration, {RAM}, {DIRTY_MEBIBYTES} MiB written over and over, {runs} moves each", rows, notes)


def _rows(ours: Sequence[Move], theirs: Sequence[Move], postcopy: bool) -> Iterator[Row]:
    name = "post-copy" if postcopy else "pre-copy"

    def pair(get: Callable[[Move], float]) -> tuple[Sample, Sample]:
        return Sample(tuple(map(get, ours))), Sample(tuple(map(get, theirs)))

    down, total = pair(lambda move: move.downtime), pair(lambda move: move.total)
    if postcopy:
        bar = held("< 30 ms", down[0].median < 30)
    else:
        bar = held("<= 1.5x", down[0].median <= 1.5 * down[1].median)
    yield Row(f"{name}: downtime", "ms", *down, digits=1, bar=bar)
    yield Row(f"{name}: total", "ms", *total, digits=0, bar=held("<= 2x", total[0].median <= 2 * total[1].median))
    yield Row(f"{name}: moved", "MB", *pair(lambda move: move.moved / 1e6), digits=0)
    if postcopy:
        yield Row(f"{name}: pages asked for", "", *pair(lambda move: move.requests), digits=0)
        found = median_latency(ours)
        yield Row(
            f"{name}: a page that is waited for comes within (median)", "us", Sample((found,)), digits=0,
            bar=held("< 1000", found < 1000),
        )  # fmt: skip


def median_latency(moves: Sequence[Move]) -> float:
    """µs: the median, as if pages were spread evenly over the bucket that it is in."""
    counts: list[int] = [sum(each) for each in zip(*(move.latencies for move in moves if move.latencies), strict=True)]
    seen, total = 0, sum(counts)
    for bucket, count in enumerate(counts):
        if total and 2 * (seen + count) >= total:
            low = (1 << bucket) // 2
            return low + (total / 2 - seen) / count * ((1 << bucket) - low)
        seen += count
    return 0.0


def histogram(moves: Sequence[Move]) -> list[str]:
    counts = [sum(each) for each in zip(*(move.latencies for move in moves if move.latencies), strict=True)]
    most = max(counts, default=0)
    lines = ["pages that were waited for, by µs:"]
    for bucket, count in enumerate(counts):
        if count:
            lines.append(f"  {(1 << bucket) // 2:>8,} - {1 << bucket:>8,}  {count:>6}  {'#' * -(-40 * count // most)}")
    return lines


def guest_initrd(scratch: Path) -> Path:
    """Debian's initramfs with the program in it."""
    guest = harness.debian()
    assert guest.initrd is not None
    program = programs.compiled("migration", [_SOURCE])
    entry = initramfs.Entry("bin/migration", stat.S_IFREG | 0o755, program.read_bytes())
    archive = scratch / "migration.cpio"
    archive.write_bytes(guest.initrd.read_bytes() + initramfs.archive(iter([entry])))
    return archive


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def _once(
    scratch: Path, initrd: Path, emulator: Callable[[Path, list[str], int, bool], Move], postcopy: bool
) -> Callable[[], Move]:
    guest = replace(harness.debian(), initrd=initrd)
    flags = ["-m", RAM, *harness.guest_flags(guest, f'quiet vmesh.run="migration dirty {DIRTY_MEBIBYTES}"')]
    return lambda: emulator(scratch, flags, free_port(), postcopy)


def _vmesh(_scratch: Path, flags: list[str], port: int, postcopy: bool) -> Move:
    place = f"tcp:127.0.0.1:{port}"
    here, there = f"mig{port}a", f"mig{port}b"
    with (
        harness.kept(harness.ours("-name", here, *flags), b"dirty ready"),
        _started(harness.ours("-name", there, *flags, "-incoming", place)),
        client(here) as source,
        client(there) as target,
    ):
        _wait_port(lambda: target.query_migrate().status.state == migration_pb2.MIGRATION_SETUP)
        time.sleep(_SETTLE)
        source.migrate_set(max_bandwidth=0, postcopy_ram=postcopy)
        source.migrate(place)
        if postcopy:
            time.sleep(PRECOPY_FIRST)
            with suppress(GatewayError):  # it was quicker
                source.migrate_start_postcopy()
        status = wait_moved(source)
        arrived = target.query_migrate().status
        return Move(
            status.total_time_ms,
            status.downtime_ms,
            status.ram.transferred,
            status.ram.postcopy_requests,
            tuple(arrived.fault_latency_us),
        )


def _handover(initrd: Path) -> float:
    """The downtime in ms of a handover to new processes on this host."""
    guest = replace(harness.debian(), initrd=initrd)
    flags = ["-m", RAM, *harness.guest_flags(guest, f'quiet vmesh.run="migration dirty {DIRTY_MEBIBYTES}"')]
    number = free_port()
    here, there = f"up{number}a", f"up{number}b"
    with (
        harness.kept(harness.ours("-name", here, *flags), b"dirty ready"),
        _started(harness.ours("-name", there, *flags, "-incoming", f"handover:{here}")),
        client(here) as source,
        client(there) as target,
    ):
        _wait_port(lambda: target.query_migrate().status.state == migration_pb2.MIGRATION_SETUP)
        time.sleep(_SETTLE)
        return hand_over(source, there)


def _restore(scratch: Path, initrd: Path, runs: int) -> Iterator[Row]:
    """A snapshot of the machine that writes, and new machines that begin with it."""
    guest = replace(harness.debian(), initrd=initrd)
    job = f"migration dirty {DIRTY_MEBIBYTES} & while :; do echo tick; usleep 10000; done"
    flags = ["-m", RAM, *harness.guest_flags(guest, f'quiet vmesh.run="{job}"')]
    snapshot, log = scratch / "restored.vmsnap", scratch / "restored.log"
    name = f"saved{free_port()}"
    with harness.kept(harness.ours("-name", name, *flags), b"dirty ready"), client(name) as machine:
        time.sleep(_SETTLE)
        saved = machine.snapshot_save(snapshot)
    goes_on, ticks, absent = [], [], []
    for _ in range(runs):
        log.unlink(missing_ok=True)
        began = time.time()
        with harness.kept(harness.ours(*flags, "-loadvm", str(snapshot), "-D", str(log)), b"tick"):
            ticks.append(time.time() - began)
            loaded = harness.logged(harness.read_log(log), "migration", "loaded")
        goes_on.append(loaded.time - began)
        absent.append(float(loaded.fields["absent"]))
    yield Row("snapshot: size", "MB", Sample((snapshot.stat().st_size / 1e6,)), digits=0)
    yield Row("snapshot: the guest stands still to be saved", "ms", Sample((saved.downtime_ms,)), digits=0)
    first = Sample(tuple(goes_on))
    yield Row("restored: command to the first instruction", "s", first, bar=held("every one < 1", max(goes_on) < 1))
    yield Row("restored: command to the guest's first line (one every 10 ms)", "s", Sample(tuple(ticks)))
    yield Row("restored: pages still to come at the first instruction", "", Sample(tuple(absent)), digits=0)


def hand_over(source: MachineClient, there: str) -> float:
    """Have a machine go on in the processes of another, which waits for it; the downtime in ms."""
    source.migrate_set(handover=True, postcopy_ram=False)
    source.migrate(f"unix:{find(there).handover}")
    return wait_moved(source).downtime_ms


def _handover_row(downtimes: Sequence[float]) -> Row:
    sample = Sample(tuple(downtimes))
    return Row("handover on one host: downtime", "ms", sample, digits=1, bar=held("< 300 ms", sample.median < 300))


def wait_moved(source: MachineClient, limit: float = _LIMIT) -> migration_pb2.MigrationStatus:
    """The status of a migration that has completed. Raises BenchError for any other end."""
    deadline = time.monotonic() + limit
    while True:
        status = source.query_migrate().status
        if status.state == migration_pb2.MIGRATION_COMPLETED:
            return status
        if status.state in (migration_pb2.MIGRATION_FAILED, migration_pb2.MIGRATION_CANCELLED):
            raise BenchError(f"the migration failed: {status.error}")
        if time.monotonic() > deadline:
            raise BenchError(f"not moved after {limit:g} s: {status}")
        time.sleep(0.02)


@contextmanager
def client(name: str) -> Iterator[MachineClient]:
    """The client of a machine that has begun to start."""
    deadline = time.monotonic() + _LIMIT
    while True:
        try:
            found = MachineClient(find(name), timeout=_LIMIT)
            break
        except MachineError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    with found:
        yield found


def _wait_port(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT
    while not there():
        if time.monotonic() > deadline:
            raise BenchError("the destination does not listen")
        time.sleep(0.02)


@contextmanager
def _started(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            harness.end(process)


def _qemu(scratch: Path, flags: list[str], port: int, postcopy: bool) -> Move:
    """QEMU 7.2 hangs in a migration now and then: it has three tries."""
    for _ in range(_QEMU_TRIES - 1):
        with suppress(QemuHangs):
            return _qemu_once(scratch, flags, port, postcopy)
        port = free_port()
    return _qemu_once(scratch, flags, port, postcopy)


def _qemu_once(scratch: Path, flags: list[str], port: int, postcopy: bool) -> Move:
    place = f"tcp:127.0.0.1:{port}"
    sockets = [scratch / f"{port}{side}" for side in "ab"]
    qmp = [["-qmp", f"unix:{path},server=on,wait=off"] for path in sockets]
    with (
        harness.kept(harness.theirs(*flags, *qmp[0]), b"dirty ready"),
        _started(harness.theirs(*flags, *qmp[1], "-incoming", place)),
        _Qmp(sockets[0]) as source,
        _Qmp(sockets[1]) as target,
    ):
        if postcopy:
            capabilities = {"capabilities": [{"capability": "postcopy-ram", "state": True}]}
            for each in (source, target):
                each.ask("migrate-set-capabilities", capabilities)
        time.sleep(_SETTLE)
        source.ask("migrate-set-parameters", {"max-bandwidth": _UNLIMITED})
        source.ask("migrate", {"uri": place})
        if postcopy:
            time.sleep(PRECOPY_FIRST)
            source.ask("migrate-start-postcopy")
        deadline = time.monotonic() + _LIMIT
        # It says "completed" a moment before it has counted how long that took.
        while (found := source.ask("query-migrate")).get("status") != "completed" or not found["total-time"]:
            if found.get("status") in ("failed", "cancelled") or time.monotonic() > deadline:
                raise BenchError(f"QEMU's migration: {found}")
            time.sleep(0.02)
        ram = found["ram"]
        return Move(found["total-time"], found["downtime"], ram["transferred"], ram["postcopy-requests"])


class _Qmp:
    """As little of QMP as is needed to drive QEMU."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _Qmp:
        deadline = time.monotonic() + _LIMIT
        self._socket = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self._socket.connect(str(self._path))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self.ask("qmp_capabilities")
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments or {}}).encode() + b"\n")
        while True:
            if not select.select([self._socket], [], [], _QEMU_ANSWERS)[0]:
                raise QemuHangs(f"QEMU does not answer {command}")
            answer = json.loads(self._lines.readline())
            if "return" in answer:
                found: dict[str, Any] = answer["return"]
                return found
            if "error" in answer:
                raise BenchError(f"QEMU: {command}: {answer['error']['desc']}")
