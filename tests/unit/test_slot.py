"""The slot keeps the last whole record, whatever happened to the one being written."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from vmesh import errors
from vmesh.slot import CAPACITY, Slot


def test_fresh_and_empty(tmp_path: Path) -> None:
    path = tmp_path / "slot"
    Slot(path, fresh=True).write(b"old life")
    assert Slot(path, fresh=False).read() == b"old life"
    assert Slot(path, fresh=True).read() is None
    assert path.stat().st_mode & 0o077 == 0


def test_the_last_of_many(tmp_path: Path) -> None:
    path = tmp_path / "slot"
    slot = Slot(path, fresh=True)
    for number in range(7):
        slot.write(b"%d" % number * (number + 1))
        assert Slot(path, fresh=False).read() == b"%d" % number * (number + 1)


def test_goes_on_after_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "slot"
    Slot(path, fresh=True).write(b"one")
    second = Slot(path, fresh=False)
    assert second.read() == b"one"
    second.write(b"two")
    assert Slot(path, fresh=False).read() == b"two"


def test_a_torn_record_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "slot"
    chance = random.Random(4)
    slot = Slot(path, fresh=True)
    slot.write(b"before")  # record 1 is in the second half
    before = path.read_bytes()
    slot.write(b"after and longer")
    after = path.read_bytes()
    changed = [at for at in range(len(after)) if before[at] != after[at]]
    assert changed
    for _ in range(200):
        # Any part of the changed bytes may have got to the file.
        torn = bytearray(after)
        for at in chance.sample(changed, chance.randrange(1, len(changed) + 1)):
            torn[at] = before[at]
        path.write_bytes(torn)
        assert Slot(path, fresh=False).read() == b"before"
    path.write_bytes(after)
    assert Slot(path, fresh=False).read() == b"after and longer"


def test_too_long(tmp_path: Path) -> None:
    slot = Slot(tmp_path / "slot", fresh=True)
    slot.write(bytes(CAPACITY - 16))
    with pytest.raises(errors.HostLimit, match=str(CAPACITY + 1)):
        slot.write(bytes(CAPACITY + 1))
    assert Slot(tmp_path / "slot", fresh=False).read() == bytes(CAPACITY - 16)


def test_what_is_stored_to_is_allocated_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a mapped file on a full file system, what is not is a SIGBUS."""
    slot = Slot(tmp_path / "slot", fresh=True)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = (tmp_path / "slot").stat().st_blocks
    for number in range(3):
        slot.write(bytes([number]) * 15000)
    slot.marks[0] = slot.marks[-1] = 1
    assert (tmp_path / "slot").stat().st_blocks == before
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(errors.HostLimit, match="No space left"):
        slot.write(bytes(20000))
    with pytest.raises(errors.ConfigError, match="No space left"):
        Slot(tmp_path / "other", fresh=True)
    monkeypatch.undo()
    slot.write(bytes(20000))
    before = (tmp_path / "slot").stat().st_blocks
    slot.write(bytes(30000))
    assert (tmp_path / "slot").stat().st_blocks == before
    assert Slot(tmp_path / "slot", fresh=False).read() == bytes(30000)
