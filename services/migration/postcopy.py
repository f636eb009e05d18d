"""The source of a post-copy: pages that are asked for, at once; all others, in the background; and a link that breaks.

The guest runs at the destination by now, so nothing here can fail for good: a link that breaks makes it wait for
another one. What has arrived is known there alone, so a new link begins with the destination's word on it.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import zstandard

from vmesh import errors
from vmesh.migration import records, uri
from vmesh.migration.pages import Counts, Numbers, PageWriter, runs
from vmesh.migration.records import StreamError, Writer
from vmesh.migration.uri import Place
from vmesh.v1 import migration_pb2 as messages
from vmesh_services.migration.connection import Connection, connect
from vmesh_services.migration.returned import LinkLost, ReturnPath
from vmesh_services.migration.status import Status

if TYPE_CHECKING:
    from vmesh_services.migration.job import Context, Job

_BACKGROUND_PAGES = 64  # between two looks for what is asked for
_RUNS_AT_ONCE = 16384  # of one DISCARD
_ANSWER_SECONDS = 30.0


@dataclass(slots=True, eq=False)
class StreamLink:
    """The connections that were made together. Who reads one that breaks cuts this link, not what has come since."""

    number: int
    main: Connection
    writer: Writer  # to `main`
    returned: ReturnPath
    pages: Connection | None = None
    broken: str = ""  # why it was cut here

    def cut(self, why: str) -> None:
        """End it for both sides; the first reason counts. From any thread."""
        self.broken = self.broken or why
        for each in (self.main, self.pages):
            if each is not None:
                each.cut()


def open_channel(
    place: Place, kind: messages.ChannelKind.ValueType, session: bytes, link: int
) -> tuple[Connection, Writer]:
    """A connection that says what it is. Raises ConfigError if nobody is there, OSError."""
    connection = connect(place)
    writer = Writer(connection)
    writer.magic()
    header = messages.StreamHeader(version=records.VERSION, channel=kind, session=session, link=link)
    writer.message(messages.RECORD_HEADER, header)
    return connection, writer


class Push:
    """What is left to send, and the threads that send it."""

    def __init__(self, context: Context, status: Status, session: bytes, counts: Counts | None = None) -> None:
        self.unsure = False  # the destination has not said that the guest runs there
        self._context = context
        self._status = status
        self._session = session
        self._level = context.parameters.zstd_level
        self._counts = counts or Counts()
        self._lock = threading.Lock()
        self._left: list[npt.NDArray[np.bool_]] = [np.zeros(count, np.bool_) for count in context.ram.pages]
        self._next = (0, 0)  # segment and page: where the background goes on, behind what was asked for last
        self._link: StreamLink | None = None
        self._resume: Place | None = None
        self._woken = threading.Event()
        self._closed = False

    def open_pages(self, link: StreamLink, place: Place) -> None:
        """The connection for what is asked for. Raises ConfigError, OSError."""
        link.pages, writer = open_channel(place, messages.CHANNEL_PAGES, self._session, link.number)
        self._link = link
        threading.Thread(target=self._serve, args=(link, link.pages, writer), name="page requests", daemon=True).start()

    def set_left(self, *parts: Sequence[Numbers]) -> None:
        """What is in any of these is to come; each has pages of every segment, or is empty."""
        for part in parts:
            for left, each in zip(self._left, part, strict=False):
                left[each] = True
        self._count()

    def discard(self, writer: Writer) -> None:
        """Tell the destination which pages are to come."""
        for segment, left in enumerate(self._left):
            first, count = runs(np.flatnonzero(left))
            for start in range(0, len(first), _RUNS_AT_ONCE):
                part = slice(start, start + _RUNS_AT_ONCE)
                made = messages.PostcopyDiscard(segment=segment, first=first[part], count=count[part])
                writer.command(postcopy_discard=made)

    def run(self, job: Job, link: StreamLink | None, broke: str = "") -> None:
        """The guest runs there: send all that is left, over as many links as it takes.

        Without a first link `broke` says why there is none.
        """
        if link is not None:
            job.enter(messages.MIGRATION_POSTCOPY_ACTIVE)
        while True:
            link = link or self._recover(job, broke)
            try:
                self._push(link)
                break
            except (OSError, errors.VmeshError) as error:
                link.main.cut()
                if link.returned.said_last("closing"):  # the other connection was seen to end before this was read
                    break
                better = link.returned.why(error) if isinstance(error, OSError) else error
                broke = link.broken or str(better)
                link = None
        self.close()
        job.enter(messages.MIGRATION_COMPLETED)

    def pause(self) -> None:
        """Break the link; from any thread. Raises BadRequest."""
        self._need("pause", messages.MIGRATION_POSTCOPY_ACTIVE, messages.MIGRATION_POSTCOPY_RECOVER)
        self._cut("paused by the user")

    def resume(self, place: str) -> None:
        """The destination listens there; from any thread. Raises BadRequest, ConfigError."""
        self._need("resume", messages.MIGRATION_POSTCOPY_PAUSED)
        self._resume = uri.parse(place)
        self._woken.set()

    def close(self) -> None:
        self._closed = True
        self._woken.set()
        self._cut("the service ends")

    def _need(self, what: str, *states: messages.MigrationState.ValueType) -> None:
        if self._status.state not in states:
            wanted, got = (messages.MigrationState.Name(state) for state in (states[0], self._status.state))
            raise errors.BadRequest(f"migration {what}", expected=wanted, got=got)

    def _cut(self, why: str) -> None:
        if self._link is not None:
            self._link.cut(why)

    def _push(self, link: StreamLink) -> None:
        """All that is left, until the destination has it."""
        pages = PageWriter(link.writer, self._level)
        pages.counts = self._counts
        while True:
            # Before pages are taken: what is asked for meanwhile must not wait with those of the background.
            link.main.wait_turn(lambda: self._context.parameters.max_postcopy_bandwidth)
            link.returned.check()
            if link.broken:
                raise LinkLost(link.broken)
            if (found := self._take_some()) is None:
                break
            segment, numbers = found
            before = link.writer.bytes
            pages.write(segment, self._context.ram.segments[segment].content, numbers)
            self._sent(link.writer.bytes - before)
        link.writer.put(messages.RECORD_END)
        link.returned.wait("closing", math.inf, lambda: bool(link.broken))

    def _take_some(self) -> tuple[int, Numbers] | None:
        """The next pages for the background, which are then no longer left."""
        with self._lock:
            segment, page = self._next
            for step in range(len(self._left) + 1):
                number = (segment + step) % len(self._left)
                left = self._left[number]
                start = page if step == 0 else 0
                window = left[start:]
                place = int(window.argmax()) if len(window) else 0
                if not len(window) or not window[place]:
                    continue
                start += place
                numbers = start + np.flatnonzero(left[start : start + _BACKGROUND_PAGES])
                left[numbers] = False
                self._next = (number, start + _BACKGROUND_PAGES)
                return number, numbers
            return None

    def _serve(self, link: StreamLink, connection: Connection, writer: Writer) -> None:
        """In its own thread: answer requests, until the connection ends."""
        reader = records.Reader(connection)
        pages = PageWriter(writer)
        pages.counts = self._counts
        try:
            while True:
                record = reader.next()
                if record.kind != messages.RECORD_RETURN:
                    raise records.unexpected(record, "a request for pages")
                self._answer(records.parse(messages.ReturnMessage, record).request, pages)
        except (errors.VmeshError, OSError) as error:
            # With all pages sent it is for the main connection to say how it ended: its last word, that all have come,
            # may arrive behind the end of this one.
            if any(left.any() for left in self._left):
                link.cut(f"the connection for requested pages broke: {error}")
        finally:
            connection.close()

    def _answer(self, request: messages.PageRequest, pages: PageWriter) -> None:
        if request.segment >= len(self._left):
            raise StreamError(
                "request for a page", expected=f"a segment below {len(self._left)}", got=str(request.segment)
            )
        left = self._left[request.segment]
        asked = np.array(sorted(set(request.pages)), np.int64)
        if not len(asked) or int(asked[-1]) >= len(left):
            raise StreamError("request for a page", expected=f"pages below {len(left)}")
        with self._lock:
            self._status.requests += len(asked)
            numbers = asked[left[asked]]  # the others are under way already
            left[numbers] = False
            self._next = (request.segment, int(asked[-1]) + 1)
        content = self._context.ram.segments[request.segment].content
        before = pages.writer.bytes
        for start in range(0, len(numbers), pages.pages_at_once):
            pages.write(request.segment, content, numbers[start : start + pages.pages_at_once])
        self._sent(pages.writer.bytes - before)

    def _sent(self, size: int) -> None:
        with self._lock:
            status = self._status
            status.transferred += size
            status.postcopy_bytes += size
            status.zero, status.normal = self._counts.zero, self._counts.normal
        self._count()

    def _count(self) -> None:
        self._status.remaining = sum(int(np.count_nonzero(each)) for each in self._left)

    # A broken link

    def _recover(self, job: Job, reason: str) -> StreamLink:
        """Wait for another link. Raises LinkLost if the service ends instead."""
        while True:
            self._cut(reason)
            self._status.error = reason
            job.enter(messages.MIGRATION_POSTCOPY_PAUSED)
            self._woken.wait()
            self._woken.clear()
            if self._closed or self._resume is None:
                raise LinkLost(reason)
            place, self._resume = self._resume, None
            job.enter(messages.MIGRATION_POSTCOPY_RECOVER)
            try:
                found = self._connect(place)
            except (OSError, errors.VmeshError) as error:
                reason = str(error)
                continue
            self._status.error, self.unsure = "", False
            self._context.keep(messages.MigrationRecord(switched=True, running=True, session=self._session))
            job.enter(messages.MIGRATION_POSTCOPY_ACTIVE)
            return found

    def _connect(self, place: Place) -> StreamLink:
        number = new_link()
        main, writer = open_channel(place, messages.CHANNEL_RECOVER, self._session, number)
        arrived: dict[int, npt.NDArray[np.bool_]] = {}
        returned = ReturnPath(main, lambda received: arrived.update({received.segment: self._bitmap(received)}))
        link = self._link = StreamLink(number, main, writer, returned)
        returned.wait("received", _ANSWER_SECONDS, lambda: bool(link.broken))
        if arrived.keys() != set(range(len(self._left))):
            raise StreamError("pages that have arrived", expected="those of every segment")
        with self._lock:
            for segment, bitmap in arrived.items():
                self._left[segment] = ~bitmap
        self._count()
        self.open_pages(link, place)
        return link

    def _bitmap(self, received: messages.ReceivedPages) -> npt.NDArray[np.bool_]:
        if received.segment >= len(self._left) or received.pages != len(self._left[received.segment]):
            raise StreamError("pages that have arrived", expected="those of a segment")
        count = len(self._left[received.segment])
        return unpack_bitmap(received.bitmap, count)


def new_link() -> int:
    """What marks the connections of a link; never 0, as in streams of before there were marks."""
    return int.from_bytes(os.urandom(8), "little") or 1


def pack_bitmap(present: npt.NDArray[np.bool_]) -> bytes:
    """A bit for each page, as in ReceivedPages."""
    return zstandard.ZstdCompressor().compress(np.packbits(present, bitorder="little").tobytes())


def unpack_bitmap(data: bytes, count: int) -> npt.NDArray[np.bool_]:
    """As `pack_bitmap` made it for `count` pages. Raises StreamError."""
    size = -(-count // 8)
    with suppress(zstandard.ZstdError):
        if zstandard.frame_content_size(data) == size:
            plain = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
            if len(plain) == size:
                return np.unpackbits(np.frombuffer(plain, np.uint8), count=count, bitorder="little").astype(np.bool_)
    raise StreamError("pages that have arrived", expected=f"a bitmap of {count} bits")
