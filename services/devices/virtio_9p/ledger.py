"""The ledger: what the server must remember should it be killed, and what does not fit into the slot.

A file of records (Virtio9pRecord), each written with one write() before the reply that it is for leaves, each with its
length and checksum: a record that was cut off by the end of the process counts as not written. When the file has grown
far beyond what is still true, a new one with that alone takes its place. It holds against the death of the process, not
of the host.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from google.protobuf.message import DecodeError

from vmesh import errors
from vmesh.v1.slot_pb2 import Virtio9pRecord

_HEADER = struct.Struct("<II")  # bytes of the record, their checksum
_SLACK = 1 << 20  # bytes that the file may grow before it is made anew
_MOST = 1 << 30


class Ledger:
    """The ledger at `path`, empty if `fresh`. Raises ConfigError if the file cannot be made."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path = path
        self._limit = _SLACK
        try:
            self._file = os.open(path, _FLAGS | (os.O_TRUNC if fresh else 0), 0o600)
        except OSError as error:
            raise errors.ConfigError(f"cannot open the ledger {path}: {error.strerror}") from error
        self._size = os.fstat(self._file).st_size

    @property
    def grown(self) -> bool:
        """Whether it is time to make it anew."""
        return self._size > self._limit

    def read(self) -> Iterator[Virtio9pRecord]:
        """The records from the first on."""
        size = min(os.fstat(self._file).st_size, _MOST)
        at = 0
        while header := os.pread(self._file, _HEADER.size, at):
            if len(header) < _HEADER.size:
                break
            length, checksum = _HEADER.unpack(header)
            if length > size - at - _HEADER.size:
                break
            data = os.pread(self._file, length, at + _HEADER.size)
            if zlib.crc32(data) != checksum:
                break
            try:
                yield Virtio9pRecord.FromString(data)
            except DecodeError as error:
                raise errors.BadState(f"ledger {self._path.name} cannot be parsed") from error
            at += _HEADER.size + length
        os.ftruncate(self._file, at)
        self._size = at

    def append(self, record: Virtio9pRecord) -> None:
        """Raises HostLimit if there is no room."""
        self._size += self._write(self._file, record)

    def anew(self, record: Virtio9pRecord) -> None:
        """Let the ledger be this record alone. Raises HostLimit."""
        path = self._path.with_suffix(".new")
        try:
            with ExitStack() as undo:
                file = os.open(path, _FLAGS | os.O_TRUNC, 0o600)
                undo.callback(os.close, file)
                size = self._write(file, record)
                os.rename(path, self._path)
                undo.pop_all()
        except OSError as error:  # no descriptors, or the machine has ended, and its directory is gone
            raise errors.HostLimit(f"cannot write the ledger {path}: {error.strerror}") from error
        os.close(self._file)
        self._file, self._size = file, size
        self._limit = 2 * self._size + _SLACK

    def _write(self, file: int, record: Virtio9pRecord) -> int:
        """Gives the bytes that it took."""
        data = record.SerializeToString()
        whole = _HEADER.pack(len(data), zlib.crc32(data)) + data
        try:
            count = os.write(file, whole)
        except OSError as error:
            raise errors.HostLimit(f"cannot write the ledger {self._path}: {error.strerror}") from error
        if count != len(whole):
            raise errors.HostLimit(f"cannot write the ledger {self._path}", expected="room for it", got="none")
        return count


_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
