"""The destination of a migration: takes connections, and what the stream says, until the machine runs here.

What comes is hostile until checked. RAM may be overwritten by a stream that fails in the end, since nothing runs on it
before all of a stream was taken; a service's state is loaded only when every service has said that it would take its.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from vmesh import errors
from vmesh.migration import package, uri
from vmesh.migration.pages import Pages, decode, expand, whole
from vmesh.migration.records import Reader, Record, StreamError, parse, unexpected
from vmesh.segment import PAGE
from vmesh.v1 import migration_pb2 as messages
from vmesh_services.migration.channels import Channel, Channels
from vmesh_services.migration.connection import Listener
from vmesh_services.migration.job import Context, Job, check_same_machine
from vmesh_services.migration.postcopy import pack_bitmap
from vmesh_services.migration.returned import LinkLost, say
from vmesh_services.migration.status import Status

_MOST_CAUGHT_UP = 600 * 10**9  # ns that guest time goes ahead for a switch, whatever the source says
_PAGES_SECONDS = 30.0  # for the connection for requested pages to come


@dataclass(slots=True, eq=False)
class _Link:
    """The connections that were made together. Who reads one that breaks cuts this link, not what has come since."""

    main: Channel
    pages: Channel | None = None
    broken: str = ""  # why it was cut here

    def cut(self, why: str) -> None:
        """End it for both sides; the first reason counts. From any thread."""
        self.broken = self.broken or why
        for each in (self.main, self.pages):
            if each is not None:
                each.connection.cut()


class Incoming(Job):
    """Receives the machine at a place; or, with the `session` of a post-copy that a former life has begun and no
    place, goes on with that one, which is paused."""

    def __init__(self, context: Context, place: str, session: bytes = b"") -> None:
        state = messages.MIGRATION_POSTCOPY_PAUSED if session else messages.MIGRATION_SETUP
        super().__init__(context, Status(incoming=True, uri=place, state=state))
        self._channels = Channels(context.log, partial(check_same_machine, context.configuration), session)
        self._link: _Link | None = None
        self._closed = False
        self._sizes = context.ram.pages
        self._touched = [each.touched() for each in context.ram.segments]
        self._advised = False
        self._absent = [np.zeros(count, np.bool_) for count in self._sizes]
        self._runs_here = bool(session)
        self._adopted = [each.adopted for each in context.ram.segments]  # another machine's, which still runs on it
        self._handed_over = False
        if place:
            self._listen(place)

    # In the main thread

    def cancel(self) -> None:
        if self._runs_here:
            self._refuse("cancel")
        super().cancel()
        self.close()

    def pause(self) -> None:
        if self.status.state != messages.MIGRATION_POSTCOPY_ACTIVE:
            self._refuse("pause")
        self._cut("paused by the user")

    def recover(self, uri_text: str) -> None:
        if self.status.state != messages.MIGRATION_POSTCOPY_PAUSED:
            self._refuse("recover")
        self._listen(uri_text)
        self.context.report(self.status.message())

    def close(self) -> None:
        self._closed = True
        why = "cancelled" if self.cancelled else "the service ends"
        self._channels.close(why)
        self._cut(why)

    def _listen(self, place: str) -> None:
        """Raises ConfigError."""
        where = uri.parse(place)
        if not self._channels.listens_at(where):
            listener = Listener(where)
            self._channels.listen(listener)
            where = listener.place
        self.status.uri = str(where)

    # In the job's thread

    def run(self) -> None:
        self.status.total = sum(self._sizes) * PAGE
        try:
            if self._runs_here:
                self._go_on()
            else:
                self._begin()
        finally:
            self._channels.close("the migration has ended")
            self._cut("the migration has ended")
            if not self._runs_here:
                self._forget_pages()
        self.enter(messages.MIGRATION_COMPLETED)

    def _begin(self) -> None:
        self.enter(messages.MIGRATION_SETUP)
        self.context.machine.stop()
        self._forget_pages()
        channel = self._channels.take(messages.CHANNEL_MAIN)
        link = self._link = _Link(channel)
        self.status.began = self.status.setup_done = time.monotonic()
        self.enter(messages.MIGRATION_ACTIVE)
        self._take_main(link)

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

    def _take_main(self, link: _Link) -> None:
        channel = link.main
        try:
            states = self._take_stream(link)
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
        postcopy = link.pages is not None
        session = self._channels.session if postcopy else b""
        self.context.keep(
            messages.MigrationRecord(incoming=True, switched=True, stay_paused=run.stay_paused, session=session)
        )
        if postcopy:
            self.enter(messages.MIGRATION_POSTCOPY_ACTIVE)
        if run.stay_paused:
            self.context.machine.stay(reset_due=run.reset_due)
        else:
            since_ns = time.monotonic_ns() - min(run.stopped_ns, _MOST_CAUGHT_UP)
            self.context.machine.go(since_ns, reset_due=run.reset_due)
        self.status.went_on = time.monotonic()
        say(channel.writer, running=messages.Running())
        ends = zip((self.status.stopped, read, loaded, told), (read, loaded, told, self.status.went_on), strict=True)
        steps = [f"{(end - start) * 1e3:.1f}" for start, end in ends]
        self.context.log.info("taken over, ms", **dict(zip(("read", "load", "told", "go"), steps, strict=True)))
        if postcopy:
            self._postcopy(link)

    def _take_stream(self, link: _Link) -> package.States:
        """Everything up to the states of all services; with post-copy, pages can be fetched when it returns."""
        reader, in_ram = link.main.reader, False
        states = package.StateReader(frozenset(each.name for each in self.context.configuration.services))
        while True:
            record = reader.next()
            if self.cancelled:
                raise LinkLost("cancelled")
            match record.kind:
                case messages.RECORD_PAGES if in_ram:
                    self._put(decode(record, self._sizes))
                case messages.RECORD_COMMAND:
                    found = self._command(parse(messages.StreamCommand, record), link)
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

    def _command(self, command: messages.StreamCommand, link: _Link) -> package.States | None:
        match command.WhichOneof("command"):
            case "open_return_path":
                pass
            case "ping":
                say(link.main.writer, pong=command.ping)
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
                return self._package(command.packaged.length, link)
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

    def _package(self, length: int, link: _Link) -> package.States:
        """Post-copy: all state, read whole; then pages can be fetched, so that devices can be loaded."""
        self.status.stopped = time.monotonic()
        data = package.receive(link.main.reader, length, self.context.parameters.max_package_bytes)
        self.status.package = len(data)
        names = frozenset(each.name for each in self.context.configuration.services)
        states = package.unpack(data, names)
        pages = self._join_pages(link)
        self.context.pager.latency = self.status.add_latency
        self.context.pager.begin([np.flatnonzero(each) for each in self._absent], self._fetcher(pages))
        self._serve_pages(link, pages)
        return states

    def _join_pages(self, link: _Link) -> Channel:
        """The connection for requested pages, which may have come before the main one."""
        pages = link.pages = self._channels.take(messages.CHANNEL_PAGES, link.main.link, _PAGES_SECONDS)
        return pages

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

    def _postcopy(self, link: _Link) -> None:
        pager = self.context.pager
        while True:
            try:
                self._take_pages(link)
                break
            except (errors.VmeshError, OSError) as error:
                if not pager.remaining():
                    break
                link = self._recover(link.broken or str(error))
        pager.end()
        say(link.main.writer, closing=messages.Closing())

    def _take_pages(self, link: _Link) -> None:
        """What comes in the background, to the end."""
        pager = self.context.pager
        while True:
            record = link.main.reader.next()
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
            if time.monotonic() > deadline or link.broken:
                raise LinkLost(link.broken or "pages are missing behind the end of the stream")
            time.sleep(0.001)

    def _fetcher(self, channel: Channel) -> Callable[[int, list[int]], None]:
        def fetch(segment: int, pages: list[int]) -> None:
            self.status.requests += len(pages)
            say(channel.writer, request=messages.PageRequest(segment=segment, pages=pages))

        return fetch

    def _serve_pages(self, link: _Link, pages: Channel) -> None:
        threading.Thread(target=self._take_requested, args=(link, pages), name="requested pages", daemon=True).start()

    def _take_requested(self, link: _Link, pages: Channel) -> None:
        """In a thread of its own: the pages that were asked for, until the connection ends."""
        pager = self.context.pager
        try:
            while True:
                record = pages.reader.next()
                if record.kind != messages.RECORD_PAGES:
                    raise unexpected(record, "pages")
                found = whole(decode(record, self._sizes))
                pager.install(found.segment, found.numbers, found.rows)
        except (errors.VmeshError, OSError) as error:
            if pager.remaining():
                link.cut(f"the connection for requested pages broke: {error}")

    def _recover(self, reason: str) -> _Link:
        """Wait for the source to come again, on new connections. Raises LinkLost if the service ends instead."""
        pager = self.context.pager
        while True:
            self._cut(reason)
            self.status.error = reason
            self.enter(messages.MIGRATION_POSTCOPY_PAUSED)
            link = self._link = _Link(self._channels.take(messages.CHANNEL_RECOVER))
            self.enter(messages.MIGRATION_POSTCOPY_RECOVER)
            try:
                absent = pager.absent()
                for segment, each in enumerate(absent):
                    received = messages.ReceivedPages(
                        segment=segment, pages=len(each), bitmap=pack_bitmap(~each), last=segment == len(absent) - 1
                    )
                    link.main.writer.message(messages.RECORD_RETURN, messages.ReturnMessage(received=received))
                pages = self._join_pages(link)
            except (errors.VmeshError, OSError) as error:
                if self._closed:
                    raise
                reason = link.broken or str(error)
                continue
            self._serve_pages(link, pages)
            pager.fetch_again(self._fetcher(pages))
            self.status.error = ""
            self.enter(messages.MIGRATION_POSTCOPY_ACTIVE)
            return link

    def _cut(self, why: str) -> None:
        if self._link is not None:
            self._link.cut(why)
