"""The file server: 9P2000.L requests about the shared folder, one after the other, each answered when it is done.

Everything in a request is the guest's and may be wrong in any way: it is answered with an error, and nothing is done.
What the guest can make the server keep is bounded: MAX_FIDS fids with a path of at most folder.MAX_PATH bytes each and
MAX_NAMES bytes together, so that the state of all fits into a message; `most_open` files that are open; and the names
of LISTINGS directories, ENTRIES together.

**The server may be killed between any two instructions.** What holds then, by `redo` (see `handle`):

1. A fid is its path, device and inode, and how it was opened; each change of fids is in the ledger before its reply
   leaves. A successor has the same fids. Open files are opened again; one that is not at its path any more (removed
   while open, or replaced from outside) answers ESTALE until it is clunked.
2. Only the last request can have been begun and not answered: they come one by one. If its record is in the ledger,
   its reply is given again and nothing is done. If not, it is done again. For reads and what sets values (write, which
   says where to; setattr; truncation) that is the same as doing it once.
3. What makes or takes away names is not: the second time, the name is there already, or gone. So before it changes
   something, the server sets a mark, if the name was as it has to be. A successor that finds the mark takes "exists"
   and "does not exist" for its own work. This is wrong only if somebody else on the host made or removed the same name
   in between.
Times that are set to "now" and those that the host keeps are those of the second time. Data that was written is in the
host's page cache: it survives the server; against the host's own end the guest has fsync.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import blake2b

from vmesh.v1.devices_pb2 import Virtio9pFid
from vmesh.v1.slot_pb2 import Virtio9pRecord
from vmesh_services.devices.virtio_9p import messages
from vmesh_services.devices.virtio_9p.folder import (
    Attributes,
    Folder,
    Names,
    check_name,
    check_path,
    exists,
    path_bytes,
)
from vmesh_services.devices.virtio_9p.messages import NO_FID, QID, Qid, Value

VERSION = b"9P2000.L"
MIN_MSIZE, MAX_MSIZE = 4096, 512 << 10  # Linux asks for 128 KiB, and at most for 500 KiB
MAX_FIDS = 16384
MAX_NAMES = 8 << 20  # bytes of the paths of all fids: at most 1.5 times as many in the state (MAX_STATE_BYTES)
LISTINGS, ENTRIES = 16, 500_000

_NONE_ID = 0xFFFF_FFFF  # no uid, or no gid
_FILESYSTEM = 0x0102_1997  # V9FS_MAGIC, Linux include/uapi/linux/magic.h
_GETATTR_BASIC = 0x7FF
_SET_MODE, _SET_USER, _SET_GROUP, _SET_SIZE = 0x1, 0x2, 0x4, 0x8
_SET_ACCESSED, _SET_MODIFIED, _GIVEN_ACCESSED, _GIVEN_MODIFIED = 0x10, 0x20, 0x80, 0x100
_REMOVE_DIRECTORY = 0x200  # AT_REMOVEDIR
_LOCK_UNLOCKED, _LOCK_SUCCESS = 2, 0
_MAX_OFFSET = (1 << 63) - 1
_SECOND = 1_000_000_000
# Of the flags of Tlopen, as Linux sends them (include/net/9p/9p.h, in octal there), those that are the server's matter.
# Not O_APPEND: the guest says where it writes.
_ACCESS_MODE, _EXCLUSIVE, _TRUNCATE = 0o3, 0o200, 0o1000
_FLAGS: Mapping[int, int] = {_EXCLUSIVE: os.O_EXCL, _TRUNCATE: os.O_TRUNC, 0o10000: os.O_DSYNC, 0o4000000: os.O_SYNC}
_DIRECTORY_ENTRY = 13 + 8 + 1 + 2  # bytes in front of the name


@dataclass(slots=True)
class Fid:
    """A file as the guest holds it. `flags`: how it was opened, None if it was not; `file` is then a descriptor (of a
    directory one that opens nothing, O_PATH), or -1 for what could not be opened again."""

    path: Names
    identity: tuple[int, int]
    directory: bool
    user: int
    flags: int | None = None
    file: int = -1


class Server:
    """Serves `folder`. `record` keeps what a request has changed, before it is answered; `intend` is called before a
    name is made or taken away."""

    def __init__(
        self,
        folder: Folder,
        *,
        read_only: bool,
        most_open: int,
        record: Callable[[Virtio9pRecord], None],
        intend: Callable[[], None],
    ) -> None:
        self.msize = 0
        self.fids: dict[int, Fid] = {}
        self._folder = folder
        self._read_only = read_only
        self._most_open = most_open
        self._record = record
        self._intend = intend
        self._redo = False
        self._anew = False
        self._changed: set[int] = set()  # fids, by this request
        self._kept = False  # this request is not to be done twice
        self._limit = 0
        self.open_files = 0
        self._names = 0  # bytes of the paths of all fids
        self._listings: OrderedDict[int, list[tuple[int, bytes]]] = OrderedDict()
        self._handlers = {number: getattr(self, f"_{form.name}") for number, form in messages.FORMS.items()}

    def handle(self, message: bytes, room: int, *, redo: bool = False) -> bytes:
        """The reply, of at most `room` bytes; empty if there is no room for any.

        `redo`: an earlier life has called `intend` for this very request, and no record of it was kept.
        """
        if room < messages.ERROR_SIZE:
            return b""
        tag = int.from_bytes(message[5:7], "little") if len(message) >= 7 else messages.NO_TAG
        self._redo, self._anew, self._kept = redo, False, False
        self._limit = min(room, self.msize or MAX_MSIZE)
        self._changed.clear()
        try:
            if len(message) < messages.HEADER.size:
                raise OSError(errno.EINVAL, "too short")
            number, values = messages.parse(message)
            if not self.msize and number != _VERSION:
                raise OSError(errno.EPROTO, "before Tversion")
            reply = messages.reply(number, tag, *self._handlers[number](*values))
            if len(reply) > self._limit:
                raise OSError(errno.EMSGSIZE, "reply")
        except (OverflowError, ValueError):  # a number or text that the host's calls cannot even be given
            reply = messages.error(tag, errno.EINVAL)
        except OSError as error:
            reply = messages.error(tag, error.errno or errno.EIO)
        if self._changed or self._kept or self._anew:
            record = Virtio9pRecord(reply=reply, anew=self._anew, msize=self.msize)
            for fid in self._changed:
                if (held := self.fids.get(fid)) is not None:
                    record.fids.append(_message(fid, held))
                elif not self._anew:
                    record.gone.append(fid)
            self._record(record)
        return reply

    def state(self) -> Virtio9pRecord:
        """All fids."""
        return Virtio9pRecord(
            anew=True, msize=self.msize, fids=[_message(number, fid) for number, fid in self.fids.items()]
        )

    def restore(self, msize: int, fids: Iterable[Virtio9pFid]) -> None:
        """Take over the fids of a state that `check` has passed."""
        self.clear()
        self.msize = msize
        for each in fids:
            fid = Fid(tuple(each.path), (each.device, each.inode), each.directory, each.user)
            if each.open:
                fid.flags = each.flags
                fid.file = self._reopen(fid)
            self._put(each.fid, fid)

    def clear(self) -> None:
        """As before any request."""
        for number in list(self.fids):
            self._forget(number)
        self.msize = 0

    # The requests, by their names in messages.FORMS: fields in, fields of the reply out.

    def _version(self, msize: int, version: bytes) -> tuple[Value, ...]:
        self.clear()
        self._anew = True
        if version != VERSION:
            return min(msize, MAX_MSIZE), b"unknown"
        if msize < MIN_MSIZE:
            raise OSError(errno.EMSGSIZE, "msize")
        self.msize = min(msize, MAX_MSIZE)
        return self.msize, VERSION

    def _auth(self, _afid: int, _name: bytes, _tree: bytes, _user: int) -> tuple[Value, ...]:
        raise OSError(errno.EOPNOTSUPP, "no authentication is needed")

    def _attach(self, number: int, afid: int, _name: bytes, tree: bytes, user: int) -> tuple[Value, ...]:
        if afid != NO_FID:
            raise OSError(errno.EINVAL, "afid")
        if tree not in (b"", b"/"):
            raise OSError(errno.ENOENT, "there is one tree")
        with self._folder.hold(()) as held:
            attributes = self._folder.attributes(held)
        self._new(number, Fid((), attributes.identity, True, user))
        return (self._qid(attributes),)

    def _flush(self, _tag: int) -> tuple[Value, ...]:
        return ()  # what came before it has been answered

    def _walk(self, number: int, new: int, names: list[bytes]) -> tuple[Value, ...]:
        fid = self._fid(number)
        if new != number:
            self._check_new(new)
        qids: list[Qid] = []
        with self._at_path(fid) if names else self._hold(fid) as held:
            attributes = self._folder.attributes(held)
        path = fid.path
        try:
            for name in names:
                path = self._join(path, name)
                with self._folder.hold(path) as held:
                    attributes = self._folder.attributes(held)
                qids.append(self._qid(attributes))
        except OSError:
            if not qids:
                raise
        if len(qids) == len(names):
            self._check_names(path_bytes(path) - (path_bytes(fid.path) if new == number else 0))
            if new == number:
                self._forget(number)
            directory = stat.S_ISDIR(attributes.mode)
            self._new(new, Fid(path, attributes.identity, directory, fid.user))
        return (qids,)

    def _clunk(self, number: int) -> tuple[Value, ...]:
        self._fid(number)
        self._forget(number)
        return ()

    def _statfs(self, number: int) -> tuple[Value, ...]:
        with self._hold(self._fid(number)) as held:
            found = os.statvfs(held)
        identifier = found.f_fsid & (1 << 64) - 1
        return (
            _FILESYSTEM, found.f_bsize, found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree,
            identifier, found.f_namemax,
        )  # fmt: skip

    def _getattr(self, number: int, wanted: int) -> tuple[Value, ...]:
        with self._hold(self._fid(number)) as held:
            found = self._folder.attributes(held)
        host = found.host
        times = [part for ns in (host.st_atime_ns, host.st_mtime_ns, host.st_ctime_ns) for part in divmod(ns, _SECOND)]
        return (
            wanted & _GETATTR_BASIC, self._qid(found), found.mode, found.user, found.group, host.st_nlink,
            found.device, host.st_size, host.st_blksize, host.st_blocks, *(part & _U64 for part in times), 0, 0, 0, 0,
        )  # fmt: skip

    def _setattr(
        self, number: int, valid: int, mode: int, user: int, group: int, size: int, *times: int
    ) -> tuple[Value, ...]:
        fid = self._fid(number)
        self._check_writable()
        if times[1] >= _SECOND or times[3] >= _SECOND:
            raise OSError(errno.EINVAL, "nanoseconds")
        folder = self._folder
        with self._hold(fid) as held:
            if valid & _SET_SIZE:
                if fid.directory:
                    raise OSError(errno.EISDIR, "size")
                if fid.file >= 0 and (fid.flags or 0) & _ACCESS_MODE:
                    os.ftruncate(fid.file, size)  # whatever its mode says by now
                else:
                    folder.truncate(held, size)
            if valid & (_SET_USER | _SET_GROUP):
                folder.change_owner(held, user if valid & _SET_USER else None, group if valid & _SET_GROUP else None)
            if valid & _SET_MODE:
                folder.change_mode(held, mode)
            if valid & (_SET_ACCESSED | _SET_MODIFIED):
                host, now = os.stat(held), time.time_ns()
                accessed, modified = host.st_atime_ns, host.st_mtime_ns
                if valid & _SET_ACCESSED:
                    accessed = _signed(times[0]) * _SECOND + times[1] if valid & _GIVEN_ACCESSED else now
                if valid & _SET_MODIFIED:
                    modified = _signed(times[2]) * _SECOND + times[3] if valid & _GIVEN_MODIFIED else now
                folder.change_times(held, accessed, modified)
        return ()

    def _lopen(self, number: int, flags: int) -> tuple[Value, ...]:
        fid = self._fid(number)
        if fid.flags is not None:
            raise OSError(errno.EINVAL, "open already")
        host_flags = _host_flags(flags) & ~os.O_EXCL
        if host_flags & (os.O_ACCMODE | os.O_TRUNC):
            self._check_writable()
        with self._hold(fid) as held:
            found = self._folder.attributes(held)
            if stat.S_ISDIR(found.mode):
                if host_flags & os.O_ACCMODE:
                    raise OSError(errno.EISDIR, "write")
            elif not stat.S_ISREG(found.mode):
                raise OSError(errno.ELOOP if stat.S_ISLNK(found.mode) else errno.ENXIO, "neither file nor directory")
            self._check_room()
            fid.file = os.dup(held) if fid.directory else self._folder.open(held, host_flags)
            self.open_files += 1
        fid.flags = flags
        self._changed.add(number)
        return self._qid(found), 0

    def _lcreate(self, number: int, name: bytes, flags: int, mode: int, group: int) -> tuple[Value, ...]:
        fid = self._fid(number)
        if fid.flags is not None:
            raise OSError(errno.EINVAL, "open already")
        self._check_room()
        path = self._join_new(fid.path, name)
        self._check_names(path_bytes(path) - path_bytes(fid.path))
        with self._at_path(fid) as parent:
            again = self._once(parent, name, present=False)
            host_flags = _host_flags(flags)
            file = self._folder.create(parent, name, host_flags, mode & 0o7777, (fid.user, group), again=again)
        self.open_files += 1
        found = self._folder.attributes(file)
        self._put(number, Fid(path, found.identity, False, fid.user, flags, file))
        return self._qid(found), 0

    def _read(self, number: int, offset: int, count: int) -> tuple[Value, ...]:
        file = self._file(number)
        if offset > _MAX_OFFSET:
            raise OSError(errno.EINVAL, "offset")
        return (os.pread(file, min(count, self._limit - messages.DATA_OVERHEAD), offset),)

    def _write(self, number: int, offset: int, data: bytes) -> tuple[Value, ...]:
        file = self._file(number)
        if offset > _MAX_OFFSET:
            raise OSError(errno.EINVAL, "offset")
        self._check_writable()
        return (os.pwrite(file, data, offset),)

    def _readdir(self, number: int, offset: int, count: int) -> tuple[Value, ...]:
        fid = self._fid(number)
        if not fid.directory or fid.flags is None:
            raise OSError(errno.EBADF, "not an open directory")
        if not offset or number not in self._listings:
            self._list(number, fid)
        self._listings.move_to_end(number)
        count = min(count, self._limit - messages.DATA_OVERHEAD)
        data = bytearray()
        listing = self._listings[number]
        for place in range(_behind(listing, offset), len(listing)):
            entry = listing[place][1]
            if len(data) + len(entry) > count:
                if not data:
                    raise OSError(errno.EINVAL, "no room for an entry")
                break
            data += entry
        return (bytes(data),)

    def _fsync(self, number: int) -> tuple[Value, ...]:
        fid = self._fid(number)
        if fid.directory:
            with self._hold(fid) as held:
                self._folder.sync(held)
        else:
            os.fsync(self._file(number))
        return ()

    def _lock(
        self, number: int, kind: int, _flags: int, _start: int, _length: int, _process: int, _client: bytes
    ) -> tuple[Value, ...]:
        # The guest has arbitrated among its own processes before it asks; we lock for nobody else, as QEMU.
        self._file(number)
        if kind > _LOCK_UNLOCKED:
            raise OSError(errno.EINVAL, "lock")
        return (_LOCK_SUCCESS,)

    def _getlock(
        self, number: int, _kind: int, start: int, length: int, process: int, client: bytes
    ) -> tuple[Value, ...]:
        self._file(number)
        return _LOCK_UNLOCKED, start, length, process, client

    def _readlink(self, number: int) -> tuple[Value, ...]:
        with self._hold(self._fid(number)) as held:
            return (self._folder.target(held),)

    def _symlink(self, number: int, name: bytes, target: bytes, group: int) -> tuple[Value, ...]:
        if not target or b"\0" in target or len(target) > 4095:
            raise OSError(errno.EINVAL if len(target) <= 4095 else errno.ENAMETOOLONG, "target")
        return self._make(
            number,
            name,
            lambda parent, again, owner: self._folder.symlink(parent, name, target, owner, again=again),
            group,
        )

    def _mkdir(self, number: int, name: bytes, mode: int, group: int) -> tuple[Value, ...]:
        return self._make(
            number,
            name,
            lambda parent, again, owner: self._folder.mkdir(parent, name, mode & 0o7777, owner, again=again),
            group,
        )

    def _mknod(
        self, _number: int, _name: bytes, _mode: int, _major: int, _minor: int, _group: int
    ) -> tuple[Value, ...]:
        raise OSError(errno.EPERM, "no devices, FIFOs or sockets")  # mknod(2)

    def _link(self, parent_number: int, number: int, name: bytes) -> tuple[Value, ...]:
        fid, parent_fid = self._fid(number), self._fid(parent_number)
        self._join_new(parent_fid.path, name)
        if fid.directory:
            raise OSError(errno.EPERM, "a directory")
        with self._at_path(parent_fid) as parent, self._hold(fid) as held:
            again = self._once(parent, name, present=False)
            self._folder.link(held, parent, name, again=again)
        return ()

    def _unlinkat(self, number: int, name: bytes, flags: int) -> tuple[Value, ...]:
        if flags & ~_REMOVE_DIRECTORY:
            raise OSError(errno.EINVAL, "flags")
        fid = self._fid(number)
        self._join_new(fid.path, name)
        with self._at_path(fid) as parent:
            again = self._once(parent, name, present=True)
            self._folder.unlink(parent, name, directory=bool(flags), again=again)
        return ()

    def _remove(self, number: int) -> tuple[Value, ...]:
        fid = self._fid(number)
        self._changed.add(number)
        try:
            self._check_writable()
            if not fid.path:
                raise OSError(errno.EBUSY, "the shared folder")
            with self._folder.hold(fid.path[:-1]) as parent:
                self._confirm(fid)
                again = self._once(parent, fid.path[-1], present=True)
                self._folder.unlink(parent, fid.path[-1], directory=fid.directory, again=again)
        finally:
            self._forget(number)  # also if it could not be removed
        return ()

    def _rename(self, number: int, parent_number: int, name: bytes) -> tuple[Value, ...]:
        fid, parent_fid = self._fid(number), self._fid(parent_number)
        if not fid.path:
            raise OSError(errno.EBUSY, "the shared folder")
        self._check_writable()
        with self._folder.hold(fid.path[:-1]) as old:
            self._confirm(fid)
            return self._move(fid.path, old, parent_fid, name)

    def _renameat(self, old_number: int, old_name: bytes, new_number: int, new_name: bytes) -> tuple[Value, ...]:
        old_fid, new_fid = self._fid(old_number), self._fid(new_number)
        with self._at_path(old_fid) as old:
            return self._move(self._join_new(old_fid.path, old_name), old, new_fid, new_name)

    def _xattrwalk(self, number: int, _new: int, _name: bytes) -> tuple[Value, ...]:
        self._fid(number)
        raise OSError(errno.EOPNOTSUPP, "extended attributes")

    def _xattrcreate(self, number: int, _name: bytes, _size: int, _flags: int) -> tuple[Value, ...]:
        self._fid(number)
        raise OSError(errno.EOPNOTSUPP, "extended attributes")

    # What they share.

    def _fid(self, number: int) -> Fid:
        try:
            return self.fids[number]
        except KeyError:
            raise OSError(errno.EBADF, "fid") from None

    def _file(self, number: int) -> int:
        """The descriptor of an open file."""
        fid = self._fid(number)
        if fid.flags is None:
            raise OSError(errno.EBADF, "not open")
        if fid.directory:
            raise OSError(errno.EISDIR, "a directory")
        if fid.file < 0:
            raise OSError(errno.ESTALE, "it could not be opened again")
        return fid.file

    @contextmanager
    def _hold(self, fid: Fid) -> Iterator[int]:
        """A descriptor of the file that the fid is for, wherever it is by now if the guest has it open; otherwise
        ENOENT if it is not at its path any more."""
        if fid.flags is not None and fid.file < 0 and not fid.directory:
            raise OSError(errno.ESTALE, "it could not be opened again")
        if fid.file >= 0:
            yield fid.file
            return
        with ExitStack() as stack:
            try:
                held = stack.enter_context(self._at_path(fid))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise
                # A driver asks for the attributes of a file that is open by another fid that it has of it.
                same = (each.file for each in self.fids.values() if each.file >= 0 and each.identity == fid.identity)
                if (held := next(same, -1)) < 0:
                    raise
            yield held

    @contextmanager
    def _at_path(self, fid: Fid) -> Iterator[int]:
        """A descriptor of the file that the fid is for; ENOENT if there is another one at its path."""
        with self._folder.hold(fid.path) as held:
            host = os.stat(held)
            if (host.st_dev, host.st_ino) != fid.identity:
                raise OSError(errno.ENOENT, "another file is there now")
            yield held

    def _confirm(self, fid: Fid) -> None:
        """Its file has to be where the fid says, unless an earlier life may have taken it away from there."""
        if not self._redo:
            with self._at_path(fid):
                pass

    def _check_new(self, number: int) -> None:
        if number == NO_FID or number in self.fids:
            raise OSError(errno.EBADF, "fid is taken")
        if len(self.fids) >= MAX_FIDS:
            raise OSError(errno.ENFILE, "fids")

    def _check_names(self, more: int) -> None:
        if more > 0 and self._names + more > MAX_NAMES:
            raise OSError(errno.ENFILE, "names")

    def _new(self, number: int, fid: Fid) -> None:
        self._check_new(number)
        self._check_names(path_bytes(fid.path))
        self._put(number, fid)

    def _put(self, number: int, fid: Fid) -> None:
        former = self.fids.get(number)
        self._names += path_bytes(fid.path) - (path_bytes(former.path) if former is not None else 0)
        self.fids[number] = fid
        self._changed.add(number)

    def _forget(self, number: int) -> None:
        fid = self.fids.pop(number)
        self._names -= path_bytes(fid.path)
        self._listings.pop(number, None)
        self._changed.add(number)
        if fid.file >= 0:
            os.close(fid.file)
            self.open_files -= 1

    def _check_writable(self) -> None:
        if self._read_only:
            raise OSError(errno.EROFS, "read only")

    def _check_room(self) -> None:
        if self.open_files >= self._most_open:
            raise OSError(errno.EMFILE, "open files")

    def _join(self, path: Names, name: bytes) -> Names:
        """Where `name` leads from `path`; `..` of the folder is the folder."""
        if name == b"..":
            return path[:-1]
        check_name(name)
        path = (*path, name)
        check_path(path)
        return path

    def _join_new(self, path: Names, name: bytes) -> Names:
        """As `_join`, for a name that is to be made or to be taken away."""
        self._check_writable()
        check_name(name)
        return self._join(path, name)

    def _once(self, parent: int, name: bytes, *, present: bool) -> bool:
        """Whether an earlier life may have done already what is going to be done; see 3 of the argument.

        `present`: whether the name has to be there before.
        """
        self._kept = True
        if self._redo:
            return True
        if exists(parent, name) == present:
            self._intend()
        return False

    def _make(
        self, number: int, name: bytes, make: Callable[[int, bool, tuple[int, int]], None], group: int
    ) -> tuple[Value, ...]:
        """Something new called `name` in the directory of the fid; gives its qid."""
        fid = self._fid(number)
        path = self._join_new(fid.path, name)
        with self._at_path(fid) as parent:
            make(parent, self._once(parent, name, present=False), (fid.user, group))
        with self._folder.hold(path) as held:
            return (self._qid(self._folder.attributes(held)),)

    def _move(self, path: Names, old: int, parent_fid: Fid, name: bytes) -> tuple[Value, ...]:
        target = self._join_new(parent_fid.path, name)
        depth = len(path)
        # What was below the old name is below the new one.
        moved = [
            (number, replace(fid, path=target + fid.path[depth:]))
            for number, fid in self.fids.items()
            if fid.path[:depth] == path
        ]
        for _, fid in moved:
            check_path(fid.path)
        self._check_names(len(moved) * (path_bytes(target) - path_bytes(path)))
        with self._at_path(parent_fid) as new:
            again = self._once(old, path[-1], present=True)
            self._folder.rename(old, path[-1], new, name, again=again)
        for number, fid in moved:
            self._put(number, fid)
        return ()

    def _reopen(self, fid: Fid) -> int:
        """The file of a fid that was open in another life, or -1."""
        if self.open_files >= self._most_open:
            return -1
        try:
            with self._folder.hold(fid.path) as held:
                host = os.stat(held)
                if (host.st_dev, host.st_ino) != fid.identity or fid.flags is None:
                    return -1
                flags = _host_flags(fid.flags) & ~(os.O_TRUNC | os.O_EXCL)
                file = os.dup(held) if fid.directory else self._folder.open(held, flags)
        except OSError:
            return -1
        self.open_files += 1
        return file

    def _list(self, number: int, fid: Fid) -> None:
        """Read a directory: its entries as they are sent, in the order of their offsets.

        An offset is a hash of the name. So it means the same when the names were read anew, by a successor too: what
        was there all the time comes once, whatever came or went meanwhile.
        """
        self._listings.pop(number, None)
        listing: list[tuple[int, bytes]] = []
        with self._hold(fid) as held:
            here = self._qid(self._folder.attributes(held))
            host = os.stat(held)
            if host.st_nlink:  # else it was removed: not even . and .. are there
                above = here
                with suppress(FileNotFoundError, NotADirectoryError), self._folder.hold(fid.path[:-1]) as parent:
                    above = self._qid(self._folder.attributes(parent))
                listing += (1, _entry(here, 1, _DT_DIRECTORY, b".")), (2, _entry(above, 2, _DT_DIRECTORY, b".."))
            for name, inode, kind in self._folder.entries(held):
                if len(listing) >= ENTRIES:
                    raise OSError(errno.EFBIG, "entries")
                offset = max(3, int.from_bytes(blake2b(name, digest_size=8).digest(), "little") >> 1)
                qid = Qid(_QID_OF.get(kind, messages.QID_FILE), 0, self._identify(host.st_dev, inode))
                listing.append((offset, _entry(qid, offset, kind, name)))
        listing.sort()
        self._listings[number] = listing
        while len(self._listings) > LISTINGS or sum(map(len, self._listings.values())) > ENTRIES:
            self._listings.popitem(last=False)

    def _qid(self, found: Attributes) -> Qid:
        kind = messages.QID_FILE
        if stat.S_ISDIR(found.mode):
            kind = messages.QID_DIRECTORY
        elif stat.S_ISLNK(found.mode):
            kind = messages.QID_SYMLINK
        version = (found.host.st_mtime_ns ^ found.host.st_size << 8) & 0xFFFF_FFFF
        return Qid(kind, version, self._identify(*found.identity))

    def _identify(self, device: int, inode: int) -> int:
        """A number for the file: its inode, moved to elsewhere if it is on another file system than the folder."""
        if device == self._folder.device:
            return inode
        return (inode ^ int.from_bytes(blake2b(b"%d" % device, digest_size=8).digest(), "little")) & _U64


def check(msize: int, fids: Iterable[Virtio9pFid]) -> str:
    """What is wrong with a state; empty if nothing is."""
    if msize and not MIN_MSIZE <= msize <= MAX_MSIZE:
        return f"msize {msize}"
    numbers: set[int] = set()
    names = 0
    for each in fids:
        if each.fid in numbers or each.fid == NO_FID:
            return f"fid {each.fid} twice or not allowed"
        numbers.add(each.fid)
        try:
            for name in each.path:
                check_name(name)
            check_path(tuple(each.path))
        except OSError as error:
            return f"path of fid {each.fid}: {error.strerror}"
        names += path_bytes(each.path)
    if names > MAX_NAMES:
        return f"paths of {names} bytes"
    return "" if len(numbers) <= MAX_FIDS else f"{len(numbers)} fids"


def _message(number: int, fid: Fid) -> Virtio9pFid:
    device, inode = fid.identity
    return Virtio9pFid(
        fid=number, path=fid.path, device=device, inode=inode, directory=fid.directory, user=fid.user,
        open=fid.flags is not None, flags=fid.flags or 0,
    )  # fmt: skip


def _host_flags(flags: int) -> int:
    """The flags of open(2) for those of Tlopen."""
    mode = flags & _ACCESS_MODE
    if mode == 3:
        raise OSError(errno.EINVAL, "access mode")
    return mode | sum(ours for theirs, ours in _FLAGS.items() if flags & theirs == theirs)


def _entry(qid: Qid, offset: int, kind: int, name: bytes) -> bytes:
    return QID.pack(*qid) + offset.to_bytes(8, "little") + bytes((kind,)) + len(name).to_bytes(2, "little") + name


def _behind(listing: list[tuple[int, bytes]], offset: int) -> int:
    """The place of the first entry behind `offset`."""
    return bisect_right(listing, offset, key=lambda entry: entry[0])


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_U64 = (1 << 64) - 1
_VERSION = next(number for number, form in messages.FORMS.items() if form.name == "version")
_DT_DIRECTORY = 4
_QID_OF = {_DT_DIRECTORY: messages.QID_DIRECTORY, 10: messages.QID_SYMLINK}
