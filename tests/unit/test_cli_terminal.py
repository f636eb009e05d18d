"""The user's terminal in raw mode, on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import termios
from collections.abc import Iterator

import pytest

from vmesh.cli.terminal import RawTerminal
from vmesh.stdio import write_piece


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """The user's end and the program's."""
    user, program = pty.openpty()
    yield user, program
    os.close(user)
    os.close(program)


def test_it_is_as_it_was_afterwards(ends: tuple[int, int]) -> None:
    _, program = ends
    before = termios.tcgetattr(program)
    with RawTerminal(program, signals=False):
        assert termios.tcgetattr(program) != before
    assert termios.tcgetattr(program) == before


@pytest.mark.timeout(10)
def test_it_is_given_back_though_nobody_reads_what_was_written(ends: tuple[int, int]) -> None:
    _, program = ends
    before = termios.tcgetattr(program)
    with RawTerminal(program, signals=False):
        while write_piece(program, b"x" * 1000, 0.0):
            pass
    assert termios.tcgetattr(program) == before


@pytest.mark.timeout(10)
def test_read_does_not_wait_for_what_a_signal_key_has_dropped(ends: tuple[int, int]) -> None:
    user, program = ends
    with RawTerminal(program, signals=True):
        os.write(user, b"typed\x03")
        assert os.read(program, 100) == b""
        os.write(user, b"x")
        assert os.read(program, 100) == b"x"


def test_without_signals_their_keys_are_bytes(ends: tuple[int, int]) -> None:
    user, program = ends
    with RawTerminal(program, signals=False):
        os.write(user, b"\x03\x1a\x1c")
        assert os.read(program, 100) == b"\x03\x1a\x1c"
