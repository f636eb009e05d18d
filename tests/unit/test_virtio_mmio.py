"""The registers of virtio-mmio: negotiation, status, queues, interrupts, configuration, state."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.device_harness import Bench, FakeRuntime
from tests.unit.virtio_driver import BUFFERS, Driver, PackedDriver, SplitDriver, areas, guest_memory
from vmesh import errors
from vmesh.guest_memory import LocalGuestMemory
from vmesh.v1.bus_pb2 import READ_LATCH, WRITE_CLEARS, WRITE_DOORBELL
from vmesh.v1.devices_pb2 import VirtioRngState
from vmesh.virtio.device import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_RING_PACKED,
    F_VERSION_1,
    FEATURES_OK,
    NEEDS_RESET,
    VirtioDevice,
)
from vmesh.virtio.mmio import Mmio, Offset
from vmesh.virtio.queue import Chain, Queue

FEATURE = 1 << 3


class Echo(VirtioDevice):
    """Writes what it reads; its configuration is six bytes, the first of which may be written."""

    kind = "echo"
    state = VirtioRngState
    device_id = 42

    def __init__(self, runtime: FakeRuntime, *, packed: bool = False) -> None:
        super().__init__(runtime, Mmio(0x1000_8000, 8), queue_sizes=(16, 8), features=FEATURE, packed=packed)  # type: ignore[arg-type]
        self.first = 1

    def request(self, queue: Queue, chain: Chain) -> int:
        data = b"".join(self.memory.gather(chain.readable))
        self.memory.write(chain.writable[0][0], data)
        return len(data)

    def config(self) -> bytes:
        return bytes((self.first, 2, 3, 4, 5, 6))

    def write_config(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self.first = value & 0xFF
            self.config_changed()


class Guest(Bench):
    """The device, with a driver as in 3.1.1."""

    device: VirtioDevice

    def __init__(self, device: VirtioDevice, memory: LocalGuestMemory) -> None:
        super().__init__(device, 4)
        self.memory = device.memory = memory
        device.attached()

    def settle(self) -> None:
        """The end of the loop's turn, and of those that follow: a busy host may end one before the queue is empty."""
        self.device.settle()
        while self.device._rung and self.device.live:
            self.device.settle()

    def negotiate(self, features: int) -> int:
        """Gives Status."""
        self.write(Offset.STATUS, 0)
        self.write(Offset.STATUS, ACKNOWLEDGE)
        self.write(Offset.STATUS, ACKNOWLEDGE | DRIVER)
        for half in (0, 1):
            self.write(Offset.DRIVER_FEATURES_SEL, half)
            self.write(Offset.DRIVER_FEATURES, features >> 32 * half & 0xFFFF_FFFF)
        self.write(Offset.STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        return self.read(Offset.STATUS)

    def set_up(self, index: int = 0, size: int = 8, features: int = F_VERSION_1) -> Driver:
        assert self.negotiate(features) & FEATURES_OK
        kind = PackedDriver if features & F_RING_PACKED else SplitDriver
        driver = kind(self.memory, areas(size), bool(features & F_EVENT_IDX), bool(features & F_INDIRECT_DESC))
        self.write(Offset.QUEUE_SEL, index)
        self.enable(driver)
        self.write(Offset.STATUS, self.read(Offset.STATUS) | DRIVER_OK)
        self.settle()
        return driver

    def enable(self, driver: Driver) -> None:
        places = driver.areas
        self.write(Offset.QUEUE_NUM, places.size)
        for offset, address in (
            (Offset.QUEUE_DESC_LOW, places.descriptors),
            (Offset.QUEUE_DRIVER_LOW, places.driver),
            (Offset.QUEUE_DEVICE_LOW, places.device),
        ):
            self.write(offset, address & 0xFFFF_FFFF)
            self.write(offset + 4, address >> 32)
        self.write(Offset.QUEUE_READY, 1)

    @property
    def status(self) -> int:
        return self.read(Offset.STATUS)


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def memory(tmp_path: Path) -> LocalGuestMemory:
    return guest_memory(tmp_path)


@pytest.fixture
def guest(runtime: FakeRuntime, memory: LocalGuestMemory) -> Guest:
    return Guest(Echo(runtime, packed=True), memory)


def test_what_the_device_is(guest: Guest) -> None:
    for offset, value in ((0, 0x7472_6976), (4, 2), (8, 42), (12, 0x554D_4551)):
        assert guest.read(offset) == value
        assert guest.shadow(offset) == value
    guest.write(Offset.DEVICE_FEATURES_SEL, 0)
    low = guest.read(Offset.DEVICE_FEATURES)
    guest.write(Offset.DEVICE_FEATURES_SEL, 1)
    assert guest.read(Offset.DEVICE_FEATURES) << 32 | low == guest.device.offered
    guest.write(Offset.DEVICE_FEATURES_SEL, 2)
    assert guest.read(Offset.DEVICE_FEATURES) == 0
    assert guest.read(0xB0) == 0xFFFF_FFFF  # no shared memory


def test_kinds_of_registers(guest: Guest) -> None:
    registers = {each.offset: each for each in guest.device.regions[0].registers}
    assert registers[Offset.QUEUE_NOTIFY].write == WRITE_DOORBELL
    assert registers[Offset.INTERRUPT_STATUS].read == READ_LATCH
    assert registers[Offset.INTERRUPT_ACK].write == WRITE_CLEARS


def test_registers_have_32_bits(guest: Guest) -> None:
    guest.write(Offset.STATUS, 3)
    guest.device.write(0, Offset.STATUS, 2, 0)
    guest.device.write(0, Offset.STATUS, 1, 128)
    assert guest.device.read(0, Offset.STATUS, 1) == 0
    assert guest.status == 3


@pytest.mark.parametrize(
    ("features", "accepted"),
    [
        (F_VERSION_1, True),
        (F_VERSION_1 | FEATURE, True),
        (FEATURE, True),  # a driver of before virtio 1 (6.1), as xv6's
        (0, True),
        (F_VERSION_1 | 1 << 4, False),
        (1 << 4, False),
    ],
)
def test_features_that_are_not_offered_are_not_accepted(guest: Guest, features: int, accepted: bool) -> None:
    assert bool(guest.negotiate(features) & FEATURES_OK) == accepted


def test_what_is_not_offered_is_not_negotiated_by_a_driver_that_does_not_ask(guest: Guest) -> None:
    for half in (0, 1):
        guest.write(Offset.DRIVER_FEATURES_SEL, half)
        guest.write(Offset.DRIVER_FEATURES, 0xFFFF_FFFF)
    guest.write(Offset.STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK)
    assert guest.device.negotiated(FEATURE)
    assert not guest.device.negotiated(1 << 4)


def test_features_are_settled_when_accepted(guest: Guest) -> None:
    guest.negotiate(F_VERSION_1)
    guest.write(Offset.DRIVER_FEATURES_SEL, 0)
    guest.write(Offset.DRIVER_FEATURES, FEATURE)
    assert not guest.device.negotiated(FEATURE)


def test_queues(guest: Guest, memory: LocalGuestMemory) -> None:
    sizes = []
    for index in range(3):
        guest.write(Offset.QUEUE_SEL, index)
        sizes.append(guest.read(Offset.QUEUE_NUM_MAX))
    assert sizes == [16, 8, 0]
    guest.set_up(index=1)
    assert guest.read(Offset.QUEUE_READY) == 1
    guest.write(Offset.QUEUE_SEL, 0)
    assert guest.read(Offset.QUEUE_READY) == 0
    guest.write(Offset.QUEUE_SEL, 1)
    guest.write(Offset.QUEUE_READY, 0)
    assert guest.read(Offset.QUEUE_READY) == 0


@pytest.mark.parametrize("size", [0, 3, 32])
def test_a_size_that_a_queue_cannot_have(
    guest: Guest, memory: LocalGuestMemory, runtime: FakeRuntime, size: int
) -> None:
    guest.negotiate(F_VERSION_1)
    driver = SplitDriver(memory, areas(8))
    driver.areas = areas(size)
    guest.write(Offset.QUEUE_SEL, 0)
    guest.enable(driver)
    assert guest.read(Offset.QUEUE_READY) == 0
    assert guest.status & NEEDS_RESET
    assert len(runtime.notices) == 1


@pytest.mark.parametrize("features", [F_VERSION_1, F_VERSION_1 | F_RING_PACKED | F_EVENT_IDX | F_INDIRECT_DESC])
def test_a_request_and_its_interrupt(guest: Guest, memory: LocalGuestMemory, features: int) -> None:
    driver = guest.set_up(features=features)
    assert not guest.line
    for number in range(20):
        memory.write(BUFFERS, b"hello %d" % (number % 10))
        driver.add([(BUFFERS, 7)], [(BUFFERS + 100, 7)])
        assert driver.must_ring()
        guest.write(Offset.QUEUE_NOTIFY, 0)
        assert not guest.line
        guest.settle()
        assert memory.read(BUFFERS + 100, 7) == b"hello %d" % (number % 10)
        assert guest.line
        assert guest.shadow(Offset.INTERRUPT_STATUS) == 1
        guest.write(Offset.INTERRUPT_ACK, 1)
        assert not guest.line
        assert guest.shadow(Offset.INTERRUPT_STATUS) == guest.read(Offset.INTERRUPT_STATUS) == 0
        assert len(driver.reap()) == 1
        driver.listen(1)


def test_no_request_is_taken_before_the_driver_is_ready(guest: Guest, memory: LocalGuestMemory) -> None:
    guest.negotiate(F_VERSION_1)
    driver = SplitDriver(memory, areas(8))
    guest.write(Offset.QUEUE_SEL, 0)
    guest.enable(driver)
    driver.add([(BUFFERS, 7)], [(BUFFERS + 100, 7)])
    guest.write(Offset.QUEUE_NOTIFY, 0)
    guest.settle()
    assert driver.reap() == []
    guest.write(Offset.STATUS, guest.status | DRIVER_OK)
    guest.settle()
    assert len(driver.reap()) == 1


def test_a_paused_device_takes_nothing(guest: Guest) -> None:
    driver = guest.set_up()
    guest.device.pause()
    driver.add([(BUFFERS, 7)], [(BUFFERS + 100, 7)])
    guest.write(Offset.QUEUE_NOTIFY, 0)
    guest.settle()
    assert driver.reap() == []
    guest.device.resume()
    guest.settle()
    assert len(driver.reap()) == 1


def test_what_is_malformed_needs_a_reset(guest: Guest, memory: LocalGuestMemory, runtime: FakeRuntime) -> None:
    driver = guest.set_up()
    driver.add([(0x1000, 7)], [])
    for _ in range(3):
        guest.write(Offset.QUEUE_NOTIFY, 0)
        guest.settle()
    assert guest.status & NEEDS_RESET
    assert guest.shadow(Offset.STATUS) == guest.status
    assert guest.read(Offset.INTERRUPT_STATUS) == 2
    assert guest.line
    assert len(runtime.notices) == 1
    assert "queue 0" in runtime.notices[0][0]
    driver = guest.set_up()
    assert not guest.status & NEEDS_RESET
    driver.add([(BUFFERS, 7)], [(BUFFERS + 100, 7)])
    guest.write(Offset.QUEUE_NOTIFY, 0)
    guest.settle()
    assert len(driver.reap()) == 1


def test_reset(guest: Guest) -> None:
    driver = guest.set_up()
    driver.add([(BUFFERS, 7)], [(BUFFERS + 100, 7)])
    guest.write(Offset.QUEUE_NOTIFY, 0)
    guest.settle()
    guest.write(Offset.STATUS, 0)
    assert guest.status == 0
    assert not guest.line
    assert guest.read(Offset.QUEUE_READY) == 0
    assert guest.shadow(Offset.MAGIC_VALUE) == 0x7472_6976


def test_configuration(guest: Guest) -> None:
    guest.set_up()
    generation = guest.read(Offset.CONFIG_GENERATION)
    assert guest.device.read(0, 0x100, 4) == 0x0403_0201
    assert guest.device.read(0, 0x105, 1) == 6
    assert guest.device.read(0, 0x106, 2) == 0
    guest.device.write(0, 0x100, 1, 9)
    assert guest.device.read(0, 0x100, 1) == 9
    assert guest.read(Offset.CONFIG_GENERATION) == generation + 1
    assert guest.read(Offset.INTERRUPT_STATUS) == 2
    guest.device.write(0, 0x104, 4, 9)  # reaches beyond its end


@pytest.mark.parametrize("features", [F_VERSION_1, F_VERSION_1 | F_RING_PACKED])
def test_a_state_goes_on_in_another_device(guest: Guest, memory: LocalGuestMemory, features: int) -> None:
    driver = guest.set_up(features=features)
    for _ in range(11):
        driver.add([(BUFFERS, 7)], [(BUFFERS + 100, 7)])
        guest.write(Offset.QUEUE_NOTIFY, 0)
        guest.settle()
        driver.reap()
    guest.device.pause()
    driver.add([(BUFFERS, 7)], [(BUFFERS + 100, 7)])
    saved = guest.device.save()
    other = Guest(Echo(FakeRuntime(), packed=True), memory)
    other.device.check(saved, 1)
    other.device.load(saved)
    other.device.resume()
    other.settle()
    assert other.line
    assert len(driver.reap()) == 1
    assert other.device.save().SerializeToString() != saved.SerializeToString()


@pytest.mark.parametrize("features", [F_VERSION_1, F_VERSION_1 | F_RING_PACKED])
def test_a_successor_goes_on_where_its_predecessor_was_killed(
    guest: Guest, memory: LocalGuestMemory, features: int
) -> None:
    driver = guest.set_up(features=features)
    slot = guest.device.save()
    slot = type(slot).FromString(slot.SerializeToString())
    for _ in range(3):  # what the slot does not know of
        driver.add([(BUFFERS, 7)], [(BUFFERS + 100, 7)])
    guest.write(Offset.QUEUE_NOTIFY, 0)
    guest.settle()
    assert len(driver.reap()) == 3
    driver.add([(BUFFERS, 7)], [(BUFFERS + 100, 7)])
    successor = Echo(FakeRuntime(), packed=True)
    successor.reset()
    successor.check(slot, 1)
    successor.load(slot)
    successor.marks = guest.device.marks
    successor.memory = memory
    successor.attached()
    successor.recover()
    assert successor.save().virtio.interrupt_status == 1  # type: ignore[attr-defined]
    successor.settle()
    assert len(driver.reap()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"status": 16},
        {"interrupt_status": 4},
        {"driver_features": 1 << 5, "status": 15},
        {"queues": []},
        {"queues": [{"ready": True, "size": 17}, {}]},
        {"queues": [{"ready": True, "size": 12}, {}]},
        {"queues": [{"ready": True, "size": 8, "position": 1 << 16}, {}]},
        {"driver_features": F_RING_PACKED, "queues": [{"ready": True, "size": 8, "position": 8}, {}]},
    ],
)
def test_a_state_that_cannot_be(guest: Guest, change: dict[str, object]) -> None:
    state = VirtioRngState()
    fields = {"queues": [{}, {}]} | change
    state.virtio.MergeFrom(type(state.virtio)(**fields))  # type: ignore[arg-type]
    with pytest.raises(errors.BadState):
        guest.device.check(state, 1)
