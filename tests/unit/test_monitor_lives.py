"""The monitor and the processes that it has started: what one has said does not outlive it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vmesh import elsewhere, errors, wire
from vmesh.addresses import Addresses
from vmesh.log import Log
from vmesh.machine import MachineDirectory
from vmesh.spawn import Child, ServiceCommand
from vmesh.v1.common_pb2 import Welcome
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.monitor.custody import Custody
from vmesh_services.monitor.output import Output
from vmesh_services.monitor.run_states import Stage
from vmesh_services.monitor.supervisor.settings import Settings
from vmesh_services.monitor.supervisor.supervised import EXTERNAL, Supervised
from vmesh_services.monitor.supervisor.supervisor import Supervisor


def ended_process() -> Child:
    """A process that has been killed, and that nobody has waited for."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    return Child(pid, pidfd, os.open(os.devnull, os.O_RDONLY))


def test_a_welcome_that_is_read_after_the_end_of_its_process_raises_no_dead(tmp_path: Path) -> None:
    machine, log = MachineDirectory(tmp_path), Log("monitor", tmp_path / "log")
    commands = [
        ServiceCommand(name, kind, f"vmesh_services.{kind}", ()) for name, kind in (("cpu", "cpu"), ("m", "memory"))
    ]
    supervisor = Supervisor(machine, commands, Settings(), None, log, Output(log, None), Addresses(machine))
    lives = cast(Any, supervisor.lives)
    supervisor.attach()
    try:
        for service in supervisor.services.values():
            service.child, service.alive = ended_process(), True
        first, second = supervisor.services.values()
        supervisor.end(0, "the test is over")
        lives._dead(first)
        cast(Any, supervisor)._health.welcome(first, Packet(welcome=Welcome(kind="cpu", major=wire.MAJOR, epoch=1)))
        assert not first.alive
        cast(Any, supervisor)._ending.kill_all()
        lives._dead(second)
        assert not any(service.alive for service in supervisor.services.values())
    finally:
        for service in supervisor.services.values():
            service.link.close()
        cast(Any, supervisor.lives)._context.destroy(0)


def test_a_next_life_while_the_machine_is_elsewhere_is_told_so_unless_it_is_no_program_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, log = MachineDirectory(tmp_path), Log("monitor", tmp_path / "log")
    modules = {"m": ("memory", "vmesh_services.memory"), "disk": ("virtio-blk", "vmesh_services.devices.virtio_blk")}
    modules["theirs"] = ("copier", EXTERNAL)
    commands = [ServiceCommand(name, kind, module, ()) for name, (kind, module) in modules.items()]
    supervisor = Supervisor(machine, commands, Settings(), None, log, Output(log, None), Addresses(machine))
    supervisor.attach()
    lives, spawned = cast(Any, supervisor.lives), dict[str, list[str]]()
    lives._keeper = SimpleNamespace(spawn=lambda command, more, done: spawned.update({command.name: more}))
    try:
        for stage, more in ((Stage.NOTHING, []), (Stage.GONE, ["--away"])):
            monkeypatch.setattr(Custody, "stage", stage)
            for name in ("disk", "theirs"):
                lives._spawn(supervisor.services[name])
            assert spawned == {"disk": ["--epoch", "1", *more], "theirs": ["--epoch", "1"]}
    finally:
        for service in supervisor.services.values():
            service.link.close()
        cast(Any, supervisor.lives)._context.destroy(0)


def test_a_next_life_that_cannot_go_on_ends_and_says_why(tmp_path: Path) -> None:
    machine, log = MachineDirectory(tmp_path), Log("monitor", tmp_path / "log")
    kinds = {"memory": "memory", "disk": "virtio-blk"}
    commands = [ServiceCommand(name, kind, f"vmesh_services.{kind}", ()) for name, kind in kinds.items()]
    supervisor = Supervisor(machine, commands, Settings(), None, log, Output(log, None), Addresses(machine))
    supervisor.attach()
    disk = supervisor.services["disk"]
    disk.was_ready = disk.alive = True
    try:
        refused = Packet(error=errors.ConfigError("the disk is in use").message())
        cast(Any, supervisor)._health._told_to_go_on(disk, refused)
        assert (disk.state, disk.last_error) == ("hung", "the disk is in use")
    finally:
        for service in supervisor.services.values():
            service.link.close()
        cast(Any, supervisor.lives)._context.destroy(0)


def test_a_device_that_goes_takes_its_own_files_along(tmp_path: Path) -> None:
    folder, place = tmp_path / "m", tmp_path / "temporary"
    folder.mkdir()
    place.mkdir()
    machine, log = MachineDirectory(folder), Log("monitor", tmp_path / "log")
    kinds = {"memory": "memory", "disk": "virtio-blk", "disk.1": "virtio-blk"}
    commands = [ServiceCommand(name, kind, f"vmesh_services.{kind}", ()) for name, kind in kinds.items()]
    supervisor = Supervisor(machine, commands, Settings(), None, log, Output(log, None), Addresses(machine))
    supervisor.attach()
    others = [folder / name for name in ("disk.1.sock", "disk.1.slot")]
    for each in (*machine.device_files("disk"), *others):
        each.touch()
    machine.elsewhere("disk").unlink()
    data, lock = elsewhere.folder(machine.elsewhere("disk"), place, fresh=True)
    os.close(lock)
    try:
        cast(Any, supervisor.lives)._remove(supervisor.services["disk"])
        assert sorted(folder.iterdir()) == sorted(others)
        assert not data.exists()
    finally:
        for service in supervisor.services.values():
            service.link.close()
        cast(Any, supervisor.lives)._context.destroy(0)


def test_between_two_lives_a_device_is_still_one_that_is_started_by_hand(tmp_path: Path) -> None:
    """The next one may have said Hello to memory before the end of the last was seen, and is not to be forgotten."""
    machine, log = MachineDirectory(tmp_path), Log("monitor", tmp_path / "log")
    commands = [ServiceCommand("memory", "memory", "vmesh_services.memory", ())]
    commands.append(ServiceCommand("hand", "external", EXTERNAL, ("--wait", "30")))
    supervisor = Supervisor(machine, commands, Settings(), None, log, Output(log, None), Addresses(machine))
    supervisor.attach()
    lives = cast(Any, supervisor.lives)
    cast(Any, supervisor)._health._condition.attached = False
    memory, hand = supervisor.services["memory"], supervisor.services["hand"]
    told: list[dict[str, int]] = []
    link, memory.link = memory.link, cast(Any, SimpleNamespace(tell=lambda said: told.append(dict(said.processes))))
    try:
        memory.alive, hand.alive = True, False
        lives._tell_processes()
        assert told == [{"memory": memory.process, "hand": 0}]
    finally:
        for each in (link, hand.link):
            each.close()
        lives._context.destroy(0)


def test_nobody_counts_while_nobody_comes_to_be_a_device_that_is_started_by_hand(tmp_path: Path) -> None:
    machine, log = MachineDirectory(tmp_path), Log("monitor", tmp_path / "log")
    commands = [ServiceCommand(name, name, f"vmesh_services.{name}", ()) for name in ("memory", "cpu")]
    commands.append(ServiceCommand("hand", "external", EXTERNAL, ("--wait", "30")))
    supervisor = Supervisor(machine, commands, Settings(), None, log, Output(log, None), Addresses(machine))
    supervisor.attach()
    lives, health = cast(Any, supervisor.lives), cast(Any, supervisor)._health
    health._condition.attached = False
    hand, cpu = supervisor.services["hand"], supervisor.services["cpu"]
    waiting = "hand: is to be started by hand, with --epoch 2"
    try:
        hand.welcomed = hand.came = hand.was_ready = hand.alive = True
        lives._restart(hand, "is gone")
        assert (hand.epoch, list(supervisor.warnings.lines)) == (2, [waiting])
        lives._restart(hand, "nobody has come")
        assert (hand.epoch, list(supervisor.warnings.lines)) == (2, [waiting])

        hand.alive = True
        assert health._is_there(hand, hand.began + 39), "it waits for 30 s, and it may take 10 until it answers"
        assert not health._is_there(hand, hand.began + 41)

        hand.alive, hand.began = False, hand.began - 30  # it came late, and has yet to say that it is ready
        welcome = Packet(welcome=Welcome(kind="copier", major=wire.MAJOR, epoch=2))
        hand.alive, hand.state = True, "restarting"
        health.welcome(hand, welcome)
        assert health._is_there(hand, hand.began + 9)
        assert hand.began > cpu.began, "the limit for its answers begins with its coming"

        hand.welcomed, hand.came = False, True  # memory has refused somebody: no death, and no link that is closed
        link = hand.link
        lives._lost_by_hand(hand)
        lives._tell_processes()
        assert hand.link is link
        for _ in range(6):
            hand.came = True
            lives._restart(hand, "was refused")
        assert not hand.broken
        assert len(hand.deaths) == 2

        now = cpu.began + 1000  # the machine starts, and the cpu waits for all devices
        hand.began, hand.state = now, "starting"
        health.look(now)
        assert cpu.state == "starting"
        assert health._is_there(cpu, now + 59)
    finally:
        for service in supervisor.services.values():
            service.link.close()
        lives._context.destroy(0)


def test_an_option_that_is_there_several_times_is_shown_as_a_list() -> None:
    words = ("--base", "0x10", "--item=opt/a", "--item=opt/b", "--quiet")
    service = Supervised(ServiceCommand("fw", "fw-cfg", "m", words), Child(0, -1), cast(Any, None), 0.0)
    assert service.options == {"base": "0x10", "item": "opt/a,opt/b", "quiet": "on"}
