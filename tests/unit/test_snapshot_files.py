"""Files of snapshots: only what is one is replaced or deleted, no link is followed, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from tests.models.hostile_streams import Side
from vmesh import errors
from vmesh.cli import main
from vmesh.migration import snapshots
from vmesh.migration.records import MAGIC, StreamError
from vmesh_services.migration.files import whole_file
from vmesh_services.migration.snapshot import Load, Save
from vmesh_services.monitor.qmp.errors import QmpError
from vmesh_services.monitor.qmp.handlers import migration as handlers


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A snapshot."""
    path = tmp_path / "good"
    Save(Side(tmp_path / "side").context(), str(path)).run()
    return path


def _device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # as /dev/null
    except PermissionError:
        pytest.skip("a device: only root can make one")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


OTHERS: dict[str, Callable[[Path], object]] = {
    "data": lambda path: path.write_bytes(b"data" * 1000),
    "empty": lambda path: path.write_bytes(b""),
    "begins as one": lambda path: path.write_bytes(MAGIC + b"data" * 100),
    "link to a snapshot": lambda path: path.symlink_to("good"),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "folder": lambda path: path.mkdir(),
    "FIFO": os.mkfifo,
    "socket": _socket,
    "device": _device,
}


def _save(path: Path) -> None:
    with whole_file(path) as sink:
        sink.write([b"other"])


def _by_cli(path: Path) -> None:
    if main.main(["snapshot", "delete", str(path)]):
        raise errors.HostLimit("refused")


DOORS: dict[str, Callable[[Path], None]] = {
    "save": _save,
    "delete": snapshots.delete,
    "QMP and HMP": lambda path: handlers.delete(cast(Any, None), str(path)),
    "vmesh snapshot delete": _by_cli,
}


@pytest.mark.parametrize("door", list(DOORS))
@pytest.mark.parametrize("what", list(OTHERS))
def test_what_is_no_snapshot_is_left_as_it_is(good: Path, what: str, door: str) -> None:
    path = good.with_name("precious")
    OTHERS[what](path)
    before, names = os.lstat(path), sorted(os.listdir(good.parent))
    content = path.read_bytes() if stat.S_ISREG(before.st_mode) else b""
    with pytest.raises((errors.VmeshError, QmpError)):
        DOORS[door](path)
    after = os.lstat(path)
    assert (after.st_mode, after.st_ino, after.st_size) == (before.st_mode, before.st_ino, before.st_size)
    assert not content or path.read_bytes() == content
    assert sorted(os.listdir(good.parent)) == names
    assert good.read_bytes().startswith(MAGIC)


@pytest.mark.parametrize("door", list(DOORS))
def test_what_is_one_is_replaced_or_deleted(good: Path, door: str) -> None:
    DOORS[door](good)
    assert not good.exists() or good.read_bytes() == b"other"
    assert sorted(each.name for each in good.parent.iterdir()) == (["good", "side"] if door == "save" else ["side"])


def _replace(path: Path) -> None:
    """By another file that is the same."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


def test_write_that_fails_leaves_the_former_one_and_nothing_else(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without files that have no name; the last time it is another one that has come meanwhile."""
    before, names = good.read_bytes(), sorted(os.listdir(good.parent))
    real = os.open

    def without(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *more, **options)

    for opens in (real, without):
        monkeypatch.setattr(os, "open", opens)
        with pytest.raises(RuntimeError), whole_file(good):
            raise RuntimeError
        assert (good.read_bytes(), sorted(os.listdir(good.parent))) == (before, names)
        with pytest.raises(errors.HostLimit, match="come there meanwhile"), whole_file(good):
            _replace(good)
        assert (good.read_bytes(), sorted(os.listdir(good.parent))) == (before, names)
        with whole_file(good.with_name("new")) as sink:
            sink.write([b"new"])
        assert good.with_name("new").read_bytes() == b"new"
        good.with_name("new").unlink()


def test_bytes_behind_the_end_are_noticed_before_anything_changes(good: Path, tmp_path: Path) -> None:
    side = Side(tmp_path / "other")
    with good.open("ab") as file:
        file.write(b"x")
    with pytest.raises(StreamError, match="nothing behind its end, got 1 bytes"):
        Load(side.context(), str(good)).run()
    assert not side.machine.did


@pytest.mark.parametrize("what", ["data", "empty", "FIFO", "folder"])
def test_load_of_what_is_none_is_refused(good: Path, what: str) -> None:
    path = good.with_name("precious")
    OTHERS[what](path)
    side = Side(good.with_name("other"))
    with pytest.raises(errors.VmeshError, match=r"expected a file|no migration stream"):
        Load(side.context(), str(path)).run()
    assert not side.machine.did


@pytest.mark.parametrize("what", ["data", "empty", "FIFO", "folder", "none"])
def test_inspect_says_in_one_line_that_a_file_is_none(good: Path, what: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = good.with_name("precious")
    if what in OTHERS:
        OTHERS[what](path)
    capfd.readouterr()
    assert main.main(["migration", "inspect", str(path)]) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.count(str(path)) == 1
