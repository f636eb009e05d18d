"""The FIFOs between harts and a device: real ones, a hart that rings in native code, the thread that listens."""

from __future__ import annotations

import fcntl
import os
import random
import stat
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cpu_harness import Cpu
from tests.models.guest import CODE, put, virt
from tests.waiting import LIMIT, wait_for
from vmesh import errors
from vmesh.doorbell import VALUES, Bell, Raiser, open_existing, ring
from vmesh.time import host_ns
from vmesh.v1.bus_pb2 import (
    READ_LATCH,
    WRITE_CLEARS,
    WRITE_DOORBELL,
    Description,
    DeviceUpdate,
    Line,
    Region,
    Register,
    ShadowValue,
)
from vmesh.v1.common_pb2 import Welcome
from vmesh_services.cpu.bus.device import BusDevice, RegisterTable
from vmesh_services.cpu.core.doorbell import Doorbell, Listener

BASE, IRQ = 0x1000_1000, 9
TIME = 12_345  # of raises, in guest nanoseconds
NOTIFY, STATUS, ACK = 0x50, 0x60, 0x64


class Board:
    """A hart, a device's FIFOs, and the cpu's side of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        registers = [
            Register(name="notify", offset=NOTIFY, size=4, write=WRITE_DOORBELL),
            Register(name="status", offset=STATUS, size=4, read=READ_LATCH),
            Register(name="ack", offset=ACK, size=4, write=WRITE_CLEARS, latch=STATUS),
        ]
        region = Region(name="r", base=BASE, size=0x100, access_sizes=15, registers=registers)
        self.description = Description(
            name="d", epoch=1, regions=[region], lines=[Line(irq=IRQ)], doorbell="d.doorbell", interrupts="d.interrupts"
        )
        self.cpu: Cpu = virt(1)
        self.cpu.reset()
        put(self.cpu, "sw a1, 0(a0)\n .word END\n sh a1, 0(a0)\n .word END")
        table = RegisterTable(region)
        harts = self.cpu.harts
        harts.add_region(BASE, 0x100, 0, 0, table.kinds, table.values)
        self.device = BusDevice(0, self.description, harts, [table])
        self.complaints: list[str] = []
        self.doorbell = Doorbell(harts, self.device, path)
        self.listener = Listener(harts, path, lambda device, what, text: self.complaints.append(what))
        self.listener.add(self.device)
        self.listener.start()

    def born(self, epoch: int = 1, minor: int = 1) -> tuple[Bell, Raiser]:
        """A life of the device, which the cpu has met."""
        bell, raiser = Bell(self.path / "d.doorbell"), Raiser(self.path / "d.interrupts")
        self.device.begin(Welcome(major=1, minor=minor, epoch=epoch))
        self.doorbell.open()
        self.listener.open(self.device)
        return bell, raiser

    def write(self, value: int, place: int = 0, offset: int = NOTIFY) -> None:
        self.cpu.set(CODE + place, {10: BASE + offset, 11: value})
        assert self.cpu.run().why == "end"

    @property
    def posted(self) -> list[int]:
        """What lies in the hart's ring; it is taken out."""
        hart = self.cpu.hart
        values = [hart.ring[number].value for number in range(hart.ring_count)]
        hart.ring_count = 0
        return values

    @property
    def level(self) -> bool:
        return bool(self.cpu.controllers.plic.level[0] >> IRQ & 1)

    @property
    def last(self) -> int:
        return int(self.cpu.harts.machine.listeners[0].sequence)

    def close(self) -> None:
        self.listener.end()
        self.listener.join(LIMIT)
        assert not self.listener.is_alive()


def rung(bell: Bell) -> set[int]:
    values, _ = bell.rung()
    return values


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Board(tmp_path)
    yield made
    made.close()


def test_a_write_rings_at_once_and_many_are_one(board: Board) -> None:
    bell, _ = board.born()
    board.write(3)
    assert board.posted == []
    assert rung(bell) == {3}
    assert rung(bell) == set()
    for value in (0, 63, 0, 0, 5, 63):
        board.write(value)
    assert rung(bell) == {0, 5, 63}
    assert board.cpu.hart.count_doorbell == 7


def test_values_and_sizes_that_do_not_ring_are_posted(board: Board) -> None:
    bell, _ = board.born()
    for value in (64, 255, 256, (1 << 32) - 1):
        board.write(value)
    assert board.posted == [64, 255, 256, (1 << 32) - 1]
    assert rung(bell) == set()
    board.cpu.device = lambda access: 0  # of another size it is sync, as any offset that no row covers
    board.write(1, place=8)
    assert board.posted == []
    assert rung(bell) == set()


def test_without_a_reader_writes_are_posted_and_its_next_life_is_rung(board: Board) -> None:
    board.write(1)
    assert board.posted == [1]
    bell, _ = board.born()
    assert rung(bell) == {1}
    os.close(bell.fd)
    board.write(2)
    assert board.posted == [2]
    successor, _ = board.born(2)
    assert rung(successor) == {1, 2}
    board.write(7)
    assert rung(successor) == {7}


def test_what_a_stale_life_swallowed_its_successor_hears(board: Board) -> None:
    stale, _ = board.born()
    successor = Bell(board.path / "d.doorbell")
    board.write(4)
    assert rung(stale) == {4}
    board.doorbell.open()
    assert rung(successor) == {4}
    board.write(6)
    assert rung(successor) == {6}
    assert rung(stale) == set()


def test_a_full_fifo(board: Board) -> None:
    bell, _ = board.born()
    filler = open_existing(board.path, "d.doorbell", os.O_WRONLY)
    assert filler is not None
    room = fcntl.fcntl(filler, fcntl.F_GETPIPE_SZ)
    assert os.write(filler, ring(2, 0) * (room // 16)) == room
    board.write(1)
    assert board.posted == [1]
    assert rung(bell) == {2}
    board.write(1)
    assert rung(bell) == {1}


def test_an_interrupt(board: Board) -> None:
    _, raiser = board.born()
    assert raiser.send(1, 1, 0, 1, TIME)
    wait_for(lambda: board.level, "the line")
    assert raiser.send(1, 2, 0, 2, TIME)
    wait_for(lambda: board.last == 2, "the second raise")
    assert board.cpu.harts.machine.latches[0].sequence == 0
    board.write(1, offset=ACK)
    assert board.level
    board.write(2, offset=ACK)
    assert not board.level


def test_an_interrupt_ends_a_harts_sleep(board: Board) -> None:
    _, raiser = board.born()
    cpu = board.cpu
    source, enable = 0xC00_0000 + 4 * IRQ, 0xC00_2000
    put(
        cpu,
        "li a0, 1\n li a1, SOURCE\n sw a0, 0(a1)\n li a0, BITS\n li a1, ENABLE\n sw a0, 0(a1)\n wfi\n .word END",
        SOURCE=source,
        BITS=1 << IRQ,
        ENABLE=enable,
    )
    cpu.set(CODE, mie=1 << 11)
    thread = threading.Timer(0.05, lambda: raiser.send(1, 1, 0, 1, TIME))
    thread.start()
    assert cpu.run().why == "end"
    thread.join()
    assert board.level


def test_raises_of_a_former_life_and_from_before_a_reset_are_not_heard(board: Board) -> None:
    _, former = board.born()
    assert former.send(1, 5, 0, 1, TIME)
    wait_for(lambda: board.last == 5, "the raise")
    board.write(3, offset=ACK)
    _, raiser = board.born(2)
    former.send(1, 6, 0, 1, TIME)
    assert raiser.send(1, 7, 0, 1, TIME)  # one that believes to be of the former life
    assert raiser.send(2, 1, 0, 2, TIME)
    wait_for(lambda: board.last == 1, "the raise of the new life")
    assert board.cpu.harts.machine.listeners[0].sequence == 1
    assert board.level
    reset = ShadowValue(offset=STATUS, size=4, value=0)
    board.device.apply(DeviceUpdate(epoch=2, sequence=9, shadows=[reset]))
    assert raiser.send(2, 8, 0, 1, TIME)
    wait_for(lambda: board.last == 8, "the late raise")
    assert not board.level


@pytest.mark.parametrize("nonsense", [b"\x01", ring(64, 0), ring(1, 0) + b"\x01"])
def test_what_is_no_ring_has_the_device_look_at_everything(board: Board, nonsense: bytes) -> None:
    bell, _ = board.born()
    writer = open_existing(board.path, "d.doorbell", os.O_WRONLY)
    assert writer is not None
    os.write(writer, nonsense)
    assert rung(bell) == set(range(VALUES))
    board.write(3)
    assert rung(bell) == {3}


def test_rings_and_raises_say_guest_time(board: Board) -> None:
    bell, raiser = board.born()
    machine = board.cpu.harts.machine
    before = host_ns() - machine.time_base
    board.write(3)
    values, time_ns = bell.rung()
    assert values == {3}
    assert before <= time_ns <= host_ns() - machine.time_base
    assert raiser.send(1, 1, 0, 1, TIME)
    wait_for(lambda: board.last == 1, "the raise")
    assert machine.listeners[0].time == TIME
    board.write(5)
    again, _ = board.born(2)
    assert again.rung() == ({3, 5}, 0), "when they were rung first nobody knows any more"


def test_a_life_of_version_1_0_has_records_without_time(board: Board) -> None:
    """Before a life of 1.1, and behind one."""
    for epoch, minor in ((1, 0), (2, 1), (3, 0)):
        bell, raiser = board.born(epoch, minor)
        while rung(bell):
            pass
        with suppress(BlockingIOError):  # of 1.0: what was rung in former lives
            os.read(bell.fd, 100)
        board.write(7)
        writer = open_existing(board.path, "d.interrupts", os.O_WRONLY)
        assert writer is not None
        if minor:
            assert rung(bell) == {7}
            assert raiser.send(epoch, 1, 0, 1, TIME)
        else:
            assert os.read(bell.fd, 100) == bytes((7,))
            os.write(writer, struct.pack("<QQII", epoch, 1, 0, 1))
        wait_for(lambda: board.last == 1, "the raise")
        assert board.level
        board.write(1, offset=ACK)
        assert not board.level
        os.close(writer)
    assert board.complaints == []


def test_nobody_listens(tmp_path: Path) -> None:
    raiser = Raiser(tmp_path / "d.interrupts")
    assert not raiser.send(1, 1, 0, 1, TIME)
    reader = open_existing(tmp_path, "d.interrupts", os.O_RDWR)
    assert reader is not None
    assert raiser.send(1, 1, 0, 1, TIME)
    assert os.read(reader, 100) == struct.pack("<QQIIQ", 1, 1, 0, 1, TIME)
    os.close(reader)
    assert not raiser.send(1, 2, 0, 1, TIME)
    reader = open_existing(tmp_path, "d.interrupts", os.O_RDWR)
    assert reader is not None
    sent = 0
    while raiser.send(1, 3 + sent, 0, 1, TIME):
        sent += 1
    assert sent > 1000  # then it is full, and the raise goes as a packet
    os.close(reader)


def test_nonsense_and_floods_are_named_and_do_not_last(board: Board) -> None:
    _, raiser = board.born()
    writer = open_existing(board.path, "d.interrupts", os.O_WRONLY)
    assert writer is not None
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for length in (1, 31, 33, 1023):
        board.complaints.clear()
        os.write(writer, chance.randbytes(length))
        wait_for(lambda: board.complaints == ["nonsense"], "a complaint")
        time.sleep(0.11)  # how long the device is not listened to
        board.listener.unmute()
    board.complaints.clear()
    os.write(writer, struct.pack("<QQIIQ", 1, 1, 1, 1, TIME))  # a latch that it does not have
    wait_for(lambda: board.complaints == ["nonsense"], "a complaint")
    assert not board.level
    time.sleep(0.11)
    board.listener.unmute()
    board.complaints.clear()
    number = 0

    def flood() -> bool:
        nonlocal number
        for _ in range(20_000):  # more than may come within a window, however seldom this is called
            number += 1
            raiser.send(1, number, 0, 1, TIME)
        return "floods updates" in board.complaints

    wait_for(flood, "a complaint")
    time.sleep(0.11)
    board.listener.unmute()
    wait_for(lambda: raiser.send(1, number + 1, 0, 1, TIME), "room")
    wait_for(lambda: board.last == number + 1, "the last raise")


def test_who_was_muted_and_has_no_fifo_any_more_costs_nothing(board: Board) -> None:
    """It is met anew while it is not listened to: nothing is there to listen to when that is over."""
    board.born()
    writer = open_existing(board.path, "d.interrupts", os.O_WRONLY)
    assert writer is not None
    os.write(writer, b"x")
    wait_for(lambda: board.complaints == ["nonsense"], "a complaint")
    (board.path / "d.interrupts").unlink()
    board.listener.open(board.device)
    time.sleep(0.11)
    board.listener.unmute()
    looked = threading.Event()
    board.listener._call(looked.set)
    assert looked.wait(LIMIT)
    file = board.cpu.harts.machine.polls[0] & 0xFFFF_FFFF
    assert file == 0xFFFF_FFFF, "it would turn in vain"
    _, raiser = board.born(2)
    assert raiser.send(2, 1, 0, 1, TIME)
    wait_for(lambda: board.last == 1, "the raise of the next life")


def test_what_is_no_fifo_is_refused(tmp_path: Path) -> None:
    for name in ("", ".", "..", ".hidden", "a/b", "/etc/passwd", "../x", "a\0b", "x" * 81):
        with pytest.raises(errors.BadRequest, match="name of a FIFO"):
            open_existing(tmp_path, name, os.O_RDWR)
    assert open_existing(tmp_path, "absent", os.O_RDWR) is None
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(errors.BadRequest, match="a FIFO of our own"):
        open_existing(tmp_path, "file", os.O_RDWR)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    assert open_existing(tmp_path, "link", os.O_RDWR) is None
    bell = Bell(tmp_path / "file")  # made anew, whatever was there
    assert stat.filemode(os.fstat(bell.fd).st_mode) == "prw-------"


def test_a_hostile_name_leaves_the_device_to_messages(board: Board) -> None:
    board.description.doorbell = "../d.doorbell"
    with pytest.raises(errors.BadRequest):
        board.doorbell.open()
    board.write(1)
    assert board.posted == [1]


def test_two_doorbells_cannot_be(tmp_path: Path) -> None:
    registers = [Register(name="notify", offset=0, size=4, count=2, write=WRITE_DOORBELL)]
    region = Region(name="r", base=BASE, size=0x100, access_sizes=15, registers=registers)
    harts = virt(1).harts
    with pytest.raises(errors.BadRequest, match="doorbells of d: expected at most one"):
        BusDevice(0, Description(name="d", epoch=1, regions=[region]), harts, [RegisterTable(region)])
