"""Pages of RAM in the stream: runs of page numbers, and their content zero, plain or compressed.

A page is copied out of guest memory before it is looked at: the guest may write to it meanwhile, and the checksum is to
be of what is sent.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from google.protobuf.message import DecodeError

from vmesh.migration.records import Record, StreamError, Writer
from vmesh.segment import PAGE
from vmesh.v1 import migration_pb2 as messages

Numbers = npt.NDArray[np.int64]  # page numbers of a segment, ascending
Rows = npt.NDArray[np.uint8]  # the content of pages, (n, PAGE)
Words = npt.NDArray[np.uint64]

PLAIN_PAGES = 256  # of one record: a mebibyte, which stays in the host's cache between two looks at it
ZSTD_PAGES = 64  # compressed together: a page of a snapshot is fetched with its 63 neighbours
MOST_PAGES = 1024  # that a reader takes in one record

_LENGTH = struct.Struct("<I")
_WORD_BYTES = 12  # of a word that changed: its place and its content


@dataclass(slots=True)
class Counts:
    """Pages by how they were sent."""

    zero: int = 0
    plain: int = 0
    zstd: int = 0
    delta: int = 0

    @property
    def normal(self) -> int:
        """Those that were not zero."""
        return self.plain + self.zstd + self.delta


@dataclass(frozen=True, slots=True)
class Pages:
    """A record of pages, checked: `rows` is None for zeroes, and valid until the next record is read.

    With `delta` it is only what changed: which words (512 times the place in `numbers`, plus the place in the page),
    and what they are now.
    """

    segment: int
    numbers: Numbers
    rows: Rows | None
    delta: tuple[Numbers, Words] | None = None


def runs(numbers: Numbers) -> tuple[list[int], list[int]]:
    """Ascending page numbers as first numbers and counts of runs."""
    if not len(numbers):
        return [], []
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    starts = np.concatenate(([0], breaks))
    counts = np.diff(np.concatenate((starts, [len(numbers)])))
    return numbers[starts].tolist(), counts.tolist()


def expand(first: Sequence[int], count: Sequence[int], pages: int, most: int) -> Numbers:
    """The numbers that runs stand for, of a segment of `pages` pages.

    Raises StreamError for runs that are not ascending, leave the segment, or are more than `most` pages: before
    anything of their size is allocated.
    """
    if len(first) != len(count) or not first:
        raise StreamError("runs of pages", expected="a count for each first page", got=f"{len(first)} and {len(count)}")
    end = total = 0
    for start, length in zip(first, count, strict=True):
        if start < end or not length or start + length > pages:
            raise StreamError("runs of pages", expected=f"ascending runs inside {pages} pages", got=f"{start}+{length}")
        end = start + length
        total += length
    if total > most:
        raise StreamError("runs of pages", expected=f"at most {most} pages", got=str(total))
    if len(first) == 1:
        return np.arange(first[0], end, dtype=np.int64)
    starts, counts = np.asarray(first, np.int64), np.asarray(count, np.int64)
    offsets = np.concatenate(([0], np.cumsum(counts)[:-1]))
    return np.repeat(starts - offsets, counts) + np.arange(total, dtype=np.int64)


class PageCache:
    """What was sent of pages last, so that the next time what changed will do. It takes `size` bytes at most."""

    def __init__(self, segment_pages: Sequence[int], size: int) -> None:
        self._rows = np.empty((size // PAGE, PAGE), np.uint8)  # takes memory as it is written to
        self._slots = [np.full(pages, -1, np.int32) for pages in segment_pages]
        self._used = 0

    def find(self, segment: int, numbers: Numbers) -> Rows | None:
        """What was sent of these pages, if it is known of all of them."""
        slots = self._slots[segment][numbers]
        if not len(slots) or slots.min() < 0:
            return None
        first, last = int(slots[0]), int(slots[-1])
        if last - first + 1 == len(slots) and (np.diff(slots) == 1).all():
            return self._rows[first : last + 1]
        return self._rows[slots]

    def keep(self, segment: int, numbers: Numbers, rows: Rows) -> None:
        """These pages were sent; beyond the size they are forgotten."""
        slots = self._slots[segment]
        new = numbers[slots[numbers] < 0]
        fit = new[: len(self._rows) - self._used]
        slots[fit] = np.arange(self._used, self._used + len(fit), dtype=np.int32)
        self._used += len(fit)
        known = slots[numbers] >= 0
        if known.all():
            self._rows[slots[numbers]] = rows
        else:
            self._rows[slots[numbers[known]]] = rows[known]


@dataclass(frozen=True, slots=True)
class Compared:
    """Pages to write, and what of them changed, if to send that is enough: places and words as in `Pages.delta`."""

    segment: int
    numbers: Numbers
    rows: Rows
    changed: tuple[npt.NDArray[np.uint32], Words] | None


class PageWriter:
    """Writes pages as records. One thread's: it has a buffer. With a `cache` it sends what changed, where it can."""

    def __init__(self, writer: Writer, zstd_level: int = 0) -> None:
        self.writer = writer
        self.counts = Counts()
        self.cache: PageCache | None = None
        self._compressor = zstandard.ZstdCompressor(level=zstd_level) if zstd_level else None
        self.pages_at_once = ZSTD_PAGES if zstd_level else PLAIN_PAGES
        self._buffer = np.empty((self.pages_at_once, PAGE), np.uint8)

    def write(self, segment: int, content: Rows, numbers: Numbers) -> None:
        """At most `pages_at_once` pages of a segment whose whole content is `content`."""
        rows = self._buffer[: len(numbers)]
        np.take(content, numbers, axis=0, out=rows, mode="clip")
        self.write_compared(Compared(segment, numbers, rows, self._changed(segment, numbers, rows)))
        if self.cache is not None:
            self.cache.keep(segment, numbers, rows)

    def compare(self, segment: int, content: Rows, numbers: Numbers) -> Compared:
        """Pages as for `write`, which the guest does not write to any more: for `write_compared`. From any thread."""
        first, last = int(numbers[0]), int(numbers[-1])
        rows = content[first : last + 1] if last - first + 1 == len(numbers) else content[numbers]
        return Compared(segment, numbers, rows, self._changed(segment, numbers, rows))

    def write_compared(self, pages: Compared) -> None:
        segment, numbers, rows = pages.segment, pages.numbers, pages.rows
        if pages.changed is not None:
            places, words = pages.changed
            first, count = runs(numbers)
            made = messages.PageRuns(segment=segment, encoding=messages.PAGES_DELTA, first=first, count=count)
            self.counts.delta += len(numbers)
            self._record(made, places.data.cast("B"), words.data.cast("B"))
            return
        filled = rows.view(np.uint64).any(axis=1)
        if filled.all():
            self._put(segment, numbers, rows)
            return
        self.write_zeroes(segment, numbers[~filled])
        if filled.any():
            self._put(segment, numbers[filled], rows[filled])

    def write_zeroes(self, segment: int, numbers: Numbers) -> None:
        """Pages that are known to be zero, any number of them."""
        self.counts.zero += len(numbers)
        first, count = runs(numbers)
        for start in range(0, len(first), MOST_PAGES):
            part = slice(start, start + MOST_PAGES)
            made = messages.PageRuns(
                segment=segment, encoding=messages.PAGES_ZERO, first=first[part], count=count[part]
            )
            self._record(made)

    def _changed(self, segment: int, numbers: Numbers, rows: Rows) -> tuple[npt.NDArray[np.uint32], Words] | None:
        """Which words changed since the pages were sent, and what they are now; None where it is less to send all."""
        former = None if self.cache is None else self.cache.find(segment, numbers)
        if former is None:
            return None
        words = rows.view(np.uint64).reshape(-1)
        places = np.flatnonzero(words != former.view(np.uint64).reshape(-1))
        return (places.astype("<u4"), words[places]) if 2 * len(places) * _WORD_BYTES < rows.nbytes else None

    def _put(self, segment: int, numbers: Numbers, rows: Rows) -> None:
        first, count = runs(numbers)
        made = messages.PageRuns(segment=segment, encoding=messages.PAGES_PLAIN, first=first, count=count)
        if self._compressor is not None:
            packed = self._compressor.compress(rows.data)
            if len(packed) < rows.nbytes:
                made.encoding = messages.PAGES_ZSTD
                self.counts.zstd += len(numbers)
                self._record(made, packed)
                return
        self.counts.plain += len(numbers)
        self._record(made, rows.data.cast("B"))

    def _record(self, made: messages.PageRuns, *content: Any) -> None:
        head = made.SerializeToString()
        self.writer.put(messages.RECORD_PAGES, _LENGTH.pack(len(head)) + head, *content)


def parse_runs(record: Record) -> tuple[messages.PageRuns, memoryview]:
    """The runs of a PAGES record, unchecked, and its content. Raises StreamError."""
    payload = record.payload
    if len(payload) < _LENGTH.size:
        raise StreamError(f"record {record.number}: pages without their numbers")
    (length,) = _LENGTH.unpack_from(payload)
    if length > len(payload) - _LENGTH.size:
        raise StreamError(f"record {record.number}: the numbers of its pages are cut off")
    try:
        found = messages.PageRuns.FromString(bytes(payload[_LENGTH.size : _LENGTH.size + length]))
    except DecodeError:
        raise StreamError(f"record {record.number}: the numbers of its pages cannot be parsed") from None
    return found, payload[_LENGTH.size + length :]


def decode(record: Record, segment_pages: Sequence[int]) -> Pages:
    """The pages of a record for segments of so many pages. Raises StreamError; nothing large is allocated before."""
    found, content = parse_runs(record)
    if found.segment >= len(segment_pages):
        raise StreamError("pages of a segment", expected=f"0 to {len(segment_pages) - 1}", got=str(found.segment))
    size = segment_pages[found.segment]
    zero = found.encoding == messages.PAGES_ZERO
    numbers = expand(found.first, found.count, size, size if zero else MOST_PAGES)
    wanted = len(numbers) * PAGE
    if found.encoding == messages.PAGES_DELTA:
        return Pages(found.segment, numbers, None, _parse_delta(content, wanted // 8))
    check_content(found.encoding, content, wanted)
    if zero:
        return Pages(found.segment, numbers, None)
    plain: Any = content if found.encoding == messages.PAGES_PLAIN else _decompress(content, wanted)
    return Pages(found.segment, numbers, np.frombuffer(plain, np.uint8).reshape(-1, PAGE))


def check_content(encoding: messages.PageEncoding.ValueType, content: memoryview, size: int) -> None:
    """Raises StreamError unless this can be whole pages of `size` bytes; it does not decompress them."""
    match encoding:
        case messages.PAGES_ZERO:
            if len(content):
                raise StreamError("pages that are zero", expected="no content", got=f"{len(content)} bytes")
        case messages.PAGES_PLAIN:
            if len(content) != size:
                raise StreamError("content of pages", expected=f"{size} bytes", got=str(len(content)))
        case messages.PAGES_ZSTD:
            try:
                stated = zstandard.frame_content_size(content)
            except zstandard.ZstdError as error:
                raise StreamError(f"compressed pages: {error}") from None
            if stated != size:
                raise StreamError("compressed pages", expected=f"{size} bytes stated", got=str(stated))
        case other:
            raise StreamError("encoding of pages", expected="zero, plain or zstd", got=str(int(other)))


def whole(pages: Pages) -> Pages:
    """The same. Raises StreamError if they are only what changed, where nothing can have come before."""
    if pages.delta is not None:
        raise StreamError("pages", expected="whole ones", got="what changed of them")
    return pages


def _parse_delta(content: memoryview, words: int) -> tuple[Numbers, Words]:
    count, rest = divmod(len(content), _WORD_BYTES)
    if rest or count > words:
        raise StreamError("changes of pages", expected=f"at most {words}, whole", got=f"{len(content)} bytes")
    places = np.frombuffer(content[: 4 * count], "<u4").astype(np.int64)
    if count and (int(places[-1]) >= words or (np.diff(places) <= 0).any()):
        raise StreamError("changes of pages", expected=f"ascending places below {words}")
    return places, np.frombuffer(content[4 * count :], "<u8")


def _decompress(content: memoryview, size: int) -> bytes:
    try:
        plain = zstandard.ZstdDecompressor().decompress(content, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise StreamError(f"compressed pages: {error}") from None
    if len(plain) != size:
        raise StreamError("compressed pages", expected=f"{size} bytes", got=str(len(plain)))
    return plain
