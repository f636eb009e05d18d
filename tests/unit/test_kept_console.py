"""A kept console whose reader does not read: the keeper takes what it has given leave for, and the rest is the device's
state. Both sides in one process, the keeper in a thread."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.waiting import wait_for
from vmesh import chardev, errors
from vmesh.chardev import JOURNAL_BYTES, PENDING_BYTES, Chardev
from vmesh.log import Log
from vmesh.loop import Loop
from vmesh_services.monitor.console import KeptConsole

SECONDS = 10.0
TURNS = 50  # of 10 ms, in which a keeper that has room says so


class Bench:
    """A keeper with one client at its console, and the device's side, `device`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = Log("port", folder / "log")
        self._loop = Loop()
        self._keeper = KeptConsole(
            folder / "kept", folder / "attach", f"unix:{folder}/client,server,nowait", self._loop, self.log
        )
        self._loop.settle = self._keeper.look
        self.reader = socket.socket(socket.AF_UNIX)
        self.reader.connect(str(folder / "client"))
        self.reader.settimeout(SECONDS)
        wake, self._wake = socket.socketpair()
        self._loop.watch(wake.fileno(), read=self._loop.stop)
        self._ends = [wake, self._wake, self.reader]
        self._thread = threading.Thread(target=self._loop.run, daemon=True)
        self._thread.start()
        self.device = self.life(b"")
        self.written = b""

    def life(self, journal: bytes) -> Chardev:
        made = chardev.make(f"kept:{self.folder}/kept", Loop(), self.log, lambda: 0, lambda data: None)
        made.recover(journal)
        made.start()
        made.wait(-1)
        return made

    def turn(self) -> None:
        """As the device's loop does it: take what the keeper has said, write the slot, commit."""
        loop = self.device._loop
        loop.call_in("turn", 0.01, loop.stop)
        loop.run()
        self.device.commit()

    def write(self, data: bytes) -> None:
        self.written += data
        self.device.write(data)
        self.turn()

    def fill(self) -> None:
        """Write until the device waits: with the reader's socket, the keeper and the device full."""
        waited = 0
        while waited < TURNS:
            if self.device.full:  # or the keeper is late
                waited += 1
                self.turn()
            else:
                waited = 0
                self.write(bytes(len(self.written) // 4096 % 251 + 1 for _ in range(4096)))

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            self.turn()
            part = self.reader.recv(size - len(data))
            assert part, "the console has ended"
            data += part
        return data

    def read_rest(self) -> bytes:
        """All that comes while nothing more leaves the device."""
        data = b""
        self.reader.settimeout(1.0)
        with suppress(TimeoutError):
            while part := self.reader.recv(1 << 20):
                self.turn()
                data += part
        self.reader.settimeout(SECONDS)
        return data

    def close(self) -> None:
        self._wake.send(b"x")
        self._thread.join(SECONDS)
        for each in self._ends:
            each.close()
        self._keeper.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="vmesh-kept-") as folder:  # pytest's are too long for a socket
        made = Bench(Path(folder))
        yield made
        made.close()


def test_output_flows_as_it_is_read(bench: Bench) -> None:
    bench.fill()
    half = bench.read(len(bench.written) // 2)
    bench.fill()
    assert half + bench.read(len(bench.written) - len(half)) == bench.written


def test_what_is_pending_is_told_at_once_and_does_not_leave_before_the_machine_goes_on(bench: Bench) -> None:
    bench.fill()

    pending = bench.device.pending()

    assert pending
    taken = bench.read_rest()
    assert taken + pending == bench.written
    bench.device.release()
    assert bench.read(len(pending)) == pending


def test_state_that_is_loaded_brings_its_pending_output(bench: Bench) -> None:
    bench.fill()
    bench.device.pending()
    bench.device.restore(b"of the state")
    taken = bench.read_rest()
    bench.device.release()
    assert bench.read(12) == b"of the state"
    assert bench.written.startswith(taken)


def test_what_was_handed_over_is_not_brought_out_here(bench: Bench) -> None:
    bench.fill()
    pending = bench.device.pending()
    bench.device.hand_over()
    bench.device.finish()
    assert bench.read_rest() + pending == bench.written


def test_next_life_goes_on_where_a_killed_one_was(bench: Bench) -> None:
    bench.fill()
    bench.device._keeper.close()  # type: ignore[attr-defined]
    bench.device = bench.life(bench.device.journal())
    assert bench.read(len(bench.written)) == bench.written


def test_what_is_not_in_the_slot_yet_is_not_sent(bench: Bench) -> None:
    """The keeper has room again in the midst of a turn, whose end the device does not live to see."""
    bench.write(b"first ")
    journal = bench.device.journal()
    bench.device.write(b"second")
    bench.device._writable()  # type: ignore[attr-defined]
    bench.device._keeper.close()  # type: ignore[attr-defined]
    bench.device = bench.life(journal)
    bench.device.write(b"second")  # the access is replayed
    assert bench.read(12) == b"first second"


def test_pending_output_is_bounded_and_what_is_lost_is_said(bench: Bench) -> None:
    bench.fill()
    kept = len(bench.device.pending())
    for _ in range(2 * PENDING_BYTES // 4096):
        bench.device.write(bytes(4096))
    assert bench.device.waiting <= PENDING_BYTES
    assert len(bench.device.journal()) <= JOURNAL_BYTES
    assert bench.device.lost == kept + 2 * PENDING_BYTES - PENDING_BYTES
    assert "console output lost" in (bench.folder / "log").read_text()


def test_reader_that_takes_nothing_holds_up_the_end_for_a_short_time_only(bench: Bench) -> None:
    bench.fill()
    waiting = bench.device.waiting
    bench.device.finish()  # the test's limit is its assertion
    assert bench.device.lost == waiting


def test_device_that_sends_without_leave_is_let_go(bench: Bench) -> None:
    bench.fill()
    bench.device._limit = 1 << 62  # type: ignore[attr-defined]

    def is_told() -> bool:
        bench.turn()
        return "console out of step" in (bench.folder / "log").read_text()

    wait_for(is_told, "the keeper to let go of it")


def test_state_with_too_much_output_is_refused() -> None:
    chardev.check_pending("uart0", bytes(PENDING_BYTES))
    with pytest.raises(errors.BadState, match="expected at most"):
        chardev.check_pending("uart0", bytes(PENDING_BYTES + 1))
