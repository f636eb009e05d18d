"""fw_cfg: what a guest reads, what it has copied, and what a hostile one gets; beside QEMU: test_against_qemu.py."""

from __future__ import annotations

import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.unit.device_harness import FakeRuntime
from tests.unit.virtio_driver import BASE, RAM, guest_memory
from vmesh import errors
from vmesh.device import BusError
from vmesh.v1.devices_pb2 import FwCfgState
from vmesh_services.devices.fw_cfg.device import MOST_ZEROS, REQUEST, Control, FwCfg, Offset
from vmesh_services.devices.fw_cfg.items import DIRECTORY, HARTS, ID, SIGNATURE, digest, items

TEXT = b"0123456789"
FILES = {"opt/text": TEXT, "opt/empty": b"", "opt/long": bytes(range(256)) * 100}
REQUEST_AT, TARGET = BASE + 0x1000, BASE + 0x2000
END = BASE + RAM


def made(harts: int, files: dict[str, bytes]) -> FwCfg:
    return FwCfg(cast(Any, FakeRuntime()), 0x1010_0000, items(harts, files), digest(harts, files))


class Guest:
    """A machine with these items, in which everything is in order of address."""

    def __init__(self, folder: Path, files: dict[str, bytes] | None = None, harts: int = 3) -> None:
        self.device = made(harts, FILES if files is None else files)
        self.device.reset()
        self.device.memory = self.memory = guest_memory(folder)
        self.device.attached()

    def select(self, selector: int) -> None:
        self.device.write(0, Offset.SELECTOR, 2, int.from_bytes(selector.to_bytes(2, "big"), "little"))

    def read(self, count: int, size: int = 1) -> bytes:
        return b"".join(self.device.read(0, Offset.DATA, size).to_bytes(size, "little") for _ in range(count // size))

    def files(self) -> dict[bytes, tuple[int, int]]:
        """Selector and size by name."""
        self.select(DIRECTORY)
        count = int.from_bytes(self.read(4), "big")
        entries = [struct.unpack(">IHH56s", self.read(64)) for _ in range(count)]
        return {name.rstrip(b"\0"): (selector, size) for size, selector, _, name in entries}

    def choose(self, name: str) -> int:
        selector, _ = self.files()[name.encode()]
        self.select(selector)
        return selector

    def ring(self, address: int = REQUEST_AT) -> None:
        self.device.write(0, Offset.DMA, 8, int.from_bytes(address.to_bytes(8, "big"), "little"))

    def request(self, control: int, length: int, target: int = TARGET, at: int = REQUEST_AT) -> int:
        """Have it done; gives the control word that comes of it."""
        self.memory.write(at, REQUEST.pack(control, length, target))
        self.ring(at)
        self.device.commit()
        return int.from_bytes(self.memory.read(at, 4), "big")


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


def test_after_a_reset_the_signature_is_selected(guest: Guest) -> None:
    assert guest.read(6) == b"QEMU\0\0"
    guest.select(ID)
    guest.read(2)
    guest.device.reset()
    assert guest.read(4) == b"QEMU"


def test_what_is_known_of_the_machine(guest: Guest) -> None:
    for selector, content in ((SIGNATURE, b"QEMU"), (ID, b"\3\0\0\0"), (HARTS, b"\3\0"), (0x03, b""), (0x1F, b"")):
        guest.select(selector)
        assert guest.read(8) == content.ljust(8, b"\0")


def test_the_directory_is_in_the_order_of_names(guest: Guest) -> None:
    assert guest.files() == {
        b"bios-geometry": (0x20, 0), b"bootorder": (0x21, 0), b"etc/boot-fail-wait": (0x22, 4),
        b"opt/empty": (0x23, 0), b"opt/long": (0x24, 25600), b"opt/text": (0x25, 10),
    }  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_an_item_is_read_in_units_of_any_size(guest: Guest, size: int) -> None:
    guest.choose("opt/text")
    assert guest.read(16, size) == TEXT + bytes(6)


def test_the_write_bit_of_a_selector_means_nothing_and_an_architecture_has_no_items(guest: Guest) -> None:
    selector = guest.choose("opt/text")
    guest.select(selector | 0x4000)
    assert guest.read(3) == b"012"
    for other in (selector | 0x8000, selector | 0xC000, 0xFFFF):
        guest.select(other)
        assert guest.read(3) == bytes(3)


def test_writing_data_does_nothing(guest: Guest) -> None:
    guest.choose("opt/text")
    for size in (1, 2, 4, 8):
        guest.device.write(0, Offset.DATA, size, 1)
    assert guest.read(10) == TEXT


def test_the_dma_register_reads_its_signature(guest: Guest) -> None:
    whole = guest.device.read(0, Offset.DMA, 8).to_bytes(8, "little")
    halves = [guest.device.read(0, offset, 4).to_bytes(4, "little") for offset in (Offset.DMA, Offset.DMA_LOW)]
    assert whole == b"".join(halves) == b"QEMU CFG"


@pytest.mark.parametrize(("offset", "size"), [(1, 1), (4, 4), (6, 2), (8, 2), (8, 1), (12, 4)])
def test_where_no_register_is_to_read(guest: Guest, offset: int, size: int) -> None:
    with pytest.raises(BusError):
        guest.device.read(0, offset, size)


@pytest.mark.parametrize(
    ("offset", "size"), [(1, 1), (4, 4), (8, 1), (8, 4), (8, 8), (10, 2), (16, 2), (22, 2), (23, 1)]
)
def test_where_no_register_is_to_write(guest: Guest, offset: int, size: int) -> None:
    guest.choose("opt/text")
    with pytest.raises(BusError):
        guest.device.write(0, offset, size, 0)
    assert guest.read(1) == b"0"


def test_a_copy_with_zeros_behind_it(guest: Guest) -> None:
    selector = guest.choose("opt/text")
    guest.memory.write(TARGET, b"\xff" * 32)
    assert guest.request(selector << 16 | Control.SELECT | Control.READ, 16) == 0
    assert guest.memory.read(TARGET, 17) == TEXT + bytes(6) + b"\xff"


def test_copies_go_on_where_the_last_one_ended(guest: Guest) -> None:
    guest.choose("opt/text")
    for place in (0, 4, 8):
        assert guest.request(Control.READ, 4, TARGET + place) == 0
    assert guest.memory.read(TARGET, 12) == TEXT + bytes(2)


def test_the_address_in_two_halves(guest: Guest) -> None:
    selector = guest.choose("opt/text")
    request = REQUEST.pack(selector << 16 | Control.SELECT | Control.READ, 4, TARGET)
    for high in (None, 0):
        guest.memory.write(REQUEST_AT, request)
        guest.memory.write(TARGET, bytes(4))
        if high is not None:
            guest.device.write(0, Offset.DMA, 4, high)
        guest.device.write(0, Offset.DMA_LOW, 4, int.from_bytes(REQUEST_AT.to_bytes(4, "big"), "little"))
        guest.device.commit()
        assert guest.memory.read(REQUEST_AT, 4) == bytes(4)
        assert guest.memory.read(TARGET, 4) == b"0123"
    guest.device.write(0, Offset.DMA, 4, 1 << 24)  # a high half of 1, which the first request uses up
    for answered in (False, True):
        guest.memory.write(REQUEST_AT, request)
        guest.device.write(0, Offset.DMA_LOW, 4, int.from_bytes(REQUEST_AT.to_bytes(4, "big"), "little"))
        guest.device.commit()
        assert (guest.memory.read(REQUEST_AT, 4) == bytes(4)) == answered


def test_skipping(guest: Guest) -> None:
    selector = guest.choose("opt/text")
    assert guest.request(selector << 16 | Control.SELECT | Control.SKIP, 3) == 0
    assert guest.read(3) == b"345"
    assert guest.request(Control.SKIP, 0xFFFF_FFFF) == 0
    assert guest.read(3) == bytes(3)


def test_selecting_alone(guest: Guest) -> None:
    selector = guest.choose("opt/text")
    guest.read(5)
    assert guest.request(selector << 16 | Control.SELECT, 1 << 31, 0) == 0
    assert guest.read(3) == b"012"
    assert guest.request(0, 1 << 31, 0) == 0
    assert guest.read(3) == b"345"


@pytest.mark.parametrize("more", [0, Control.SKIP])
def test_items_cannot_be_written(guest: Guest, more: int) -> None:
    selector = guest.choose("opt/text")
    assert guest.request(selector << 16 | Control.SELECT | Control.WRITE | more, 4) == Control.ERROR
    assert guest.request(0x7777 << 16 | Control.SELECT | Control.WRITE | more, 4) == Control.ERROR
    guest.select(selector)
    assert guest.read(10) == TEXT
    assert guest.request(Control.WRITE | Control.READ | more, 4) == 0  # is a read


@pytest.mark.parametrize(
    ("target", "length"),
    [(END, 4), (END - 2, 4), (BASE - 2, 4), (0, 4), ((1 << 64) - 2, 4), (1 << 63, 4), (TARGET, (1 << 32) - 1)],
)
def test_a_copy_to_where_no_memory_is(guest: Guest, target: int, length: int) -> None:
    guest.memory.write(END - 4, b"left")
    selector = guest.choose("opt/text")
    assert guest.request(selector << 16 | Control.SELECT | Control.READ, length, target) == Control.ERROR
    assert guest.memory.read(END - 4, 4) == b"left"


def test_a_copy_brings_so_many_zeros_and_no_more(tmp_path: Path) -> None:
    guest = Guest(tmp_path, {"opt/text": TEXT})
    guest.device.memory = memory = cast(Any, _Vast())
    guest.memory = memory
    selector = guest.choose("opt/text")
    for length, answer in ((MOST_ZEROS + 10, 0), (MOST_ZEROS + 11, Control.ERROR), ((1 << 32) - 1, Control.ERROR)):
        assert guest.request(selector << 16 | Control.SELECT | Control.READ, length) == answer
    assert memory.written == MOST_ZEROS + 10


class _Vast:
    """Guest memory of any size, of which only the request is kept."""

    def __init__(self) -> None:
        self.written = 0
        self.kept = bytearray(16)

    def covers(self, _address: int, _size: int, *, write: bool) -> bool:
        return write

    def read(self, _address: int, size: int) -> bytes:
        return bytes(self.kept[:size])

    def write(self, address: int, data: bytes) -> None:
        if address == REQUEST_AT:
            self.kept[: len(data)] = data
        else:
            self.written += len(data)


@pytest.mark.parametrize("address", [0, BASE - 8, END, (1 << 64) - 1])
def test_a_request_where_no_memory_is(guest: Guest, address: int) -> None:
    guest.choose("opt/text")
    guest.ring(address)
    guest.device.commit()
    assert guest.read(3) == b"012"


def test_a_request_that_is_cut_off_is_refused(guest: Guest) -> None:
    guest.memory.write(END - 8, b"\xff" * 8)
    guest.ring(END - 8)
    guest.device.commit()
    assert guest.memory.read(END - 8, 8) == b"\0\0\0\1\xff\xff\xff\xff"


def test_nothing_is_copied_to_no_length(guest: Guest) -> None:
    assert guest.request(Control.READ, 0, 1) == 0
    assert guest.request(Control.WRITE, 0, 1) == 0


def test_state_travels_whole(guest: Guest, tmp_path: Path) -> None:
    guest.choose("opt/text")
    guest.read(4)
    guest.device.write(0, Offset.DMA, 4, 1 << 24)
    state = FwCfgState.FromString(guest.device.save().SerializeToString())
    (tmp_path / "other").mkdir()
    other = Guest(tmp_path / "other")
    other.device.check(state, 1)
    other.device.load(state)
    assert other.device.save() == guest.device.save()
    assert other.read(3) == b"456"


@pytest.mark.parametrize(
    ("files", "harts"), [({"opt/text": TEXT}, 3), ({**FILES, "opt/text": b"0123456780"}, 3), (FILES, 4), (None, 3)]
)
def test_the_state_of_a_machine_with_other_items_is_refused(
    tmp_path: Path, files: dict[str, bytes] | None, harts: int
) -> None:
    state = Guest(tmp_path).device.save() if files is None else FwCfgState()
    if files is not None:
        (tmp_path / "other").mkdir()
        state = Guest(tmp_path / "other", files, harts).device.save()
    device = made(3, FILES)
    if files is None:
        device.check(state, 1)
        return
    with pytest.raises(errors.BadState, match="other items"):
        device.check(state, 1)


@pytest.mark.parametrize(
    "wrong", [{"selector": 0x1_0000}, {"selector": 0, "offset": 5}, {"selector": 0x77, "offset": 1}]
)
def test_a_place_in_no_item_is_refused(guest: Guest, wrong: dict[str, int]) -> None:
    state = FwCfgState.FromString(guest.device.save().SerializeToString())
    for name, value in wrong.items():
        setattr(state, name, value)
    with pytest.raises(errors.BadState, match="a place in an item"):
        guest.device.check(state, 1)


@pytest.mark.parametrize("slot_written", [False, True])
@pytest.mark.parametrize("reused", [False, True])
def test_a_request_is_done_once_whenever_the_device_is_killed(tmp_path: Path, slot_written: bool, reused: bool) -> None:
    guest = Guest(tmp_path)
    guest.choose("opt/text")
    slot = (guest.device.save().SerializeToString(), guest.device.journal())
    guest.memory.write(REQUEST_AT, REQUEST.pack(Control.READ, 4, TARGET))
    guest.ring()
    if slot_written:
        slot = (guest.device.save().SerializeToString(), guest.device.journal())
        if reused:  # it was answered, and the guest has gone on
            guest.memory.write(REQUEST_AT, b"mine")
    assert guest.memory.read(REQUEST_AT, 4) in (b"mine", Control.READ.to_bytes(4, "big"))

    device = made(3, FILES)
    device.take_journal(slot[1])
    device.reset()
    device.load(FwCfgState.FromString(slot[0]))
    device.memory = guest.memory
    assert bool(device.journal()) == slot_written  # killed again, it is not forgotten
    device.recover()
    guest.device = device
    if not slot_written:
        guest.ring()  # the hart's access comes again
        device.commit()
    assert guest.memory.read(REQUEST_AT, 4) == (b"mine" if slot_written and reused else bytes(4))
    assert guest.memory.read(TARGET, 4) == b"0123"
    assert guest.read(3) == b"456"
    assert not device.journal()


def test_the_same_request_at_the_same_place_is_another_one(tmp_path: Path) -> None:
    """It was answered, the guest has made it again, and only then was the device killed, with the former slot."""
    guest = Guest(tmp_path)
    guest.choose("opt/text")
    guest.memory.write(REQUEST_AT, REQUEST.pack(Control.READ, 4, TARGET))
    guest.ring()
    slot = (guest.device.save().SerializeToString(), guest.device.journal())
    guest.device.commit()
    guest.memory.write(REQUEST_AT, REQUEST.pack(Control.READ, 4, TARGET))

    device = made(3, FILES)
    device.marks[:] = guest.device.marks
    device.take_journal(slot[1])
    device.load(FwCfgState.FromString(slot[0]))
    device.memory = guest.memory
    device.recover()
    guest.device = device
    guest.ring()
    device.commit()
    assert guest.memory.read(TARGET, 4) == b"4567"
    assert guest.memory.read(REQUEST_AT, 4) == bytes(4)


def test_a_journal_of_garbage_is_refused(guest: Guest) -> None:
    with pytest.raises(errors.BadState, match="journal of fw-cfg"):
        guest.device.take_journal(b"x")


ADDRESS = some.sampled_from((0, 1, BASE - 1, BASE, REQUEST_AT, REQUEST_AT + 4, END - 16, END - 5, END, (1 << 64) - 1))
LENGTH = some.sampled_from((0, 1, 4, 16, 25_600, RAM, (1 << 32) - 1))
STEP = some.one_of(
    some.tuples(some.integers(0, 23), some.sampled_from((1, 2, 4, 8)), some.integers(0, (1 << 64) - 1)),
    some.tuples(some.integers(0, (1 << 32) - 1), LENGTH, ADDRESS, ADDRESS),
)


def test_garbage() -> None:
    """Whatever a guest writes, and wherever its requests are: an answer, and a state that can be loaded."""
    with tempfile.TemporaryDirectory() as folder:
        guest = Guest(Path(folder))

        @settings(max_examples=200, deadline=None)
        @given(some.lists(STEP, max_size=20))
        def given_steps(steps: list[tuple[int, ...]]) -> None:
            for step in steps:
                with suppress(BusError, errors.OutsideGrant):
                    if len(step) == 3:
                        offset, size, value = step
                        guest.device.write(0, offset, size, value & (1 << 8 * size) - 1)
                        guest.device.read(0, offset, size)
                    else:
                        guest.request(*step)
                guest.device.commit()
            guest.device.check(guest.device.save(), 1)

        given_steps()
