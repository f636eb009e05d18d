"""Records: the framing of the migration stream, a checksum and a bound for each (proto/vmesh/v1/migration.proto)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import xxhash
from google.protobuf.message import DecodeError, Message

from vmesh import errors
from vmesh.v1 import migration_pb2 as messages
from vmesh.v1.migration_pb2 import RecordKind

MAGIC = b"VMESHMIG"
VERSION = 1
_HEADER = struct.Struct("<B3xIQ")
HEADER_BYTES = _HEADER.size
_CHECKED = 8  # bytes of the header that the checksum covers

PIECE_BYTES = 1 << 20  # of a state or a package in one record
PAGES_BYTES = (4 << 20) + (64 << 10)  # the pages of one record, and their runs

LIMITS: dict[int, int] = {
    messages.RECORD_HEADER: 256,
    messages.RECORD_CONFIGURATION: 1 << 20,
    messages.RECORD_SECTION_START: PIECE_BYTES + 1024,
    messages.RECORD_SECTION_PART: PIECE_BYTES + 1024,
    messages.RECORD_SECTION_END: PIECE_BYTES + 1024,
    messages.RECORD_SECTION_FULL: PIECE_BYTES + 1024,
    messages.RECORD_PAGES: PAGES_BYTES,
    messages.RECORD_COMMAND: 1 << 20,
    messages.RECORD_PACKAGE_DATA: PIECE_BYTES,
    messages.RECORD_DESCRIPTION: 4 << 20,
    messages.RECORD_RETURN: 1 << 20,
    messages.RECORD_END: 0,
}
"""The longest payload of each kind, in bytes: what a reader allocates at most before it has looked at anything."""

Buffer = bytes | bytearray | memoryview
M = TypeVar("M", bound=Message)


class StreamError(errors.VmeshError):
    """A stream that is damaged, cut short, or says what it may not."""


class Sink(Protocol):
    """Takes bytes; may raise OSError."""

    def write(self, buffers: Sequence[Any]) -> None: ...


class Source(Protocol):
    """Gives bytes: fills `buffer` whole, or raises EOFError (at the end) or OSError."""

    def read_into(self, buffer: memoryview) -> None: ...


@dataclass(frozen=True, slots=True)
class Record:
    """`payload` is valid until the next one is read."""

    kind: RecordKind.ValueType
    payload: memoryview
    number: int


class Writer:
    """Writes records to a sink, from number 0. `bytes` counts all that was written."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.number = 0
        self.bytes = 0

    def magic(self) -> None:
        self._sink.write([MAGIC])
        self.bytes += len(MAGIC)

    def put(self, kind: RecordKind.ValueType, *payload: Any) -> None:
        """One record, its payload these buffers one after the other. Raises OSError, HostLimit if it is too long."""
        length = sum(map(len_of, payload))
        if length > LIMITS[kind]:
            what = f"migration record {RecordKind.Name(kind)}"
            raise errors.HostLimit(what, expected=f"at most {LIMITS[kind]} bytes", got=str(length))
        head = _HEADER.pack(kind, length, 0)[:_CHECKED]
        header = head + checksum(self.number, head, payload).to_bytes(8, "little")
        self._sink.write([header, *payload])
        self.number += 1
        self.bytes += HEADER_BYTES + length

    def message(self, kind: RecordKind.ValueType, message: Message) -> None:
        self.put(kind, message.SerializeToString())

    def command(self, **command: Message) -> None:
        """The one command, by its field in StreamCommand."""
        self.message(messages.RECORD_COMMAND, messages.StreamCommand(**command))  # type: ignore[arg-type]


class Reader:
    """Reads records from a source. Raises StreamError for what is no record, and OSError.

    It allocates as much as a record announces, which its kind bounds, and reuses it.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._buffer = memoryview(bytearray(64 << 10))
        self._header = memoryview(bytearray(HEADER_BYTES))
        self.number = 0
        self.bytes = 0

    def magic(self) -> None:
        found = bytearray(len(MAGIC))
        try:
            self._fill(memoryview(found))
        except StreamError:
            raise StreamError("no migration stream", expected=f"'{MAGIC.decode()}' first", got="its end") from None
        if found != MAGIC:
            raise StreamError("no migration stream", expected=f"'{MAGIC.decode()}' first", got=repr(bytes(found)))

    def next(self) -> Record:
        """The next record, its checksum compared."""
        kind, length, stated = self._head()
        if length > len(self._buffer):
            self._buffer = memoryview(bytearray(length))
        payload = self._buffer[:length]
        self._fill(payload)
        number, self.number = self.number, self.number + 1
        if checksum(number, self._header[:_CHECKED], (payload,)) != stated:
            raise StreamError(f"record {number} of the stream is damaged: its checksum does not match")
        return Record(kind, payload, number)

    def _head(self) -> tuple[RecordKind.ValueType, int, int]:
        self._fill(self._header)
        return parse_header(self._header, self.number)

    def _fill(self, buffer: memoryview) -> None:
        try:
            self._source.read_into(buffer)
        except EOFError:
            where = f"record {self.number}"
            raise StreamError(f"the stream ends in {where}", expected=f"{len(buffer)} more bytes") from None
        self.bytes += len(buffer)


def parse_header(header: memoryview, number: int) -> tuple[RecordKind.ValueType, int, int]:
    """Kind, length and checksum of record `number`. Raises StreamError."""
    kind, length, stated = _HEADER.unpack(header)
    if kind not in LIMITS or any(header[1:4]):
        raise StreamError(f"record {number} of the stream has no kind that is known", got=str(kind))
    if length > LIMITS[kind]:
        name = RecordKind.Name(kind)
        raise StreamError(f"record {number}, {name}", expected=f"at most {LIMITS[kind]} bytes", got=str(length))
    return kind, length, stated


def checksum(number: int, head: Buffer, payload: Sequence[Any]) -> int:
    made = xxhash.xxh3_64(head, seed=number)
    for part in payload:
        made.update(part)
    return made.intdigest()


def len_of(buffer: Any) -> int:
    """Bytes of anything that has a buffer."""
    return len(buffer) if isinstance(buffer, bytes | bytearray) else memoryview(buffer).nbytes


def parse(kind: type[M], record: Record) -> M:
    """The message in a record. Raises StreamError."""
    try:
        return kind.FromString(bytes(record.payload))
    except DecodeError:
        name = RecordKind.Name(record.kind)
        raise StreamError(f"record {record.number}, {name}, cannot be parsed as {kind.DESCRIPTOR.name}") from None


def unexpected(record: Record, where: str) -> StreamError:
    """The error for a record that may not come there."""
    return StreamError(f"record {record.number} of the stream", expected=where, got=RecordKind.Name(record.kind))


class BytesSource:
    """Reads from memory: a package."""

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data)
        self._at = 0

    def read_into(self, buffer: memoryview) -> None:
        if len(buffer) > len(self._data) - self._at:
            raise EOFError
        buffer[:] = self._data[self._at : self._at + len(buffer)]
        self._at += len(buffer)

    @property
    def left(self) -> int:
        return len(self._data) - self._at


class BytesSink:
    """Collects what is written, and counts it."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def write(self, buffers: Sequence[Any]) -> None:
        for buffer in buffers:
            part = bytes(buffer)
            self.parts.append(part)
            self.size += len(part)
