"""Segments: which parts of their files have memory of the host."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmesh import segment
from vmesh.errors import ConfigError, HostLimit
from vmesh.segment import PAGE

PAGES = 4096


@pytest.fixture
def file() -> Iterator[int]:
    """A segment in memory, as on tmpfs: its holes are known to the page."""
    fd = os.memfd_create("ram.seg")
    os.ftruncate(fd, PAGES * PAGE)
    yield fd
    os.close(fd)


def test_parts_that_were_written_are_found(file: int) -> None:
    assert segment.touched(file, PAGES * PAGE) == []
    for page in (0, 7, 8, PAGES - 1):
        os.pwrite(file, b"x", page * PAGE + secrets.randbelow(PAGE))
    assert segment.touched(file, PAGES * PAGE) == [(0, 1), (7, 9), (PAGES - 1, PAGES)]


@pytest.mark.parametrize("left", [0, PAGE, PAGES * PAGE - 1])
def test_what_was_cut_off_is_no_hole(file: int, left: int) -> None:
    """It would be taken for zero: a guest would go on elsewhere without its memory, or a snapshot have none."""
    os.pwrite(file, b"x", 0)
    os.ftruncate(file, left)
    with pytest.raises(HostLimit, match=f"guest memory was cut short: {left} of {PAGES * PAGE} bytes are left"):
        segment.touched(file, PAGES * PAGE)


def test_memory_of_another_size_is_not_taken_over(tmp_path: Path) -> None:
    theirs = tmp_path / "ram.seg"
    segment.create(theirs, 2 << 20)
    with pytest.raises(ConfigError, match=r"expected 1 MiB of RAM \(-m\), got 2 MiB$"):
        segment.adopt(theirs, tmp_path / "mine", 1 << 20)
    assert not (tmp_path / "mine").exists()
