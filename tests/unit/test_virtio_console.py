"""The virtio console: output and input through the queues, and once each wherever the device is killed."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.device_harness import FakeRuntime
from tests.unit.virtio_driver import BUFFERS, PackedDriver, SplitDriver, areas, guest_memory
from vmesh import errors
from vmesh.slot import MARKS
from vmesh.v1.devices_pb2 import VirtioConsoleState, VirtioQueueState
from vmesh.virtio.device import DRIVER_OK, F_RING_PACKED, F_VERSION_1, FEATURES_OK, NEEDS_RESET
from vmesh.virtio.mmio import Mmio
from vmesh.virtio.packed import WRAP
from vmesh.virtio.queue import Areas
from vmesh_services.devices.virtio_console.device import INPUT, MOST, RECEIVE, TRANSMIT, VirtioConsole

SIZE = 16
RECEIVE_BUFFERS, SEND_BUFFERS = BUFFERS, BUFFERS + 0x20000


class Killed(BaseException):
    """The process ends here."""


class Kept:
    """Stands for a kept chardev: what is in its journal is not lost, and what was not is."""

    def __init__(self) -> None:
        self.output = b""
        self.full = False
        self.lost = 0

    def write(self, data: bytes) -> None:
        self.output += data

    def journal(self) -> bytes:
        return self.output

    def recover(self, journal: bytes) -> None:
        self.output = journal

    def commit(self) -> None:
        pass

    def input_changed(self) -> None:
        pass

    def pending(self) -> bytes:
        return b"pending"

    def restore(self, pending: bytes) -> None:
        self.output = pending

    def release(self) -> None:
        pass


class Guest:
    """A console with its driver; `turn` is a turn of the loop as vmesh.device has it."""

    def __init__(self, directory: Path, *, packed: bool = False) -> None:
        self.memory = guest_memory(directory)
        kind = PackedDriver if packed else SplitDriver
        second = areas(SIZE)
        shifted = Areas(SIZE, second.descriptors + 0x2000, second.driver + 0x2000, second.device + 0x2000)
        self.receive, self.transmit = kind(self.memory, areas(SIZE)), kind.__new__(kind)
        # The second driver must not clear what the first has written.
        self.transmit.memory, self.transmit.areas = self.memory, shifted
        self.transmit.event_index = self.transmit.indirect = False
        self.transmit._begin()
        self.marks = memoryview(bytearray(8 * MARKS)).cast("Q")
        self.slot = (b"", b"")
        self.read = b""  # by the guest
        self.packed = packed
        self.device = self._build()
        state = VirtioConsoleState()
        state.virtio.CopyFrom(self.device.slot_state().virtio)  # type: ignore[attr-defined]
        state.virtio.status = DRIVER_OK | FEATURES_OK
        state.virtio.driver_features = F_VERSION_1 | (F_RING_PACKED if packed else 0)
        for index, driver in ((RECEIVE, self.receive), (TRANSMIT, self.transmit)):
            at = driver.areas
            state.virtio.queues[index].CopyFrom(
                VirtioQueueState(
                    size=SIZE,
                    ready=True,
                    descriptors=at.descriptors,
                    driver=at.driver,
                    device=at.device,
                    position=WRAP if packed else 0,
                )
            )
        self.device.attached()
        self.device.check(state, 1)
        self.device.load(state)
        self._write_slot()
        for number in range(SIZE):
            self.offer(number)

    @property
    def console(self) -> Any:
        return self.device.console

    def _build(self) -> VirtioConsole:
        runtime: Any = FakeRuntime()
        device = VirtioConsole(runtime, Mmio(0x1000_8000, 8), "null", packed=self.packed)
        device.console = Kept()  # type: ignore[assignment]
        device.marks = self.marks
        device.memory = self.memory
        device.reset()
        return device

    def _write_slot(self) -> None:
        self.slot = (self.device.slot_state().SerializeToString(), self.device.journal())

    def next_life(self) -> None:
        state, journal = self.slot
        self.device = self._build()
        self.device.take_journal(journal)
        loaded = VirtioConsoleState.FromString(state)
        self.device.check(loaded, 1)
        self.device.load(loaded)
        self.device.attached()
        self.device.recover()

    def turn(self) -> None:
        self.device.settle()
        self._write_slot()
        self.device.commit()

    def offer(self, number: int) -> None:
        """A buffer of 32 bytes for what is typed. Its place is its identifier's when that is known."""
        assert self.receive.add([], [(RECEIVE_BUFFERS + 32 * number, 32)]) is not None

    def send(self, data: bytes, number: int = 0) -> None:
        at = SEND_BUFFERS + 0x400 * number
        self.memory.write(at, data)
        assert self.transmit.add([(at, len(data))], []) is not None
        self.device.ring(TRANSMIT)

    def reap(self) -> int:
        """Take what came; gives how many requests of output were given back. Buffers come back in order."""
        for _, written in self.receive.reap():
            self.read += self.memory.read(RECEIVE_BUFFERS + 32 * self._oldest, written)
            self.offer(self._oldest)
            self._oldest = (self._oldest + 1) % SIZE
        return len(self.transmit.reap())

    _oldest = 0


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Guest:
    return Guest(tmp_path, packed=request.param)


def test_output_reaches_the_chardev_and_is_given_back_after_the_slot(guest: Guest) -> None:
    guest.send(b"one ", 0)
    guest.send(b"two", 1)
    guest.device.settle()
    assert guest.reap() == 0
    guest.device.commit()
    assert guest.reap() == 2
    assert guest.console.output == b"one two"


def test_input_is_cut_into_the_guests_buffers(guest: Guest) -> None:
    typed = bytes(range(100))
    guest.device._typed(typed)
    for _ in range(4):
        guest.turn()
    guest.reap()
    assert guest.read == typed


def test_input_waits_for_a_driver_and_is_bounded(guest: Guest) -> None:
    assert guest.device._room() == INPUT
    guest.device._typed(bytes(4000))
    assert guest.device._room() == INPUT - 4000
    guest.device.pause()
    assert guest.device._room() == 0
    guest.device.resume()
    guest.device.reset()
    assert guest.device._room() == INPUT


def test_output_waits_while_the_chardev_is_full(guest: Guest) -> None:
    guest.console.full = True
    guest.send(b"later")
    guest.turn()
    assert (guest.console.output, guest.reap()) == (b"", 0)
    guest.console.full = False
    guest.turn()
    assert (guest.console.output, guest.reap()) == (b"later", 1)


def test_more_output_than_can_be_kept_is_refused(guest: Guest) -> None:
    assert guest.transmit.add([(BUFFERS, 0x8000)] * 9, []) is not None
    assert MOST < 9 * 0x8000
    guest.device.ring(TRANSMIT)
    guest.turn()
    assert guest.device._state.status & NEEDS_RESET
    assert guest.console.output == b""


def test_emergency_write(guest: Guest) -> None:
    assert guest.device.config() == bytes((0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0))
    guest.device.write(0, 0x108, 4, 0x41)
    guest.device.write(0, 0x100, 4, 0x42)
    assert guest.console.output == b"A"


def test_output_that_is_nobodys_yet_goes_with_the_state_and_is_not_in_the_slot(guest: Guest) -> None:
    state = guest.device.save()
    assert isinstance(state, VirtioConsoleState)
    assert state.output.data == b"pending"
    guest.device.load(state)
    assert guest.console.output == b"pending"

    slot = guest.device.slot_state()
    assert isinstance(slot, VirtioConsoleState)
    assert not slot.HasField("output")
    guest.console.output = b"of the journal"
    guest.device.load(slot)
    assert guest.console.output == b"of the journal"


def test_states_that_are_refused(guest: Guest) -> None:
    state = guest.device.save()
    assert isinstance(state, VirtioConsoleState)
    state.given = 1
    with pytest.raises(errors.BadState, match="virtio-console"):
        guest.device.check(state, 1)
    state.given, state.input = 0, bytes(INPUT + 1)
    with pytest.raises(errors.BadState, match="virtio-console"):
        guest.device.check(state, 1)


def _dies_at(guest: Guest, step: int) -> Callable[[], None]:
    """Count the places where a turn can end; gives what counts."""
    left = [step]

    def count() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    for queue in guest.device.queues:
        assert queue is not None

        def push(done: Any, former: Any = queue.push_all) -> None:
            count()
            former(done)
            count()

        queue.push_all = push  # type: ignore[method-assign]
    return count


def test_nothing_is_lost_and_nothing_comes_twice_however_often_it_is_killed(guest: Guest) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    numbers = random.Random(seed)
    sent = typed = b""
    lines = waiting = lives = 0
    for round_ in range(400):
        for number in range(numbers.randrange(4)):
            if waiting < SIZE:
                line = b"%d.%d " % (round_, number)
                guest.send(line, lines % SIZE)
                sent, lines, waiting = sent + line, lines + 1, waiting + 1
        if numbers.random() < 0.5:
            piece = numbers.randbytes(numbers.randrange(1, 80))
            # What is typed counts as taken when it is in the slot: the keeper sends it again otherwise.
            if guest.device._room() >= len(piece):
                guest.device._typed(piece)
                guest._write_slot()
                typed += piece
        count = _dies_at(guest, numbers.randrange(8))
        try:
            guest.device.settle()
            count()
            guest._write_slot()
            count()
            guest.device.commit()
            count()
        except Killed:
            guest.next_life()
            lives += 1
        else:
            for queue in guest.device.queues:
                del queue.push_all  # type: ignore[union-attr]
        waiting -= guest.reap()
        if numbers.random() < 0.5:
            guest.turn()
            waiting -= guest.reap()
    for _ in range(400):
        guest.device.ring(RECEIVE)
        guest.turn()
        waiting -= guest.reap()
    assert lives > 50
    assert (guest.console.output, guest.read, waiting) == (sent, typed, 0)
