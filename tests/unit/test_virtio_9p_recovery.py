"""The shared folder's device, killed at any call to the host: each request is done once, as the guest sees it."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.ninep_driver import (
    CLUNK,
    EXCL,
    LCREATE,
    LINK,
    LOPEN,
    MKDIR,
    RDWR,
    REMOVE,
    REMOVEDIR,
    RENAME,
    RENAMEAT,
    ROOT,
    SETATTR,
    SYMLINK,
    TRUNC,
    UNLINKAT,
    WALK,
    WRITE,
    Refused,
    Share,
    answer,
    long,
    request,
    word,
)
from vmesh import errors
from vmesh.v1.devices_pb2 import Virtio9pFid, Virtio9pState
from vmesh.v1.slot_pb2 import Virtio9pRecord
from vmesh.virtio.split import SplitQueue
from vmesh_services.devices.virtio_9p import folder as folder_module
from vmesh_services.devices.virtio_9p import ledger, server


class Killed(BaseException):
    """The process ends here."""


CALLS = (
    *("open", "mkdir", "symlink", "link", "unlink", "rmdir", "rename", "write", "pwrite"),
    *("setxattr", "chmod", "chown", "truncate", "ftruncate", "utime"),
)


class MortalOs:
    """The module `os`, with an end before or after one of CALLS."""

    def __init__(self, after: int) -> None:
        self._left = after  # twice the number of calls before it; odd: at the end of that call

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        if name not in CALLS:
            return value

        def call(*arguments: Any, **options: Any) -> Any:
            self.step()
            result = value(*arguments, **options)
            self.step()
            return result

        return call

    def step(self) -> None:
        self._left -= 1
        if self._left == -1:
            raise Killed


@contextmanager
def mortal(after: int) -> Iterator[MortalOs]:
    """The device dies at that call; also at the store that gives a request back."""
    mortal_os = MortalOs(after)
    push_all = SplitQueue.push_all

    def push(self: SplitQueue, done: Any) -> None:
        mortal_os.step()
        push_all(self, done)
        mortal_os.step()

    with pytest.MonkeyPatch.context() as patch:
        for module in (folder_module, ledger, server):
            patch.setattr(module, "os", mortal_os)
        patch.setattr(SplitQueue, "push_all", push)
        yield mortal_os


def tree(folder: Path) -> dict[str, object]:
    """What is in the folder: names with what they lead to."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[name] = path.stat().st_mode
        else:
            found[name] = (path.stat().st_mode, path.read_bytes(), path.stat().st_nlink)
    return found


def new_share(directory: Path, *, mapped: bool = False) -> Share:
    folder = directory / "folder"
    (folder / "directory").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "file").write_bytes(b"content")
    (folder / "directory" / "inner").write_bytes(b"inner")
    share = Share(directory, folder, mapped=mapped)
    share.mount(user=os.getuid())
    share.walk(1, b"directory")
    share.walk(2, b"directory", b"inner")
    share.open(3, b"file", flags=RDWR)
    share.walk(4, b"file")
    share.walk(5)
    return share


GROUP = word(os.getgid())
REQUESTS: dict[str, bytes] = {
    "walk": request(WALK, word(ROOT), word(9), ("H", 1), b"directory"),
    "walk in place": request(WALK, word(1), word(1), ("H", 1), b"inner"),
    "clunk": request(CLUNK, word(3)),
    "open": request(LOPEN, word(4), word(RDWR)),
    "open and truncate": request(LOPEN, word(4), word(RDWR | TRUNC)),
    "create": request(LCREATE, word(5), b"new", word(RDWR | EXCL), word(0o640), GROUP),
    "create what is there": request(LCREATE, word(5), b"file", word(RDWR | EXCL), word(0o640), GROUP),
    "mkdir": request(MKDIR, word(ROOT), b"new", word(0o750), GROUP),
    "mkdir what is there": request(MKDIR, word(ROOT), b"empty", word(0o750), GROUP),
    "symlink": request(SYMLINK, word(ROOT), b"new", b"/target", GROUP),
    "link": request(LINK, word(ROOT), word(4), b"new"),
    "unlink": request(UNLINKAT, word(ROOT), b"file", word(0)),
    "unlink what is not there": request(UNLINKAT, word(ROOT), b"nothing", word(0)),
    "rmdir": request(UNLINKAT, word(ROOT), b"empty", word(REMOVEDIR)),
    "remove": request(REMOVE, word(4)),
    "rename": request(RENAME, word(2), word(ROOT), b"moved"),
    "renameat": request(RENAMEAT, word(ROOT), b"directory", word(ROOT), b"moved"),
    "rename over": request(RENAMEAT, word(1), b"inner", word(ROOT), b"file"),
    "write": struct.pack("<I", 31) + request(WRITE, word(3), long(4), word(8))[4:] + b"12345678",
    "setattr": request(
        SETATTR, word(4), word(0x9), word(0o600), word(0), word(0), long(3), long(0), long(0), long(0), long(0)
    ),
}


def fids(share: Share) -> list[str]:
    """As text: path, whether open. The inode of what was just made differs from run to run."""
    state = share.device.save()
    assert isinstance(state, Virtio9pState)
    return sorted(f"{fid.fid} {b'/'.join(fid.path)!r} {fid.directory} {fid.open} {fid.flags}" for fid in state.fids)


def outcome(share: Share, reply: bytes) -> object:
    """What the guest can tell: the reply's kind or error, the folder, the fids."""
    code = struct.unpack_from("<I", reply, 7)[0] if reply[4] == 7 else 0
    return reply[4], code, tree(share.folder), fids(share)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_done_once_wherever_the_device_is_killed(tmp_path: Path, name: str, mapped: bool) -> None:
    message = REQUESTS[name]
    (tmp_path / "unhurt").mkdir()
    try:
        unhurt = new_share(tmp_path / "unhurt", mapped=mapped)
    except errors.ConfigError as error:
        pytest.skip(str(error))
    expected = outcome(unhurt, unhurt.exchange(message))
    for after in range(100):
        directory = tmp_path / str(after)
        directory.mkdir()
        share = new_share(directory, mapped=mapped)
        share.send(message)
        died = False
        with mortal(after):
            try:
                share.device.ring(0)
                share.device.settle()
            except Killed:
                died = True
        if died:
            share.start()
            if not share.answered:
                share.device.settle()
        assert outcome(share, share.reply()) == expected, f"killed at {after}"
        assert share.walk(50) == 0  # and it goes on
        if not died:
            break
    assert not died
    assert after >= 4


def test_fids_and_open_files_live_on(tmp_path: Path) -> None:
    share = new_share(tmp_path)
    before = fids(share)
    share.write(3, b"CON")
    share.start()
    assert fids(share) == before
    assert share.read(3) == b"CONtent"
    assert share.attributes(2)["size"] == 5
    share.start()  # and again
    assert share.read(3) == b"CONtent"


def test_what_cannot_be_opened_again_is_stale(tmp_path: Path) -> None:
    share = new_share(tmp_path)
    share.ask(UNLINKAT, word(ROOT), b"file", word(0))
    assert share.read(3) == b"content"
    (share.folder / "file").write_bytes(b"another")
    share.start()
    for call in (lambda: share.read(3), lambda: share.write(3, b"x"), lambda: share.attributes(3)):
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.args == (errno.ESTALE,)
    share.ask(CLUNK, word(3))
    with pytest.raises(Refused) as caught:
        share.attributes(4)
    assert caught.value.args == (errno.ENOENT,)


def test_a_link_in_the_place_of_an_open_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"outside")
    share = new_share(tmp_path)
    (share.folder / "file").unlink()
    (share.folder / "file").symlink_to(tmp_path / "secret")
    share.start()
    with pytest.raises(Refused) as caught:
        share.read(3)
    assert caught.value.args == (errno.ESTALE,)


def test_a_listing_goes_on_in_the_next_life(tmp_path: Path) -> None:
    share = new_share(tmp_path)
    for number in range(100):
        (share.folder / "empty" / f"n{number}").touch()
    share.open(9, b"empty")
    share.walk(10, b"empty")
    found: list[bytes] = []
    offset = 0
    while entries := share.readdir(9, offset, count=200):
        found += [name for name, _, _ in entries]
        offset = entries[-1][1]
        if entries[0][0] != b".":
            share.ask(UNLINKAT, word(10), entries[0][0], word(0))
        share.start()
    assert len(found) == len(set(found)) == 102


def test_a_record_that_was_cut_off_counts_as_not_written(tmp_path: Path) -> None:
    share = new_share(tmp_path)
    path = tmp_path / "share0.ledger"
    before = fids(share)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:13])
    share.start()
    assert fids(share) == before
    assert path.read_bytes() == whole
    share.walk(9, b"directory")
    path.write_bytes(path.read_bytes()[:-1])
    share.start()
    assert fids(share) == before


def test_the_ledger_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_SLACK", 2000)
    share = new_share(tmp_path)
    before = fids(share)
    for _ in range(200):
        share.walk(9, b"directory")
        share.ask(CLUNK, word(9))
    assert (tmp_path / "share0.ledger").stat().st_size < 6000
    share.start()
    assert fids(share) == before


def test_a_ledger_that_cannot_be_made_anew_is_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "machine").mkdir()
    kept = ledger.Ledger(tmp_path / "machine" / "share0.ledger", fresh=True)
    kept.append(Virtio9pRecord())
    (tmp_path / "machine").rename(tmp_path / "elsewhere")
    with pytest.raises(errors.HostLimit, match="No such file"):
        kept.anew(Virtio9pRecord())
    assert list(kept.read()) == [Virtio9pRecord()]


def test_a_state_goes_to_another_device(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    share = new_share(tmp_path / "a")
    other = Share(tmp_path / "b", share.folder)
    former, state = share.device.save(), other.device.save()
    assert isinstance(former, Virtio9pState)
    assert isinstance(state, Virtio9pState)
    state.msize = former.msize
    state.fids.extend(former.fids)
    other.device.check(state, 1)
    other.device.load(state)
    assert fids(other) == fids(share)
    assert other.read(3) == b"content"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.fids.append(Virtio9pFid(fid=99, path=[b".."])), "path of fid 99"),
        (lambda state: state.fids.append(Virtio9pFid(fid=99, path=[b"a/b"])), "path of fid 99"),
        (lambda state: state.fids.append(Virtio9pFid(fid=99, path=[b"a" * 255] * 17)), "path of fid 99"),
        (lambda state: state.fids.append(state.fids[0]), "twice"),
        (lambda state: setattr(state, "msize", 1 << 30), "msize"),
    ],
)
def test_states_that_are_refused(tmp_path: Path, change: Callable[[Virtio9pState], None], reason: str) -> None:
    share = new_share(tmp_path)
    state = share.device.save()
    assert isinstance(state, Virtio9pState)
    change(state)
    with pytest.raises(errors.BadState, match=reason):
        share.device.check(state, 1)


def test_an_old_mark_means_nothing_after_a_reset(tmp_path: Path) -> None:
    share = new_share(tmp_path)
    share.ask(MKDIR, word(ROOT), b"new", word(0o750), GROUP)
    share.start()
    with pytest.raises(Refused) as caught:
        answer(share.exchange(REQUESTS["mkdir"]), MKDIR)
    assert caught.value.args == (errno.EEXIST,)
