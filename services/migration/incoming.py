"""The destination of a migration: takes connections, and what the stream says, until the machine runs here.

What comes is hostile until checked. RAM may be overwritten by a stream that fails in the end, since nothing runs on it
before all of a stream was taken; a service's state is loaded only when every service has said that it would take its.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from services.migration.connection import Connection, Listener
from services.migration.job import Context, Job, check_same_machine
from services.migration.postcopy import pack_bitmap
from services.migration.returned import LinkLost, say
from services.migration.status import Status
from vmesh import errors
from vmesh.migration import package, uri
from vmesh.migration.pages import Pages, decode, expand, whole
from vmesh.migration.records import VERSION, Reader, Record, StreamError, Writer, parse, unexpected
from vmesh.segment import PAGE
from vmesh.v1 import migration_pb2 as messages

_HEAD_SECONDS = 10.0  # for a connection to say what it is
_SESSION_BYTES = 16
_MOST_CAUGHT_UP = 600 * 10**9  # ns that guest time goes ahead for a switch, whatever the source says
_PAGES_SECONDS = 30.0  # for the connection for requested pages to come


@dataclass(slots=True)
class _Channel:
    """A connection whose header was read."""

    kind: messages.ChannelKind.ValueType
    session: bytes
    connection: Connection
    reader: Reader
    writer: Writer


class Incoming(Job):
    """Receives the machine at a place; or, with the `session` of a post-copy that a former life has begun and no
    place, goes on with that one, which is paused."""

    def __init__(self, context: Context, place: str, session: bytes = b"") -> None:
        state = messages.MIGRATION_POSTCOPY_PAUSED if session else messages.MIGRATION_SETUP
        super().__init__(context, Status(incoming=True, uri=place, state=state))
        self._listener = Listener(uri.parse(place)) if place else None
        self.status.uri = str(self._listener.place) if self._listener is not None else ""
        self._channels: queue.SimpleQueue[_Channel | None] = queue.SimpleQueue()
        self._open: list[_Channel] = []
        self._session = session
        self._closed = False
        self._sizes = context.ram.pages
        self._touched = [each.touched() for each in context.ram.segments]
        self._advised = False
        self._absent = [np.zeros(count, np.bool_) for count in self._sizes]
        self._runs_here = bool(session)
        self._pages: _Channel | None = None
        self._broken = ""
        self._adopted = [each.adopted for each in context.ram.segments]  # another machine's, which still runs on it
        self._handed_over = False

    # In the main thread

    def cancel(self) -> None:
        if self._runs_here:
            self._refuse("cancel")
        super().cancel()
        self.close()

    def pause(self) -> None:
        if self.status.state != messages.MIGRATION_POSTCOPY_ACTIVE:
            self._refuse("pause")
        self._broken = "paused by the user"
        self._cut()

    def recover(self, uri_text: str) -> None:
        if self.status.state != messages.MIGRATION_POSTCOPY_PAUSED:
            self._refuse("recover")
        listener = Listener(uri.parse(uri_text))
        self._stop_listening()
        self._listener = listener
        self.status.uri = str(listener.place)
        self.context.report(self.status.message())
        self._accept_all(listener)

    def close(self) -> None:
        self._closed = True
        self._stop_listening()
        self._cut()
        self._channels.put(None)

    # In the job's thread

    def run(self) -> None:
        self.status.total = sum(self._sizes) * PAGE
        try:
            if self._listener is None:
                self._go_on()
            else:
                self._begin(self._listener)
        finally:
            self._stop_listening()
            self._cut()
            if not self._runs_here:
                self._forget_pages()
        self.enter(messages.MIGRATION_COMPLETED)

    def _begin(self, listener: Listener) -> None:
        self.enter(messages.MIGRATION_SETUP)
        self._accept_all(listener)
        self.context.machine.stop()
        self._forget_pages()
        channel = self._next_channel(messages.CHANNEL_MAIN)
        self._greet(channel)
        self._take_main(channel)

    def _go_on(self) -> None:
        """Where a former life was killed: the guest runs, or waits for pages."""
        pager = self.context.pager
        pager.latency = self.status.add_latency
        pager.take_over()
        self.status.remaining = pager.remaining()
        if self.status.remaining:
            self._postcopy(self._recover("the migration service was killed, and is there again"))
        pager.end()

    def _forget_pages(self) -> None:
        """What another migration has left absent is not to come any more."""
        if not any(self._adopted):
            self.context.pager.abandon()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()

    def _accept_all(self, listener: Listener) -> None:
        threading.Thread(target=self._accept, args=(listener,), name="accept", daemon=True).start()

    def _accept(self, listener: Listener) -> None:
        """In a thread of its own: every connection, as far as its header."""
        while True:
            try:
                connection = listener.accept()
            except OSError:
                if listener.closed:
                    return
                continue  # one that gave up meanwhile, or has the wrong keys
            threading.Thread(target=self._head, args=(connection,), name="head", daemon=True).start()

    def _head(self, connection: Connection) -> None:
        """In a thread of its own, for a bounded time: what a connection is."""
        watchdog = threading.Timer(_HEAD_SECONDS, connection.cut)
        watchdog.daemon = True
        watchdog.start()
        try:
            reader = Reader(connection)
            reader.magic()
            record = reader.next()
            if record.kind != messages.RECORD_HEADER:
                raise unexpected(record, "a header first")
            header = parse(messages.StreamHeader, record)
            if header.version != VERSION:
                raise StreamError("version of the stream", expected=str(VERSION), got=str(header.version))
            if len(header.session) != _SESSION_BYTES:
                raise StreamError("session", expected=f"{_SESSION_BYTES} bytes", got=str(len(header.session)))
        except (errors.VmeshError, OSError) as error:
            self.context.log.warning("no migration", why=error)
            connection.close()
            return
        finally:
            watchdog.cancel()
        channel = _Channel(header.channel, header.session, connection, reader, Writer(connection))
        self._open.append(channel)
        self._channels.put(channel)

    def _next_channel(self, kind: messages.ChannelKind.ValueType, seconds: float | None = None) -> _Channel:
        """The next connection of this kind, of this session if there is one; others are closed."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                channel = self._channels.get(timeout=left)
            except queue.Empty:
                name = messages.ChannelKind.Name(kind)
                raise LinkLost(f"no connection {name} within {seconds:g} s") from None
            if channel is None or self._closed:
                raise LinkLost("cancelled" if self.cancelled else "the service ends")
            if channel.kind == kind and self._session in (b"", channel.session):
                return channel
            self.context.log.warning("no migration", why="a connection of another kind or session")
            channel.connection.close()

    def _greet(self, channel: _Channel) -> None:
        """A machine that can go on here begins to come; one that cannot is told so."""
        try:
            record = channel.reader.next()
            if record.kind != messages.RECORD_CONFIGURATION:
                raise unexpected(record, "the configuration behind the header")
            check_same_machine(self.context.configuration, parse(messages.Configuration, record))
        except (errors.VmeshError, OSError) as error:
            say(channel.writer, failed=messages.Failed(reason=str(error)))
            channel.connection.close()
            raise
        self._session = channel.session
        self.status.began = self.status.setup_done = time.monotonic()
        self.enter(messages.MIGRATION_ACTIVE)

    def _take_main(self, channel: _Channel) -> None:
        try:
            states = self._take_stream(channel)
            if any(self._adopted) != self._handed_over:
                raise StreamError("memory", expected="the handover of what was adopted", got="another migration")
            read = time.monotonic()
            self.context.machine.load(states)
            loaded = time.monotonic()
        except (errors.VmeshError, OSError) as error:
            say(channel.writer, failed=messages.Failed(reason=str(error)))
            raise
        say(channel.writer, loaded=messages.Loaded())
        run = self._wait_run(channel.reader)
        self._runs_here, told = True, time.monotonic()
        postcopy = self._pages is not None
        session = self._session if postcopy else b""
        self.context.keep(
            messages.MigrationRecord(incoming=True, switched=True, stay_paused=run.stay_paused, session=session)
        )
        if postcopy:
            self.enter(messages.MIGRATION_POSTCOPY_ACTIVE)
        if run.stay_paused:
            self.context.machine.stay()
        else:
            self.context.machine.go(time.monotonic_ns() - min(run.stopped_ns, _MOST_CAUGHT_UP))
        self.status.went_on = time.monotonic()
        say(channel.writer, running=messages.Running())
        ends = zip((self.status.stopped, read, loaded, told), (read, loaded, told, self.status.went_on), strict=True)
        steps = [f"{(end - start) * 1e3:.1f}" for start, end in ends]
        self.context.log.info("taken over, ms", **dict(zip(("read", "load", "told", "go"), steps, strict=True)))
        if postcopy:
            self._postcopy(channel)

    def _take_stream(self, channel: _Channel) -> package.States:
        """Everything up to the states of all services; with post-copy, pages can be fetched when it returns."""
        reader, in_ram = channel.reader, False
        states = package.StateReader(frozenset(each.name for each in self.context.configuration.services))
        while True:
            record = reader.next()
            if self.cancelled:
                raise LinkLost("cancelled")
            match record.kind:
                case messages.RECORD_PAGES if in_ram:
                    self._put(decode(record, self._sizes))
                case messages.RECORD_COMMAND:
                    found = self._command(parse(messages.StreamCommand, record), channel)
                    if found is not None:
                        return found
                case messages.RECORD_SECTION_START if not in_ram and not self.status.rounds:
                    if parse(messages.Section, record).id != package.RAM_SECTION:
                        raise unexpected(record, "RAM as the first section")
                    in_ram = True
                    self.status.rounds = 1
                case messages.RECORD_SECTION_PART | messages.RECORD_SECTION_END if in_ram:
                    part = parse(messages.SectionPart, record)
                    if part.id != package.RAM_SECTION:
                        raise StreamError("section", expected="RAM", got=str(part.id))
                    self.status.rounds += 1
                    if record.kind == messages.RECORD_SECTION_END:
                        self.status.stopped = time.monotonic()
                        while (record := reader.next()).kind == messages.RECORD_PAGES:
                            self._put(decode(record, self._sizes))
                        return self._rest(record, reader, states)
                case _:
                    raise unexpected(record, "RAM" if in_ram else "RAM first")
            self.status.transferred = reader.bytes

    def _rest(self, record: Record, reader: Reader, states: package.StateReader) -> package.States:
        """Pre-copy's end: the states, of which `record` begins the first."""
        while record.kind != messages.RECORD_DESCRIPTION:
            states.take(record)
            record = reader.next()
        package.check_description(parse(messages.StreamDescription, record), record.number, states.states)
        if (record := reader.next()).kind != messages.RECORD_END:
            raise unexpected(record, "the end behind the description")
        return states.finish()

    def _command(self, command: messages.StreamCommand, channel: _Channel) -> package.States | None:
        match command.WhichOneof("command"):
            case "open_return_path":
                pass
            case "ping":
                say(channel.writer, pong=command.ping)
            case "adopt":
                self._adopt(command.adopt.files)
            case "postcopy_advise" if not any(self._adopted):
                if command.postcopy_advise.page_size != PAGE:
                    got = str(command.postcopy_advise.page_size)
                    raise StreamError("page size", expected=str(PAGE), got=got)
                self._advised = True
            case "postcopy_discard" if self._advised:
                self._discard(command.postcopy_discard)
            case "packaged" if self._advised:
                return self._package(command.packaged.length, channel)
            case other:
                raise StreamError("command", expected="one that may come here", got=str(other))
        return None

    def _adopt(self, files: Sequence[str]) -> None:
        """The source hands over the memory that is mapped here: it must be the same."""
        segments = self.context.ram.segments
        mine = [each.file() if each.adopted else "" for each in segments]
        if list(files) != mine:
            raise StreamError("memory that is handed over", expected="what was adopted here", got="others")
        self._handed_over = True

    def _discard(self, discard: messages.PostcopyDiscard) -> None:
        if discard.segment >= len(self._sizes):
            raise StreamError("discard", expected=f"a segment below {len(self._sizes)}", got=str(discard.segment))
        size = self._sizes[discard.segment]
        self._absent[discard.segment][expand(discard.first, discard.count, size, size)] = True

    def _package(self, length: int, channel: _Channel) -> package.States:
        """Post-copy: all state, read whole; then pages can be fetched, so that devices can be loaded."""
        self.status.stopped = time.monotonic()
        data = package.receive(channel.reader, length, self.context.parameters.max_package_bytes)
        self.status.package = len(data)
        names = frozenset(each.name for each in self.context.configuration.services)
        states = package.unpack(data, names)
        self._pages = self._next_channel(messages.CHANNEL_PAGES, _PAGES_SECONDS)
        self.context.pager.latency = self.status.add_latency
        self.context.pager.begin([np.flatnonzero(each) for each in self._absent], self._fetcher(self._pages))
        self._serve_pages(self._pages)
        return states

    def _wait_run(self, reader: Reader) -> messages.PostcopyRun:
        """The source has let go of the machine."""
        record = reader.next()
        if record.kind != messages.RECORD_COMMAND:
            raise unexpected(record, "the command RUN")
        command = parse(messages.StreamCommand, record)
        if command.WhichOneof("command") != "run":
            raise unexpected(record, "the command RUN")
        return command.run

    def _put(self, pages: Pages) -> None:
        if self._adopted[pages.segment]:
            raise StreamError("pages", expected="none of memory that is another machine's until it is handed over")
        guest, touched = self.context.ram.segments[pages.segment], self._touched[pages.segment]
        if pages.delta is not None:
            guest.patch(pages.numbers, *pages.delta)
            touched[pages.numbers] = True
            self.status.normal += len(pages.numbers)
            return
        if pages.rows is not None:
            guest.put(pages.numbers, pages.rows)
            touched[pages.numbers] = True
            self.status.normal += len(pages.numbers)
            return
        self.status.zero += len(pages.numbers)
        filled = pages.numbers[touched[pages.numbers]]
        if len(filled):
            guest.clear(filled)
            touched[filled] = False

    # Post-copy: the machine runs here, and its pages come

    def _postcopy(self, channel: _Channel) -> None:
        pager = self.context.pager
        while True:
            try:
                self._take_pages(channel)
                break
            except (errors.VmeshError, OSError) as error:
                if not pager.remaining():
                    break
                self._cut()
                channel = self._recover(self._broken or str(error))
        pager.end()
        say(channel.writer, closing=messages.Closing())

    def _take_pages(self, channel: _Channel) -> None:
        """What comes in the background, to the end."""
        pager = self.context.pager
        while True:
            record = channel.reader.next()
            if record.kind == messages.RECORD_PAGES:
                found = whole(decode(record, self._sizes))
                pager.install(found.segment, found.numbers, found.rows)
                self.status.remaining = pager.remaining()
            elif record.kind == messages.RECORD_END:
                break
            else:
                raise unexpected(record, "pages")
        deadline = time.monotonic() + _PAGES_SECONDS
        while pager.remaining():  # what was asked for last comes on the other connection
            if time.monotonic() > deadline or self._broken or self._closed:
                raise LinkLost(self._broken or "pages are missing behind the end of the stream")
            time.sleep(0.001)

    def _fetcher(self, channel: _Channel) -> Callable[[int, list[int]], None]:
        def fetch(segment: int, pages: list[int]) -> None:
            self.status.requests += len(pages)
            say(channel.writer, request=messages.PageRequest(segment=segment, pages=pages))

        return fetch

    def _serve_pages(self, channel: _Channel) -> None:
        threading.Thread(target=self._take_requested, args=(channel,), name="requested pages", daemon=True).start()

    def _take_requested(self, channel: _Channel) -> None:
        """In a thread of its own: the pages that were asked for, until the connection ends."""
        pager = self.context.pager
        try:
            while True:
                record = channel.reader.next()
                if record.kind != messages.RECORD_PAGES:
                    raise unexpected(record, "pages")
                found = whole(decode(record, self._sizes))
                pager.install(found.segment, found.numbers, found.rows)
        except (errors.VmeshError, OSError) as error:
            if pager.remaining() and not self._closed and channel is self._pages:
                self._broken = self._broken or f"the connection for requested pages broke: {error}"
                self._cut()

    def _recover(self, reason: str) -> _Channel:
        """Wait for the source to come again, on new connections. Raises LinkLost if the service ends instead."""
        pager = self.context.pager
        while True:
            self._broken = ""
            self.status.error = reason
            self.enter(messages.MIGRATION_POSTCOPY_PAUSED)
            channel = self._next_channel(messages.CHANNEL_RECOVER)
            self.enter(messages.MIGRATION_POSTCOPY_RECOVER)
            try:
                absent = pager.absent()
                for segment, each in enumerate(absent):
                    received = messages.ReceivedPages(
                        segment=segment, pages=len(each), bitmap=pack_bitmap(~each), last=segment == len(absent) - 1
                    )
                    channel.writer.message(messages.RECORD_RETURN, messages.ReturnMessage(received=received))
                self._pages = self._next_channel(messages.CHANNEL_PAGES, _PAGES_SECONDS)
            except (errors.VmeshError, OSError) as error:
                if self._closed:
                    raise
                reason = str(error)
                self._cut()
                continue
            self._serve_pages(self._pages)
            pager.fetch_again(self._fetcher(self._pages))
            self.status.error = ""
            self.enter(messages.MIGRATION_POSTCOPY_ACTIVE)
            return channel

    def _cut(self) -> None:
        channels, self._open = self._open, []
        for channel in channels:
            with suppress(OSError):
                channel.connection.cut()
