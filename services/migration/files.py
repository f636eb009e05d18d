"""Streams in files: a snapshot is written whole or not at all, and read lazily once it was found sound."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vmesh import errors
from vmesh.migration import snapshots

_FLUSH_BYTES = 4 << 20


class FileSink:
    """Writes to a descriptor, a few megabytes at a time."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending = bytearray()

    def write(self, buffers: Sequence[Any]) -> None:
        for buffer in buffers:
            self._pending += buffer
        if len(self._pending) >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        view = memoryview(self._pending)
        done = 0
        while done < len(view):
            done += os.write(self._fd, view[done:])
        view.release()
        self._pending.clear()


@contextmanager
def whole_file(path: Path) -> Iterator[FileSink]:
    """A sink whose content is at `path`, and safe there, when the block has ended; if it raises, `path` is as it was.

    Only a snapshot is replaced: raises NotASnapshot, before the block begins, if there is something else. Raises
    HostLimit where the file system cannot (it is full, for instance).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise errors.HostLimit(f"cannot write {path}: {error.strerror}") from error
    try:
        former = snapshots.identify(folder, path.name)
        with _unnamed(folder) as (fd, fresh):
            sink = FileSink(fd)
            yield sink
            sink.flush()
            os.fsync(fd)
            _name(folder, fd, fresh)
            if snapshots.identify(folder, path.name) != former:
                raise OSError(errno.EEXIST, "another file has come there meanwhile")
            os.replace(fresh, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
    except snapshots.NotASnapshot as error:
        error.text = f"cannot write {path}"
        raise
    except OSError as error:
        raise errors.HostLimit(f"cannot write {path}: {error.strerror}") from error
    finally:
        os.close(folder)


@contextmanager
def _unnamed(folder: int) -> Iterator[tuple[int, str]]:
    """A new file in a folder, and the name that it has, or may be given, for as long as the block: without one, as most
    file systems can, a killed process leaves nothing behind."""
    fresh = f".vmesh-{os.urandom(8).hex()}"
    try:
        fd = os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        yield fd, fresh
    finally:
        os.close(fd)
        with suppress(OSError):  # it has got its own
            os.unlink(fresh, dir_fd=folder)


def _name(folder: int, fd: int, fresh: str) -> None:
    with suppress(FileExistsError):  # it had one from the beginning
        # Given a folder's descriptor, Python follows the link to the file, as it says it does without one too.
        os.link(f"/proc/self/fd/{fd}", fresh, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
