"""Whoever is killed, and whenever: one clear line where somebody is left to say it, and nothing else is left."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import time
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import pytest

from tests.faults.conftest import DEADLINE, Rig
from tests.waiting import wait_for
from vmesh.client import GatewayError
from vmesh.spawn import python

SERVICES = ("memory", "cpu")  # nothing goes on without these


def _kill(*pids: int, number: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.parametrize("victim", SERVICES)
def test_service_killed_is_named_and_nothing_is_left(rig: Rig, victim: str) -> None:
    launcher = rig.start()
    pids = {service.name: service.pid for service in rig.wait_running().services}
    _kill(pids[victim])
    _, stderr = launcher.communicate()
    assert stderr.decode() == (
        f"vmesh run: machine 'm': service '{victim}' (pid {pids[victim]}) was killed by SIGKILL\n"
    )
    assert launcher.returncode == 1
    rig.wait_clean()


@pytest.mark.parametrize("paused", [False, True])
def test_device_killed_is_started_again(rig: Rig, paused: bool) -> None:
    launcher = rig.start(*(["-S"] if paused else []))
    rig.wait_running("paused" if paused else "running")
    _kill(rig.service("test").pid, rig.service("uart0").pid)
    rig.wait_life("uart0", 2)
    wait_for(lambda: rig.wait_life("test", 2).state == ("paused" if paused else "running"), "the state of the others")
    _kill(rig.service("test").pid)
    rig.wait_life("test", 3)
    rig.order("test", "poweroff 5")
    _, stderr = launcher.communicate()
    assert (launcher.returncode, stderr) == (5, b"")
    rig.wait_clean()


def kill_again_and_again(rig: Rig, launcher: subprocess.Popen[bytes]) -> None:
    """Each life of a device dies until its machine, which runs, does not start another: on a busy host, later ones."""
    told = set[int]()

    def over() -> bool:
        record = rig.record()
        if launcher.poll() is not None or (record is not None and record.state == "paused"):
            return True
        life = next((each for each in record.services if each.name == "test"), None) if record is not None else None
        if life is not None and life.state == "running" and life.epoch not in told:
            told.add(life.epoch)
            rig.order("test", "say \x1b[2Jthe disk is on fire\nexit 7")
        return False

    wait_for(over, lambda: f"the machine to give up after {len(told)} lives")
    assert len(told) >= 5


def test_device_that_dies_again_and_again_stops_the_machine(rig: Rig) -> None:
    """Which goes on when it is told to, with as many deaths to spend."""
    launcher = rig.start()
    rig.wait_running()
    for _ in range(2):
        rig.wait_running()
        kill_again_and_again(rig, launcher)
        with rig.client() as client:
            status = client.status()
            why = "ended with status 7, for the 5th time within 10 s; its last words: [2Jthe disk is on fire"
            assert (status.run_state, why in status.last_error) == ("io-error", True)
            assert any(why in warning for warning in status.warnings)
            assert {service.name: service.state for service in status.services}["test"] == "dead"
            with pytest.raises(GatewayError, match=r"the machine is stopped: service 'test'.*; `vmesh resume` or"):
                client.reset()
            client.pause()  # is no error
            client.resume()
            assert (client.status().run_state, [*client.status().warnings], client.status().last_error) == (
                "running",
                [],
                "",
            )
    rig.order("test", "poweroff 5")
    assert launcher.wait(DEADLINE) == 5
    rig.wait_clean()


def test_device_that_dies_again_and_again_ends_the_machine_if_asked_to(rig: Rig) -> None:
    launcher = rig.start("-action", "device-failure=exit-failure")
    rig.wait_running()
    kill_again_and_again(rig, launcher)
    _, stderr = launcher.communicate()
    (line,) = stderr.decode().splitlines()
    assert "service 'test'" in line
    assert "ended with status 7, for the 5th time within 10 s; its last words: [2Jthe disk is on fire" in line
    assert launcher.returncode == 1
    rig.wait_clean()


def test_device_killed_while_the_machine_resets_is_asked_again(rig: Rig) -> None:
    launcher = rig.start()
    rig.wait_running()
    rig.order("uart0", "slow 60")  # to answer Drain
    rig.order("test", "reset")
    wait_for(lambda: "drain" in rig.asked("uart0"), "the drain of the device")
    _kill(rig.service("uart0").pid)
    rig.wait_life("uart0", 2)
    wait_for(lambda: rig.asked("cpu")[-1:] == ["resume"], "the cpu to go on")
    # The answer to Pause may still be on its way when the device dies: it is then asked that again, too.
    asked = [each for each, _ in groupby(rig.asked("uart0"))]
    assert asked == ["hello", "pause", "drain", "hello", "pause", "drain", "reset", "resume"]
    rig.order("test", "poweroff 0")
    assert launcher.wait() == 0
    rig.wait_clean()


def test_keeper_killed_is_named_and_nothing_is_left(rig: Rig) -> None:
    launcher = rig.start()
    rig.wait_running()
    keeper = rig.pid("keeper")
    assert keeper is not None
    _kill(keeper)
    _, stderr = launcher.communicate()
    assert stderr.decode() == f"vmesh run: machine 'm': the keeper (pid {keeper}) was killed by SIGKILL\n"
    assert launcher.returncode == 1
    rig.wait_clean()


def test_monitor_killed_is_named_and_nothing_is_left(rig: Rig) -> None:
    launcher = rig.start()
    monitor = rig.wait_running().pid
    _kill(monitor)
    _, stderr = launcher.communicate()
    assert stderr.decode() == f"vmesh run: machine 'm': the monitor (pid {monitor}) was killed by SIGKILL\n"
    assert launcher.returncode == 1
    rig.wait_clean()


def test_launcher_killed_leaves_nothing(rig: Rig) -> None:
    launcher = rig.start()
    rig.wait_running()
    _kill(launcher.pid)
    launcher.communicate()
    rig.wait_clean()


def test_launcher_and_monitor_killed_leaves_nothing(rig: Rig) -> None:
    launcher = rig.start()
    _kill(launcher.pid, rig.wait_running().pid)
    launcher.communicate()
    rig.wait_clean()


def test_launcher_and_monitor_killed_before_a_stopped_service_leaves_nothing(rig: Rig) -> None:
    launcher = rig.start()
    record = rig.wait_running()
    os.kill(next(service.pid for service in record.services if service.name == "uart0"), signal.SIGSTOP)
    _kill(launcher.pid, record.pid)
    launcher.communicate()
    rig.wait_clean()


def test_monitor_and_memory_killed_leaves_nothing(rig: Rig) -> None:
    launcher = rig.start()
    record = rig.wait_running()
    _kill(record.pid, *(service.pid for service in record.services if service.name == "memory"))
    launcher.communicate()
    assert launcher.returncode == 1
    rig.wait_clean()


@pytest.mark.parametrize("first", ["killed", "powered off"])
def test_a_device_that_dies_as_the_machine_ends_has_another_life_to_bring_out_what_it_has(rig: Rig, first: str) -> None:
    launcher = rig.start()
    record = rig.wait_running()
    pid = next(service.pid for service in record.services if service.name == "uart0")
    if first == "killed":
        _kill(pid)
        rig.order("test", "poweroff 0")
    else:
        os.kill(pid, signal.SIGSTOP)
        rig.order("test", "poweroff 0")
        wait_for(lambda: "shutdown" in rig.asked("cpu"), "the machine to end")
        _kill(pid)
    assert launcher.wait() == 0
    assert rig.asked("uart0").count("hello") == 2
    assert rig.asked("uart0")[-1] == "shutdown"
    rig.wait_clean()


def test_a_device_that_once_went_in_order_has_another_life_as_the_machine_ends(rig: Rig) -> None:
    launcher = rig.start()
    rig.wait_running()
    rig.order("uart0", "exit 0")
    pid = rig.wait_life("uart0", 2).pid
    _kill(pid)
    rig.order("test", "poweroff 0")
    assert launcher.wait() == 0
    assert rig.asked("uart0").count("hello") == 3
    assert rig.asked("uart0")[-1] == "shutdown"
    rig.wait_clean()


def test_a_device_that_dies_again_and_again_as_the_machine_ends_does_not_keep_it(rig: Rig) -> None:
    launcher = rig.start()
    rig.wait_running()
    rig.order("test", "poweroff 0")
    wait_for(lambda: "shutdown" in rig.asked("cpu"), "the machine to end")
    while launcher.poll() is None:
        if pid := rig.pid("uart0"):
            _kill(pid)
    assert launcher.returncode == 0
    rig.wait_clean()


@pytest.mark.parametrize("round_", range(6))
def test_anyone_killed_at_a_random_moment_leaves_nothing(rig: Rig, round_: int) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    launcher = rig.start()
    time.sleep(chance.uniform(0.05, 0.8))
    alive = rig.processes()
    _kill(*chance.sample(alive, k=min(len(alive), chance.choice((1, 1, 2)))))
    time.sleep(chance.uniform(0.0, 0.3))
    launcher.send_signal(signal.SIGTERM)
    launcher.wait()
    rig.wait_ended()
    # A launcher that is killed before it has started anybody leaves a directory to the next vmesh command.
    subprocess.run(python("vmesh.cli", "ps"), env=rig.environment, check=True)
    assert not rig.machine.path.exists() or _only_begun(rig.machine.path)


def _only_begun(directory: Path) -> bool:
    """Whether nothing was done but to begin to make it: it is left to the next machine of that name."""
    return all(each.name == "lock" and each.stat().st_size == 0 for each in directory.iterdir())


def test_name_is_free_again_after_everything_was_killed(rig: Rig) -> None:
    first = rig.start()
    before = rig.wait_running()
    everything = rig.processes()
    _kill(*everything, number=signal.SIGSTOP)  # or some would see the others go, and clear up
    _kill(*everything)
    first.communicate()
    assert rig.machine.path.exists()
    second = rig.start()
    wait_for(lambda: (record := rig.record()) is not None and record.pid != before.pid, "the second machine")
    rig.wait_running()
    rig.order("test", "poweroff 0")
    assert second.wait() == 0
    rig.wait_clean()
