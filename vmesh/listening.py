"""Unix sockets that are listened at, wherever a user wants them: who takes a path, and what is left there.

A socket's file outlives its process. It is replaced if nobody listens there any more; else who comes second would make
the first one silently unreachable. What is no socket is never replaced.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path

Identity = tuple[int, int]


_succeeds = False


def succeed() -> None:
    """The machine of this process, and of those that it forks, comes from another one, perhaps of this host and with
    the same flags: the sockets that these name are taken from it (`listen` with `named`)."""
    global _succeeds
    _succeeds = True


def listen(
    path: Path, backlog: int, *, named: bool = False, kind: socket.SocketKind = socket.SOCK_STREAM
) -> socket.socket:
    """A listening, non-blocking socket at `path` that only its owner can connect to; `named` by a flag that a machine
    has in common with the one that it comes from. Raises OSError."""
    made = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    former = os.umask(0o077)
    try:
        if named and _succeeds and path.is_socket() and not path.is_symlink():
            path.unlink(missing_ok=True)
        remove_stale(path)
        made.bind(str(path))
        made.listen(backlog)
    except OSError:
        made.close()
        raise
    finally:
        os.umask(former)
    return made


def remove_stale(path: Path) -> None:
    """Remove a socket that a process has left which listens no more. Raises OSError."""
    if path.is_socket() and not path.is_symlink() and not _is_held(path):
        path.unlink(missing_ok=True)


def identity(path: Path) -> Identity | None:
    """Which file is at that path."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def remove(path: Path, made: Identity | None) -> None:
    """Remove the file `made`, unless somebody else listens there by now."""
    if made is not None and made == identity(path):
        with suppress(OSError):
            path.unlink()


def _is_held(path: Path) -> bool:
    """Whether a process has that socket. It hears nothing of it: a socket of another type is not connected, but tells
    whether there is one (EPROTOTYPE, unix(7))."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(str(path)) not in (errno.ECONNREFUSED, errno.ENOENT)
