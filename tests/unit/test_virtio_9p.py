"""The shared folder as the guest's driver uses it: files, directories, links, attributes, and what is refused."""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.unit.ninep_driver import (
    ATTACH,
    AUTH,
    CLUNK,
    FLUSH,
    FSYNC,
    GETLOCK,
    LCREATE,
    LINK,
    LOCK,
    LOPEN,
    MKDIR,
    MKNOD,
    RDWR,
    READ,
    READLINK,
    REMOVE,
    REMOVEDIR,
    RENAME,
    RENAMEAT,
    ROOT,
    STATFS,
    SYMLINK,
    TRUNC,
    UNLINKAT,
    VERSION,
    WRONLY,
    XATTRCREATE,
    XATTRWALK,
    Client,
    Refused,
    Share,
    long,
    request,
    word,
)
from vmesh import errors
from vmesh.wire import MAX_STATE_BYTES
from vmesh_services.devices.virtio_9p import server as server_module
from vmesh_services.devices.virtio_9p.folder import Folder
from vmesh_services.devices.virtio_9p.server import MAX_FIDS, MAX_MSIZE, MAX_NAMES, Server, check

SECRET = b"outside"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with some files, beside a file that is not in it."""
    (tmp_path / "secret").write_bytes(SECRET)
    folder = tmp_path / "folder"
    (folder / "directory").mkdir(parents=True)
    (folder / "file").write_bytes(b"content")
    (folder / "directory" / "inner").write_bytes(b"inner content")
    (folder / "up").symlink_to("..")
    (folder / "absolute").symlink_to(tmp_path)
    (folder / "leak").symlink_to(tmp_path / "secret")
    return folder


def serve(folder: Path, *, mapped: bool = False, read_only: bool = False, most_open: int = 100) -> Client:
    """A server without a device."""
    server = Server(
        Folder(folder, mapped=mapped),
        read_only=read_only,
        most_open=most_open,
        record=lambda record: None,
        intend=lambda: None,
    )
    return Client(lambda message: server.handle(message, MAX_MSIZE))


@pytest.fixture
def client(folder: Path) -> Client:
    client = serve(folder)
    client.mount(user=os.getuid())
    return client


def refused(code: int, call: Callable[[], object]) -> None:
    with pytest.raises(Refused) as caught:
        call()
    assert errno.errorcode[caught.value.args[0]] == errno.errorcode[code]


def test_versions(folder: Path) -> None:
    client = serve(folder)
    refused(errno.EPROTO, lambda: client.ask(CLUNK, word(1)))
    assert client.ask(VERSION, word(1 << 31), b"9P2000.L") == struct.pack("<IH", MAX_MSIZE, 8) + b"9P2000.L"
    assert client.ask(VERSION, word(8192), b"9P2000.u") == struct.pack("<IH", 8192, 7) + b"unknown"
    refused(errno.EPROTO, lambda: client.ask(CLUNK, word(1)))
    refused(errno.EMSGSIZE, lambda: client.ask(VERSION, word(100), b"9P2000.L"))


def test_a_version_lets_go_of_all_fids(client: Client) -> None:
    client.open(1, b"file")
    client.mount()
    refused(errno.EBADF, lambda: client.ask(CLUNK, word(1)))


def test_files_are_read_and_written(client: Client, folder: Path) -> None:
    client.open(1, b"directory", b"inner", flags=RDWR)
    assert client.read(1) == b"inner content"
    assert client.read(1, offset=6, count=3) == b"con"
    assert client.write(1, b"CON", offset=6) == 3
    client.ask(FSYNC, word(1), word(0))
    assert (folder / "directory" / "inner").read_bytes() == b"inner CONtent"
    client.ask(CLUNK, word(1))
    refused(errno.EBADF, lambda: client.read(1))


def test_a_read_is_no_longer_than_a_message(client: Client, folder: Path) -> None:
    (folder / "file").write_bytes(bytes(100_000))
    client.open(1, b"file")
    assert len(client.read(1, count=0xFFFF_FFFF)) == 8192 - 11
    refused(errno.EINVAL, lambda: client.read(1, offset=1 << 63))


def test_created_files_have_their_mode_and_content(client: Client, folder: Path) -> None:
    client.create(1, b"directory", b"new", mode=0o640)
    client.write(1, b"some", offset=2)
    assert (folder / "directory" / "new").read_bytes() == b"\0\0some"
    assert stat.S_IMODE((folder / "directory" / "new").stat().st_mode) == 0o640
    refused(errno.EEXIST, lambda: client.create(2, b"directory", b"new"))
    client.create(3, b"directory", b"new", flags=RDWR)
    assert client.read(3) == b"\0\0some"


def test_truncation(client: Client, folder: Path) -> None:
    client.open(1, b"file", flags=WRONLY | TRUNC)
    assert (folder / "file").read_bytes() == b""
    client.set_attributes(1, 0x8, size=5)
    assert (folder / "file").read_bytes() == bytes(5)
    client.walk(2, b"directory")
    refused(errno.EISDIR, lambda: client.set_attributes(2, 0x8, size=5))


def test_appending_is_the_guests_business(client: Client, folder: Path) -> None:
    client.open(1, b"file", flags=WRONLY | 0o2000)
    client.write(1, b"X", offset=1)
    assert (folder / "file").read_bytes() == b"cXntent"


def test_walks(client: Client) -> None:
    assert client.walk(1, b"directory", b"nothing", b"more") == 1
    refused(errno.EBADF, lambda: client.ask(CLUNK, word(1)))  # not all was found: there is no new fid
    refused(errno.ENOENT, lambda: client.walk(1, b"nothing"))
    assert client.walk(1, b"directory", b"..", b"file") == 3
    assert client.walk(2, fid=1) == 0
    assert client.attributes(2) == client.attributes(1)
    refused(errno.EBADF, lambda: client.walk(2, b"file"))  # taken
    client.walk(3, b"directory")
    assert client.walk(3, b"inner", fid=3) == 1
    assert client.attributes(3)["size"] == 13
    refused(errno.ENOTDIR, lambda: client.walk(4, b"x", fid=3))


def test_directories_are_listed_whole_in_pieces(client: Client, folder: Path) -> None:
    names = {b"n%04d" % number for number in range(1000)}
    for name in names:
        (folder / "directory" / os.fsdecode(name)).touch()
    client.open(1, b"directory")
    found: list[bytes] = []
    offset = 0
    while entries := client.readdir(1, offset, count=300):
        found += [name for name, _, _ in entries]
        offset = entries[-1][1]
        for name, _, _ in entries[:2]:  # what is removed meanwhile moves nothing else
            if name.startswith(b"n"):
                if "file" in os.listdir(folder):
                    client.ask(UNLINKAT, word(ROOT), b"file", word(0))
                (folder / "directory" / os.fsdecode(name)).unlink()
        if len(found) > 500:
            (folder / "directory" / "n0000").touch()
    assert len(found) == len(set(found))
    assert names | {b".", b"..", b"inner"} == set(found)
    assert client.readdir(1, 0, count=300)[0][0] == b"."
    refused(errno.EINVAL, lambda: client.readdir(1, 0, count=20))


def test_types_in_a_directory(client: Client) -> None:
    client.open(1)
    kinds = {name: kind for name, _, kind in client.readdir(1)}
    assert kinds == {b".": 4, b"..": 4, b"file": 8, b"directory": 4, b"up": 10, b"absolute": 10, b"leak": 10}


def test_names_are_made_and_taken_away(client: Client, folder: Path) -> None:
    client.ask(MKDIR, word(ROOT), b"made", word(0o750), word(os.getgid()))
    assert stat.S_IMODE((folder / "made").stat().st_mode) == 0o750
    client.walk(1, b"file")
    client.ask(LINK, word(ROOT), word(1), b"other")
    assert (folder / "other").stat().st_nlink == 2
    client.ask(SYMLINK, word(ROOT), b"link", b"/etc/passwd", word(os.getgid()))
    assert os.readlink(folder / "link") == "/etc/passwd"
    client.walk(2, b"link")
    assert client.ask(READLINK, word(2)) == struct.pack("<H", 11) + b"/etc/passwd"
    refused(errno.EINVAL, lambda: client.ask(READLINK, word(1)))
    refused(errno.EEXIST, lambda: client.ask(MKDIR, word(ROOT), b"made", word(0o750), word(0)))
    refused(errno.EISDIR, lambda: client.ask(UNLINKAT, word(ROOT), b"made", word(0)))
    client.ask(UNLINKAT, word(ROOT), b"made", word(REMOVEDIR))
    client.ask(UNLINKAT, word(ROOT), b"link", word(0))
    client.ask(REMOVE, word(1))
    assert sorted(os.listdir(folder)) == ["absolute", "directory", "leak", "other", "up"]
    refused(errno.EBADF, lambda: client.ask(CLUNK, word(1)))
    refused(errno.ENOENT, lambda: client.ask(UNLINKAT, word(ROOT), b"file", word(0)))
    refused(errno.EPERM, lambda: client.ask(MKNOD, word(ROOT), b"null", word(0o20666), word(1), word(3), word(0)))


def test_a_renamed_directory_keeps_its_fids(client: Client, folder: Path) -> None:
    client.walk(1, b"directory", b"inner")
    client.walk(2, b"directory")
    client.ask(MKDIR, word(ROOT), b"deep", word(0o755), word(os.getgid()))
    client.walk(3, b"deep")
    client.ask(RENAMEAT, word(ROOT), b"directory", word(3), b"moved")
    assert client.attributes(1)["size"] == 13
    client.walk(4, b"inner", fid=2)
    client.ask(RENAME, word(1), word(ROOT), b"out")
    assert (folder / "out").read_bytes() == b"inner content"
    assert client.attributes(4)["path"] == client.attributes(1)["path"]
    refused(errno.EBUSY, lambda: client.ask(REMOVE, word(ROOT)))


def test_attributes(client: Client, folder: Path) -> None:
    client.walk(1, b"file")
    client.set_attributes(1, 0x1 | 0x20 | 0x100 | 0x10 | 0x80, mode=0o100600, times=(1, 2, 3, 4))
    host = (folder / "file").stat()
    assert (stat.S_IMODE(host.st_mode), host.st_atime_ns, host.st_mtime_ns) == (0o600, 1_000_000_002, 3_000_000_004)
    client.set_attributes(1, 0x20 | 0x100, times=(0, 0, (1 << 64) - 5, 0))  # before 1970
    assert ((folder / "file").stat().st_mtime_ns, (folder / "file").stat().st_atime_ns) == (-5 * 10**9, 1_000_000_002)
    found = client.attributes(1)
    assert (found["mode"], found["size"], found["path"]) == (host.st_mode, 7, host.st_ino)
    refused(errno.EINVAL, lambda: client.set_attributes(1, 0x20 | 0x100, times=(0, 0, 0, 10**9)))
    refused(errno.EINVAL, lambda: client.set_attributes(1, 0x8, size=1 << 63))
    client.walk(2, b"leak")
    refused(errno.EOPNOTSUPP, lambda: client.set_attributes(2, 0x1, mode=0o777))


def test_an_open_file_outlives_its_name(client: Client) -> None:
    client.open(1, b"file", flags=RDWR)
    client.walk(2, b"file")
    client.ask(UNLINKAT, word(ROOT), b"file", word(0))
    assert client.read(1) == b"content"
    assert client.attributes(1)["links"] == 0
    assert client.attributes(2) == client.attributes(1)
    client.ask(CLUNK, word(1))
    refused(errno.ENOENT, lambda: client.attributes(2))


def replace_by_the_guest(client: Client, folder: Path) -> None:
    client.create(8, b"new")
    client.write(8, b"something else")
    client.ask(RENAMEAT, word(ROOT), b"new", word(ROOT), b"file")


def replace_by_the_host(_client: Client, folder: Path) -> None:
    (folder / "new").write_bytes(b"something else")
    (folder / "new").rename(folder / "file")


@pytest.mark.parametrize("change", [replace_by_the_guest, replace_by_the_host])
def test_fstat_of_an_open_file_that_was_replaced(
    client: Client, folder: Path, change: Callable[[Client, Path], None]
) -> None:
    """A driver asks by any fid that it has of the file, not by the open one."""
    client.walk(1, b"file")
    client.walk(2, fid=1)
    client.ask(LOPEN, word(2), word(RDWR))
    before = client.attributes(1)
    change(client, folder)
    for fid in (1, 2):
        assert client.attributes(fid)["path"] == before["path"]
        assert (client.attributes(fid)["size"], client.attributes(fid)["links"]) == (7, 0)
    client.set_attributes(1, 0x8, size=3)
    assert client.read(2) == b"con"
    client.walk(3, b"file")
    assert client.attributes(3)["size"] == 14
    refused(errno.ENOENT, lambda: client.ask(REMOVE, word(1)))
    assert (folder / "file").read_bytes() == b"something else"


def test_an_open_directory_that_is_gone(client: Client, folder: Path) -> None:
    client.open(1, b"directory")
    client.walk(2, b"directory")
    client.ask(UNLINKAT, word(2), b"inner", word(0))
    client.ask(UNLINKAT, word(ROOT), b"directory", word(REMOVEDIR))
    for fid in (1, 2):
        assert stat.S_ISDIR(client.attributes(fid)["mode"])
    assert client.readdir(1) == []
    client.walk(4, fid=1)
    assert client.attributes(4) == client.attributes(1)
    (folder / "directory").mkdir()  # another one
    (folder / "directory" / "inner").touch()
    for call in (
        lambda: client.walk(5, b"inner", fid=1),
        lambda: client.ask(UNLINKAT, word(1), b"inner", word(0)),
        lambda: client.ask(MKDIR, word(1), b"new", word(0o755), word(0)),
        lambda: client.ask(RENAMEAT, word(ROOT), b"file", word(1), b"file"),
    ):
        refused(errno.ENOENT, call)
    client.ask(CLUNK, word(1))
    refused(errno.ENOENT, lambda: client.attributes(2))
    assert os.listdir(folder / "directory") == ["inner"]


def test_directories_that_are_open_are_counted(folder: Path) -> None:
    client = serve(folder, most_open=2)
    client.mount(user=os.getuid())
    client.open(1, b"directory")
    client.open(2, b"directory")
    refused(errno.EMFILE, lambda: client.open(3, b"directory"))
    client.ask(CLUNK, word(1))
    client.open(4, b"directory")


def test_the_rest_of_the_messages(client: Client) -> None:
    client.open(1, b"file")
    client.open(2)
    assert struct.unpack("<IIQQQQQQI", client.ask(STATFS, word(1)))[0] == 0x01021997
    assert client.ask(LOCK, word(1), ("B", 1), word(1), long(0), long(0), word(1), b"guest") == b"\0"
    lock = client.ask(GETLOCK, word(1), ("B", 1), long(3), long(4), word(5), b"guest")
    assert lock == struct.pack("<BQQIH", 2, 3, 4, 5, 5) + b"guest"
    client.ask(FLUSH, ("H", 3))
    client.ask(FSYNC, word(2), word(1))
    refused(errno.EOPNOTSUPP, lambda: client.ask(XATTRWALK, word(1), word(9), b"security.selinux"))
    refused(errno.EOPNOTSUPP, lambda: client.ask(XATTRCREATE, word(1), b"user.x", long(1), word(0)))
    refused(errno.EOPNOTSUPP, lambda: client.ask(AUTH, word(9), b"root", b"", word(0)))
    refused(errno.ENOENT, lambda: client.ask(ATTACH, word(9), word(0xFFFFFFFF), b"root", b"/etc", word(0)))


@pytest.mark.parametrize("name", [b"", b".", b"directory/inner", b"/etc", b"../secret", b"a\0b", b"/"])
def test_what_is_no_name(client: Client, folder: Path, name: bytes) -> None:
    before = sorted(os.listdir(folder.parent)), sorted(os.listdir(folder))
    client.walk(1, b"directory")
    client.walk(2, b"file")
    refused(errno.EINVAL, lambda: client.walk(9, name))
    refused(errno.EINVAL, lambda: client.create(3, b"directory", name))
    refused(errno.EINVAL, lambda: client.ask(MKDIR, word(1), name, word(0o755), word(0)))
    refused(errno.EINVAL, lambda: client.ask(SYMLINK, word(1), name, b"x", word(0)))
    refused(errno.EINVAL, lambda: client.ask(LINK, word(1), word(2), name))
    refused(errno.EINVAL, lambda: client.ask(RENAMEAT, word(ROOT), b"file", word(1), name))
    refused(errno.EINVAL, lambda: client.ask(RENAMEAT, word(ROOT), name, word(1), b"x"))
    refused(errno.EINVAL, lambda: client.ask(RENAME, word(2), word(1), name))
    refused(errno.EINVAL, lambda: client.ask(UNLINKAT, word(1), name, word(0)))
    assert before == (sorted(os.listdir(folder.parent)), sorted(os.listdir(folder)))


def test_two_dots_lead_nowhere_but_up_to_the_folder(client: Client) -> None:
    assert client.walk(1, *[b".."] * 16) == 16
    assert client.attributes(1) == client.attributes(ROOT)
    assert client.walk(2, b"..", b"secret") == 1
    refused(errno.ENOENT, lambda: client.walk(2, b"secret", fid=1))
    fields: dict[int, tuple[bytes | tuple[str, int], ...]] = {
        MKDIR: (word(0o755), word(0)), SYMLINK: (b"x", word(0)), UNLINKAT: (word(0x200),),
    }  # fmt: skip
    for number, rest in fields.items():
        refused(errno.EINVAL, partial(client.ask, number, word(ROOT), b"..", *rest))


def test_links_are_not_followed(client: Client, folder: Path) -> None:
    for name in (b"up", b"absolute"):
        assert client.walk(9, name, b"secret") == 1  # the link itself, and nothing behind it
        client.walk(1, name)
        refused(errno.ENOTDIR, lambda: client.walk(9, b"secret", fid=1))
        refused(errno.ENOTDIR, lambda: client.ask(LCREATE, word(1), b"x", word(RDWR), word(0o644), word(0)))
        refused(errno.ENOTDIR, lambda: client.ask(UNLINKAT, word(1), b"secret", word(0)))
        refused(errno.ENOTDIR, lambda: client.ask(MKDIR, word(1), b"x", word(0o755), word(0)))
        refused(errno.ENOTDIR, lambda: client.ask(RENAMEAT, word(1), b"secret", word(ROOT), b"x"))
        client.ask(CLUNK, word(1))
    client.walk(1, b"leak")
    refused(errno.ELOOP, lambda: client.ask(LOPEN, word(1), word(0)))
    refused(errno.ELOOP, lambda: client.create(2, b"leak", flags=WRONLY | TRUNC))
    refused(errno.EINVAL, lambda: client.set_attributes(1, 0x8, size=0))
    client.set_attributes(1, 0x20 | 0x100, times=(0, 0, 5, 0))  # the link's own
    client.ask(LINK, word(ROOT), word(1), b"again")
    assert os.readlink(folder / "again") == str(folder.parent / "secret")
    assert (folder.parent / "secret").read_bytes() == SECRET
    assert (folder.parent / "secret").stat().st_mtime > 5
    assert not (folder.parent / "x").exists()


def test_a_directory_that_becomes_a_link_leads_nowhere(client: Client, folder: Path) -> None:
    (folder.parent / "outside").mkdir()
    (folder.parent / "outside" / "inner").write_bytes(SECRET)
    client.walk(1, b"directory")
    client.walk(2, b"directory", b"inner")
    (folder / "directory").rename(folder / "elsewhere")
    (folder / "directory").symlink_to(folder.parent / "outside")
    refused(errno.ENOENT, lambda: client.walk(3, b"inner", fid=1))
    refused(errno.ENOTDIR, lambda: client.ask(LOPEN, word(2), word(RDWR)))


def test_races_with_renaming_never_lead_out(client: Client, folder: Path) -> None:
    """Somebody swaps a directory and a link out of the folder, as fast as can be."""
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "inner").write_bytes(SECRET)
    (folder / "link").symlink_to(outside)
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            os.rename(folder / "directory", folder / "parked")
            os.rename(folder / "link", folder / "directory")
            os.rename(folder / "directory", folder / "link")
            os.rename(folder / "parked", folder / "directory")

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen = 0
    try:
        for number in range(1500):
            try:
                client.open(1, b"directory", b"inner", flags=RDWR)
            except (Refused, AssertionError):
                pass
            else:
                assert client.read(1) == b"inner content"
                seen += 1
            with suppress(Refused, AssertionError):
                client.create(2, b"directory", b"n%d" % number)
            for fid in (1, 2):
                with suppress(Refused):
                    client.ask(CLUNK, word(fid))
    finally:
        ended.set()
        swapper.join(60)
    assert seen
    assert (outside / "inner").read_bytes() == SECRET
    assert os.listdir(outside) == ["inner"]


def test_only_files_and_directories_are_opened(client: Client, folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    client.walk(1, b"fifo")
    refused(errno.ENXIO, lambda: client.ask(LOPEN, word(1), word(RDWR)))
    refused(errno.ENXIO, lambda: client.create(2, b"fifo", flags=WRONLY))


def test_a_read_only_share(folder: Path) -> None:
    client = serve(folder, read_only=True)
    client.mount()
    client.walk(1, b"file")
    refused(errno.EROFS, lambda: client.create(2, b"new"))
    refused(errno.EROFS, lambda: client.ask(MKDIR, word(ROOT), b"x", word(0o755), word(0)))
    refused(errno.EROFS, lambda: client.ask(SYMLINK, word(ROOT), b"x", b"y", word(0)))
    refused(errno.EROFS, lambda: client.ask(LINK, word(ROOT), word(1), b"x"))
    refused(errno.EROFS, lambda: client.ask(RENAME, word(1), word(ROOT), b"x"))
    refused(errno.EROFS, lambda: client.ask(RENAMEAT, word(ROOT), b"file", word(ROOT), b"x"))
    refused(errno.EROFS, lambda: client.ask(UNLINKAT, word(ROOT), b"file", word(0)))
    refused(errno.EROFS, lambda: client.set_attributes(1, 0x8, size=0))
    for flags in (RDWR, WRONLY, TRUNC):
        refused(errno.EROFS, partial(client.ask, LOPEN, word(1), word(flags)))
    client.ask(LOPEN, word(1), word(0))
    assert client.read(1) == b"content"
    refused(errno.EROFS, lambda: client.write(1, b"x"))
    client.walk(3, b"file")
    refused(errno.EROFS, lambda: client.ask(REMOVE, word(3)))
    assert (folder / "file").read_bytes() == b"content"


def test_mapped_attributes(folder: Path) -> None:
    try:
        client = serve(folder, mapped=True)
    except errors.ConfigError as error:
        pytest.skip(str(error))
    client.mount(user=1234)
    client.create(1, b"new", mode=0o4755)
    host = (folder / "new").stat()
    assert (host.st_uid, stat.S_IMODE(host.st_mode)) == (os.getuid(), 0o600)
    found = client.attributes(1)
    assert (found["user"], found["group"], found["mode"]) == (1234, 0, 0o104755)
    client.set_attributes(1, 0x7, mode=0o100640, user=7, group=8)
    assert os.getxattr(folder / "new", "user.virtfs.uid") == struct.pack("<I", 7)
    assert os.getxattr(folder / "new", "user.virtfs.mode") == struct.pack("<I", 0o100640)
    found = client.attributes(1)
    assert (found["user"], found["group"], found["mode"]) == (7, 8, 0o100640)
    client.ask(SYMLINK, word(ROOT), b"link", b"/etc/passwd", word(5))
    assert (folder / "link").read_bytes() == b"/etc/passwd"
    assert not (folder / "link").is_symlink()
    client.walk(2, b"link")
    assert stat.S_ISLNK(client.attributes(2)["mode"])
    assert client.ask(READLINK, word(2)) == struct.pack("<H", 11) + b"/etc/passwd"
    refused(errno.ELOOP, lambda: client.ask(LOPEN, word(2), word(0)))
    client.ask(MKDIR, word(ROOT), b"made", word(0o777), word(9))
    client.walk(3, b"made")
    assert (client.attributes(3)["mode"], client.attributes(3)["group"]) == (0o040777, 9)
    assert stat.S_IMODE((folder / "made").stat().st_mode) == 0o700


def test_what_the_guest_can_make_the_server_keep_is_bounded(folder: Path) -> None:
    client = serve(folder, most_open=3)
    client.mount()
    for fid in range(1, 4):
        client.open(fid, b"file")
    client.walk(4, b"file")
    refused(errno.EMFILE, lambda: client.ask(LOPEN, word(4), word(0)))
    refused(errno.EMFILE, lambda: client.create(5, b"new"))
    client.ask(CLUNK, word(1))
    client.ask(LOPEN, word(4), word(0))
    for fid in range(100, 100 + MAX_FIDS - 5):
        client.walk(fid)
    refused(errno.ENFILE, lambda: client.walk(7))
    client.mount()
    client.ask(MKDIR, word(ROOT), b"a" * 255, word(0o755), word(os.getgid()))
    refused(errno.ENAMETOOLONG, lambda: client.walk(1, b"a" * 256))
    for _ in range(15):
        client.walk(1, b"a" * 255) if _ == 0 else client.walk(1, b"a" * 255, fid=1)
        client.ask(MKDIR, word(1), b"a" * 255, word(0o755), word(os.getgid()))
    client.walk(1, b"a" * 255, fid=1)
    refused(errno.ENAMETOOLONG, lambda: client.walk(1, b"b", fid=1))


def test_listings_are_bounded_by_their_entries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few large directories, or one that is open many times, must not fill the host's memory."""
    monkeypatch.setattr(server_module, "ENTRIES", 20)
    read = []
    entries = Folder.entries

    def counted(folder: Folder, held: int) -> Iterator[tuple[bytes, int, int]]:
        for entry in entries(folder, held):
            read.append(entry[0])
            yield entry

    monkeypatch.setattr(Folder, "entries", counted)
    for number in range(7):
        (folder / "directory" / f"n{number}").touch()
    client = serve(folder)
    client.mount()
    for fid in (1, 2, 3):
        client.open(fid, b"directory")
        assert len(client.readdir(fid)) == 10
    assert len(read) == 3 * 8
    client.readdir(2, 2)  # is kept, and used last from now on
    assert len(read) == 3 * 8
    assert len(client.readdir(1, 2)) == 8  # is read again
    client.readdir(2, 2)
    assert len(read) == 4 * 8
    for number in range(7, 1000):
        (folder / "directory" / f"n{number}").touch()
    read.clear()
    refused(errno.EFBIG, lambda: client.readdir(3))
    assert len(read) < 20  # not all of it
    assert len(client.readdir(2, 2)) == 8


def test_the_paths_of_all_fids_fit_into_the_state_whatever_is_walked_created_or_renamed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 1.5 * MAX_NAMES + 64 * MAX_FIDS < MAX_STATE_BYTES
    most = 5000
    monkeypatch.setattr(server_module, "MAX_NAMES", most)
    server = Server(Folder(folder), read_only=False, most_open=3, record=lambda record: None, intend=lambda: None)
    client = Client(lambda message: server.handle(message, MAX_MSIZE))
    client.mount(user=os.getuid())
    deep = [b"n"] * 50  # names of one byte: those take the most of the state
    (folder / "/".join(map(os.fsdecode, deep))).mkdir(parents=True)
    client.walk(1)
    for at in range(0, len(deep), 10):
        client.walk(1, *deep[at : at + 10], fid=1)
    fids = range(2, 1 + most // (2 * len(deep)))
    for fid in fids:
        client.walk(fid, fid=1)
    refused(errno.ENFILE, lambda: client.walk(fids[-1] + 1, fid=1))
    assert len(server.state().SerializeToString()) < 1.5 * most + 64 * len(server.fids)
    client.walk(9000)
    refused(errno.ENFILE, lambda: client.ask(RENAMEAT, word(9000), b"n", word(9000), b"n" * 99))
    assert (folder / "n").is_dir(), "nothing was done"
    monkeypatch.setattr(server_module, "MAX_NAMES", 1 << 30)
    long = [b"l" * 250] * 16
    (folder / os.fsdecode(b"/".join(long))).mkdir(parents=True)
    client.walk(9001, *long)
    refused(errno.ENAMETOOLONG, lambda: client.ask(RENAMEAT, word(9000), b"n", word(9001), b"n"))
    assert (folder / "n").is_dir(), "nothing was done"
    client.ask(CLUNK, word(fids[-1]))
    client.walk(fids[-1], fid=fids[0])
    assert check(server.msize, server.state().fids) == ""


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="cannot share"):
        Folder(tmp_path / "nothing")


NUMBERS = (8, 12, 14, 16, 18, 20, 22, 24, 26, 30, 32, 40, 50, 52, 54, 70, 72, 74, 76, 100, 102, 104, 108, 110, 116, 118,
           120, 122)  # fmt: skip
FIELD = some.one_of(
    some.sampled_from([b"file", b"directory", b"..", b"up", b"absolute", b"leak", b"x", b"", b"9P2000.L"]),
    some.tuples(some.sampled_from("BHIQ"), some.integers(0, 3)),
    some.tuples(some.just("I"), some.integers(0, 0xFFFF_FFFF)),
    some.tuples(some.just("Q"), some.integers(0, (1 << 64) - 1)),
)


@settings(max_examples=40, deadline=None)
@given(some.lists(some.tuples(some.sampled_from(NUMBERS), some.lists(FIELD, max_size=7)), max_size=40))
def test_any_messages_are_answered_and_nothing_leaves_the_folder(
    tmp_path_factory: pytest.TempPathFactory, messages: list[tuple[int, list[bytes | tuple[str, int]]]]
) -> None:
    outside = tmp_path_factory.mktemp("garbage")
    (outside / "folder" / "directory").mkdir(parents=True)
    (outside / "folder" / "file").write_bytes(b"content")
    (outside / "folder" / "up").symlink_to("..")
    (outside / "folder" / "absolute").symlink_to(outside)
    (outside / "secret").write_bytes(SECRET)
    client = serve(outside / "folder")
    client.mount()
    client.walk(1, b"directory")
    for number, fields in messages:
        reply = client.exchange(request(number, *fields))
        size, kind, tag = struct.unpack_from("<IBH", reply)
        assert (size, tag) == (len(reply), 7)
        assert kind in (7, number + 1)
    assert sorted(os.listdir(outside)) == ["folder", "secret"]
    assert (outside / "secret").read_bytes() == SECRET


def test_garbage_is_answered_with_an_error(client: Client) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    numbers = random.Random(seed)
    for _ in range(3000):
        message = bytearray(request(numbers.choice(NUMBERS), word(ROOT), b"name", word(3), long(1)))
        for _ in range(numbers.randrange(4)):
            message[numbers.randrange(len(message))] = numbers.randrange(256)
        del message[numbers.randrange(7, len(message) + 1) :]
        reply = client.exchange(bytes(message))
        assert struct.unpack_from("<I", reply)[0] == len(reply)
    assert client.exchange(b"") == struct.pack("<IBHI", 11, 7, 0xFFFF, errno.EINVAL)


def test_the_device_says_its_tag_and_answers_in_what_room_there_is(tmp_path: Path, folder: Path) -> None:
    share = Share(tmp_path, folder)
    assert share.device.config() == b"\x04\0host"
    share.mount()
    share.open(1, b"file")
    assert share.read(1) == b"content"
    share.send(request(READ, word(1), long(0), word(4096)), room=14)
    assert share.serve()[7:] == b"\x03\0\0\0con"
    share.send(request(READ, word(1), long(0), word(4096)), room=5)
    assert share.serve() == b""
    (folder / "file").write_bytes(bytes(5000))
    share.send(b"\xff" * 60000)
    assert share.serve()[4] == 7


def test_a_reset_lets_go_of_all_files(tmp_path: Path, folder: Path) -> None:
    share = Share(tmp_path, folder)
    share.mount()
    share.open(1, b"file")
    assert share.device.counters()["open_files"] == 1
    share.device.reset()
    counters = share.device.counters()
    assert (counters["fids"], counters["open_files"]) == (0, 0)
