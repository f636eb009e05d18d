"""The log is bounded, whatever a guest causes: each cause once and then seldom, and two files of a size at most."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vmesh import log
from vmesh.log import Log

TURN_BYTES = 16 << 10


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "TURN_BYTES", TURN_BYTES)


def lines(path: Path, event: str) -> list[str]:
    return [line for line in path.read_text().splitlines() if f" {event}" in line]


def test_a_cause_is_written_once_and_then_seldom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Log("blk0", tmp_path / "log")
    written = [made.warning("notice", text="queue 0: needs reset") for _ in range(1234)]
    assert [count for count, each in enumerate(written, start=1) if each] == [1, 10, 100, 1000]
    assert made.warning("notice", text="queue 1: needs reset")  # another cause
    made.close()
    found = lines(tmp_path / "log", "notice")
    assert [line.partition("left_out=")[2] for line in found] == ["", "8", "89", "899", ""]
    assert "event=notice left_out=234" in (tmp_path / "log").read_text()
    assert len(capsys.readouterr().err.splitlines()) == 5  # a terminal is not flooded either


def test_a_cause_that_comes_now_and_then_is_written_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Log("blk0", tmp_path / "log")
    for minute in range(5):
        monkeypatch.setattr(time, "monotonic", lambda minute=minute: 1000 + 61.0 * minute)
        assert made.info("restarted", pid=7)


def test_causes_without_number_are_one(tmp_path: Path) -> None:
    """A guest makes texts of its own."""
    made = Log("blk0", tmp_path / "log")
    written = sum(made.info("notice", text=f"descriptor at {number:#x}") for number in range(20_000))
    assert written < 80
    assert made.info("another event")


def test_of_what_varies_the_cause_counts(tmp_path: Path) -> None:
    made = Log("cpu", tmp_path / "log")
    assert sum(made.info("refused", cause="frames", text=str(number)) for number in range(1000)) == 4


def fill(made: Log, names: str) -> None:
    """Write more than two files have room for."""
    for number in range(3 * TURN_BYTES // 400):
        made.info(f"{names} {number}", text="x" * 400)


def test_a_log_that_is_full_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    one, other = Log("one", path), Log("other", path)
    fill(one, "event")
    other.info("seen")  # by another process, which still had the former file
    one.info("seen")
    assert len(lines(path, "seen")) == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["log", "log.1"]
    assert all(each.stat().st_size < TURN_BYTES + 1024 for each in tmp_path.iterdir())


def test_the_file_of_the_user_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.touch()
    (tmp_path / "log").symlink_to(theirs)
    fill(Log("one", tmp_path / "log"), "event")
    assert theirs.stat().st_size > 2 * TURN_BYTES
    assert sorted(each.name for each in tmp_path.iterdir()) == ["log", "theirs"]


def test_a_full_disk_ends_nobody() -> None:
    made = Log("one", Path("/dev/full"))
    made.info("event")
    made.close()
