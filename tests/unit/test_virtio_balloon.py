"""The balloon (virtio 1.2, 5.5) without a process: what drivers give, what they are told, what hostile ones send."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.device_harness import FakeRuntime
from tests.unit.test_virtio_mmio import Guest
from tests.unit.virtio_driver import BASE, BUFFERS, RAM, Driver, areas, guest_memory
from vmesh import errors, segment, service
from vmesh.device import DeviceService
from vmesh.guest_memory import Piece
from vmesh.slot import Slot
from vmesh.trace import MemoryTrace
from vmesh.v1.common_pb2 import ROLE_MONITOR, BalloonChange, Done
from vmesh.v1.devices_pb2 import VirtioBalloonState
from vmesh.v1.lifecycle_pb2 import SetProperty
from vmesh.v1.packet_pb2 import Packet
from vmesh.v1.slot_pb2 import SlotRecord
from vmesh.v1.trace_pb2 import TRACE_DMA_WRITE
from vmesh.virtio.balloon import PAGE, PROPERTY
from vmesh.virtio.device import DRIVER_OK, F_VERSION_1
from vmesh.virtio.mmio import Mmio, Offset
from vmesh.virtio.queue import DESCRIPTOR
from vmesh.wire import Client
from vmesh_services.devices.virtio_balloon.device import DEFLATE, INFLATE, MOST, VirtioBalloon

WANTED, ACTUAL = 0x100, 0x104  # the configuration's fields, as registers
CONFIG_CHANGED = 2
FIRST = (BASE + RAM // 2) // PAGE  # the page from which on tests give some


class Balloon(Guest):
    """A balloon whose driver is there, with guest memory in `folder`."""

    device: VirtioBalloon

    def __init__(self, folder: Path) -> None:
        self.folder, self.runtime = folder, FakeRuntime()
        runtime: Any = self.runtime
        super().__init__(VirtioBalloon(runtime, Mmio(0x1000_8000, 8)), guest_memory(folder))
        self.drivers: dict[int, Driver] = {INFLATE: self.set_up(INFLATE)}
        self.drivers[DEFLATE] = type(self.drivers[INFLATE])(self.memory, areas(8, 1))
        self.write(Offset.QUEUE_SEL, DEFLATE)
        self.enable(self.drivers[DEFLATE])

    def give(self, *pages: int, queue: int = INFLATE, more: bytes = b"") -> None:
        """A request with the numbers of these pages, and `more` behind them; the device has done it."""
        numbers = struct.pack(f"<{len(pages)}I", *pages) + more
        self.memory.write(BUFFERS, numbers)
        driver = self.drivers[queue]
        identifier = driver.add([(BUFFERS, len(numbers))], [])
        self.write(Offset.QUEUE_NOTIFY, queue)
        self.settle()
        assert driver.reap() == [(identifier, 0)]

    def page(self, number: int) -> bytes:
        return self.memory.read(number * PAGE, PAGE)

    def dirty(self) -> set[int]:
        flags = (self.folder / "ram.flags").read_bytes()[segment.flags_stride(RAM) :][: RAM // PAGE]
        return {BASE // PAGE + place for place, flag in enumerate(flags) if flag}

    def clean(self) -> None:
        """As migration does before it looks for what is written."""
        with (self.folder / "ram.flags").open("r+b") as flags:
            os.pwrite(flags.fileno(), bytes(RAM // PAGE), segment.flags_stride(RAM))

    @property
    def given(self) -> int:
        return self.device.counters()["bytes_given_back"]

    def told(self) -> list[int]:
        """How many pages the monitor was told of, each time."""
        return [event.pages for _, event in self.runtime.notices if isinstance(event, BalloonChange)]


@pytest.fixture
def guest(tmp_path: Path) -> Balloon:
    made = Balloon(tmp_path)
    for number in range(FIRST - 1, FIRST + 9):
        made.memory.write(number * PAGE, bytes([number & 0xFF]) * PAGE)
    made.memory.write(BUFFERS, bytes(PAGE))  # where requests are
    made.clean()
    return made


def test_pages_that_are_given_take_no_memory_and_are_dirty(guest: Balloon) -> None:
    held = os.stat(guest.folder / "ram").st_blocks * 512
    guest.give(FIRST + 2, FIRST, FIRST + 1, FIRST + 7)
    assert guest.given == 4 * PAGE
    assert os.stat(guest.folder / "ram").st_blocks * 512 == held - 4 * PAGE
    for number in (FIRST, FIRST + 1, FIRST + 2, FIRST + 7):
        assert guest.page(number) == bytes(PAGE)
        assert number in guest.dirty()
    for number in (FIRST - 1, FIRST + 3, FIRST + 6, FIRST + 8):
        assert guest.page(number) == bytes([number & 0xFF]) * PAGE
        assert number not in guest.dirty()


def test_neighbours_are_given_at_once(guest: Balloon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each hole costs the host a call."""
    seen: list[list[Piece]] = []

    def discard(pieces: list[Piece]) -> int:
        seen.append(pieces)
        return 0

    monkeypatch.setattr(guest.memory, "discard", discard)
    guest.give(*range(FIRST + 3, FIRST - 1, -1), FIRST + 6)
    assert seen == [[(FIRST * PAGE, 4 * PAGE), ((FIRST + 6) * PAGE, PAGE)]]


def test_what_is_given_is_in_the_trace(guest: Balloon) -> None:
    seen: list[tuple[int, int, int]] = []
    trace = MemoryTrace(guest.memory, lambda kind, _began, address, size: seen.append((kind, address, size)))
    guest.give(FIRST)
    trace.close()
    guest.give(FIRST + 1)
    assert [each for each in seen if each[1] >= FIRST * PAGE] == [(TRACE_DMA_WRITE, FIRST * PAGE, PAGE)]
    assert guest.given == 2 * PAGE


def test_pages_that_are_taken_back_are_the_guests_at_once(guest: Balloon) -> None:
    guest.give(FIRST)
    guest.memory.write(FIRST * PAGE, b"mine")
    guest.give(FIRST, queue=DEFLATE)
    assert guest.page(FIRST)[:4] == b"mine"
    assert guest.given == PAGE


@pytest.mark.parametrize(
    "pages",
    [
        (0,),
        (BASE // PAGE - 1,),
        ((BASE + RAM) // PAGE,),
        ((1 << 32) - 1,),
        (FIRST, FIRST, FIRST),
        (0, FIRST, (BASE + RAM) // PAGE, (1 << 32) - 1),
    ],
)
def test_what_is_no_page_of_ram_is_passed_over(guest: Balloon, pages: tuple[int, ...]) -> None:
    guest.give(*pages)
    assert guest.given == (PAGE if FIRST in pages else 0)
    assert guest.status & DRIVER_OK
    assert guest.page(FIRST + 1) == bytes([FIRST + 1 & 0xFF]) * PAGE


def test_half_a_number_is_none(guest: Balloon) -> None:
    guest.give(FIRST, more=struct.pack("<I", FIRST + 1)[:3])
    assert guest.given == PAGE


def test_a_request_of_all_memory_costs_little(guest: Balloon) -> None:
    """A chain over everything there is, again and again: its first numbers are looked at, and nothing else of it."""
    guest.memory.write(BUFFERS, struct.pack("<I", FIRST) * (MOST // 4) + struct.pack("<I", FIRST + 1))
    table = b"".join(
        DESCRIPTOR.pack(BUFFERS, BASE + RAM - BUFFERS, number < 1023, number + 1) for number in range(1024)
    )
    driver = guest.drivers[INFLATE]
    driver.memory.write(BASE + 0x10000, table)
    driver.memory.write(driver.areas.descriptors, DESCRIPTOR.pack(BASE + 0x10000, len(table), 4, 0))
    driver.memory.write_u16(driver.areas.driver + 4, 0)
    driver.memory.write_u16(driver.areas.driver + 2, 1)
    # Without F_INDIRECT_DESC the driver must not do that; with it, it may.
    state = guest.device.save()
    assert isinstance(state, VirtioBalloonState)
    state.virtio.driver_features |= 1 << 28
    guest.device.load(state)
    guest.write(Offset.QUEUE_NOTIFY, INFLATE)
    guest.settle()
    assert guest.memory.read_u16(driver.areas.device + 2) == 1
    assert guest.given == PAGE


def test_the_guest_is_told_what_it_is_to_do_without(guest: Balloon) -> None:
    generation = guest.read(Offset.CONFIG_GENERATION)
    guest.device.set_property(PROPERTY, 3)
    assert guest.read(WANTED) == 3
    assert guest.read(ACTUAL) == 0
    assert guest.read(Offset.INTERRUPT_STATUS) & CONFIG_CHANGED
    assert guest.read(Offset.CONFIG_GENERATION) != generation


@pytest.mark.parametrize(("name", "value"), [("size", 1), ("", 0), (PROPERTY, 1 << 32)])
def test_what_cannot_be_set_is_refused(guest: Balloon, name: str, value: int) -> None:
    guest.device.set_property(PROPERTY, 7)
    with pytest.raises(errors.BadRequest):
        guest.device.set_property(name, value)
    assert guest.read(WANTED) == 7


def test_what_is_set_is_in_the_slot_when_it_is_answered(tmp_path: Path) -> None:
    arguments = ["--machine", str(tmp_path), "--name", "air"]
    runtime = service.Runtime(service.parser("virtio-balloon", None).parse_args(arguments))
    made = DeviceService(runtime, VirtioBalloon(runtime, Mmio(0x1000_8000, 8)))
    monitor = Client(b"identity", ROLE_MONITOR, "monitor", 0)
    assert made.handle(monitor, Packet(id=1, set_property=SetProperty(name=PROPERTY, value=9))) == Done()
    written = Slot(tmp_path / "air.slot", fresh=False).read()
    assert written is not None
    assert VirtioBalloonState.FromString(SlotRecord.FromString(written).state).wanted == 9
    runtime.close()


def test_the_monitor_is_told_at_most_once_a_second(guest: Balloon) -> None:
    for pages in (1, 2, 3):
        guest.write(ACTUAL, pages)
    assert guest.told() == [1]
    guest.runtime.fire("tell")
    assert guest.told() == [1, 3]
    guest.runtime.fire("tell")
    assert guest.told() == [1, 3]
    assert "tell" not in guest.runtime.timers
    guest.write(ACTUAL, 4)
    assert guest.told() == [1, 3, 4]


def test_what_the_driver_writes_is_actual_only_and_in_any_pieces(guest: Balloon) -> None:
    guest.device.set_property(PROPERTY, 5)
    guest.write(WANTED, 0xFFFF_FFFF)
    assert guest.read(WANTED) == 5
    for place, value in enumerate((0x78, 0x56, 0x34, 0x12)):
        guest.device.write(0, ACTUAL + place, 1, value)
    assert guest.read(ACTUAL) == 0x1234_5678


def test_a_reset_leaves_what_the_monitor_wants(guest: Balloon) -> None:
    guest.device.set_property(PROPERTY, 5)
    guest.write(ACTUAL, 4)
    guest.runtime.fire("tell")
    guest.device.reset()
    assert (guest.read(WANTED), guest.read(ACTUAL)) == (5, 0)
    assert guest.told() == [4, 0]


def test_saved_and_loaded_elsewhere_it_is_the_same(guest: Balloon, tmp_path: Path) -> None:
    guest.device.set_property(PROPERTY, 5)
    guest.write(ACTUAL, 4)
    state = guest.device.save()
    (tmp_path / "other").mkdir()
    other = Balloon(tmp_path / "other")
    other.device.check(state, 1)
    other.device.load(state)
    assert other.device.save() == state
    assert (other.read(WANTED), other.read(ACTUAL)) == (5, 4)
    assert other.told() == []  # where it comes from, it was
    assert other.negotiate(F_VERSION_1)
    assert other.told() == [0]


def test_what_was_waiting_to_be_told_is_told_by_the_next_life(guest: Balloon, tmp_path: Path) -> None:
    guest.write(ACTUAL, 1)
    guest.write(ACTUAL, 9)
    assert guest.told() == [1]
    state = guest.device.save()
    (tmp_path / "next").mkdir()
    following = Balloon(tmp_path / "next")
    following.device.load(state)
    following.device.recover()
    assert following.told() == [9]


def test_without_a_hole_in_the_file_the_content_stays(guest: Balloon, monkeypatch: pytest.MonkeyPatch) -> None:
    class Solid:
        def madvise(self, *_: int) -> None:
            raise OSError(95, "Operation not supported")

    window = guest.memory._windows[0]
    solid: Any = Solid()
    window = replace(window, mapped=replace(window.mapped, file=solid))
    monkeypatch.setattr(guest.memory, "_windows", (window,))
    guest.give(FIRST)
    assert guest.given == 0
    assert guest.page(FIRST) == bytes([FIRST & 0xFF]) * PAGE
