"""Where snapshots lie, and which there are.

QEMU keeps them inside of a qcow2 disk; here each is a file: `TAG.vmsnap` in a folder, or any file that the user names
with a slash in its path. The folder is $VMESH_SNAPSHOTS, else vmesh/snapshots in $XDG_DATA_HOME (~/.local/share).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmesh import errors
from vmesh.migration import records
from vmesh.v1 import migration_pb2 as messages

SUFFIX = ".vmsnap"
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot's file. `configuration` is None for a file that is none, and `problem` says why."""

    path: Path
    size: int
    configuration: messages.Configuration | None
    problem: str = ""

    @property
    def tag(self) -> str:
        return self.path.name.removesuffix(SUFFIX)


def folder() -> Path:
    """Where the snapshots with tags are; it need not exist."""
    if named := os.environ.get("VMESH_SNAPSHOTS"):
        return Path(named).absolute()
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser().absolute() / "vmesh" / "snapshots"


def path_of(name: str) -> Path:
    """The file of a tag, or of a path. Raises ConfigError for what is neither."""
    if "/" in name:
        return Path(name).expanduser().absolute()
    if not _TAG.fullmatch(name):
        raise errors.ConfigError(
            "snapshot", expected="a tag of letters, digits, '.', '_' and '-', or a path with '/'", got=f"'{name[:100]}'"
        )
    return folder() / (name.removesuffix(SUFFIX) + SUFFIX)


def found() -> Iterator[Snapshot]:
    """Those in the folder, by name."""
    try:
        paths = sorted(folder().glob(f"*{SUFFIX}"))
    except OSError:
        return
    for path in paths:
        yield describe(path)


def describe(path: Path) -> Snapshot:
    """What the beginning of a file says; no more of it is read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            reader = records.Reader(FileSource(file.fileno()))
            return Snapshot(path, size, read_head(reader))
    except OSError as error:
        return Snapshot(path, 0, None, error.strerror or str(error))
    except errors.VmeshError as error:
        return Snapshot(path, 0, None, str(error))


def read_head(reader: records.Reader) -> messages.Configuration:
    """Magic, header and configuration of a file. Raises StreamError."""
    reader.magic()
    record = reader.next()
    if record.kind != messages.RECORD_HEADER:
        raise records.unexpected(record, "a header first")
    header = records.parse(messages.StreamHeader, record)
    if header.version != records.VERSION:
        raise records.StreamError("version of the stream", expected=str(records.VERSION), got=str(header.version))
    record = reader.next()
    if record.kind != messages.RECORD_CONFIGURATION:
        raise records.unexpected(record, "the configuration behind the header")
    return records.parse(messages.Configuration, record)


class FileSource:
    """Reads a file from its beginning, by a descriptor that stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.offset = 0

    def read_into(self, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            count = os.preadv(self._fd, [buffer[done:]], self.offset + done)
            if not count:
                raise EOFError
            done += count
        self.offset += done
