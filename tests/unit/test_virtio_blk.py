"""The block device: requests, errors of the host, temporary disks, the lock."""

from __future__ import annotations

import errno
import os
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.device_harness import FakeRuntime
from tests.unit.virtio_driver import BUFFERS, Driver, SplitDriver, areas, guest_memory
from vmesh import elsewhere, errors
from vmesh.machine import _remove_tree
from vmesh.v1.common_pb2 import DiskError
from vmesh.v1.devices_pb2 import VirtioQueueState
from vmesh.virtio.device import DRIVER_OK, F_VERSION_1, FEATURES_OK, NEEDS_RESET
from vmesh.virtio.mmio import Mmio
from vmesh_services.devices.virtio_blk import device as blk
from vmesh_services.devices.virtio_blk.device import F_CONFIG_WCE, F_FLUSH, F_MQ, F_RO, Options, VirtioBlk
from vmesh_services.devices.virtio_blk.image import SECTOR, Buffers, Image, Later, RawImage
from vmesh_services.devices.virtio_blk.overlay import BLOCK, Overlay

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
SIZE = 1 << 20


class Recorder:
    """An image that remembers what is done to it, and fails if `fail` is set."""

    size = SIZE

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fail: int | None = None
        self.later: Later | None = None
        self.again: list[bool] = []

    def begin(self, *, again: bool) -> None:
        self.again.append(again)

    def _do(self, what: str) -> None:
        if self.later is not None:
            raise self.later
        if self.fail is not None:
            raise OSError(self.fail, os.strerror(self.fail))
        self.done.append(what)

    def read(self, offset: int, buffers: Buffers) -> None:
        self._do(f"read {offset}")

    def write(self, offset: int, buffers: Buffers) -> None:
        self._do(f"write {offset}")

    def flush(self) -> None:
        self._do("flush")

    def discard(self, offset: int, length: int) -> None:
        self._do(f"discard {offset} {length}")

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        self._do(f"zero {offset} {length} {unmap}")

    def take(self) -> None:
        pass

    def release(self) -> None:
        pass

    def close(self) -> None:
        self.done.append("close")


class Guest:
    def __init__(self, directory: Path, image: Image, options: Options | None = None, features: int = F_FLUSH) -> None:
        self.memory = guest_memory(directory)
        self.runtime = FakeRuntime()
        self.device = VirtioBlk(self.runtime, Mmio(0x1000_8000, 8), image, options or Options())  # type: ignore[arg-type]
        self.device.reset()
        self.device.memory = self.memory
        self.device.attached()
        self.driver: Driver = SplitDriver(self.memory, areas(16))
        state = self.device.save()
        state.virtio.status = DRIVER_OK | FEATURES_OK  # type: ignore[attr-defined]
        state.virtio.driver_features = F_VERSION_1 | features  # type: ignore[attr-defined]
        places = self.driver.areas
        state.virtio.queues[0].CopyFrom(  # type: ignore[attr-defined]
            VirtioQueueState(
                size=16,
                ready=True,
                descriptors=places.descriptors,
                driver=places.driver,
                device=places.device,
            )
        )
        self.device.check(state, 1)
        self.device.load(state)

    def ask(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0, pieces: int = 1) -> tuple[int, bytes]:
        """Status and what was read."""
        at = BUFFERS
        self.memory.write(at, struct.pack("<IIQ", kind, 0, sector) + data)
        self.memory.write(at + 0x10000, b"\xee" * (room + 1))
        step = -(-room // pieces) or 1
        writable = [(at + 0x10000 + start, min(step, room - start)) for start in range(0, room, step)]
        # Whatever is adjacent becomes one piece: leave holes by turning the order of the rest.
        writable.append((at + 0x10000 + room, 1))
        self.driver.add([(at, 16 + len(data))], writable)
        self.device.ring(0)
        self.device.settle()
        (done,) = self.driver.reap()
        status = self.memory.read(at + 0x10000 + room, 1)[0]
        if status == OK and room:
            assert done[1] == room + 1 or kind == GET_ID
        return status, self.memory.read(at + 0x10000, room)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


def test_reads_and_writes_reach_the_file(tmp_path: Path, disk: Path) -> None:
    before = disk.read_bytes()
    guest = Guest(tmp_path, RawImage(disk, read_only=False))
    assert guest.ask(IN, 3, room=4096, pieces=3) == (OK, before[3 * SECTOR : 3 * SECTOR + 4096])
    assert guest.ask(OUT, 5, b"x" * 1024)[0] == OK
    assert disk.read_bytes() == before[: 5 * SECTOR] + b"x" * 1024 + before[7 * SECTOR :]
    assert guest.ask(FLUSH)[0] == OK
    last = SIZE // SECTOR - 1
    assert guest.ask(IN, last, room=512) == (OK, before[-512:])


@pytest.mark.parametrize("kind", [IN, OUT])
def test_what_is_not_whole_sectors_of_the_disk_is_refused(tmp_path: Path, disk: Path, kind: int) -> None:
    before = disk.read_bytes()
    guest = Guest(tmp_path, RawImage(disk, read_only=False))
    for sector, length in ((0, 511), (SIZE // SECTOR, 512), (SIZE // SECTOR - 1, 1024), ((1 << 64) - 1, 512)):
        data, room = (b"", length) if kind == IN else (b"x" * length, 0)
        assert guest.ask(kind, sector, data, room)[0] == IOERR
    assert disk.read_bytes() == before


def test_a_file_that_ends_inside_a_sector(tmp_path: Path) -> None:
    path = tmp_path / "odd.img"
    path.write_bytes(b"a" * 700)
    guest = Guest(tmp_path, RawImage(path, read_only=False))
    assert struct.unpack_from("<Q", guest.device.config())[0] == 2
    assert guest.ask(IN, 0, room=1024) == (OK, b"a" * 700 + bytes(324))


def test_a_file_that_is_cut_short_is_not_read_as_zeroes(tmp_path: Path) -> None:
    path = tmp_path / "odd.img"
    path.write_bytes(b"a" * 1700)
    guest = Guest(tmp_path, RawImage(path, read_only=False))
    os.truncate(path, 1100)
    assert guest.ask(IN, 0, room=1024) == (OK, b"a" * 1024)
    for sector, room in ((2, 512), (3, 512), (0, 2048)):
        assert guest.ask(IN, sector, room=room)[0] == IOERR
    reason = f"the disk {path} was cut short"
    told = DiskError(reason=reason)
    assert guest.runtime.notices == [(f"a read failed, the guest was told: {reason}", told)]
    path.write_bytes(b"b" * 1700)  # as a copy over it does
    assert guest.ask(IN, 2, room=1024) == (OK, b"b" * 676 + bytes(348))
    assert guest.ask(OUT, 3, b"c" * 512)[0] == OK
    os.truncate(path, 1700)  # which was the end, and is no longer
    assert guest.ask(IN, 3, room=512)[0] == IOERR


def test_an_unknown_request_is_not_supported(tmp_path: Path) -> None:
    assert Guest(tmp_path, Recorder()).ask(99)[0] == UNSUPP


def test_serial_number(tmp_path: Path) -> None:
    guest = Guest(tmp_path, Recorder(), Options(serial="disk-1"))
    assert guest.ask(GET_ID, room=20) == (OK, b"disk-1".ljust(20, b"\0"))
    assert guest.ask(GET_ID, room=19)[0] == IOERR


def test_a_read_only_disk(tmp_path: Path, disk: Path) -> None:
    before = disk.read_bytes()
    guest = Guest(tmp_path, RawImage(disk, read_only=True), Options(read_only=True))
    assert guest.device.offered & F_RO
    ranges = struct.pack("<QII", 0, 8, 0)
    for kind, data in ((OUT, b"x" * 512), (DISCARD, ranges), (WRITE_ZEROES, ranges)):
        assert guest.ask(kind, 0, data)[0] == IOERR
    assert guest.ask(FLUSH)[0] == OK
    assert guest.ask(IN, 0, room=512) == (OK, before[:512])
    assert disk.read_bytes() == before


def test_discard_and_zeroes(tmp_path: Path, disk: Path) -> None:
    before = disk.read_bytes()
    guest = Guest(tmp_path, RawImage(disk, read_only=False), Options(discard=True))
    assert guest.ask(WRITE_ZEROES, 0, struct.pack("<QIIQII", 8, 8, 0, 33, 1, 1))[0] == OK
    zero = bytes(4096)
    expected = before[:4096] + zero + before[8192 : 33 * 512] + zero[:512] + before[34 * 512 :]
    assert disk.read_bytes() == expected
    blocks = disk.stat().st_blocks
    assert guest.ask(DISCARD, 0, struct.pack("<QII", 1024, 512, 0))[0] == OK
    assert disk.stat().st_blocks < blocks
    assert disk.stat().st_size == SIZE


@pytest.mark.parametrize(
    ("kind", "data", "status"),
    [
        (DISCARD, struct.pack("<QII", 0, 8, 1), UNSUPP),
        (WRITE_ZEROES, struct.pack("<QII", 0, 8, 2), UNSUPP),
        (WRITE_ZEROES, struct.pack("<QII", 0, 1 << 17, 0), IOERR),
        (DISCARD, struct.pack("<QII", SIZE // SECTOR - 1, 2, 0), IOERR),
        (DISCARD, bytes(15), IOERR),
        (DISCARD, b"", IOERR),
        (DISCARD, bytes(16 * 17), IOERR),
        (DISCARD, struct.pack("<QII", 0, 8, 0) + struct.pack("<QII", 1 << 60, 8, 0), IOERR),
    ],
)
def test_ranges_that_cannot_be(tmp_path: Path, kind: int, data: bytes, status: int) -> None:
    image = Recorder()
    guest = Guest(tmp_path, image, Options(discard=True))
    assert guest.ask(kind, 0, data)[0] == status
    assert image.done == []


def test_without_discard_the_space_is_kept(tmp_path: Path) -> None:
    image = Recorder()
    guest = Guest(tmp_path, image)
    assert guest.ask(DISCARD, 0, struct.pack("<QII", 0, 8, 0))[0] == OK
    assert guest.ask(WRITE_ZEROES, 0, struct.pack("<QII", 0, 8, 1))[0] == OK
    assert image.done == ["zero 0 4096 False"]


def test_writes_are_stable_unless_the_driver_can_flush(tmp_path: Path) -> None:
    for options, features, flushed in (
        (Options(), F_FLUSH, False),
        (Options(), 0, True),
        (Options(write_cache=False), F_FLUSH, True),
        (Options(flushes=False), 0, False),
    ):
        image = Recorder()
        directory = tmp_path / f"{options} {features}"
        directory.mkdir()
        guest = Guest(directory, image, options, features)
        guest.ask(OUT, 0, b"x" * 512)
        assert image.done == ["write 0", *["flush"] * flushed]


def test_the_driver_may_turn_the_write_cache_off(tmp_path: Path) -> None:
    image = Recorder()
    guest = Guest(tmp_path, image, features=F_FLUSH | F_CONFIG_WCE)
    assert guest.device.read(0, 0x100 + 32, 1) == 1
    guest.device.write(0, 0x100 + 32, 1, 0)
    assert guest.device.read(0, 0x100 + 32, 1) == 0
    guest.ask(OUT, 0, b"x" * 512)
    assert image.done == ["write 0", "flush"]


def test_errors_of_the_host_are_the_requests(tmp_path: Path) -> None:
    image = Recorder()
    guest = Guest(tmp_path, image)
    for code in (errno.ENOSPC, errno.EIO):
        image.fail = code
        for _ in range(3):
            assert guest.ask(OUT, 0, b"x" * 512)[0] == IOERR
            assert guest.ask(IN, 0, room=512)[0] == IOERR
            assert guest.ask(FLUSH)[0] == IOERR
    assert guest.runtime.notices == [
        (
            f"a {'write' if write else 'read'} failed, the guest was told: {reason}",
            DiskError(write=write, no_space=no_space, reason=reason),
        )
        for no_space, reason in ((True, "No space left on device"), (False, "Input/output error"))
        for write in (True, False)
    ]
    image.fail = None
    assert guest.ask(OUT, 0, b"x" * 512)[0] == OK


@pytest.mark.parametrize("kind", [IN, OUT])
def test_how_much_one_request_moves_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    """A few buffers, named again and again, are gigabytes that are copied where guest memory is not mapped."""
    monkeypatch.setattr(blk, "_MOST_BYTES", 4096)
    image = Recorder()
    guest = Guest(tmp_path, image)
    for length, status in ((4096, OK), (4608, IOERR)):
        if kind == IN:
            assert guest.ask(IN, room=length)[0] == status
        else:
            assert guest.ask(OUT, data=bytes(length))[0] == status
    assert len(image.done) == 1


@pytest.mark.parametrize(("readable", "writable"), [(15, 1), (16, 0)])
def test_a_request_without_header_or_status_needs_a_reset(tmp_path: Path, readable: int, writable: int) -> None:
    guest = Guest(tmp_path, Recorder())
    guest.driver.add([(BUFFERS, readable)], [(BUFFERS + 64, writable)] if writable else [])
    guest.device.ring(0)
    guest.device.settle()
    assert guest.device.read(0, 0x70, 4) & NEEDS_RESET


def test_header_and_status_may_be_cut_anywhere(tmp_path: Path, disk: Path) -> None:
    before = disk.read_bytes()
    guest = Guest(tmp_path, RawImage(disk, read_only=False))
    header = struct.pack("<IIQ", OUT, 0, 0) + b"y" * 512
    guest.memory.write(BUFFERS, header[:7])
    guest.memory.write(BUFFERS + 100, header[7:])
    guest.driver.add([(BUFFERS, 7), (BUFFERS + 100, len(header) - 7)], [(BUFFERS + 5000, 1)])
    guest.device.ring(0)
    guest.device.settle()
    assert guest.memory.read(BUFFERS + 5000, 1) == b"\0"
    assert disk.read_bytes()[:513] == b"y" * 512 + before[512:513]


def test_another_disk_does_not_fit_a_state(tmp_path: Path) -> None:
    guest = Guest(tmp_path, Recorder())
    state = guest.device.save()
    state.capacity += 1  # type: ignore[attr-defined]
    with pytest.raises(errors.BadState, match="capacity"):
        guest.device.check(state, 1)


def test_number_of_queues(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    device = VirtioBlk(runtime, Mmio(0, 1), Recorder(), Options(queues=4))  # type: ignore[arg-type]
    assert device.offered & F_MQ
    assert struct.unpack_from("<H", device.config(), 34) == (4,)
    with pytest.raises(errors.ConfigError):
        VirtioBlk(runtime, Mmio(0, 1), Recorder(), Options(queues=17))  # type: ignore[arg-type]


# A host that takes its time.


def begin_write(guest: Guest, sector: int) -> None:
    guest.memory.write(BUFFERS, struct.pack("<IIQ", OUT, 0, sector) + bytes(512))
    guest.driver.add([(BUFFERS, 16 + 512)], [(BUFFERS + 0x1000, 1)])
    guest.device.ring(0)
    guest.device.settle()


def test_a_request_that_is_not_answered_is_made_again(tmp_path: Path) -> None:
    image = Recorder()
    guest = Guest(tmp_path, image)
    runtime = guest.runtime
    image.later = Later(seconds=0.1)
    begin_write(guest, 8)
    assert guest.driver.reap() == []
    runtime.fire("slow")
    assert "has not answered for 10 s" in runtime.notices[-1][0]

    # Paused, it is not asked again; and it goes on after that.
    asked = len(image.again)
    guest.device.pause()
    runtime.fire("disk")
    guest.device.settle()
    assert len(image.again) == asked
    guest.device.resume()
    guest.device.settle()
    assert image.again[asked:] == [True]
    assert guest.driver.reap() == []

    image.later = None
    runtime.fire("disk")
    guest.device.settle()
    assert image.done == [f"write {8 * SECTOR}"]
    assert len(guest.driver.reap()) == 1
    assert runtime.notices[-1][0] == "the server of the disk has answered"
    assert guest.device.counters()["writes"] == guest.device.counters()["requests"] == 1
    assert not runtime.timers.keys() & {"slow", "disk"}
    begin_write(guest, 9)
    assert image.again[-1] is False


def test_a_driver_that_gives_up_what_is_not_answered(tmp_path: Path) -> None:
    image = Recorder()
    guest = Guest(tmp_path, image)
    state = guest.device.save()
    image.later = Later(seconds=0.1)
    begin_write(guest, 8)
    guest.device.reset()
    assert image.again[-1] is False
    assert not guest.runtime.timers.keys() & {"slow", "disk"}
    image.later = None
    guest.device.load(state)
    guest.device.ring(0)
    guest.device.settle()
    assert image.again[-1] is False
    assert len(guest.driver.reap()) == 1


def test_a_host_that_does_not_answer_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blk, "_END_SECONDS", 0.05)
    image = Recorder()
    guest = Guest(tmp_path, image)
    image.later = Later(seconds=0.02)
    with pytest.raises(errors.PeerError, match="has not answered"):
        guest.device.hand_over()
    image.later, image.fail = None, errno.EIO
    with pytest.raises(errors.PeerError, match="Input/output error"):
        guest.device.hand_over()
    image.fail, image.later = None, Later(seconds=0.02)
    guest.device.shutdown()
    assert "may be lost" in guest.runtime.notices[-1][0]
    assert image.done == ["close"]


# Temporary disks.


def test_a_temporary_disk_against_a_model(tmp_path: Path, disk: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    size = 40 * BLOCK + 3 * SECTOR
    with disk.open("r+b") as file:
        file.truncate(size)
    before = disk.read_bytes()
    model = bytearray(before)
    path = tmp_path / "overlay"
    image = Overlay(RawImage(disk, read_only=True), path, fresh=True)
    for _ in range(200):
        sectors = chance.randint(1, 40)
        start = chance.randrange(size // SECTOR - sectors) * SECTOR
        end = start + sectors * SECTOR
        match chance.randrange(5):
            case 0:
                data = chance.randbytes(end - start)
                middle = chance.randrange(len(data))
                image.write(start, [memoryview(data)[:middle], memoryview(data)[middle:]])
                model[start:end] = data
            case 4:
                image.discard(start, end - start)
                found = bytearray(end - start)
                image.read(start, [memoryview(found)])
                for at in range(0, end - start, SECTOR):  # not defined, but nobody else's
                    assert found[at : at + SECTOR] in (model[start + at : start + at + SECTOR], bytes(SECTOR))
                model[start:end] = found
            case 1:
                image.zero(start, end - start, unmap=True)
                model[start:end] = bytes(end - start)
            case 2:
                image.close()
                image = Overlay(RawImage(disk, read_only=True), path, fresh=False)
            case 3:
                found = bytearray(end - start)
                middle = chance.randrange(len(found))
                image.read(start, [memoryview(found)[:middle], memoryview(found)[middle:]])
                assert found == model[start:end]
    assert disk.read_bytes() == before


def test_a_temporary_disk_takes_the_room_of_what_it_holds(tmp_path: Path, disk: Path) -> None:
    """What is discarded or zeroed takes none, as after mkfs."""
    path = tmp_path / "overlay"
    image = Overlay(RawImage(disk, read_only=True), path, fresh=True)
    image.zero(0, SIZE, unmap=False)
    assert path.stat().st_blocks == 0
    data = bytearray(b"x" * SIZE)
    image.write(0, [memoryview(data)])
    assert path.stat().st_blocks >= SIZE // 512
    image.discard(BLOCK - 512, SIZE - 2 * BLOCK + 512)
    assert path.stat().st_blocks <= 2 * 2 * BLOCK // 512
    image.read(0, [memoryview(data)])
    assert data == b"x" * BLOCK + bytes(SIZE - 2 * BLOCK) + b"x" * BLOCK


@pytest.mark.parametrize("name", ["overlay", "overlay.map"])
def test_a_temporary_disk_that_is_not_whole_is_refused(tmp_path: Path, disk: Path, name: str) -> None:
    """The next life would read the base where the guest has written."""
    path = tmp_path / "overlay"

    def begin(*, fresh: bool = False) -> Overlay:
        return Overlay(RawImage(disk, read_only=True), path, fresh=fresh)

    image = begin(fresh=True)
    image.write(SIZE - BLOCK, [memoryview(b"x" * BLOCK)])
    file = tmp_path / name
    whole = file.read_bytes()
    os.truncate(file, len(whole) - 1)
    with pytest.raises(OSError, match="was cut short"):
        image.read(SIZE - BLOCK, [memoryview(bytearray(BLOCK))])
    image.close()
    with pytest.raises(errors.ConfigError, match=f"expected {len(whole)} bytes, got {len(whole) - 1}"):
        begin()
    file.unlink()
    with pytest.raises(errors.ConfigError, match="No such file"):
        begin()
    assert not file.exists()
    file.write_bytes(whole)
    begin().close()


def test_a_temporary_disk_of_a_disk_that_answers_later(tmp_path: Path) -> None:
    base = Recorder()
    image = Overlay(base, tmp_path / "overlay", fresh=True)
    base.later = Later()
    with pytest.raises(Later):
        image.write(512, [memoryview(b"x" * 512)])
    base.later = None
    image.begin(again=True)
    image.write(512, [memoryview(b"x" * 512)])
    found = bytearray(1024)
    image.read(0, [memoryview(found)])
    assert found == bytes(512) + b"x" * 512
    assert base.again == [True]


def test_a_folder_elsewhere_ends_with_its_machine(tmp_path: Path) -> None:
    place, machine = tmp_path / "disk", tmp_path / "machines" / "m"
    place.mkdir()
    machine.mkdir(parents=True)
    link = machine / "blk0.elsewhere"
    path, lock = elsewhere.folder(link, place, fresh=True)
    (path / "data").write_text("x")
    assert path.parent == place
    with pytest.raises(errors.ConfigError):
        elsewhere.folder(link, place, fresh=False)  # in use
    os.close(lock)
    elsewhere.sweep(place)  # between two lives of the device
    again, lock = elsewhere.folder(link, place, fresh=False)
    assert (again / "data").read_text() == "x"

    other, other_lock = elsewhere.folder(machine / "blk1.elsewhere", place, fresh=True)
    strange = place / "somebody's"
    strange.mkdir()
    (machine / "strange.elsewhere").symlink_to(strange)
    _remove_tree(machine)
    assert sorted(place.iterdir()) == [strange]
    assert not machine.exists()
    os.close(lock)
    os.close(other_lock)
    assert not other.exists()


def test_a_folder_elsewhere_of_a_machine_that_was_lost(tmp_path: Path) -> None:
    """As after the host's crash: the machine directory, which is memory, has gone by itself."""
    machine = tmp_path / "m"
    machine.mkdir()
    lost, lock = elsewhere.folder(machine / "blk0.elsewhere", tmp_path, fresh=True)
    (machine / "blk0.elsewhere").unlink()
    elsewhere.sweep(tmp_path)
    assert lost.exists()  # somebody has its lock
    os.close(lock)
    fresh, lock = elsewhere.folder(machine / "blk0.elsewhere", tmp_path, fresh=True)
    assert not lost.exists()
    assert fresh.exists()
    os.close(lock)
    with pytest.raises(errors.ConfigError, match="TMPDIR"):
        elsewhere.folder(machine / "blk1.elsewhere", tmp_path / "nowhere", fresh=True)


def test_a_folder_that_is_called_like_ours_is_left_alone(tmp_path: Path) -> None:
    users, begun = (tmp_path / f"vmesh-{os.getuid()}-{name}" for name in ("backup", "begun"))
    for each in (users, begun):
        each.mkdir()
    (users / "data").write_text("precious")
    elsewhere.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [users]
    assert (users / "data").read_text() == "precious"


# The lock.


def test_one_writer_or_many_readers(disk: Path) -> None:
    first, second = RawImage(disk, read_only=True), RawImage(disk, read_only=True)
    with pytest.raises(errors.ConfigError, match="in use by another machine"):
        RawImage(disk, read_only=False)
    first.close()
    second.close()
    writer = RawImage(disk, read_only=False)
    for read_only in (False, True):
        with pytest.raises(errors.ConfigError, match="in use by another machine"):
            RawImage(disk, read_only=read_only)
    writer.close()
    RawImage(disk, read_only=False).close()


def test_a_refused_use_leaves_no_lock(disk: Path) -> None:
    """As of a migration's source that is told to go on while the destination has the disk."""
    source = RawImage(disk, read_only=False)
    source.release()
    destination = RawImage(disk, read_only=False)
    with pytest.raises(errors.ConfigError, match="in use by another machine"):
        source.take()
    destination.close()
    RawImage(disk, read_only=False).close()  # its next life
    source.take()


def test_the_base_of_a_temporary_disk_is_locked_while_the_machine_is_here(disk: Path, tmp_path: Path) -> None:
    image = Overlay(RawImage(disk, read_only=True, later=True), tmp_path / "overlay", fresh=True)
    RawImage(disk, read_only=False).close()
    image.take()
    with pytest.raises(errors.ConfigError, match="in use by another machine"):
        RawImage(disk, read_only=False)
    image.release()
    RawImage(disk, read_only=False).close()
    image.close()


@pytest.mark.peer
def test_the_lock_holds_against_qemu(disk: Path, peer: Callable[[str], str]) -> None:
    command = [peer("qemu-system-riscv64"), "-machine", "virt", "-display", "none", "-S", "-monitor", "stdio"]
    command += ["-serial", "none", "-bios", "none", "-drive", f"file={disk},format=raw,if=none,id=d"]
    command += ["-device", "virtio-blk-device,drive=d"]
    image = RawImage(disk, read_only=False)
    refused = subprocess.run(command, input="quit\n", capture_output=True, text=True, timeout=30, check=False)
    assert refused.returncode == 1
    assert "lock" in refused.stderr
    image.close()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None
        qemu.stdin.write("info status\n")
        qemu.stdin.flush()
        said = ""
        while "VM status" not in said:  # the disks are open
            part = qemu.stdout.read(1)
            assert part, f"QEMU ended after {said!r}"
            said += part
        with pytest.raises(errors.ConfigError, match="in use"):
            RawImage(disk, read_only=False)
        qemu.stdin.write("quit\n")
        qemu.stdin.flush()
        qemu.wait(30)
    RawImage(disk, read_only=False).close()


@pytest.mark.parametrize("path", ["/nowhere/disk.img", "/", "/dev/null"])
def test_what_is_no_disk(path: str) -> None:
    with pytest.raises(errors.ConfigError):
        RawImage(Path(path), read_only=True)
