"""Virtqueues against a driver's model: order, content, notifications, what is malformed, and death at any store."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.unit.virtio_driver import BASE, BUFFERS, RAM, Driver, PackedDriver, SplitDriver, areas, guest_memory
from vmesh.guest_memory import LocalGuestMemory
from vmesh.virtio import queue as queue_module
from vmesh.virtio.packed import WRAP, PackedQueue
from vmesh.virtio.queue import Areas, Chain, Malformed, Queue, cut, length_of
from vmesh.virtio.split import SplitQueue

KINDS: dict[str, tuple[type[Queue], type[Driver], int]] = {
    "split": (SplitQueue, SplitDriver, 0),
    "packed": (PackedQueue, PackedDriver, WRAP),
}
NEXT, WRITE, INDIRECT = 1, 2, 4


@dataclass
class Bench:
    memory: LocalGuestMemory
    kind: str
    size: int = 8
    event_index: bool = False
    indirect: bool = False
    marks: Any = field(default_factory=lambda: [0, 0])
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.driver = KINDS[self.kind][1](self.memory, areas(self.size), self.event_index, self.indirect)
        self.queue = self.open(KINDS[self.kind][2])

    def open(self, position: int, memory: Any = None, marks: Any = None) -> Queue:
        return KINDS[self.kind][0](
            0,
            areas(self.size),
            memory or self.memory,
            position=position,
            indirect=self.indirect,
            event_index=self.event_index,
            marks=marks or self.marks,
            broken=self.broken.append,
        )


@pytest.fixture
def memory(tmp_path: Path) -> LocalGuestMemory:
    return guest_memory(tmp_path)


@pytest.fixture(params=["split", "packed"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


every_feature = pytest.mark.parametrize(
    ("event_index", "indirect"), [(False, False), (True, False), (False, True), (True, True)]
)


def answer(memory: LocalGuestMemory, chain: Chain) -> int:
    """The device of these tests: the bytes read, one added to each, as far as there is room."""
    data = bytes(each + 1 & 0xFF for each in b"".join(memory.gather(chain.readable)))

    def fill(buffers: list[memoryview]) -> int:
        rest = data
        for buffer in buffers:
            part, rest = rest[: len(buffer)], rest[len(buffer) :]
            buffer[: len(part)] = part
        return len(data) - len(rest)

    return memory.scatter(chain.writable, fill)


def shape(random_: random.Random, number: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Buffers of request `number`, of its own 4 KiB."""
    at = BUFFERS + 0x1000 * (number % 100)
    pieces = []
    for _ in range(random_.randint(1, 4)):
        at += random_.randint(0, 3)
        size = random_.randint(1, 200)
        pieces.append((at, size))
        at += size
    readable = random_.randint(0, len(pieces))
    return pieces[:readable], pieces[readable:]


@every_feature
def test_requests_come_back_in_order_with_their_answers(
    memory: LocalGuestMemory, kind: str, event_index: bool, indirect: bool
) -> None:
    """The device only looks when it was rung, the driver only when it was interrupted, and nothing is left lying."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    bench = Bench(memory, kind, event_index=event_index, indirect=indirect)
    driver, queue = bench.driver, bench.queue
    waiting: list[tuple[int, bytes, list[tuple[int, int]]]] = []
    rung = interrupted = False
    added = done = 0
    while done < 700:
        for _ in range(chance.randint(0, 5)):
            readable, writable = shape(chance, added)
            data = chance.randbytes(length_of(readable))
            start = 0
            for address, size in readable:
                memory.write(address, data[start : start + size])
                start += size
            identifier = driver.add(readable, writable)
            if identifier is None:
                break
            added += 1
            expected = bytes(each + 1 & 0xFF for each in data)[: length_of(writable)]
            waiting.append((identifier, expected, writable))
        rung |= driver.must_ring()
        if rung:
            rung = False
            limit = chance.randint(1, 10)
            while limit and (chain := queue.pop()) is not None:
                queue.push(chain, answer(memory, chain))
                limit -= 1
            rung = not limit
            interrupted |= queue.wants_interrupt()
        if interrupted:
            interrupted = False
            for identifier, written in driver.reap():
                expected_identifier, expected, writable = waiting.pop(0)
                assert identifier == expected_identifier
                assert written == len(expected)
                assert b"".join(memory.gather(cut(writable, written)[0])) == expected
                done += 1
            driver.listen(1)
            late = driver.reap()  # used before `listen` was seen
            for identifier, written in late:
                assert (identifier, written) == (waiting[0][0], len(waiting[0][1]))
                waiting.pop(0)
                done += 1
            if late:
                driver.listen(1)
        assert not bench.broken


@every_feature
def test_a_busy_device_is_not_rung(memory: LocalGuestMemory, kind: str, event_index: bool, indirect: bool) -> None:
    bench = Bench(memory, kind, size=16, event_index=event_index, indirect=indirect)
    driver, queue = bench.driver, bench.queue
    assert queue.pop() is None
    driver.add([(BUFFERS, 4)], [])
    assert driver.must_ring()
    chain = queue.pop()
    assert chain is not None
    driver.add([(BUFFERS, 4)], [])
    assert not driver.must_ring()
    second = queue.pop()
    assert second is not None
    queue.push(chain, 0)
    queue.push(second, 0)
    driver.add([(BUFFERS, 4)], [])
    assert not driver.must_ring()
    assert queue.pop() is not None
    assert queue.pop() is None
    driver.add([(BUFFERS, 4)], [])
    assert driver.must_ring()


def test_interrupts_when_the_driver_wants_them(memory: LocalGuestMemory, kind: str) -> None:
    bench = Bench(memory, kind, event_index=True)
    driver, queue = bench.driver, bench.queue

    def use(count: int) -> bool:
        for _ in range(count):
            driver.add([(BUFFERS, 4)], [])
            chain = queue.pop()
            assert chain is not None
            queue.push(chain, 0)
        return queue.wants_interrupt()

    assert use(1)  # the first time always
    assert not queue.wants_interrupt()
    driver.reap()
    driver.listen(3)
    assert not use(2)
    assert use(1)
    assert not use(1)
    driver.reap()
    for _ in range(5):
        driver.listen(1)
        assert use(2)
        driver.reap()


def test_without_event_index_a_flag_turns_interrupts_off(memory: LocalGuestMemory, kind: str) -> None:
    bench = Bench(memory, kind)
    driver, queue = bench.driver, bench.queue
    wanted = []
    for off in (0, 1, 0):
        memory.write_u16(driver.areas.driver + (2 if kind == "packed" else 0), off)
        driver.add([(BUFFERS, 4)], [])
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 0)
        wanted.append(queue.wants_interrupt())
    assert wanted == [True, False, True]


def test_a_request_that_was_put_back_comes_again(memory: LocalGuestMemory, kind: str) -> None:
    bench = Bench(memory, kind)
    bench.driver.add([(BUFFERS, 4)], [])
    bench.driver.add([(BUFFERS + 64, 4), (BUFFERS, 8)], [])
    first, second = bench.queue.pop(), bench.queue.pop()
    assert first is not None
    assert second is not None
    with pytest.raises(ValueError, match="last"):
        bench.queue.put_back(first)
    bench.queue.put_back(second)
    assert bench.queue.pop() == second
    with pytest.raises(ValueError, match="oldest"):
        bench.queue.push(second, 0)


def test_adjacent_buffers_are_one_piece(memory: LocalGuestMemory, kind: str) -> None:
    bench = Bench(memory, kind)
    bench.driver.add([(BUFFERS, 4), (BUFFERS + 4, 6)], [(BUFFERS + 10, 1), (BUFFERS + 12, 2)])
    chain = bench.queue.pop()
    assert chain is not None
    assert chain.readable == [(BUFFERS, 10)]
    assert chain.writable == [(BUFFERS + 10, 1), (BUFFERS + 12, 2)]


def test_cut() -> None:
    pieces = [(100, 4), (200, 6)]
    assert cut(pieces, 0) == ([], pieces)
    assert cut(pieces, 4) == ([(100, 4)], [(200, 6)])
    assert cut(pieces, 5) == ([(100, 4), (200, 1)], [(201, 5)])
    assert cut(pieces, 11) == (pieces, [])


# What is malformed.

Write = Callable[[LocalGuestMemory], None]


def split(*descriptors: tuple[int, int, int, int], index: int = 1, head: int = 0) -> Write:
    def write(memory: LocalGuestMemory) -> None:
        for number, each in enumerate(descriptors):
            memory.write(BASE + 16 * number, struct.pack("<QIHH", *each))
        memory.write(BASE + 0x8000, struct.pack("<HHH", 0, index, head))

    return write


def table(*descriptors: tuple[int, int, int, int]) -> Write:
    """An indirect table, for descriptors that name TABLE."""

    def write(memory: LocalGuestMemory) -> None:
        memory.write(TABLE, b"".join(struct.pack("<QIHH", *each) for each in descriptors))

    return write


TABLE = BASE + 0x10000
BAD_SPLIT: dict[str, tuple[Write, ...]] = {
    "available index": (split((BUFFERS, 4, 0, 0), index=9),),
    "head": (split((BUFFERS, 4, 0, 0), head=8),),
    "next": (split((BUFFERS, 4, NEXT, 8)),),
    "loop of one": (split((BUFFERS, 4, NEXT, 0)),),
    "loop of two": (split((BUFFERS, 4, NEXT, 1), (BUFFERS, 4, NEXT, 0)),),
    "below RAM": (split((BASE - 1, 4, 0, 0)),),
    "above RAM": (split((BASE + RAM - 3, 4, 0, 0)),),
    "end of the address space": (split(((1 << 64) - 2, 4, 0, 0)),),
    "length": (split((BASE, 0xFFFF_FFFF, 0, 0)),),
    "readable behind writable": (split((BUFFERS, 4, WRITE | NEXT, 1), (BUFFERS, 4, 0, 0)),),
    "indirect and next": (table((BUFFERS, 4, 0, 0)), split((TABLE, 16, INDIRECT | NEXT, 0))),
    "indirect outside": (split((BASE + RAM - 16, 32, INDIRECT, 0)),),
    "indirect of no size": (split((TABLE, 0, INDIRECT, 0)),),
    "indirect of odd size": (split((TABLE, 24, INDIRECT, 0)),),
    "indirect too long": (split((TABLE, 16 * 1025, INDIRECT, 0)),),
    "indirect in indirect": (table((TABLE, 16, INDIRECT, 0)), split((TABLE, 16, INDIRECT, 0))),
    "indirect next": (table((BUFFERS, 4, NEXT, 2), (0, 0, 0, 0)), split((TABLE, 32, INDIRECT, 0))),
    "indirect loop": (table((BUFFERS, 4, NEXT, 1), (BUFFERS, 4, NEXT, 0)), split((TABLE, 32, INDIRECT, 0))),
}


@pytest.mark.parametrize("case", BAD_SPLIT)
def test_split_malformed(memory: LocalGuestMemory, case: str) -> None:
    for write in BAD_SPLIT[case]:
        write(memory)
    broken: list[str] = []
    queue = SplitQueue(
        0, areas(8), memory, position=0, indirect=True, event_index=False, marks=memoryview(b""), broken=broken.append
    )
    assert queue.pop() is None
    assert len(broken) == 1
    assert queue.pop() is None
    assert len(broken) == 1
    assert ("loop" in case) == ("more than the" in broken[0])


def test_a_request_has_a_greatest_length(memory: LocalGuestMemory, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "MAX_BYTES", 100)
    bench = Bench(memory, kind)
    bench.driver.add([(BUFFERS, 60)], [(BUFFERS, 40)])
    bench.driver.add([(BUFFERS, 60)], [(BUFFERS, 41)])
    assert bench.queue.pop() is not None
    assert bench.queue.pop() is None
    assert "at most 100 bytes" in bench.broken[0]


def packed(*descriptors: tuple[int, int, int]) -> Write:
    """All made available; (address, length, flags)."""

    def write(memory: LocalGuestMemory) -> None:
        for number, (address, length, flags) in enumerate(descriptors):
            memory.write(BASE + 16 * number, struct.pack("<QIHH", address, length, number, flags | 1 << 7))

    return write


BAD_PACKED: dict[str, tuple[Write, ...]] = {
    "endless": (packed(*[(BUFFERS, 4, NEXT)] * 8),),
    "outside": (packed((BASE + RAM, 1, 0)),),
    "readable behind writable": (packed((BUFFERS, 4, WRITE | NEXT), (BUFFERS, 4, 0)),),
    "indirect and next": (table((BUFFERS, 4, 0, 0)), packed((TABLE, 16, INDIRECT | NEXT))),
    "indirect in a chain": (table((BUFFERS, 4, 0, 0)), packed((BUFFERS, 4, NEXT), (TABLE, 16, INDIRECT))),
    "indirect in indirect": (table((TABLE, 16, 0, INDIRECT)), packed((TABLE, 16, INDIRECT))),
    "indirect outside": (packed((BASE - 16, 16, INDIRECT)),),
}


@pytest.mark.parametrize("case", BAD_PACKED)
def test_packed_malformed(memory: LocalGuestMemory, case: str) -> None:
    for write in BAD_PACKED[case]:
        write(memory)
    broken: list[str] = []
    queue = PackedQueue(
        0,
        areas(8),
        memory,
        position=WRAP,
        indirect=True,
        event_index=False,
        marks=memoryview(b""),
        broken=broken.append,
    )
    assert queue.pop() is None
    assert len(broken) == 1


def test_indirect_has_to_be_negotiated(memory: LocalGuestMemory, kind: str) -> None:
    table((BUFFERS, 4, 0, 0))(memory)
    bench = Bench(memory, kind)
    (split((TABLE, 16, INDIRECT, 0)) if kind == "split" else packed((TABLE, 16, INDIRECT)))(memory)
    assert bench.queue.pop() is None
    assert "not negotiated" in bench.broken[0]


@pytest.mark.parametrize(
    "bad",
    [
        Areas(8, BASE + 8, BASE + 0x8000, BASE + 0xC000),
        Areas(8, BASE, BASE + 0x8001, BASE + 0xC000),
        Areas(8, BASE, BASE + 0x8000, BASE + 0xC002),
        Areas(8, BASE + RAM - 0x40, BASE + 0x8000, BASE + 0xC000),
        Areas(8, BASE, 0, BASE + 0xC000),
        Areas(8, BASE, BASE + 0x8000, (1 << 64) - 4),
    ],
)
def test_areas_have_to_be_in_memory_and_aligned(memory: LocalGuestMemory, kind: str, bad: Areas) -> None:
    with pytest.raises(Malformed):
        KINDS[kind][0](
            0, bad, memory, position=0, indirect=True, event_index=True, marks=memoryview(b""), broken=lambda _: None
        )


@every_feature
def test_noise_in_the_rings(memory: LocalGuestMemory, kind: str, event_index: bool, indirect: bool) -> None:
    """Whatever the rings hold, popping ends, nothing is raised, and every buffer lies in guest memory."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(300):
        position = chance.randrange(8) | chance.choice((0, WRAP)) if kind == "packed" else chance.randrange(1 << 16)
        bench = Bench(memory, kind, event_index=event_index, indirect=indirect)
        queue = bench.open(position)
        for number in range(8):
            address = chance.choice((BASE, BUFFERS, TABLE, BASE + RAM - 32, chance.randrange(1 << 64)))
            length = chance.choice((0, 16, 32, 160, chance.randrange(1 << 32)))
            fields = struct.pack("<QIHH", address, length, chance.randrange(1 << 16), chance.randrange(1 << 16))
            if kind == "split" or chance.random() < 0.5:
                fields = struct.pack("<QIHH", address, length, chance.randrange(8), chance.randrange(9))
            memory.write(BASE + 16 * number, fields)
            memory.write(TABLE + 16 * number, fields)
        memory.write(BASE + 0x8000, chance.randbytes(24))
        memory.write_u16(BASE + 0x8002, position + chance.randrange(10) & 0xFFFF)
        for _ in range(40):
            chain = queue.pop()
            if chain is None:
                break
            for address, size in chain.readable + chain.writable:
                assert memory.covers(address, size, write=False)
            assert length_of(chain.readable) + length_of(chain.writable) < 1 << 32
            queue.push(chain, 0)
            queue.wants_interrupt()


# Death at any store.


class Killed(BaseException):
    pass


class Mortal:
    """Memory, or marks, through which a device writes: at the n-th store it dies, before it."""

    def __init__(self, target: Any, life: list[int]) -> None:
        self._target = target
        self._life = life

    def _store(self) -> None:
        self._life[0] -= 1
        if self._life[0] < 0:
            raise Killed

    def write(self, address: int, data: bytes) -> None:
        self._store()
        self._target.write(address, data)

    def write_u16(self, address: int, value: int) -> None:
        self._store()
        self._target.write_u16(address, value)

    def __setitem__(self, index: int, value: int) -> None:
        self._store()
        self._target[index] = value

    def __getitem__(self, index: int) -> int:
        return int(self._target[index])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


@every_feature
def test_a_successor_does_what_was_not_done_and_no_more(
    memory: LocalGuestMemory, kind: str, event_index: bool, indirect: bool
) -> None:
    """Devices that live for a few stores each; the slot's position lies behind by as much as it may.

    The guest sees each request used once, in order, with its answer; none is begun anew after it was seen as used.
    """
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    bench = Bench(memory, kind, event_index=event_index, indirect=indirect)
    driver, queue = bench.driver, bench.queue
    waiting: list[tuple[int, int, bytes]] = []
    slot = queue.position
    added = done = 0
    while done < 400:
        while chance.random() < 0.7:
            data = struct.pack("<I", added)
            at = BUFFERS + 64 * (added % 512)
            memory.write(at, data)
            memory.write(at + 8, b"untouched")
            pieces = chance.randint(1, 3)
            writable = [(at + 8 + number, 1) for number in range(pieces - 1)] + [(at + 7 + pieces, 9)]
            identifier = driver.add([(at, 4)], writable)
            if identifier is None:
                break
            waiting.append((identifier, at, data))
            added += 1
        life = [chance.randint(0, 12)]
        try:
            mortal = bench.open(slot, Mortal(memory, life), Mortal(bench.marks, life))
            mortal.recover()
            slot = mortal.position  # as `recover` ends, the turn of the loop writes the slot
            while (chain := mortal.pop()) is not None:
                assert b"".join(memory.gather(chain.readable)) in [data for _, _, data in waiting]
                mortal.push(chain, answer(memory, chain))
        except Killed:
            pass
        for identifier, written in driver.reap():
            expected, at, data = waiting.pop(0)
            assert (identifier, written) == (expected, 4)
            assert memory.read(at + 8, 4) == bytes(each + 1 & 0xFF for each in data)
            done += 1
        assert not bench.broken
