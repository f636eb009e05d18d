"""The shared folder: files by their path below it, and nothing outside of it.

How that is held: a path is a list of names, none of them empty, `.`, `..` or with a slash. It is followed from a file
descriptor of the folder, one name a step, each relative to the one before and with O_NOFOLLOW: a symbolic link is a
file like others, with a target to be read, and never followed here. So no link and no renaming by the guest, at any
moment, leads out. What was found is held by a descriptor (O_PATH, which opens nothing: no device, no FIFO), and what is
done to it goes through that descriptor, by its name in /proc/self/fd, not by a path, which might be another file's by
then.

`mapped`: owner, mode and device number as the guest sees them are in extended attributes, under QEMU's names and in its
form (security_model=mapped-xattr); the files on the host belong to the server's user, with mode 0600 or 0700, and a
symbolic link is a regular file with the target in it.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vmesh import errors

Names = tuple[bytes, ...]
"""The way to a file, from the shared folder; empty: the folder itself."""

MAX_NAME = 255
MAX_PATH = 4096  # bytes of all names, with what parts them: as Linux' PATH_MAX
_HELD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_USER, _GROUP, _MODE, _DEVICE = (b"user.virtfs." + name for name in (b"uid", b"gid", b"mode", b"rdev"))
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_PROBE = b"user.virtfs.vmesh"
_STOOD_FOR = (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)  # by a regular file, if mapped
_DT_UNKNOWN, _DT_DIRECTORY, _DT_FILE, _DT_SYMLINK = 0, 4, 8, 10  # readdir(3)


@dataclass(frozen=True, slots=True)
class Attributes:
    """A file as the guest sees it; `host` is what the host says of it."""

    host: os.stat_result
    mode: int
    user: int
    group: int
    device: int

    @property
    def identity(self) -> tuple[int, int]:
        return self.host.st_dev, self.host.st_ino


def check_name(name: bytes) -> None:
    """Raises OSError unless `name` is that of an entry of a directory."""
    if len(name) > MAX_NAME:
        raise OSError(errno.ENAMETOOLONG, "name")
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, "name")


def path_bytes(path: Iterable[bytes]) -> int:
    """How long a path is, with what parts its names."""
    return sum(len(name) + 1 for name in path)


def check_path(path: Names) -> None:
    """Raises OSError for what is too long."""
    if path_bytes(path) > MAX_PATH:
        raise OSError(errno.ENAMETOOLONG, "path")


class Folder:
    """The folder at `root`. Raises ConfigError if there is none. Methods raise OSError as the host does."""

    def __init__(self, root: Path, *, mapped: bool = False) -> None:
        self.mapped = mapped
        try:
            self._root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise errors.ConfigError(f"cannot share {root}: {error.strerror}") from error
        if mapped:
            try:
                os.listxattr(_proc(self._root))
                with suppress(PermissionError):  # a folder that is only read
                    os.setxattr(_proc(self._root), _PROBE, b"")
                    os.removexattr(_proc(self._root), _PROBE)
            except OSError as error:
                reason = f"its file system has no extended attributes of users ({error.strerror})"
                raise errors.ConfigError(f"cannot share {root} with mapped-xattr: {reason}") from error
        self.device = os.stat(self._root).st_dev

    @contextmanager
    def hold(self, path: Names) -> Iterator[int]:
        """A descriptor (O_PATH) of the file, for as long as the context lasts."""
        held = self._root
        try:
            for name in path:
                step = os.open(name, _HELD, dir_fd=held)
                self._release(held)
                held = step
            yield held
        finally:
            self._release(held)

    def attributes(self, held: int) -> Attributes:
        """Of a file that is held, or open."""
        host = os.stat(held)
        mode, user, group, device = host.st_mode, host.st_uid, host.st_gid, host.st_rdev
        if self.mapped and not stat.S_ISLNK(mode):
            name = _proc(held)
            user, group = _read(name, _USER, _U32, user), _read(name, _GROUP, _U32, group)
            kept, device = _read(name, _MODE, _U32, mode), _read(name, _DEVICE, _U64, device)
            kind = stat.S_IFMT(kept) if stat.S_ISREG(mode) and stat.S_IFMT(kept) in _STOOD_FOR else stat.S_IFMT(mode)
            mode = kind | stat.S_IMODE(kept)
        return Attributes(host, mode, user, group, device)

    def target(self, held: int) -> bytes:
        """What a symbolic link says."""
        host = os.stat(held).st_mode
        if self.mapped and stat.S_ISREG(host) and stat.S_ISLNK(self.attributes(held).mode):
            file = self.open(held, os.O_RDONLY)
            try:
                return os.read(file, MAX_PATH)
            finally:
                os.close(file)
        if not stat.S_ISLNK(host):
            raise OSError(errno.EINVAL, "not a symbolic link")
        return os.readlink(b"", dir_fd=held)

    def open(self, held: int, flags: int) -> int:
        """A descriptor of a regular file, to read or write. What else there is on the host is not opened."""
        mode = os.stat(held).st_mode
        if not stat.S_ISREG(mode):
            code = {stat.S_IFDIR: errno.EISDIR, stat.S_IFLNK: errno.ELOOP}.get(stat.S_IFMT(mode), errno.ENXIO)
            raise OSError(code, "not a regular file")
        return os.open(_proc(held), flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)

    def create(
        self, parent: int, name: bytes, flags: int, mode: int, owner: tuple[int, int], *, again: bool = False
    ) -> int:
        """Make a regular file, or open that which is there already; gives a descriptor of it.

        `again`: what is there may be what this call has made before it was interrupted.
        """
        own = True
        try:
            how = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(name, flags & ~os.O_TRUNC | how, 0o600, dir_fd=parent)
        except FileExistsError:
            if flags & os.O_EXCL and not again:
                raise
            own = again
            held = os.open(name, _HELD, dir_fd=parent)
            try:
                file = self.open(held, flags & ~os.O_EXCL)
            finally:
                os.close(held)
        if own:
            try:
                self.own(file, stat.S_IFREG | mode, owner)
            except OSError:
                os.close(file)
                os.unlink(name, dir_fd=parent)
                raise
        return file

    def symlink(self, parent: int, name: bytes, target: bytes, owner: tuple[int, int], *, again: bool = False) -> None:
        """Make a symbolic link. What it says means nothing to us. `again` is as in `create`."""
        if self.mapped:
            file = self.create(parent, name, os.O_WRONLY | os.O_EXCL, 0o777, owner, again=again)
            try:
                os.pwrite(file, target, 0)
                os.setxattr(_proc(file), _MODE, _U32.pack(stat.S_IFLNK | 0o777))
            finally:
                os.close(file)
            return
        with suppress(*[FileExistsError] * again):
            os.symlink(target, name, dir_fd=parent)
        self._own_at(parent, name, stat.S_IFLNK | 0o777, owner)

    def mkdir(self, parent: int, name: bytes, mode: int, owner: tuple[int, int], *, again: bool = False) -> None:
        """Make a directory. `again` is as in `create`."""
        with suppress(*[FileExistsError] * again):
            os.mkdir(name, 0o700, dir_fd=parent)
        self._own_at(parent, name, stat.S_IFDIR | mode, owner)

    def link(self, held: int, parent: int, name: bytes, *, again: bool = False) -> None:
        """Give the file another name. `again` is as in `create`."""
        with suppress(*[FileExistsError] * again):
            os.link(_proc(held), name, dst_dir_fd=parent)

    def unlink(self, parent: int, name: bytes, *, directory: bool, again: bool = False) -> None:
        """Take a name away. `again`: this call may have done it before it was interrupted."""
        with suppress(*[FileNotFoundError] * again):
            if directory:
                os.rmdir(name, dir_fd=parent)
            else:
                os.unlink(name, dir_fd=parent)

    def rename(self, old: int, old_name: bytes, new: int, new_name: bytes, *, again: bool = False) -> None:
        """Another name, perhaps in another directory. `again` is as in `unlink`."""
        with suppress(*[FileNotFoundError] * again):
            os.rename(old_name, new_name, src_dir_fd=old, dst_dir_fd=new)

    def entries(self, held: int) -> Iterator[tuple[bytes, int, int]]:
        """Names, inodes and types (DT_*, 0 if not known) of what is in a directory, without `.` and `..`."""
        with os.scandir(_proc(held)) as found:
            for entry in found:
                yield entry.name, entry.inode(), self._kind(entry)

    def own(self, held: int, mode: int, owner: tuple[int, int]) -> None:
        """Give what was just made its mode and owner."""
        user, group = owner
        name = _proc(held)
        if self.mapped:
            os.setxattr(name, _USER, _U32.pack(user))
            os.setxattr(name, _GROUP, _U32.pack(group))
            os.setxattr(name, _MODE, _U32.pack(mode))
            return
        with suppress(PermissionError):  # only root gives files away
            os.chown(name, user if user != 0xFFFF_FFFF else -1, group if group != 0xFFFF_FFFF else -1)
        if not stat.S_ISLNK(mode):
            os.chmod(name, stat.S_IMODE(mode))

    def change_mode(self, held: int, mode: int) -> None:
        now = self.attributes(held).mode
        if stat.S_ISLNK(now):
            raise OSError(errno.EOPNOTSUPP, "the mode of a symbolic link")
        if self.mapped:
            os.setxattr(_proc(held), _MODE, _U32.pack(stat.S_IFMT(now) | stat.S_IMODE(mode)))
        else:
            os.chmod(_proc(held), stat.S_IMODE(mode))

    def change_owner(self, held: int, user: int | None, group: int | None) -> None:
        name = _proc(held)
        if not self.mapped:
            os.chown(name, -1 if user is None else user, -1 if group is None else group)
            return
        for key, value in ((_USER, user), (_GROUP, group)):
            if value is not None:
                os.setxattr(name, key, _U32.pack(value))

    def truncate(self, held: int, size: int) -> None:
        os.truncate(_proc(held), size)

    def change_times(self, held: int, accessed_ns: int, modified_ns: int) -> None:
        os.utime(_proc(held), ns=(accessed_ns, modified_ns))

    def sync(self, held: int) -> None:
        """A directory, to the disk."""
        file = os.open(_proc(held), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def _own_at(self, parent: int, name: bytes, mode: int, owner: tuple[int, int]) -> None:
        held = os.open(name, _HELD, dir_fd=parent)
        try:
            self.own(held, mode, owner)
        finally:
            os.close(held)

    def _kind(self, entry: os.DirEntry[bytes]) -> int:
        if entry.is_dir(follow_symlinks=False):
            return _DT_DIRECTORY
        if entry.is_symlink():
            return _DT_SYMLINK
        if entry.is_file(follow_symlinks=False) and not self.mapped:
            return _DT_FILE
        return _DT_UNKNOWN

    def _release(self, held: int) -> None:
        if held != self._root:
            os.close(held)


def exists(parent: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _proc(held: int) -> bytes:
    return b"/proc/self/fd/%d" % held


def _read(name: bytes, key: bytes, form: struct.Struct, otherwise: int) -> int:
    """An attribute of the mapped model, if there is one that makes sense."""
    try:
        data = os.getxattr(name, key)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return otherwise
        raise
    if len(data) != form.size:
        return otherwise
    value: int = form.unpack(data)[0]
    return value
