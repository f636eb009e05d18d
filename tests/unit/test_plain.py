"""Files that users name: nobody waits for a FIFO, which would stop a loop for ever; nothing else is written over."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from vmesh import chardev, errors, plain
from vmesh.log import Log
from vmesh.loop import Loop
from vmesh.qdev import virtio
from vmesh_services.devices.virtio_blk.image import RawImage
from vmesh_services.monitor.control import Control, Work
from vmesh_services.monitor.qmp.errors import QmpError
from vmesh_services.monitor.qmp.handlers import block, execute


def save(path: Path) -> None:
    """Nothing of memory, which needs no machine."""
    work = execute(cast(Control, None), "pmemsave", {"val": 0, "size": 0, "filename": str(path)})
    assert isinstance(work, Work)
    for _ in work.parts:
        raise AssertionError("nothing is to be asked for")


def console(path: Path) -> None:
    chardev.make(f"file:{path}", Loop(), Log("x", Path("/dev/null")), lambda: 0, lambda data: None).start()


REFUSES: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "a file": (lambda path: plain.open_file(path, os.O_RDONLY), OSError, "it is no file"),
    "pmemsave": (save, QmpError, "Could not open"),
    "-drive": (lambda path: virtio.parse_drive({"file": str(path)}), ValueError, "cannot be read: it is no file"),
    "disk": (lambda path: RawImage(path, read_only=True), errors.ConfigError, "expected a file or a block device"),
    "chardev": (console, errors.ConfigError, "cannot write"),
}


@pytest.mark.parametrize("door", list(REFUSES))
def test_a_fifo_is_refused_not_waited_for(tmp_path: Path, door: str) -> None:
    take, error, text = REFUSES[door]
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(error, match=text):
        take(tmp_path / "fifo")


def test_a_fifo_that_is_read_is_no_file_to_save_memory_in(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(QmpError, match="it is no file"):
        save(tmp_path / "fifo")
    os.close(reader)


def test_a_disk_that_was_made_a_fifo_has_no_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert cast(Any, block)._image(str(tmp_path / "fifo"), "qcow2")["virtual-size"] == 0


def test_a_log_in_a_fifo_is_written_as_it_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "log")
    log = Log("x", tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    for number in range(3000):  # more than it has room for
        log._put("info", "event", {"number": number, "text": "x" * 300})
    assert b"info x event number=0 " in os.read(reader, 1000)
    os.close(reader)
    assert capsys.readouterr().err == ""


def test_memory_is_saved_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"of an earlier time")
    save(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b""
    save(tmp_path / "fresh")
    assert (tmp_path / "fresh").stat().st_mode & 0o077 == 0
