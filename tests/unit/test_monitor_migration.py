"""What becomes of a machine that a migration or a snapshot has, and what may be done to it meanwhile; the services and
the migration service are played."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import pytest

from vmesh.errors import HostLimit, PeerError
from vmesh.log import Log
from vmesh.machine import MachineDirectory
from vmesh.spawn import Child, ServiceCommand
from vmesh.v1 import cpu_pb2, gateway_pb2, lifecycle_pb2
from vmesh.v1 import migration_pb2 as messages
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.monitor import run_states
from vmesh_services.monitor.link import Answered
from vmesh_services.monitor.migration import IncomingOptions, Migration
from vmesh_services.monitor.operations import RequestError
from vmesh_services.monitor.output import Output
from vmesh_services.monitor.run_states import Act, Stage
from vmesh_services.monitor.supervisor.settings import Settings
from vmesh_services.monitor.supervisor.supervised import Supervised
from vmesh_services.monitor.supervisor.supervisor import Supervisor

KINDS = {"memory": "memory", "cpu": "cpu", "uart0": "ns16550a"}
PHASES = {True: lifecycle_pb2.SERVICE_PAUSED, False: lifecycle_pb2.SERVICE_RUNNING}
Body = Any


class World:
    """A supervisor, with services that do what they are asked; `fails` names a service and a request that it fails."""

    def __init__(self, folder: Path, options: IncomingOptions, *, paused: bool, starts: bool) -> None:
        log = Log("monitor", folder / "log")
        output = Output(log, None)
        commands = [ServiceCommand(name, kind, f"vmesh_services.{kind}", ()) for name, kind in KINDS.items()]
        self.supervisor = Supervisor(MachineDirectory(folder), commands, Settings(), None, log, output, cast(Any, None))
        self.supervisor.loop.failed = self._unforeseen
        self.migration = Migration(self.supervisor, None, log, output, options)
        self.paused = dict.fromkeys(KINDS, paused)
        self.fails: set[tuple[str, str]] = set()
        self.did: list[str] = []
        self.answers: list[messages.MachineAnswer] = []
        self._asked: deque[tuple[str, Body, Answered]] = deque()
        self._numbers = 0
        for command in commands:
            link = cast(Any, _Link(command.name, self._ask))
            service = Supervised(command, Child(-1, -1), link, time.monotonic())
            service.welcomed, service.was_ready = True, True
            service.state = "paused" if paused else "running"
            self.supervisor.services[command.name] = service
        self.supervisor.condition.state = gateway_pb2.MACHINE_PAUSED if paused else gateway_pb2.MACHINE_RUNNING
        self.supervisor.condition.launched = not paused
        self.migration._link = cast(Any, _Link("migration", self._ask))
        self.migration._welcomed = True
        if starts:
            self.migration.machine_started()
            self.run()

    @staticmethod
    def _unforeseen(error: Exception) -> None:
        raise error

    @property
    def runs(self) -> bool:
        """Whether the guest does; all of the machine agrees on that."""
        assert len(set(self.paused.values())) == 1, self.paused
        assert self.paused["cpu"] == (self.supervisor.condition.state == gateway_pb2.MACHINE_PAUSED)
        return not self.paused["cpu"]

    def run(self) -> None:
        """Until nothing is left to do."""
        inbox = cast(Any, self.supervisor)._runs._inbox
        while self._asked or not inbox._work.empty():
            if not inbox._work.empty():
                inbox._do()
            if self._asked:
                name, body, answered = self._asked.popleft()
                answered(self._play(name, body))

    def user(self, operation: Callable[[], Any]) -> None:
        """What a door does. Raises RequestError."""
        future: Future[None] = self.supervisor.submit(operation(), exclusive=True)
        self.run()
        future.result(0)

    def ask(self, **request: Any) -> None:
        """What a door asks of a migration. Raises RequestError."""
        asked = self.migration.request(messages.MigrationRequest(**request))
        self.run()
        asked.result(0)

    def report(self, state: messages.MigrationState.ValueType, **status: Any) -> None:
        """The migration service says how it goes."""
        packet = Packet()
        packet.migration_report.status.CopyFrom(messages.MigrationStatus(state=state, **status))
        self.migration._unasked(packet)
        self.run()

    def do(self, action: messages.MachineAction.ValueType, **more: Any) -> str:
        """The migration service wants something done; gives the error."""
        self._numbers += 1
        packet = Packet()
        packet.machine_request.CopyFrom(messages.MachineRequest(number=self._numbers, action=action, **more))
        self.migration._unasked(packet)
        self.run()
        assert self.answers[-1].number == self._numbers
        return self.answers[-1].error

    def may(self) -> set[Act]:
        return {act for act in Act if not run_states.refusal(self.supervisor.condition.stage, act)}

    def _ask(self, name: str, body: Body, answered: Answered) -> None:
        self._asked.append((name, body, answered))

    def _play(self, name: str, body: Body) -> Packet:
        packet = Packet()
        kind = body.DESCRIPTOR.name
        if name == "migration":
            if isinstance(body, messages.MachineAnswer):
                self.answers.append(body)
            packet.done.SetInParent()
            return packet
        if (name, kind) in self.fails:
            packet.error.CopyFrom(HostLimit(f"{name} cannot {kind}").message())
            return packet
        self.did.append(f"{kind} {name}")
        match body:
            case lifecycle_pb2.Pause():
                self.paused[name] = True
            case lifecycle_pb2.Resume():
                self.paused[name] = False
            case lifecycle_pb2.Save():
                packet.service_state.type = name
            case lifecycle_pb2.Health():
                packet.health_report.phase, packet.health_report.epoch = PHASES[self.paused[name]], 1
            case cpu_pb2.CpuStatusRequest():
                packet.cpu_status.stopped_ns = 1
        return packet


class _Link:
    remote = False

    def __init__(self, name: str, ask: Callable[[str, Body, Answered], None]) -> None:
        self._name = name
        self._ask = ask
        self._number = 0
        self._open: dict[int, Answered] = {}

    def ask(self, body: Body, answered: Answered) -> int:
        self._number = number = self._number + 1
        self._open[number] = answered

        def answer(packet: Packet) -> None:
            if asked := self._open.pop(number, None):
                asked(packet)

        self._ask(self._name, body, answer)
        return number

    def forget(self, number: int) -> None:
        self._open.pop(number, None)

    def close(self) -> None: ...


Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    made: list[World] = []

    def world(*, paused: bool = False, starts: bool = True, **options: Any) -> World:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(World(folder, IncomingOptions(**options), paused=paused, starts=starts))
        return made[-1]

    return world


def states() -> list[messages.SavedState]:
    return [messages.SavedState(service=name) for name in KINDS]


SAVE, LOAD = {"snapshot": True}, {"snapshot": True, "incoming": True}
EVERYTHING = set(Act) - {Act.COME_IN}


def test_what_may_be_done_while_a_machine_leaves(make: Make) -> None:
    world = make()
    assert world.may() == EVERYTHING
    world.ask(outgoing="unix:/x")
    world.report(messages.MIGRATION_ACTIVE)
    assert world.may() == {Act.RESUME, Act.RESET, Act.WRITE}
    assert not world.do(messages.MACHINE_SAVE)
    assert world.supervisor.run_state.name == "finish-migrate"
    assert world.may() == set()
    assert not world.do(messages.MACHINE_MOVED)
    world.report(messages.MIGRATION_POSTCOPY_ACTIVE)
    assert (world.supervisor.condition.stage, world.supervisor.run_state.name) == (Stage.GIVEN, "postmigrate")
    assert world.may() == set()
    doors: list[Callable[[], Any]] = [
        world.supervisor.run_state.reset,
        world.supervisor.run_state.resume,
        lambda: world.supervisor.run_state.write_memory(cpu_pb2.WriteMemory()),
        lambda: world.supervisor.run_state.write_registers(cpu_pb2.WriteRegisters()),
    ]
    world.did.clear()
    for door in doors:
        with pytest.raises(RequestError, match="runs at the destination"):
            world.user(door)
    for request in ({"outgoing": "unix:/x"}, {"save": "/x"}, {"load": "/x"}, {"incoming": "unix:/x"}):
        with pytest.raises(RequestError, match="runs at the destination"):
            world.ask(**request)
    condition = world.supervisor.condition
    assert "runs at the destination" in condition.devices_refusal() or condition.attached
    assert not world.did
    world.report(messages.MIGRATION_POSTCOPY_PAUSED)
    assert world.may() == set()
    world.report(messages.MIGRATION_COMPLETED)
    assert world.may() == {Act.RESUME, Act.RESET, Act.WRITE, Act.LOAD}
    world.user(world.supervisor.run_state.resume)
    assert (world.runs, world.supervisor.run_state.name, world.may()) == (True, "running", EVERYTHING)


def test_nothing_may_be_done_to_memory_that_was_handed_over(make: Make) -> None:
    world = make()
    world.migration.parameters.handover = True
    world.ask(outgoing="unix:/x")
    world.migration.parameters.handover = False
    world.report(messages.MIGRATION_ACTIVE)
    world.do(messages.MACHINE_SAVE)
    world.do(messages.MACHINE_MOVED)
    world.report(messages.MIGRATION_COMPLETED)
    assert world.may() == set()


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("kind", [SAVE, LOAD, {}])
@pytest.mark.parametrize("end", [messages.MIGRATION_FAILED, messages.MIGRATION_CANCELLED])
def test_what_begins_and_fails_goes_back_to_where_it_was(
    make: Make, *, paused: bool, kind: dict[str, bool], end: messages.MigrationState.ValueType
) -> None:
    """Also if the migration service never asks for it; and from a machine that has moved before."""
    world = make(paused=paused)
    before = world.supervisor.run_state.name
    world.report(messages.MIGRATION_SETUP, **kind)
    assert not world.do(messages.MACHINE_STOP if kind is LOAD else messages.MACHINE_SAVE)
    assert not world.runs
    world.report(end, error="of the test", **kind)
    assert (world.runs, world.supervisor.run_state.name, world.may()) == (not paused, before, EVERYTHING)
    world.do(messages.MACHINE_SAVE)
    world.do(messages.MACHINE_MOVED)
    world.report(messages.MIGRATION_COMPLETED)
    world.report(messages.MIGRATION_SETUP, **LOAD)
    world.do(messages.MACHINE_STOP)
    world.report(end, error="of the test", **LOAD)
    assert (world.runs, world.supervisor.run_state.name) == (False, "postmigrate")


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("service", list(KINDS))
@pytest.mark.parametrize("request_", ["Pause", "Drain", "Save"])
def test_stop_that_fails_leaves_the_machine_as_it_was(make: Make, *, paused: bool, service: str, request_: str) -> None:
    world = make(paused=paused)
    world.fails = {(service, request_)}
    world.report(messages.MIGRATION_SETUP, **SAVE)
    assert f"{service} cannot {request_}" in world.do(messages.MACHINE_SAVE)
    world.fails.clear()
    world.report(messages.MIGRATION_FAILED, error="of the test", **SAVE)
    assert (world.runs, world.may()) == (not paused, EVERYTHING)


def test_device_that_breaks_while_the_machine_is_saved_does_not_keep_it_there(make: Make) -> None:
    world = make()
    world.report(messages.MIGRATION_SETUP, **SAVE)
    world.do(messages.MACHINE_SAVE)
    cast(Any, world.supervisor.lives)._break(world.supervisor.services["uart0"], "died")
    world.run()
    world.report(messages.MIGRATION_FAILED, error="of the test", **SAVE)
    assert (world.supervisor.run_state.name, world.may()) == ("io-error", EVERYTHING)
    assert world.supervisor.condition.stop is not None
    assert world.supervisor.condition.stop.ran, "it goes on when it is mended"


def test_user_who_pauses_a_machine_while_it_is_saved_finds_it_paused_afterwards(make: Make) -> None:
    world = make()
    world.report(messages.MIGRATION_SETUP, **SAVE)
    world.do(messages.MACHINE_SAVE)
    world.user(world.supervisor.run_state.pause)
    world.do(messages.MACHINE_GO_ON)
    world.report(messages.MIGRATION_COMPLETED, **SAVE)
    assert (world.runs, world.supervisor.run_state.name) == (False, "paused")


@pytest.mark.parametrize("paused", [False, True])
def test_snapshot_that_is_loaded_goes_on_if_the_machine_ran_and_one_that_is_half_loaded_nowhere(
    make: Make, *, paused: bool
) -> None:
    world = make(paused=paused)
    for fails in (False, True):
        world.report(messages.MIGRATION_SETUP, **LOAD)
        world.do(messages.MACHINE_STOP)
        assert world.supervisor.run_state.name == "restore-vm"
        assert not world.do(messages.MACHINE_CHECK, states=states())
        if not fails:
            assert not world.do(messages.MACHINE_LOAD, states=states())
            world.do(messages.MACHINE_GO_ON)
            assert world.may() == {Act.RESUME, Act.WRITE}
            world.report(messages.MIGRATION_COMPLETED, **LOAD)
            assert (world.runs, world.may()) == (not paused, EVERYTHING)
            assert world.supervisor.run_state.name == ("paused" if paused else "running")
            continue
        world.fails = {("uart0", "Load")}
        assert "uart0 cannot Load" in world.do(messages.MACHINE_LOAD, states=states())
        world.report(messages.MIGRATION_FAILED, error="of the test", **LOAD)
        assert (world.runs, world.supervisor.run_state.name) == (False, "internal-error")
        assert world.may() == {Act.RESET, Act.LOAD}
        with pytest.raises(RequestError, match="half loaded"):
            world.user(world.supervisor.run_state.resume)
        world.user(world.supervisor.run_state.reset)
        world.user(world.supervisor.run_state.resume)
        assert (world.runs, world.may()) == (True, EVERYTHING)


def test_snapshot_that_does_not_fit_ends_a_machine_that_was_to_begin_with_it_before_anything_runs(make: Make) -> None:
    world = make(load="/x", paused=True)
    world.report(messages.MIGRATION_SETUP, **LOAD)
    world.do(messages.MACHINE_STOP)
    world.fails = {("cpu", "Load")}
    assert "cpu cannot Load" in world.do(messages.MACHINE_CHECK, states=states())
    world.report(messages.MIGRATION_FAILED, error="harts: expected 2, got 1", **LOAD)
    assert world.supervisor.condition.failure == "-loadvm: harts: expected 2, got 1"
    assert not [each for each in world.did if each.startswith("Resume")]


def test_incoming_machine_goes_back_to_waiting_if_it_is_told_where_and_ends_if_it_was_started_so(make: Make) -> None:
    world = make(incoming="defer", paused=True)
    assert world.may() == {Act.COME_IN}
    for stay in (False, True):
        world.ask(incoming="unix:/x")
        world.report(messages.MIGRATION_SETUP, incoming=True)
        world.do(messages.MACHINE_STOP)
        world.do(messages.MACHINE_LOAD, states=states())
        if not stay:
            world.report(messages.MIGRATION_FAILED, incoming=True, error="of the test")
            assert (world.supervisor.run_state.name, world.may()) == ("inmigrate", {Act.COME_IN})
            continue
        world.do(messages.MACHINE_STAY)
        world.report(messages.MIGRATION_COMPLETED, incoming=True)
        assert (world.runs, world.supervisor.run_state.name, world.may()) == (False, "paused", EVERYTHING)
    ended = make(incoming="unix:/x", paused=True)
    ended.report(messages.MIGRATION_FAILED, incoming=True, error="of the test")
    assert ended.supervisor.condition.failure == "the incoming migration failed: of the test"


def test_commands_wait_until_an_incoming_machine_can_be_connected_to(make: Make) -> None:
    world = make(incoming="unix:/x", paused=True, starts=False)
    told: list[str] = []
    world.migration.when_reachable(lambda: told.append("early"))
    world.migration.machine_started()
    assert not told
    world.run()
    assert told == ["early"], "the migration service has answered that it listens"
    world.migration.when_reachable(lambda: told.append("late"))
    assert told == ["early", "late"]
    for options in ({}, {"incoming": "defer"}, {"load": "/x"}):
        make(paused=True, starts=False, **options).migration.when_reachable(lambda: told.append("at once"))
    assert told[2:] == ["at once"] * 3


def test_post_copy_is_no_error_behind_the_end_of_what_it_was_meant_for(make: Make) -> None:
    world = make()
    world.migration.capabilities.postcopy_ram = True
    world.report(messages.MIGRATION_ACTIVE)
    world.report(messages.MIGRATION_COMPLETED)
    world.migration._welcomed = False  # nobody is asked
    world.ask(start_postcopy=messages.StartPostcopy())
    world.ask(cancel=messages.CancelMigration())
    world.migration.capabilities.postcopy_ram = False
    with pytest.raises(RequestError, match="the capability postcopy-ram before"):
        world.ask(start_postcopy=messages.StartPostcopy())


@pytest.mark.parametrize("anothers", [False, True])
def test_socket_that_a_machine_waits_at_is_removed_at_its_end(make: Make, tmp_path: Path, anothers: bool) -> None:
    place = tmp_path / "there"
    with socket.socket(socket.AF_UNIX) as listener, subprocess.Popen(["sleep", "60"]) as process:
        listener.bind(str(place))
        world = make(incoming=f"unix:{place}", paused=True)
        world.migration._child = Child(process.pid, os.pidfd_open(process.pid))
        world.report(messages.MIGRATION_SETUP, incoming=True, uri=f"unix:{place}")
        if not anothers:
            listener.close()  # as the kernel does it, for one that is killed
        world.supervisor.end(0)
        assert place.exists() == anothers


def test_capabilities_can_be_set_until_somebody_has_connected(make: Make) -> None:
    world = make(incoming="unix:/x", paused=True)
    settings = gateway_pb2.MigrateSettings(names=["postcopy_ram"])
    settings.capabilities.postcopy_ram = True
    world.report(messages.MIGRATION_SETUP, incoming=True)
    world.migration.set(settings)
    assert world.migration.capabilities.postcopy_ram
    world.report(messages.MIGRATION_ACTIVE, incoming=True)
    with pytest.raises(RequestError, match="while a migration is under way"):
        world.migration.set(settings)


def test_machine_with_a_guest_takes_no_other_one_in(make: Make) -> None:
    world = make()
    with pytest.raises(RequestError, match="the machine has a guest"):
        world.ask(incoming="unix:/x")
    assert (world.runs, world.supervisor.run_state.name) == (True, "running")


def test_pages_that_are_still_to_come_forbid_what_needs_them_all(make: Make) -> None:
    world = make(incoming="unix:/x", paused=True)
    world.report(messages.MIGRATION_SETUP, incoming=True)
    world.do(messages.MACHINE_STOP)
    world.report(messages.MIGRATION_POSTCOPY_ACTIVE, incoming=True)
    world.do(messages.MACHINE_GO)
    assert (world.runs, world.may()) == (True, {Act.RESUME, Act.WRITE})
    world.supervisor.run_state.reset_for_guest()
    world.run()
    assert (world.runs, world.supervisor.run_state.name) == (False, "paused")
    assert "Reset memory" not in world.did
    with pytest.raises(RequestError, match="waits for its pages"):
        world.user(world.supervisor.run_state.resume)
    world.report(messages.MIGRATION_COMPLETED, incoming=True)
    assert "Reset memory" in world.did
    assert world.runs


@pytest.mark.parametrize("moves", [False, True])
def test_reset_that_the_guest_asks_for_while_it_is_switched_is_made_by_whoever_runs_it(
    make: Make, *, moves: bool
) -> None:
    world = make()
    world.report(messages.MIGRATION_ACTIVE)
    world.do(messages.MACHINE_STOP)
    world.supervisor.run_state.reset_for_guest()
    world.do(messages.MACHINE_SAVE)
    assert world.answers[-1].reset_due
    if moves:
        world.do(messages.MACHINE_MOVED)
        world.report(messages.MIGRATION_COMPLETED)
        assert "Reset memory" not in world.did
        world = make(incoming="defer", paused=True)
        world.report(messages.MIGRATION_SETUP, incoming=True)
        world.do(messages.MACHINE_STOP)
        world.do(messages.MACHINE_GO, reset_due=True)
        world.report(messages.MIGRATION_COMPLETED, incoming=True)
    else:
        world.report(messages.MIGRATION_FAILED, error="of the test")
    assert world.did.count("Reset memory") == 1
    assert world.runs


def test_who_cannot_be_asked_does_not_keep_the_others_from_going_on(make: Make) -> None:
    """Its process hangs, or is gone: the machine is not left half paused."""
    world = make()
    world.report(messages.MIGRATION_SETUP, **SAVE)
    uart = world.supervisor.services["uart0"]
    uart.link = cast(Any, _Gone(uart.link))
    assert "takes no more" in world.do(messages.MACHINE_SAVE)
    assert not world.paused["cpu"]
    assert not world.paused["memory"]


class _Gone(_Link):
    """Takes what pauses, and nothing else."""

    def __init__(self, link: Any) -> None:
        super().__init__("uart0", link._ask)

    def ask(self, body: Body, answered: Answered) -> int:
        if isinstance(body, lifecycle_pb2.Pause):
            return super().ask(body, answered)
        raise PeerError("uart0 takes no more messages")
