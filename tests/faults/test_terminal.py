"""The terminal: raw while the machine has it, as it was on every way out, and no machine without its terminal."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.conftest import DEADLINE, Rig
from tests.waiting import read_some, wait_for


class Terminal:
    """A pseudo-terminal with a launcher as the leader of its session."""

    def __init__(self, rig: Rig, *flags: str) -> None:
        self.user, self._other = pty.openpty()
        self.before = termios.tcgetattr(self._other)
        self.launcher = subprocess.Popen(
            # A session leader that opens a terminal gets it as its controlling terminal.
            [
                "sh",
                "-c",
                'exec "$@" <"$0" >"$0"',
                os.ttyname(self._other),
                sys.executable,
                "-m",
                "tests.standin.launch",
                "-name",
                "m",
                *flags,
            ],
            cwd=ROOT,
            env=rig.environment,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.seen = b""
        self._rig = rig

    def type(self, keys: bytes) -> None:
        os.write(self.user, keys)

    def wait(self, text: bytes) -> None:
        """Read until `text` has come."""
        end = time.monotonic() + DEADLINE
        while text not in self.seen:
            what = f"{text!r} after {self.seen!r}"
            self.seen += read_some(self.user, what, max(0.0, end - time.monotonic()))

    def end(self) -> bytes:
        """Wait until the launcher has ended; gives what it said on stderr."""
        try:
            return self.launcher.communicate(timeout=DEADLINE)[1]
        except subprocess.TimeoutExpired:
            left = [_describe(pid) for pid in self._rig.processes()]
            raise AssertionError(
                f"the launcher, process {self.launcher.pid}, has not ended; there are {left}"
            ) from None

    @property
    def mode(self) -> list[object]:
        return list(termios.tcgetattr(self._other))

    def hang_up(self) -> None:
        os.close(self._other)
        os.close(self.user)
        self.user = self._other = -1

    def close(self) -> None:
        self.launcher.kill()
        self.launcher.wait()
        if self.user >= 0:
            self.hang_up()


def _describe(pid: int) -> str:
    """A process: its number and name, what it waits for, and the signals that it has not taken."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    waits = Path(f"/proc/{pid}/wchan").read_text()
    return f"{pid} {status['Name']} {status['State']} in {waits}, pending {status['SigPnd']} {status['ShdPnd']}"


@pytest.fixture
def terminal(rig: Rig, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    made = Terminal(rig, *getattr(request, "param", ()))
    made.wait(b"guest is up")
    rig.wait_running()
    yield made
    made.close()


def test_keys_go_to_the_guest_raw_and_ctrl_a_x_ends(rig: Rig, terminal: Terminal) -> None:
    assert terminal.mode != terminal.before
    terminal.type(b"\x03\x1a\x04")
    terminal.wait(b"<\x03\x1a\x04>")
    terminal.type(b"\x01x")
    stderr = terminal.end()
    assert (terminal.launcher.returncode, stderr) == (0, b"vmesh: terminated by Ctrl-A x\n")
    assert terminal.mode == terminal.before
    rig.wait_clean()


def test_prompt_controls_the_machine_and_the_console_comes_back(rig: Rig, terminal: Terminal) -> None:
    terminal.type(b"\x01cstop\r")
    rig.wait_running("paused")
    terminal.type(b"info services\rfrobnicate\rcont\r")
    terminal.wait(b"sifive-test")
    terminal.wait(b"unknown command: 'frobnicate'")
    rig.wait_running()
    terminal.type(b"\x01c")
    terminal.type(b"again")
    terminal.wait(b"<again>")
    terminal.type(b"\x01cquit\r")
    terminal.end()
    assert terminal.launcher.returncode == 0
    assert terminal.mode == terminal.before
    rig.wait_clean()


@pytest.mark.parametrize("terminal", [("-serial", "stdio")], indirect=True)
def test_ctrl_c_ends_where_nothing_else_does(rig: Rig, terminal: Terminal) -> None:
    terminal.type(b"\x01x")
    terminal.wait(b"<\x01x>")
    terminal.type(b"\x03")
    stderr = terminal.end()
    assert (terminal.launcher.returncode, stderr) == (0, b"vmesh: terminated by SIGINT\n")
    assert terminal.mode == terminal.before
    rig.wait_clean()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signal_ends_in_order_and_restores_the_terminal(rig: Rig, terminal: Terminal, number: int) -> None:
    terminal.launcher.send_signal(number)
    terminal.end()
    assert terminal.launcher.returncode == 0
    assert terminal.mode == terminal.before
    rig.wait_clean()


@pytest.mark.parametrize("victim", ["cpu", "monitor"])
def test_failure_restores_the_terminal(rig: Rig, terminal: Terminal, victim: str) -> None:
    record = rig.wait_running()
    pids = {"monitor": record.pid, **{service.name: service.pid for service in record.services}}
    os.kill(pids[victim], signal.SIGKILL)
    stderr = terminal.end()
    assert victim.encode() in stderr
    assert terminal.mode == terminal.before
    rig.wait_clean()


def test_closed_terminal_ends_the_machine(rig: Rig, terminal: Terminal) -> None:
    terminal.hang_up()
    terminal.end()
    rig.wait_clean()


def test_closed_output_ends_the_machine(rig: Rig) -> None:
    launcher = rig.start()
    rig.wait_running()
    assert launcher.stdout is not None
    launcher.stdout.close()
    assert launcher.wait() == 0
    rig.wait_clean()


def test_terminal_that_is_not_read_does_not_keep_the_machine_from_ending(rig: Rig) -> None:
    launcher = rig.start()
    rig.wait_running()
    rig.order("uart0", "write 0123456789")
    wait_for(lambda: not (rig.machine.path / "uart0.do").exists(), "the guest to write")
    rig.order("test", "poweroff 3")
    assert launcher.wait() == 3  # the test's limit is its assertion
    assert launcher.stderr is not None
    assert b"bytes of the console were not read" in launcher.stderr.read()
    rig.wait_clean()


def test_stopped_terminal_holds_the_guest_back_and_loses_nothing(rig: Rig) -> None:
    launcher = rig.start()
    rig.wait_running()
    rig.order("uart0", "write 0123456789")
    wait_for(lambda: not (rig.machine.path / "uart0.do").exists(), "the guest to write")
    rig.order("test", "poweroff 0")
    stdout, _ = launcher.communicate()
    assert stdout == b"guest is up\n" + b"0123456789" * 10_000
    rig.wait_clean()
