"""What a machine keeps outside of its directory, which may be memory: a folder on a disk of the user's choice.

The machine directory has a link to the folder, and the folder has a link back. It outlives the process that made it,
and goes with the machine directory, whoever removes that (`remove`). What is left where nobody could, as after a crash
of the host, goes when the next machine wants a folder in the same place. The process that uses a folder holds its lock.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from vmesh import errors

_OWNER = "owner"  # in the folder: the link back


def default_place() -> Path:
    """$TMPDIR, or as QEMU has it /var/tmp; or /tmp where that cannot be written, as in a container."""
    if named := os.environ.get("TMPDIR"):
        return Path(named).absolute()
    return Path("/var/tmp") if os.access("/var/tmp", os.W_OK) else Path("/tmp")


def folder(link: Path, place: Path, *, fresh: bool) -> tuple[Path, int]:
    """The folder that `link`, in the machine directory, leads to, and the descriptor that holds its lock.

    If `fresh`, an empty one, made in `place`. Raises ConfigError.
    """
    try:
        if not fresh:
            path = Path(os.readlink(link))
            return path, _lock(path)
        remove(link)
        sweep(place)
        while True:
            path = Path(tempfile.mkdtemp(prefix=_prefix(), dir=place))
            with suppress(FileNotFoundError):  # swept away before it had its lock
                fd = _lock(path)
                break
        (path / _OWNER).symlink_to(link.absolute())
        link.symlink_to(path)
    except OSError as error:
        where = place if fresh else link
        raise errors.ConfigError(f"cannot keep temporary files in {where}: {error.strerror} (TMPDIR)") from error
    return path, fd


def remove(link: Path) -> None:
    """Remove the folder that `link` leads to, and the link. What is no such link is left alone."""
    with suppress(OSError):
        path = Path(os.readlink(link))
        if path.name.startswith(_prefix()) and _owner(path) == link.absolute():
            shutil.rmtree(path, ignore_errors=True)
            link.unlink()


def sweep(place: Path) -> None:
    """Remove this user's folders in `place` whose machine is gone.

    One without an owner may be anybody's, unless it is empty: its machine was killed before it could say so.
    """
    for path in place.glob(f"{_prefix()}*"):
        with suppress(OSError):
            if path.lstat().st_uid != os.getuid():
                continue
            fd = _lock(path)
            try:
                owner = _owner(path)
                if owner is None:
                    path.rmdir()
                elif not owner.is_symlink() or Path(os.readlink(owner)) != path:
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(fd)


def _prefix() -> str:
    return f"vmesh-{os.getuid()}-"


def _owner(path: Path) -> Path | None:
    try:
        return Path(os.readlink(path / _OWNER))
    except OSError:
        return None


def _lock(path: Path) -> int:
    """A descriptor of the folder with its lock. Raises OSError if another has that, or the folder is gone."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(fd), path.lstat()):
            raise FileNotFoundError(path)
    except OSError:
        os.close(fd)
        raise
    return fd
