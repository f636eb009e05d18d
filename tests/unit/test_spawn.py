"""Forked services: what they have, what they lack, and how their end is told."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from vmesh.spawn import ServiceCommand, describe_exit, fork


def _ended(child_pid: int) -> int:
    return os.waitpid(child_pid, 0)[1]


def test_child_ends_with_what_it_returns() -> None:
    child = fork(lambda: 7, title="t")
    assert describe_exit(_ended(child.pid)) == "ended with status 7"
    os.close(child.pidfd)


def test_child_that_raises_ends_with_status_1(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise RuntimeError("broken")

    child = fork(fail, title="t")
    assert describe_exit(_ended(child.pid)) == "ended with status 1"
    assert capfd.readouterr().err.splitlines()[-1] == "RuntimeError: broken"
    os.close(child.pidfd)


def test_child_has_a_session_and_default_signals_of_its_own() -> None:
    def look() -> int:
        ours = os.getsid(0) == os.getpid() and signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        return 0 if ours else 1

    child = fork(look, title="t")
    assert _ended(child.pid) == 0
    os.close(child.pidfd)


def test_killed_child_is_told_by_the_signals_name() -> None:
    def sleep() -> int:
        signal.pause()
        return 0

    child = fork(sleep, title="t")
    os.kill(child.pid, signal.SIGKILL)
    assert describe_exit(_ended(child.pid)) == "was killed by SIGKILL"
    os.close(child.pidfd)


def test_command_line_can_be_typed() -> None:
    command = ServiceCommand("a", "k", "services.k", ("--text", "two words"))
    assert str(command).endswith("-m services.k --text 'two words'")


_RECIPES = ("Makefile", "README.md", "vmesh", "services", "bench", "tools", "deploy", "docs")
_UNSAFE = re.compile(r"""(?:python[0-9.]*|PYTHON\)|PY\)|executable}?"?,?) +"?-m\b""")


def test_every_python_is_started_without_the_current_directory() -> None:
    """`python -m` imports from there first: `spawn.python` has -P, and so has what docs and recipes tell to type."""
    root = Path(__file__).resolve().parents[2]
    files = {path for name in _RECIPES for path in [root / name, *(root / name).rglob("*")] if path.is_file()}
    files -= {root / "docs" / "findings.md"}  # what was run then
    texts = {path: path.read_text() for path in files if path.suffix != ".pyc"}
    assert not [(path.name, line) for path, text in texts.items() for line in text.splitlines() if _UNSAFE.search(line)]
