"""The source of a migration: pre-copy, the switch-over, and the hand-over to post-copy (postcopy.py).

Until the command RUN was sent the destination must not run the guest, so until then every failure ends with the guest
going on here. After it the guest never goes on here by itself.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vmesh import errors
from vmesh.migration import package, uri
from vmesh.migration.pages import Numbers, PageCache, PageWriter
from vmesh.migration.records import Writer
from vmesh.segment import PAGE
from vmesh.v1 import migration_pb2 as messages
from vmesh_services.migration.connection import Connection
from vmesh_services.migration.job import Context, Job
from vmesh_services.migration.postcopy import Push, StreamLink, new_link, open_channel
from vmesh_services.migration.returned import LinkLost, ReturnPath
from vmesh_services.migration.status import Status

SESSION_BYTES = 16
_SETUP_SECONDS = 60.0  # for the destination to look at the configuration
_LOAD_SECONDS = 120.0  # for it to load what it got
_RATE_SECONDS = 0.1  # over which the rate is taken
_ASSUMED_RATE = 1e9  # bytes a second, before there is one
_CACHE_BYTES = 128 << 20  # of what was sent last, kept to send only what changed
_WORTH_PAGES = 1024
_COMPARERS = min(4, len(os.sched_getaffinity(0)))  # threads
_HIGH_DIRTY_ROUNDS = 2  # that dirty half of what they send, before the harts are slowed down


class Unsure(errors.VmeshError):
    """The guest may run at the destination."""


class Outgoing(Job):
    """Sends the machine to a place.

    Without a place, but with the `record` of a post-copy that a former life has begun: that one, which is paused.
    """

    def __init__(self, context: Context, place: str, record: messages.MigrationRecord | None = None) -> None:
        state = messages.MIGRATION_SETUP if record is None else messages.MIGRATION_POSTCOPY_PAUSED
        super().__init__(context, Status(uri=place, state=state))
        self._place = uri.parse(place) if place else None
        self._session = os.urandom(SESSION_BYTES)
        self._number = new_link()
        self._connection: Connection | None = None
        self._ran = self._reset_due = False
        self._since_ns = 0  # guest time stands still, by time.monotonic_ns()
        self._stopped = False  # the machine, for the switch
        self._switched = False  # RUN was sent
        self._want_postcopy = False
        self._handover = context.parameters.handover
        self._throttled = 0
        self._steps: dict[str, str] = {}
        self._rate_from = (0.0, 0, 0)
        self._push: Push | None = None
        if record is not None:
            self._switched = True
            self._push = Push(context, self.status, record.session)
            self._push.unsure = not record.running

    # In the main thread

    def cancel(self) -> None:
        if self._push is not None and self._push.unsure and self.status.state == messages.MIGRATION_POSTCOPY_PAUSED:
            super().cancel()
            self._push.close()
            return
        if self._switched or self.status.state == messages.MIGRATION_POSTCOPY_ACTIVE:
            self._refuse("cancel")
        super().cancel()
        self.status.state = messages.MIGRATION_CANCELLING
        self.context.report(self.status.message())
        if self._connection is not None:
            self._connection.cut()

    def start_postcopy(self) -> None:
        if not self.context.capabilities.postcopy_ram or self._handover:
            raise errors.BadRequest("start-postcopy", expected="the capability postcopy-ram before the migration")
        self._want_postcopy = True

    def pause(self) -> None:
        if self._push is None:
            self._refuse("pause")
        else:
            self._push.pause()

    def resume(self, uri: str) -> None:
        if self._push is None:
            self._refuse("resume")
        else:
            self._push.resume(uri)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.cut()
        if self._push is not None:
            self._push.close()

    # In the job's thread

    def run(self) -> None:
        if self._place is None:
            assert self._push is not None
            self._push.run(self, None, "the migration service was killed, and is there again")
            return
        status = self.status
        self.enter(messages.MIGRATION_SETUP)
        status.total = sum(self.context.ram.pages) * PAGE
        status.remaining = sum(self.context.ram.pages)
        self._connection, writer = open_channel(self._place, messages.CHANNEL_MAIN, self._session, self._number)
        returned = ReturnPath(self._connection, lambda received: None)
        try:
            self._run(writer, returned)
        except OSError as error:
            self._give_up()
            raise returned.why(error) from error
        except errors.VmeshError:
            self._give_up()
            raise
        finally:
            self._throttle(0)
            if self._connection is not None:
                self._connection.close()

    def _give_up(self) -> None:
        """Before RUN: the guest goes on here."""
        if self._connection is not None:
            self._connection.cut()
        if self._stopped and not self._switched:
            self.context.machine.go_on(catch_up=True)
            self._stopped = False

    def _run(self, writer: Writer, returned: ReturnPath) -> None:
        writer.message(messages.RECORD_CONFIGURATION, self.context.configuration)
        writer.command(open_return_path=messages.OpenReturnPath())
        if self._handover:
            files = [each.file() if each.has_flags else "" for each in self.context.ram.segments]
            if not all(each.present.all() for each in self.context.ram.segments):
                raise errors.BadRequest("handover", expected="all pages present", got="pages that are still to come")
            writer.command(adopt=messages.Adopt(files=files))
        writer.command(ping=messages.Ping(number=1))
        if self.context.capabilities.postcopy_ram and not self._handover:
            writer.command(postcopy_advise=messages.PostcopyAdvise(page_size=PAGE))
        returned.wait("pong", _SETUP_SECONDS, lambda: self.cancelled)
        self.status.setup_done = time.monotonic()
        self.enter(messages.MIGRATION_CANCELLING if self.cancelled else messages.MIGRATION_ACTIVE)
        pages = PageWriter(writer, self.context.parameters.zstd_level)
        left = self._precopy(writer, pages)
        self.status.precopy_bytes = writer.bytes
        if self._want_postcopy:
            self._postcopy(writer, pages, returned, left)
        else:
            self._complete(writer, pages, returned)

    def _precopy(self, writer: Writer, pages: PageWriter) -> list[Numbers]:
        """Rounds until what is dirty can be sent within the downtime limit; gives what was not sent of the last."""
        ram, status = self.context.ram, self.status
        writer.message(messages.RECORD_SECTION_START, messages.Section(id=package.RAM_SECTION))
        if not self._handover:
            for each in ram.segments:
                each.take_dirty()
            self.context.shoot_down()
        todo = []
        for number, each in enumerate(ram.segments):
            if self._handover and each.has_flags:
                todo.append(np.arange(0))
                continue
            touched = each.touched()
            pages.write_zeroes(number, np.flatnonzero(~touched))
            todo.append(np.flatnonzero(touched))
        self._rate_from = (time.monotonic(), writer.bytes, 0)
        high = 0
        while True:
            status.rounds += 1
            began, sent_before, bytes_before = time.monotonic(), sum(map(len, todo)), writer.bytes
            todo = self._send(writer, pages, todo)
            if self._want_postcopy:
                return todo
            if self._handover:
                return []
            dirty, took = ram.count_dirty(), max(time.monotonic() - began, 1e-4)
            status.dirty_rate = dirty / took
            rate = status.rate or (writer.bytes - bytes_before) / took or _ASSUMED_RATE
            # By bytes; by pages where little of each is sent.
            status.expected_downtime = min(dirty * PAGE / rate, dirty * took / max(sent_before, 1))
            self._count(writer, pages, dirty)
            if status.expected_downtime * 1e3 <= self.context.parameters.downtime_limit_ms and not (
                # One round more, and at the switch what changed since will do.
                pages.cache is None and _WORTH_PAGES < dirty <= _CACHE_BYTES // PAGE
            ):
                return []
            if pages.cache is None:
                pages.cache = PageCache(ram.pages, _CACHE_BYTES)
            high = high + 1 if dirty > sent_before / 2 else 0
            if self.context.capabilities.auto_converge and high >= _HIGH_DIRTY_ROUNDS:
                high = 0
                self._throttle_more()
            todo = [each.take_dirty() for each in ram.segments]
            self.context.shoot_down()
            writer.message(
                messages.RECORD_SECTION_PART,
                messages.SectionPart(id=package.RAM_SECTION, round=status.rounds + 1),
            )

    def _send(self, writer: Writer, pages: PageWriter, todo: list[Numbers]) -> list[Numbers]:
        """Send pages; gives those that were not sent as post-copy is to begin."""
        assert self._connection is not None
        segments = self.context.ram.segments
        left = [numbers[:0] for numbers in todo]
        count = sum(map(len, todo))
        # ROM first: it has no flags, so that none of its pages may come later.
        for number in sorted(range(len(todo)), key=lambda number: segments[number].has_flags):
            numbers, content = todo[number], segments[number].content
            for start in range(0, len(numbers), pages.pages_at_once):
                if self.cancelled:
                    raise LinkLost("cancelled")
                if self._want_postcopy and segments[number].has_flags:
                    left[number] = numbers[start:]
                    break
                self._connection.limit = self.context.parameters.max_bandwidth
                part = numbers[start : start + pages.pages_at_once]
                pages.write(number, content, part)
                count -= len(part)
                self._count(writer, pages, count)
        return left

    def _send_last(self, pages: PageWriter) -> None:
        """Send what is dirty while the guest stands still: to find out what changed takes all cores."""
        assert self._connection is not None
        self._connection.limit = 0
        parts = (
            (number, segment.content, numbers[start : start + pages.pages_at_once])
            for number, segment in enumerate(self.context.ram.segments)
            for numbers in (segment.take_dirty(),)
            for start in range(0, len(numbers), pages.pages_at_once)
        )
        taking, writing = threading.Lock(), threading.Lock()

        def work() -> None:
            while not self.cancelled:
                with taking:
                    part = next(parts, None)
                if part is None:
                    return
                compared = pages.compare(*part)
                with writing:
                    pages.write_compared(compared)

        with ThreadPoolExecutor(_COMPARERS) as pool:
            for each in [pool.submit(work) for _ in range(_COMPARERS)]:
                each.result()
        if self.cancelled:
            raise LinkLost("cancelled")

    def _complete(self, writer: Writer, pages: PageWriter, returned: ReturnPath) -> None:
        """Pre-copy's switch: the last pages and all state, then RUN."""
        states = self._stop(returned)
        sent = writer.bytes
        writer.message(
            messages.RECORD_SECTION_END, messages.SectionPart(id=package.RAM_SECTION, round=self.status.rounds + 1)
        )
        if not self._handover:
            self._send_last(pages)
        package.write_end(writer, states, pages.counts)
        self.status.downtime_bytes = writer.bytes - sent
        try:
            self._switch(writer, returned)
        except Unsure as error:
            error.text += " `vmesh resume` lets it go on"
            raise
        self._count(writer, pages, 0)
        self.enter(messages.MIGRATION_COMPLETED)

    def _stop(self, returned: ReturnPath) -> package.States:
        returned.check()
        if self.cancelled:
            raise LinkLost("cancelled")
        self.status.stopped = time.monotonic()
        self.status.state = messages.MIGRATION_DEVICE
        self._throttle(0)
        self._stopped = True
        states, self._ran, self._since_ns, self._reset_due = self.context.machine.save()
        self._took("stop")
        return states

    def _took(self, step: str) -> None:
        """A step of the downtime has ended here."""
        self._steps[step] = f"{(time.monotonic() - self.status.stopped) * 1e3:.1f}"

    def _switch(self, writer: Writer, returned: ReturnPath) -> None:
        """All state was sent: let go of the machine here, and once it is loaded there, have it run there."""
        self._took("send")
        self.enter(messages.MIGRATION_DEVICE)
        self.context.machine.hand_over()
        returned.wait("loaded", _LOAD_SECONDS, lambda: self.cancelled)
        self._took("loaded")
        if self.cancelled:
            raise LinkLost("cancelled")
        self._switched = True
        session = self._session if self._want_postcopy else b""
        self.context.keep(messages.MigrationRecord(switched=True, session=session))
        try:
            stopped_ns = time.monotonic_ns() - self._since_ns
            run = messages.PostcopyRun(stay_paused=not self._ran, stopped_ns=stopped_ns, reset_due=self._reset_due)
            writer.command(run=run)
            returned.wait("running", _LOAD_SECONDS)
        except (errors.VmeshError, OSError) as error:
            self.context.machine.moved()
            better = returned.why(error) if isinstance(error, OSError) else error
            raise Unsure(
                f"the destination was told to run the guest and has not said that it does ({better}): "
                "it stays paused here, and if it does not run there,"
            ) from error
        self.context.keep(messages.MigrationRecord(switched=True, running=True, session=session))
        self.status.went_on = time.monotonic()
        self._took("running")
        self.context.log.info("switched, ms from the stop to the end of each step", **self._steps)
        self.context.machine.moved()

    def _postcopy(self, writer: Writer, pages: PageWriter, returned: ReturnPath, left: list[Numbers]) -> None:
        assert self._connection is not None
        assert self._place is not None
        push = Push(self.context, self.status, self._session, pages.counts)
        first = StreamLink(self._number, self._connection, writer, returned)
        push.open_pages(first, self._place)
        link: StreamLink | None = first
        broke = ""
        try:
            states = self._stop(returned)
            push.set_left(left, [each.take_dirty() for each in self.context.ram.segments])
            made = package.build(states)
            self.status.package = made.size
            limit = self.context.parameters.max_package_bytes
            if made.size > limit:
                raise package.PackageTooLong("source", made.size, limit)
            self._connection.limit = 0
            push.discard(writer)
            package.send(writer, made, limit)
            self._switch(writer, returned)
        except Unsure as error:
            push.unsure, link = True, None
            broke = f"{error} `vmesh migrate --cancel` and `vmesh resume` let it go on"
        except BaseException:
            push.close()
            raise
        self._push = push
        push.run(self, link, broke)

    def _throttle_more(self) -> None:
        parameters = self.context.parameters
        more = parameters.cpu_throttle_increment if self._throttled else parameters.cpu_throttle_initial
        self._throttle(min(self._throttled + more, parameters.max_cpu_throttle))

    def _throttle(self, percent: int) -> None:
        if percent != self._throttled:
            self._throttled = self.status.throttle = percent
            self.context.throttle(percent)

    def _count(self, writer: Writer, pages: PageWriter, left: int) -> None:
        counts, status = pages.counts, self.status
        status.transferred, status.zero, status.normal = writer.bytes, counts.zero, counts.normal
        status.remaining = left
        now = time.monotonic()
        since, before, pages_before = self._rate_from
        if (took := now - since) >= _RATE_SECONDS:
            status.rate = (writer.bytes - before) / took
            status.page_rate = (status.normal + status.zero - pages_before) / took
            self._rate_from = (now, writer.bytes, status.normal + status.zero)
