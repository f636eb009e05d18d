"""Files of the cache that are run or believed: what somebody else could have written is not used.

Such a file, and the folder that it is in, belong to the user who runs this or to root, and nobody else may write them.
That is looked at on what was opened, and a symbolic link in the place of the file is not followed. Who owns a folder
further up can take the file away, or put another folder of this user in its place, but nothing of his own.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_OTHERS_WRITE = 0o022


def cache_folder(*names: str) -> Path:
    """A folder of ours in the user's cache (XDG base directory specification). It need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"  # relative ones are to be ignored (XDG)
    return root.joinpath("vmesh", *names)


def make_folder(path: Path) -> None:
    """The folder, for its owner only if it is new. Raises OSError; PermissionError for one of somebody else."""
    path.mkdir(0o700, parents=True, exist_ok=True)
    os.close(_open_folder(path))


def open_file(path: Path, flags: int, mode: int = 0o600) -> int:
    """The descriptor of a file in a folder that exists: open(2). Raises OSError; PermissionError says whose it is."""
    folder = _open_folder(path.parent)
    try:
        # O_NONBLOCK is for what is no file: it is not waited for.
        fd = os.open(path.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is no file", str(path))
        _check(found, path)
    except OSError:
        os.close(fd)
        raise
    return fd


def read_bytes(path: Path) -> bytes:
    """All of a file; raises as `open_file`."""
    with open(open_file(path, os.O_RDONLY), "rb") as file:
        return file.read()


def _open_folder(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if found.st_uid == os.geteuid() and found.st_mode & _OTHERS_WRITE:
            # made under another umask; what is in it is checked on its own
            os.fchmod(fd, stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)
            found = os.fstat(fd)
        _check(found, path)
    except OSError:
        os.close(fd)
        raise
    return fd


def _check(found: os.stat_result, path: Path) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise PermissionError(errno.EPERM, f"belongs to user {found.st_uid}: not used", str(path))
    if found.st_mode & _OTHERS_WRITE:
        mode = stat.S_IMODE(found.st_mode)
        raise PermissionError(errno.EPERM, f"can be written by others, mode {mode:04o}: not used", str(path))
