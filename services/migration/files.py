"""Streams in files: a snapshot is written whole or not at all, and read lazily once it was found sound."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vmesh import errors

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

    Raises HostLimit where the file system cannot (it is full, for instance).
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd, named = _open(fresh)
        try:
            sink = FileSink(fd)
            yield sink
            sink.flush()
            os.fsync(fd)
            if not named:
                # With a folder's descriptor Python follows the link to the file, as it says it does without one too.
                os.link(f"/proc/self/fd/{fd}", fresh, src_dir_fd=fd, follow_symlinks=True)
            os.replace(fresh, path)
            _sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                os.unlink(fresh)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        raise errors.HostLimit(f"cannot write {path}: {error.strerror}") from error


def _open(fresh: Path) -> tuple[int, bool]:
    """A new file, and whether it has its name already: without one, a killed process leaves nothing behind."""
    try:
        return os.open(fresh.parent, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600), False
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        return os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), True


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
