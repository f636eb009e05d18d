"""The same with the real services: a guest at its prompt, and somebody is killed."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests.faults.conftest import Rig
from tests.waiting import read_some

pytestmark = pytest.mark.system

BANNER = b"a machine made of processes"
PROMPT = b"> "


def _wait_prompt(launcher: subprocess.Popen[bytes]) -> None:
    assert launcher.stdout is not None
    seen = b""
    while not (BANNER in seen and seen.endswith(PROMPT)):
        data = read_some(launcher.stdout.fileno(), "the prompt")
        assert data, f"the machine ended after {seen!r}"
        seen += data


@pytest.mark.parametrize("victim", ["memory", "cpu"])
def test_service_killed_is_named_and_nothing_is_left(rig: Rig, victim: str) -> None:
    launcher = rig.start_real()
    _wait_prompt(launcher)
    pid = {service.name: service.pid for service in rig.wait_running().services}[victim]
    os.kill(pid, signal.SIGKILL)
    _, stderr = launcher.communicate()
    line = stderr.decode().splitlines()[-1]
    assert line == f"vmesh run: machine 'm': service '{victim}' (pid {pid}) was killed by SIGKILL"
    assert launcher.returncode == 1
    rig.wait_clean()


@pytest.mark.parametrize("victim", ["launcher", "monitor", "both"])
def test_launcher_and_monitor_killed_leaves_nothing(rig: Rig, victim: str) -> None:
    launcher = rig.start_real()
    _wait_prompt(launcher)
    monitor = rig.wait_running().pid
    for name, pid in (("launcher", launcher.pid), ("monitor", monitor)):
        if victim in (name, "both"):
            os.kill(pid, signal.SIGKILL)
    launcher.communicate()
    rig.wait_clean()


def test_stopped_service_is_found_and_nothing_is_left(rig: Rig) -> None:
    launcher = rig.start_real("-health-interval", "0.2")
    _wait_prompt(launcher)
    pid = {service.name: service.pid for service in rig.wait_running().services}["cpu"]
    os.kill(pid, signal.SIGSTOP)
    _, stderr = launcher.communicate()
    assert f"service 'cpu' (pid {pid}) hangs" in stderr.decode().splitlines()[-1]
    rig.wait_clean()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_device_that_is_killed_or_hangs_comes_back(rig: Rig, number: signal.Signals) -> None:
    launcher = rig.start_real("-health-interval", "0.2")
    _wait_prompt(launcher)
    rig.wait_running()
    for name in ("uart0", "rtc", "test"):
        os.kill(rig.service(name).pid, number)
    stdout, _ = launcher.communicate(b"hello there\n")
    assert stdout.count(b"hello there") == 2, "typed, and said back"
    assert launcher.returncode == 0
    rig.wait_clean()


def test_commands_from_a_pipe_reach_the_guest_and_the_end_powers_it_off(rig: Rig) -> None:
    launcher = rig.start_real()
    stdout, stderr = launcher.communicate(b"hello there\n")
    assert BANNER in stdout
    assert stdout.count(b"hello there") == 2, f"typed, and said back: {stdout!r}, {launcher.returncode}, {stderr!r}"
    assert launcher.returncode == 0
    rig.wait_clean()
