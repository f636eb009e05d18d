"""The stream as a format: records, sections and pages survive the way there and back; what is damaged is refused."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vmesh.migration import package, pages, records
from vmesh.migration.records import BytesSink, BytesSource, Reader, StreamError, Writer
from vmesh.v1 import migration_pb2 as messages
from vmesh.v1.lifecycle_pb2 import ServiceState

PAGE = 4096


def state(size: int, seed: int = 1) -> ServiceState:
    return ServiceState(type="vmesh.v1.Test", version=1, bytes=random.Random(seed).randbytes(size))


def stream(sink: BytesSink) -> bytearray:
    return bytearray(b"".join(sink.parts))


def memory(count: int, zero: Sequence[int] = ()) -> Any:
    content = np.random.default_rng(5).integers(0, 255, (count, PAGE), np.uint8)
    content[list(zero)] = 0
    return content


def test_record_that_was_written_is_read() -> None:
    sink = BytesSink()
    writer = Writer(sink)
    writer.magic()
    writer.command(ping=messages.Ping(number=7))
    writer.put(messages.RECORD_END)
    reader = Reader(BytesSource(stream(sink)))
    reader.magic()
    record = reader.next()
    assert records.parse(messages.StreamCommand, record).ping.number == 7
    assert reader.next().kind == messages.RECORD_END
    assert writer.bytes == reader.bytes == sink.size


@pytest.mark.parametrize("place", range(0, 34, 3))
def test_one_bit_anywhere_is_noticed(place: int) -> None:
    sink = BytesSink()
    writer = Writer(sink)
    writer.message(messages.RECORD_DESCRIPTION, messages.StreamDescription(records=1 << 60, pages_zero=5))
    data = stream(sink)
    data[min(place, len(data) - 1)] ^= 0x10
    with pytest.raises(StreamError):
        Reader(BytesSource(data)).next()


def test_record_that_is_lost_repeated_or_moved_is_noticed() -> None:
    sink = BytesSink()
    writer = Writer(sink)
    for number in range(3):
        writer.command(ping=messages.Ping(number=number + 1))
    size = sink.size // 3
    whole = bytes(stream(sink))
    parts = [whole[place : place + size] for place in range(0, len(whole), size)]
    for order in ((0, 2), (0, 0), (1, 0, 2)):
        reader = Reader(BytesSource(b"".join(parts[each] for each in order)))
        for place in range(next(at for at, each in enumerate(order) if at != each)):
            assert reader.next().number == place
        with pytest.raises(StreamError, match="damaged"):
            reader.next()


def test_length_beyond_the_bound_of_its_kind_is_refused_before_it_is_allocated() -> None:
    header = bytes([messages.RECORD_PAGES, 0, 0, 0]) + (0xFFFFFFFF).to_bytes(4, "little") + bytes(8)
    tracemalloc.start()
    try:
        with pytest.raises(StreamError, match="at most"):
            Reader(BytesSource(header)).next()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("level", [0, 1])
def test_pages_arrive_as_they_were(level: int) -> None:
    content = memory(300, zero=[0, 1, 7, 250])
    content[20:90] = 3  # to be compressed
    sink = BytesSink()
    writer = pages.PageWriter(Writer(sink), level)
    numbers = np.concatenate([np.arange(0, 100), np.arange(200, 300)])
    for start in range(0, len(numbers), writer.pages_at_once):
        writer.write(0, content, numbers[start : start + writer.pages_at_once])
    arrived = np.full_like(content, 255)
    reader, seen = Reader(BytesSource(stream(sink))), 0
    while seen < len(numbers):
        found = pages.decode(reader.next(), [300])
        seen += len(found.numbers)
        arrived[found.numbers] = 0 if found.rows is None else found.rows
    assert (arrived[numbers] == content[numbers]).all()
    assert (arrived[100:200] == 255).all()
    assert writer.counts.zero == 4
    assert bool(writer.counts.zstd) == bool(level)


def test_of_pages_that_were_sent_before_only_what_changed_is_sent() -> None:
    content = memory(200)
    sink = BytesSink()
    writer = pages.PageWriter(Writer(sink))
    writer.cache = pages.PageCache([200], 150 * PAGE)  # the last 50 are not kept
    arrived = content.copy()
    numbers = np.arange(200)
    sizes = []
    for turn in range(3):
        content[10:190, 8 * turn : 8 * turn + 3] += 1
        before = sink.size
        for part in (numbers[:100], numbers[100:]):
            writer.write(0, content, part)
        sizes.append(sink.size - before)
    assert sizes[1] < 0.6 * sizes[0]
    assert writer.counts.delta == 200
    reader = Reader(BytesSource(stream(sink)))
    arrived[:] = 0
    while reader.number < writer.writer.number:
        found = pages.decode(reader.next(), [200])
        if found.delta is None:
            arrived[found.numbers] = 0 if found.rows is None else found.rows
            continue
        places, words = found.delta
        arrived.view(np.uint64)[found.numbers[places // 512], places % 512] = words
    assert (arrived == content).all()


@pytest.mark.parametrize(
    "content", [b"x", bytes(13), (512).to_bytes(4, "little") + bytes(8), bytes(24), bytes(12 * 513)]
)
def test_changes_that_cannot_be_are_refused(content: bytes) -> None:
    runs = messages.PageRuns(encoding=messages.PAGES_DELTA, first=[3], count=[1])
    with pytest.raises(StreamError):
        pages.decode(page_record(runs, content), [10])


def page_record(runs: messages.PageRuns, content: bytes = b"") -> records.Record:
    sink = BytesSink()
    head = runs.SerializeToString()
    Writer(sink).put(messages.RECORD_PAGES, len(head).to_bytes(4, "little") + head, content)
    return Reader(BytesSource(stream(sink))).next()


@pytest.mark.parametrize(
    ("runs", "content"),
    [
        ({"segment": 1, "encoding": messages.PAGES_ZERO, "first": [0], "count": [1]}, b""),
        ({"encoding": messages.PAGES_ZERO, "first": [0], "count": [11]}, b""),
        ({"encoding": messages.PAGES_ZERO, "first": [10], "count": [1]}, b""),
        ({"encoding": messages.PAGES_ZERO, "first": [4, 2], "count": [1, 1]}, b""),
        ({"encoding": messages.PAGES_ZERO, "first": [0, 1], "count": [2, 1]}, b""),
        ({"encoding": messages.PAGES_ZERO, "first": [0], "count": [0]}, b""),
        ({"encoding": messages.PAGES_ZERO, "first": [0, 4], "count": [1]}, b""),
        ({"encoding": messages.PAGES_ZERO, "first": [], "count": []}, b""),
        ({"encoding": messages.PAGES_ZERO, "first": [0], "count": [1]}, b"x"),
        ({"encoding": messages.PAGES_PLAIN, "first": [0], "count": [1]}, bytes(PAGE - 1)),
        ({"encoding": messages.PAGES_PLAIN, "first": [0], "count": [2]}, bytes(PAGE)),
        ({"encoding": messages.PAGES_ZSTD, "first": [0], "count": [1]}, b"no zstd"),
        ({"encoding": messages.PAGES_UNSPECIFIED, "first": [0], "count": [1]}, b""),
    ],
)
def test_pages_that_cannot_be_are_refused(runs: dict[str, Any], content: bytes) -> None:
    with pytest.raises(StreamError):
        pages.decode(page_record(messages.PageRuns(**runs), content), [10])


def test_compressed_pages_of_another_size_than_stated_are_refused_before_they_are_allocated() -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))
    runs = messages.PageRuns(encoding=messages.PAGES_ZSTD, first=[0], count=[1])
    record = page_record(runs, bomb)
    tracemalloc.start()
    try:
        with pytest.raises(StreamError, match="stated"):
            pages.decode(record, [10])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_states_small_and_large_arrive_whole() -> None:
    states = {"cpu": state(3 * records.PIECE_BYTES + 5), "rtc": state(0), "uart0": state(20)}
    made = package.build(states)
    assert package.unpack(stream(made), frozenset(states)) == states


def test_package_without_the_state_of_a_service_is_refused() -> None:
    made = package.build({"cpu": state(9)})
    with pytest.raises(StreamError, match="rtc"):
        package.unpack(stream(made), frozenset({"cpu", "rtc"}))
    with pytest.raises(StreamError, match="one of rtc"):
        package.unpack(stream(made), frozenset({"rtc"}))


def sent(size_of_state: int, limit: int) -> tuple[BytesSink, BytesSink]:
    made = package.build({"cpu": state(size_of_state)})
    sink = BytesSink()
    package.send(Writer(sink), made, limit)
    return sink, made


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_package_at_its_limit(more: int) -> None:
    """Just below, at, and above what is allowed, on either side."""
    made = package.build({"cpu": state(100_000)})
    limit = made.size - more
    if more > 0:
        sink = BytesSink()
        with pytest.raises(package.PackageTooLong) as refused:
            package.send(Writer(sink), made, limit)
        assert not sink.size
        assert str(limit) in str(refused.value)
        assert str(made.size) in str(refused.value)
    sink, made = sent(100_000, made.size)
    reader = Reader(BytesSource(stream(sink)))
    announced = records.parse(messages.StreamCommand, reader.next()).packaged.length
    if more > 0:
        with pytest.raises(package.PackageTooLong) as refused:
            package.receive(reader, announced, limit)
        assert str(limit) in str(refused.value)
        assert str(announced) in str(refused.value)
    else:
        data = package.receive(reader, announced, limit)
        assert package.unpack(data, frozenset({"cpu"})) == {"cpu": state(100_000)}


def test_announced_length_takes_no_memory_before_the_bytes_come() -> None:
    reader = Reader(BytesSource(b""))
    tracemalloc.start()
    try:
        with pytest.raises(StreamError, match="ends"):
            package.receive(reader, package.MAX_PACKAGED_BYTES, package.MAX_PACKAGED_BYTES)
        with pytest.raises(package.PackageTooLong):
            package.receive(reader, package.MAX_PACKAGED_BYTES + 1, package.MAX_PACKAGED_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("lie", [-1, 1, -5000])
def test_length_that_is_a_lie_is_found(lie: int) -> None:
    made = package.build({"cpu": state(3 * records.PIECE_BYTES)})
    sink = BytesSink()
    writer = Writer(sink)
    package.send(writer, made, made.size)
    writer.command(run=messages.PostcopyRun())
    reader = Reader(BytesSource(stream(sink)))
    reader.next()
    with pytest.raises(StreamError):
        package.unpack(package.receive(reader, made.size + lie, 1 << 30), frozenset({"cpu"}))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.999])
def test_package_that_is_cut_off_is_refused(part: float) -> None:
    sink, made = sent(2 * records.PIECE_BYTES, 1 << 30)
    data = stream(sink)
    reader = Reader(BytesSource(data[: max(40, int(len(data) * part))]))
    reader.next()
    with pytest.raises(StreamError):
        package.receive(reader, made.size, 1 << 30)
    inside = stream(made)
    with pytest.raises(StreamError):
        package.unpack(inside[: int(len(inside) * part)], frozenset({"cpu"}))


def test_streams_changed_at_random_are_refused_or_read_as_they_were() -> None:
    """No crash, and no more memory than is announced and allowed."""
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    states = {"cpu": state(2000), "uart0": state(50, 2)}
    whole = stream(package.build(states))
    tracemalloc.start()
    try:
        for _ in range(1500):
            data = bytearray(whole)
            for _ in range(chance.choice((1, 1, 2, 20))):
                place = chance.randrange(len(data))
                match chance.randrange(4):
                    case 0:
                        data[place] ^= 1 << chance.randrange(8)
                    case 1:
                        data[place : place + chance.randrange(16)] = chance.randbytes(chance.randrange(16))
                    case 2:
                        del data[place:]
                    case _:
                        data[place:place] = data[: chance.randrange(64)]
                if not data:
                    break
            if data == whole:
                continue
            with pytest.raises(StreamError):
                package.unpack(data, frozenset(states))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_payloads_changed_at_random_behind_a_right_checksum_are_refused_or_taken() -> None:
    """Whoever writes a stream of his own can compute checksums: the content is checked by itself."""
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    runs = messages.PageRuns(encoding=messages.PAGES_PLAIN, first=[1, 5], count=[2, 1])
    head = runs.SerializeToString()
    good = len(head).to_bytes(4, "little") + head + bytes(3 * PAGE)
    taken = 0
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(chance.choice((1, 2, 5))):
            data[chance.randrange(24)] = chance.randrange(256)
        sink = BytesSink()
        Writer(sink).put(messages.RECORD_PAGES, data)
        try:
            found = pages.decode(Reader(BytesSource(stream(sink))).next(), [10, 10])
        except StreamError:
            continue
        taken += 1
        assert 0 <= int(found.numbers[0]) <= int(found.numbers[-1]) < 10
    assert taken < 2000
