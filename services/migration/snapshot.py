"""Snapshots: the machine into a file, and back. The guest stands still while one is written."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Self

import numpy as np

from vmesh import errors
from vmesh.migration import snapshots
from vmesh.migration.package import RAM_SECTION, StateReader, States, check_description, write_end
from vmesh.migration.pages import (
    MOST_PAGES,
    Numbers,
    Pages,
    PageWriter,
    check_content,
    decode,
    expand,
    parse_runs,
    whole,
)
from vmesh.migration.records import VERSION, Reader, Record, StreamError, Writer, parse, unexpected
from vmesh.segment import PAGE
from vmesh.v1 import migration_pb2 as messages
from vmesh_services.migration.files import whole_file
from vmesh_services.migration.job import Context, Job, check_same_machine
from vmesh_services.migration.pager import Fetch
from vmesh_services.migration.status import Status

DEFAULT_LEVEL = 1  # of zstd
ZERO, _MISSING = -1, -2  # in the index


class Save(Job):
    """Writes a snapshot."""

    def __init__(self, context: Context, path: str) -> None:
        super().__init__(context, Status(snapshot=True, uri=path))
        self._path = Path(path)

    def run(self) -> None:
        self.enter(messages.MIGRATION_SETUP)
        with whole_file(self._path) as sink:
            writer = Writer(sink)
            machine = self.context.machine
            try:
                states = machine.save().states
                self.status.stopped = time.monotonic()
                self.enter(messages.MIGRATION_ACTIVE)
                self._write(writer, states)
            finally:
                machine.go_on()
                self.status.went_on = time.monotonic()
        self.status.transferred = writer.bytes
        self.enter(messages.MIGRATION_COMPLETED)

    def _write(self, writer: Writer, states: States) -> None:
        ram = self.context.ram
        configuration = messages.Configuration()
        configuration.CopyFrom(self.context.configuration)
        configuration.created_ns = time.time_ns()
        describe_disks(configuration)
        writer.magic()
        writer.message(messages.RECORD_HEADER, messages.StreamHeader(version=VERSION))
        writer.message(messages.RECORD_CONFIGURATION, configuration)
        pages = PageWriter(writer, self.context.parameters.zstd_level or DEFAULT_LEVEL)
        writer.message(messages.RECORD_SECTION_START, messages.Section(id=RAM_SECTION))
        self.status.total = sum(each.content.nbytes for each in ram.segments)
        self.status.remaining = sum(ram.pages)
        for number, each in enumerate(ram.segments):
            touched = each.touched()
            pages.write_zeroes(number, np.flatnonzero(~touched))
            there = np.flatnonzero(touched)
            for start in range(0, len(there), pages.pages_at_once):
                if self.cancelled:
                    raise errors.VmeshError("cancelled")
                pages.write(number, each.content, there[start : start + pages.pages_at_once])
                self._count(writer, pages)
        writer.message(messages.RECORD_SECTION_END, messages.SectionPart(id=RAM_SECTION, round=1))
        write_end(writer, states, pages.counts)
        self._count(writer, pages)

    def _count(self, writer: Writer, pages: PageWriter) -> None:
        counts, status = pages.counts, self.status
        status.transferred, status.zero = writer.bytes, counts.zero
        status.normal = counts.normal
        status.remaining = status.total // 4096 - status.zero - status.normal


class Load(Job):
    """Takes a snapshot: the machine is then as it was, and goes on if it ran before. With the record of a `former` life
    that had begun to change the machine: what that one has not done."""

    def __init__(self, context: Context, path: str, former: messages.MigrationRecord | None = None) -> None:
        state = messages.MIGRATION_SETUP if former is None else messages.MIGRATION_ACTIVE
        super().__init__(context, Status(snapshot=True, incoming=True, uri=path, state=state))
        self._path = Path(path)
        self._former = former
        self._changing = False  # the machine's memory, which is then of no machine until all of it has come

    def run(self) -> None:
        try:
            if self._former is not None and self._former.loaded:
                self._go_on()
            else:
                self._load()
        except (errors.VmeshError, OSError) as error:
            if self._former is not None:
                self._fault(error)
            elif self._changing:
                self.context.pager.abandon()
            raise
        self.context.pager.end()
        self.enter(messages.MIGRATION_COMPLETED)

    def _go_on(self) -> None:
        """The guest runs, or waits for pages."""
        pager, ram = self.context.pager, self.context.ram
        self.enter(messages.MIGRATION_ACTIVE)
        with SnapshotFile(self._path, self.context.configuration) as file:
            absent = zip(file.index, pager.absent(), strict=True)
            later = set[int]().union(*(np.unique(index[each]).tolist() for index, each in absent))
            self.status.total = sum(each.content.nbytes for each in ram.segments)
            pager.latency = self.status.add_latency
            pager.take_over(self._fetcher(file))
            self._bring(file, [file.records[number] for number in sorted(later)])

    def _load(self) -> None:
        self.enter(messages.MIGRATION_SETUP)
        machine, ram, status = self.context.machine, self.context.ram, self.status
        with SnapshotFile(self._path, self.context.configuration) as file:
            status.total = sum(each.content.nbytes for each in ram.segments)
            status.warnings += check_disks(file.configuration)
            machine.stop()
            machine.check(file.states)
            self.enter(messages.MIGRATION_ACTIVE)
            # From here on there is no way back: the machine stays paused if it fails.
            self.context.keep(messages.MigrationRecord(incoming=True, snapshot=str(self._path)))
            status.stopped = time.monotonic()
            self._changing = True
            later = self._begin_pages(file)
            machine.load(file.states)
            self._changing = False
            self.context.keep(messages.MigrationRecord(incoming=True, snapshot=str(self._path), loaded=True))
            machine.go_on()
            status.went_on = time.monotonic()
            self.context.log.info("loaded", absent=self.context.pager.remaining())
            self._bring(file, later)

    def _begin_pages(self, file: SnapshotFile) -> list[tuple[int, int]]:
        """Zeroes at once, and what has no flags; all else when it is needed. Gives where what is to come is."""
        pager, segments = self.context.pager, self.context.ram.segments
        absent, later = [], set[int]()
        for segment, index in zip(segments, file.index, strict=True):
            zero = (index == ZERO) & segment.touched()
            segment.clear(np.flatnonzero(zero))
            there = np.flatnonzero(index != ZERO)
            needed = set(np.unique(index[there]).tolist())
            if segment.has_flags:
                absent.append(there)
                later |= needed
                continue
            absent.append(there[:0])
            for number in needed:
                found = file.read(file.records[number])
                assert found.rows is not None
                segment.put(found.numbers, found.rows)

        pager.latency = self.status.add_latency
        pager.begin(absent, self._fetcher(file))
        return [file.records[number] for number in sorted(later)]

    def _fetcher(self, file: SnapshotFile) -> Fetch:
        def fetch(segment: int, pages: list[int]) -> None:
            try:
                for number in {int(file.index[segment][page]) for page in pages}:
                    found = file.read(file.records[number])
                    self.context.pager.install(found.segment, found.numbers, found.rows, main=True)
                self.status.requests += len(pages)
            except (errors.VmeshError, OSError) as error:
                self._fault(error)

        return fetch

    def _fault(self, error: Exception) -> None:
        self.context.fault(f"snapshot {self._path}, of which pages are needed: {error}")

    def _bring(self, file: SnapshotFile, places: list[tuple[int, int]]) -> None:
        """The pages that nobody waits for, one record after the other; the guest runs."""
        try:
            for place in places:
                found = file.read(place)
                self.status.normal += self.context.pager.install(found.segment, found.numbers, found.rows)
        except (errors.VmeshError, OSError) as error:
            self._fault(error)
            raise


class SnapshotFile:
    """A snapshot that was read from its first to its last byte and found sound, for a machine of `mine`.

    `records` are where its pages are, `index` says for each segment in which of them a page is, or that it is ZERO.
    Raises StreamError, BadState, HostLimit.
    """

    def __init__(self, path: Path, mine: messages.Configuration) -> None:
        self._path = path
        self._fd = snapshots.open_file(path)
        try:
            self._source = snapshots.FileSource(self._fd)
            self._sizes = [each.size // 4096 for each in mine.segments]
            self.index = [np.full(size, _MISSING, np.int32) for size in self._sizes]
            self.records: list[tuple[int, int]] = []  # offset and number
            self._read(mine)
        except errors.VmeshError as error:
            self.close()
            error.text = f"snapshot {path}: {error.text}"
            raise
        except OSError as error:
            self.close()
            raise errors.HostLimit(f"cannot read {path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def read(self, place: tuple[int, int]) -> Pages:
        """The pages of one of `records`. Raises StreamError if the file is not as it was."""
        return whole(decode(self._record(place), self._sizes))

    def _record(self, place: tuple[int, int]) -> Record:
        source = snapshots.FileSource(self._fd)
        source.offset = place[0]
        reader = Reader(source)
        reader.number = place[1]
        return reader.next()

    def _read(self, mine: messages.Configuration) -> None:
        reader = Reader(self._source)
        self.configuration = snapshots.read_head(reader)
        check_same_machine(mine, self.configuration)
        states = StateReader(frozenset(each.name for each in mine.services))
        in_ram = seen = False
        while True:
            offset = self._source.offset
            record = reader.next()
            match record.kind:
                case messages.RECORD_SECTION_START if not seen:
                    if parse(messages.Section, record).id != RAM_SECTION:
                        raise unexpected(record, "RAM as the first section")
                    in_ram = seen = True
                case messages.RECORD_PAGES if in_ram:
                    self._index(record, offset)
                case messages.RECORD_SECTION_END if in_ram:
                    in_ram = False
                    if any((each == _MISSING).any() for each in self.index):
                        raise StreamError("RAM", expected="all of it", got="its end")
                case messages.RECORD_DESCRIPTION if seen and not in_ram:
                    check_description(parse(messages.StreamDescription, record), record.number, states.states)
                    break
                case _ if seen and not in_ram:
                    states.take(record)
                case _:
                    raise unexpected(record, "RAM first")
        if (record := reader.next()).kind != messages.RECORD_END:
            raise unexpected(record, "the end behind the description")
        if (behind := os.fstat(self._fd).st_size - self._source.offset) > 0:
            raise StreamError("snapshot", expected="nothing behind its end", got=f"{behind} bytes")
        self.states: States = states.finish()

    def _index(self, record: Record, offset: int) -> None:
        found, content = parse_runs(record)
        if found.segment >= len(self._sizes):
            raise StreamError("pages of a segment", expected=f"below {len(self._sizes)}", got=str(found.segment))
        size = self._sizes[found.segment]
        zero = found.encoding == messages.PAGES_ZERO
        numbers: Numbers = expand(found.first, found.count, size, size if zero else MOST_PAGES)
        if found.encoding == messages.PAGES_DELTA:
            raise StreamError(f"record {record.number}: pages", expected="whole ones", got="what changed of them")
        check_content(found.encoding, content, len(numbers) * PAGE)
        if (self.index[found.segment][numbers] != _MISSING).any():
            raise StreamError(f"record {record.number}: pages that came already")
        self.index[found.segment][numbers] = ZERO if zero else len(self.records)
        self.records.append((offset, record.number))


def describe_disks(configuration: messages.Configuration) -> None:
    """Fill in how large the disks are and when they were written last."""
    for disk in configuration.disks:
        try:
            found = os.stat(disk.path)
        except OSError:  # not a file of this host
            continue
        disk.size, disk.modified_ns = found.st_size, found.st_mtime_ns


def check_disks(configuration: messages.Configuration) -> list[str]:
    """What is to be said of the disks that a snapshot names. Raises BadState for one of another size."""
    said = []
    for disk in configuration.disks:
        try:
            found = os.stat(disk.path)
        except OSError as error:
            said.append(f"the disk {disk.path[:400]} of the snapshot is not there: {error.strerror}")
            continue
        if disk.size != found.st_size:
            raise errors.BadState(
                f"disk {disk.path[:400]}", expected=f"{disk.size} bytes as in the snapshot", got=str(found.st_size)
            )
        if disk.modified_ns != found.st_mtime_ns:
            said.append(f"the disk {disk.path[:400]} was written after the snapshot, which does not hold it")
    return said
