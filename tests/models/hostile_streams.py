"""Migration streams that were changed at random, given to the real destination and to the real reader of snapshots.

The streams are real ones: a small machine's, sent by the real source and noted on the way (pre-copy with rounds,
changes and zeroes; compressed; post-copy with requested pages), and a snapshot of it. They are changed in their bytes,
which the checksums are to find; and in their records and messages behind right checksums, as somebody would who writes
a stream of his own. What a service says to its state is not asked here: `HostileMachine` takes everything.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.changed_streams import change_bytes, change_records
from vmesh import errors, segment
from vmesh.log import Log
from vmesh.migration.package import States
from vmesh.segment import PAGE
from vmesh.v1 import memory_pb2
from vmesh.v1 import migration_pb2 as messages
from vmesh.v1.lifecycle_pb2 import ServiceState
from vmesh_services.migration import channels, incoming
from vmesh_services.migration.incoming import Incoming
from vmesh_services.migration.job import Context, Job
from vmesh_services.migration.machine import MachineActions, Stopped
from vmesh_services.migration.outgoing import Outgoing
from vmesh_services.migration.pager import Pager
from vmesh_services.migration.ram import GuestRam
from vmesh_services.migration.snapshot import Load, Save

RAM_PAGES, ROM_PAGES = 768, 16
SERVICES = {"memory": "memory", "cpu": "cpu", "uart0": "ns16550a", "rtc": "goldfish-rtc"}
MOST_PACKAGE = 1 << 20
MOST_GROWTH = 64 << 20  # bytes of this process, for one stream: a state may have 16 MiB, a record 4
_LIMIT = 60.0
_SOON = 0.3  # seconds, for what a stream that was changed may not bring


class HostileMachine(MachineActions):
    """Takes and does everything, and notes it."""

    def __init__(self) -> None:
        super().__init__(lambda message: None)
        self.did: list[str] = []
        self.states: States = {}
        self.on_load: Callable[[], None] = lambda: None

    def stop(self) -> bool:
        self.did.append("stop")
        return True

    def save(self) -> Stopped:
        states = {
            name: ServiceState(type=f"vmesh.test.{kind}", version=1, bytes=random.Random(kind).randbytes(3000))
            for name, kind in SERVICES.items()
        }
        return Stopped(states, True, time.monotonic_ns())

    def check(self, states: States) -> None:
        self.did.append("check")

    def load(self, states: States) -> None:
        self.did.append("load")
        self.states = dict(states)
        self.on_load()

    def hand_over(self) -> None: ...

    def go(self, since_ns: int, *, reset_due: bool = False) -> None:
        self.did.append("go")

    def stay(self, *, reset_due: bool = False) -> None:
        self.did.append("go")

    def go_on(self, *, catch_up: bool = False) -> None:
        self.did.append("go on")

    def moved(self) -> None: ...


@dataclass
class Side:
    """A machine's memory, and what jobs stand on."""

    folder: Path
    machine: HostileMachine = field(default_factory=HostileMachine)
    shoot_down: Callable[[], None] = lambda: None
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        stride = segment.flags_stride(RAM_PAGES * PAGE)
        sizes = {"ram": RAM_PAGES * PAGE, "rom": ROM_PAGES * PAGE, "flags": segment.FLAG_ARRAYS * stride}
        for name, size in sizes.items():
            segment.create(self.folder / name, size)
        ram = memory_pb2.Segment(
            name="ram", path=str(self.folder / "ram"), base=0x80000000, size=sizes["ram"], writable=True,
            flags_path=str(self.folder / "flags"), flags_stride=stride,
        )  # fmt: skip
        rom = memory_pb2.Segment(name="rom", path=str(self.folder / "rom"), base=0x20000000, size=sizes["rom"])
        self.ram = GuestRam([ram, rom])
        self.ram.segments[0].present[:] = 1
        self.log = Log("side", self.folder / "log")
        self.pager = Pager(self.ram, lambda work: work(), self._mark_absent, lambda: None, lambda addresses: None)

    def _mark_absent(self) -> None:
        self.ram.segments[0].present[:] = 0

    def context(self, **settings: Any) -> Context:
        configuration = messages.Configuration(board="virt", machine="side", segments=self.ram.identity())
        for name, kind in SERVICES.items():
            configuration.services.add(name=name, kind=kind)
        capabilities = messages.MigrationCapabilities(postcopy_ram=settings.pop("postcopy", False))
        parameters = messages.MigrationParameters(max_package_bytes=MOST_PACKAGE, **settings)
        return Context(
            self.machine, self.ram, configuration, parameters, capabilities, self.log, lambda status: None,
            self.shoot_down, lambda percent: None, self.faults.append, self.pager, lambda record: None,
        )  # fmt: skip


class Running:
    """A job in its thread; `error` is how it ended, None for a good end."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.job.run()
        except BaseException as error:
            self.error = error

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self.alive


@dataclass(frozen=True)
class Recorded:
    """What came to the destination: of the main connection, and of that for requested pages."""

    name: str
    main: bytes
    pages: bytes = b""


def record(folder: Path) -> tuple[list[Recorded], bytes]:
    """Real streams, and a snapshot of the same machine."""
    made = []
    for name, settings in (
        ("pre-copy", {"downtime_limit_ms": 0}),
        ("compressed", {"downtime_limit_ms": 300, "zstd_level": 1}),
        ("post-copy", {"downtime_limit_ms": 0, "postcopy": True}),
    ):
        source, target = Side(folder / f"{name}-source"), Side(folder / f"{name}-target")
        _fill(source)
        made.append(_move(name, source, target, settings))
    saved = Side(folder / "saved")
    _fill(saved)
    Save(saved.context(), str(folder / "snapshot")).run()
    return made, (folder / "snapshot").read_bytes()


def _fill(side: Side) -> None:
    content = side.ram.segments[0].content
    content[:300] = np.random.default_rng(1).integers(0, 255, (300, PAGE), np.uint8)
    content[300:340] = 7
    side.ram.segments[1].content[:4] = 3


def _move(name: str, source: Side, target: Side, settings: dict[str, Any]) -> Recorded:
    rounds = 0
    sending: list[Outgoing] = []

    def write() -> None:
        nonlocal rounds
        rounds += 1
        if rounds <= 3:
            source.ram.segments[0].content[:200, 8 * rounds] += 1
            source.ram.segments[0].dirty[:200] = 1
        if settings.get("postcopy"):
            sending[0].start_postcopy()

    def need_pages() -> None:
        target.pager.wanted([target.ram.address(0, page) for page in (5, 700, 299)])

    source.shoot_down = write
    target.machine.on_load = need_pages if settings.get("postcopy") else lambda: None
    place = target.folder / "there"
    receiving = Running(Incoming(target.context(), f"unix:{place}"))
    with _tee(place) as (near, taken):
        sending.append(Outgoing(source.context(**settings), f"unix:{near}"))
        running = Running(sending[0])
        if not (running.join(_LIMIT) and receiving.join(_LIMIT)) or running.error or receiving.error:
            raise AssertionError(f"{name}: {running.error}, {receiving.error}") from running.error or receiving.error
    for mine, theirs in zip(source.ram.segments, target.ram.segments, strict=True):
        assert (mine.content == theirs.content).all()
    return Recorded(name, *(bytes(each) for each in taken))


@contextmanager
def _tee(place: Path) -> Iterator[tuple[Path, list[bytearray]]]:
    """Passes connections on to `place`, and notes what goes there by each."""
    near = place.with_suffix(".near")
    taken: list[bytearray] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(near))
        listener.listen()

        def passes(here: socket.socket, there: socket.socket, noted: bytearray) -> None:
            with suppress(OSError):
                while data := here.recv(1 << 20):
                    noted += data
                    there.sendall(data)
            for each in (here, there):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

        def accepts() -> None:
            with suppress(OSError):
                while True:
                    here, _ = listener.accept()
                    there = socket.socket(socket.AF_UNIX)
                    there.connect(str(place))
                    taken.append(bytearray())
                    for ends in ((here, there, taken[-1]), (there, here, bytearray())):
                        threading.Thread(target=passes, args=ends, daemon=True).start()

        threading.Thread(target=accepts, daemon=True).start()
        yield near, taken
        listener.shutdown(socket.SHUT_RDWR)


# What becomes of them


@dataclass
class Campaign:
    """Gives changed streams to a destination, one after the other. `outcomes` counts, `growth` is the most in bytes."""

    folder: Path
    outcomes: Counter[str] = field(default_factory=Counter)
    growth: int = 0

    def __post_init__(self) -> None:
        self.streams, self.snapshot = record(self.folder)
        self._target = Side(self.folder / "target")
        self._errors: list[str] = []
        self._former = threading.excepthook
        threading.excepthook = self._thread_failed

    def close(self) -> None:
        threading.excepthook = self._former

    def _thread_failed(self, failed: threading.ExceptHookArgs) -> None:
        self._errors.append("".join(traceback.format_exception(failed.exc_value)) if failed.exc_value else "?")

    def unchanged(self) -> list[str]:
        """What becomes of the streams and the snapshot as they were made."""
        return [*(self._receive(each.main, each.pages) for each in self.streams), self._load(self.snapshot)]

    def one(self, seed: int) -> None:
        """One changed stream. Raises AssertionError for anything but a typed error or a good load."""
        chance = random.Random(seed)
        _reset_peak()
        before = _peak()
        if chance.random() < 0.2:
            outcome = self._load(self._changed(self.snapshot, chance, [self.snapshot]))
        else:
            recorded = chance.choice(self.streams)
            others = [each.main for each in self.streams]
            main, pages = recorded.main, recorded.pages
            if pages and chance.random() < 0.3:
                pages = self._changed(pages, chance, others)
            else:
                main = self._changed(main, chance, others)
            with _impatient():
                outcome = self._receive(main, pages)
        self.outcomes[outcome] += 1
        grown = _peak() - before
        self.growth = max(self.growth, grown)
        assert grown < MOST_GROWTH, f"seed {seed}: grew by {grown} bytes ({outcome})"
        assert not self._errors, f"seed {seed}: {self._errors[0]}"

    def _changed(self, stream: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
        if chance.random() < 0.3:
            return change_bytes(stream, chance)
        return change_records(stream, chance, others)

    def _receive(self, main: bytes, pages: bytes) -> str:
        side = self._target
        side.machine.did.clear()
        place = side.folder / "there"
        job = Incoming(side.context(), f"unix:{place}")
        running = Running(job)
        connections = [_Sender(place, main)]
        if pages:
            connections.append(_Sender(place, pages, ends=False))
        deadline = time.monotonic() + _LIMIT
        paused = False
        while not running.join(0.002):
            assert time.monotonic() < deadline, f"it hangs: {job.status.message()}"
            paused |= job.status.state == messages.MIGRATION_POSTCOPY_PAUSED
            if paused or (job.status.state == messages.MIGRATION_SETUP and connections[0].over):
                job.close()  # it waits for the next
        for each in connections:
            each.close()
        self._typed(running.error)
        did = side.machine.did
        if "go" in did:
            assert did.index("load") < did.index("go"), did
            assert side.machine.states.keys() == SERVICES.keys()
        if paused:
            return "runs, and its post-copy is paused"
        if running.error is None:
            assert did.count("go") == 1, did
            assert bool(side.ram.segments[0].present.all())
            return "loaded"
        assert side.ram.segments[0].present.all() or "go" in did
        return f"refused: {type(running.error).__name__}"

    def _load(self, data: bytes) -> str:
        side = self._target
        side.machine.did.clear()
        side.faults.clear()
        path = side.folder / "changed"
        path.write_bytes(data)
        running = Running(Load(side.context(), str(path)))
        assert running.join(_LIMIT), "a snapshot hangs"
        self._typed(running.error)
        if side.faults:  # a file that was made so, with right checksums: the machine ends, and says why
            assert isinstance(running.error, errors.VmeshError), side.faults
            assert str(running.error).startswith("compressed pages: "), side.faults
            return "snapshot cannot be decompressed: the machine ends"
        if running.error is None:
            return "snapshot loaded"
        assert "load" not in side.machine.did, running.error
        return f"snapshot refused: {type(running.error).__name__}"

    @staticmethod
    def _typed(error: BaseException | None) -> None:
        if error is not None and not isinstance(error, errors.VmeshError | OSError):
            raise AssertionError("".join(traceback.format_exception(error)))


class _Sender:
    """Sends a stream by a connection of its own, and reads what is answered until its end."""

    def __init__(self, place: Path, data: bytes, *, ends: bool = True) -> None:
        self.over = False
        self._ends = ends
        self._link = socket.socket(socket.AF_UNIX)
        with suppress(OSError):  # the destination has had enough already
            self._link.connect(str(place))
        self._data = data
        for work in (self._send, self._read):
            threading.Thread(target=work, daemon=True).start()

    def _send(self) -> None:
        with suppress(OSError):
            self._link.sendall(self._data)
            if self._ends:
                self._link.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        with suppress(OSError):
            while self._link.recv(65536):
                pass
        self.over = True

    def close(self) -> None:
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()


@contextmanager
def _impatient() -> Iterator[None]:
    """What a stream that was changed does not bring is soon given up."""
    former = channels.HEAD_SECONDS, channels.KEPT_SECONDS, incoming._PAGES_SECONDS
    channels.HEAD_SECONDS = channels.KEPT_SECONDS = incoming._PAGES_SECONDS = _SOON
    try:
        yield
    finally:
        channels.HEAD_SECONDS, channels.KEPT_SECONDS, incoming._PAGES_SECONDS = former


def _reset_peak() -> None:
    """proc(5): the peak of resident memory becomes what it is now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Bytes of resident memory, at most since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_PAGE_SIZE")
