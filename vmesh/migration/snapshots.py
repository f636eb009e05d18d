"""Where snapshots lie, and which there are.

QEMU keeps them inside of a qcow2 disk; here each is a file: `TAG.vmsnap` in a folder, or any file that the user names
with a slash in its path. The folder is $VMESH_SNAPSHOTS, else vmesh/snapshots in $XDG_DATA_HOME (~/.local/share).
"""

from __future__ import annotations

import errno
import os
import re
import stat
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
        fd = open_file(path)
    except errors.HostLimit as error:
        return Snapshot(path, 0, None, str(error))
    try:
        return Snapshot(path, os.fstat(fd).st_size, read_head(records.Reader(FileSource(fd))))
    except OSError as error:
        return Snapshot(path, 0, None, error.strerror or str(error))
    except errors.VmeshError as error:
        return Snapshot(path, 0, None, str(error))
    finally:
        os.close(fd)


def open_file(path: Path) -> int:
    """A descriptor to read a regular file by: nothing else is waited for. Raises HostLimit."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise errors.HostLimit(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise errors.HostLimit(f"cannot read {path}", expected="a file", got=_kind(os.stat(path)))
    return fd


def identify(folder: int, name: str) -> tuple[int, int] | None:
    """Device and inode of the snapshot that is at a name in the folder of this descriptor; None if nothing is there.

    Whatever else it is must neither be replaced nor deleted as if it were one: raises NotASnapshot, also for a link,
    which is not followed. Raises OSError.
    """
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise NotASnapshot(_kind(found))
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        found = os.fstat(fd)
        reader = records.Reader(FileSource(fd))
        reader.magic()
        if reader.next().kind != messages.RECORD_HEADER:
            raise NotASnapshot("a file that is none")
    except records.StreamError:
        raise NotASnapshot("a file that is none") from None
    finally:
        os.close(fd)
    return found.st_dev, found.st_ino


def delete(path: Path) -> None:
    """Remove a snapshot. Raises NotASnapshot for what is none, HostLimit."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if identify(folder, path.name) is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            os.unlink(path.name, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise errors.HostLimit(f"cannot delete {path}: {error.strerror}") from error
    except NotASnapshot as error:
        error.text = f"cannot delete {path}"
        raise


class NotASnapshot(errors.VmeshError):
    """What is at a path is no snapshot; it was left as it is."""

    def __init__(self, got: str) -> None:
        super().__init__("path of a snapshot", expected="a snapshot, or nothing that is there", got=got)


def _kind(found: os.stat_result) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(found.st_mode), "another file")


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
