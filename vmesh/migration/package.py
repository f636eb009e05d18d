"""All the state of a machine as one piece: sections of the stream, and the package that post-copy sends them in.

The destination of a post-copy reads the package whole before it looks into it: to load a device may take pages of RAM,
which come by other ways than the stream that the package is in. So both sides bound it: the source does not send a
longer one, the destination does not begin to read one. QEMU calls the bound MAX_VM_CMD_PACKAGED_SIZE
(migration/savevm.c: qemu_savevm_send_packaged, loadvm_handle_cmd_packaged); it began with 16 MiB and is the largest
32-bit length now, since the state of large guests outgrew it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmesh import errors
from vmesh.migration.records import (
    PIECE_BYTES,
    BytesSink,
    BytesSource,
    Reader,
    Record,
    StreamError,
    Writer,
    parse,
    unexpected,
)
from vmesh.v1 import migration_pb2 as messages
from vmesh.v1.lifecycle_pb2 import ServiceState
from vmesh.wire import MAX_STATE_BYTES

if TYPE_CHECKING:
    from vmesh.migration.pages import Counts

MAX_PACKAGED_BYTES = (1 << 32) - 1
"""The longest package, unless the parameter `max-package-size` says less. QEMU: MAX_VM_CMD_PACKAGED_SIZE."""

MAX_SECTIONS = 1024
RAM_SECTION = 0

States = dict[str, ServiceState]


class PackageTooLong(errors.VmeshError):
    """A package beyond the limit; the guest has not left the source."""

    def __init__(self, side: str, size: int, limit: int) -> None:
        super().__init__(
            f"post-copy given up: the {side} refuses the package of device state",
            expected=f"at most {limit} bytes",
            got=f"{size} bytes",
        )


def write_end(writer: Writer, states: Mapping[str, ServiceState], pages: Counts | None = None) -> None:
    """The end of a stream: every service's state as a section, in parts if it is long; what was in the stream; END."""
    entries = []
    for number, (service, state) in enumerate(states.items(), RAM_SECTION + 1):
        data = memoryview(state.bytes)
        section = messages.Section(id=number, service=service, type=state.type, version=state.version, size=len(data))
        entries.append(
            messages.StreamDescription.Entry(service=service, type=state.type, version=state.version, size=len(data))
        )
        section.data = bytes(data[:PIECE_BYTES])
        if len(data) <= PIECE_BYTES:
            writer.message(messages.RECORD_SECTION_FULL, section)
            continue
        writer.message(messages.RECORD_SECTION_START, section)
        for start in range(PIECE_BYTES, len(data), PIECE_BYTES):
            last = start + PIECE_BYTES >= len(data)
            kind = messages.RECORD_SECTION_END if last else messages.RECORD_SECTION_PART
            writer.message(kind, messages.SectionPart(id=number, data=bytes(data[start : start + PIECE_BYTES])))
    description = messages.StreamDescription(sections=entries, records=writer.number)
    if pages is not None:
        description.pages_zero, description.pages_plain = pages.zero, pages.plain
        description.pages_zstd, description.pages_delta = pages.zstd, pages.delta
    writer.message(messages.RECORD_DESCRIPTION, description)
    writer.put(messages.RECORD_END)


@dataclass(slots=True)
class StateReader:
    """Puts the sections of the services together. `states` are those that are whole."""

    expected: frozenset[str]  # the services that must come, and no others
    states: States = field(default_factory=dict)
    _open: dict[int, tuple[messages.Section, bytearray]] = field(default_factory=dict)

    def take(self, record: Record) -> None:
        """A SECTION record that is not RAM's. Raises StreamError."""
        if record.kind in (messages.RECORD_SECTION_FULL, messages.RECORD_SECTION_START):
            section = parse(messages.Section, record)
            self._begin(section, full=record.kind == messages.RECORD_SECTION_FULL)
        elif record.kind in (messages.RECORD_SECTION_PART, messages.RECORD_SECTION_END):
            part = parse(messages.SectionPart, record)
            if part.id not in self._open:
                raise StreamError(f"section {part.id}", expected="its start before its parts")
            section, data = self._open[part.id]
            data += part.data
            if len(data) > section.size:
                raise StreamError(_name(section), expected=f"{section.size} bytes", got=f"{len(data)} or more")
            if record.kind == messages.RECORD_SECTION_END:
                del self._open[part.id]
                self._whole(section, bytes(data))
        else:
            raise unexpected(record, "the state of a service")

    def finish(self) -> States:
        """All of them. Raises StreamError if one is missing."""
        if missing := self.expected - self.states.keys():
            raise StreamError("state of every service", expected=min(missing), got="the end")
        return self.states

    def _begin(self, section: messages.Section, *, full: bool) -> None:
        if section.service not in self.expected:
            known = ", ".join(sorted(self.expected))
            raise StreamError("state of a service", expected=f"one of {known}", got=repr(section.service[:64]))
        begun = {each.service for each, _ in self._open.values()} | self.states.keys()
        if section.service in begun or section.id in self._open or section.id == RAM_SECTION:
            raise StreamError(_name(section), expected="it once")
        if section.size > MAX_STATE_BYTES:
            raise StreamError(_name(section), expected=f"at most {MAX_STATE_BYTES} bytes", got=str(section.size))
        if full:
            self._whole(section, section.data)
        else:
            self._open[section.id] = (section, bytearray(section.data))

    def _whole(self, section: messages.Section, data: bytes) -> None:
        if len(data) != section.size:
            raise StreamError(_name(section), expected=f"{section.size} bytes", got=str(len(data)))
        self.states[section.service] = ServiceState(type=section.type, version=section.version, bytes=data)


def build(states: Mapping[str, ServiceState]) -> BytesSink:
    """The package: LISTEN, the states, what was in it, END."""
    sink = BytesSink()
    writer = Writer(sink)
    writer.command(postcopy_listen=messages.PostcopyListen())
    write_end(writer, states)
    return sink


def send(writer: Writer, package: BytesSink, limit: int) -> None:
    """Announce and send a package. Raises PackageTooLong before anything of it was sent."""
    if package.size > limit:
        raise PackageTooLong("source", package.size, limit)
    writer.command(packaged=messages.Packaged(length=package.size))
    data = memoryview(b"".join(package.parts))
    for start in range(0, len(data), PIECE_BYTES):
        writer.put(messages.RECORD_PACKAGE_DATA, data[start : start + PIECE_BYTES])


def receive(reader: Reader, announced: int, limit: int) -> bytearray:
    """The package that was announced with this length. Raises PackageTooLong before anything is allocated, StreamError.

    It grows as it comes: a length that is a lie takes no memory.
    """
    if announced > limit:
        raise PackageTooLong("destination", announced, limit)
    data = bytearray()
    while len(data) < announced:
        record = reader.next()
        if record.kind != messages.RECORD_PACKAGE_DATA:
            raise unexpected(record, f"the rest of the package, {announced - len(data)} bytes")
        size = len(data) + len(record.payload)
        if not len(record.payload) or size > announced:
            raise StreamError("package", expected=f"{announced} bytes", got=f"{size} or more")
        data += record.payload
    return data


def unpack(data: bytearray, expected: frozenset[str]) -> States:
    """The states in a package that was read whole. Raises StreamError."""
    source = BytesSource(data)
    reader = Reader(source)
    record = reader.next()
    if record.kind != messages.RECORD_COMMAND or not parse(messages.StreamCommand, record).HasField("postcopy_listen"):
        raise unexpected(record, "the command LISTEN first in the package")
    states = read_states(reader, StateReader(expected))
    if source.left:
        raise StreamError("package", expected="nothing behind its end", got=f"{source.left} bytes")
    return states


def read_states(reader: Reader, states: StateReader) -> States:
    """Sections up to DESCRIPTION and END. Raises StreamError."""
    while (record := reader.next()).kind != messages.RECORD_DESCRIPTION:
        states.take(record)
    check_description(parse(messages.StreamDescription, record), record.number, states.states)
    if (record := reader.next()).kind != messages.RECORD_END:
        raise unexpected(record, "the end behind the description")
    return states.finish()


def check_description(description: messages.StreamDescription, number: int, states: States) -> None:
    """Raises StreamError unless it describes what came."""
    stated = {each.service: (each.type, each.version, each.size) for each in description.sections}
    found = {name: (each.type, each.version, len(each.bytes)) for name, each in states.items()}
    if description.records != number or stated != found:
        raise StreamError("description of the stream", expected="what was in it", got="something else")


def _name(section: messages.Section) -> str:
    return f"state of {section.service[:64]}"
