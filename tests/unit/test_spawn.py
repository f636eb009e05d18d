"""Forked services: what they have, what they lack, and how their end is told."""

from __future__ import annotations

import os
import signal

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
    child = fork(lambda: signal.pause() or 0, title="t")
    os.kill(child.pid, signal.SIGKILL)
    assert describe_exit(_ended(child.pid)) == "was killed by SIGKILL"
    os.close(child.pidfd)


def test_command_line_can_be_typed() -> None:
    command = ServiceCommand("a", "k", "services.k", ("--text", "two words"))
    assert str(command).endswith("-m services.k --text 'two words'")
