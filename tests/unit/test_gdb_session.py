"""A gdb that goes away leaves nothing behind: no breakpoint, no hart that is held, and a machine that runs or not as it
did."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vmesh.v1 import cpu_pb2
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.monitor.gdb.session import Session
from vmesh_services.monitor.operations import Operation, RequestError, Roster

HARTS = 2


class Machine:
    """What a session sees of a supervisor; carries out an operation when it is told to, and keeps what was asked of
    the cpu."""

    def __init__(self) -> None:
        self.roster = Roster(memory="memory", cpu="cpu", devices=())
        self.condition = SimpleNamespace(paused=True, check=lambda act: None)
        self.run_state = SimpleNamespace(resume=self._resume)
        self.running_is_refused = False
        self.asked: list[object] = []
        self.held: list[int] = []
        self.waiting: list[tuple[Operation, Future[None]]] = []
        self.events = SimpleNamespace(subscribe=lambda listener: lambda: None)

    def submit(self, operation: Operation, *, exclusive: bool) -> Future[None]:
        assert exclusive
        future: Future[None] = Future()
        self.waiting.append((operation, future))
        return future

    def carry_out(self) -> None:
        """All that waits."""
        while self.waiting:
            operation, future = self.waiting.pop(0)
            try:
                requests = next(operation)
                while True:
                    requests = operation.send([self._answer(request.body) for request in requests])
            except StopIteration:
                future.set_result(None)
            except RequestError as error:
                future.set_exception(error)

    def _answer(self, body: object) -> Packet:
        self.asked.append(body)
        match body:
            case cpu_pb2.DescribeRegisters():
                return Packet(register_set=cpu_pb2.RegisterSet(harts=HARTS))
            case cpu_pb2.RunHarts():
                self.held = list(body.held)
            case _ if "Pause" in type(body).__name__:
                self.condition.paused = True
        return Packet()

    def _resume(self) -> Operation:
        yield []
        if self.running_is_refused:
            raise RequestError("not now")
        self.condition.paused = False


class Stream:
    closed = crowded = False

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def hold(self, held: bool) -> None:
        pass

    def finish(self) -> None:
        self.closed = True


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def session(machine: Machine) -> Session:
    made = Session(cast(Any, SimpleNamespace(supervisor=machine, console=None)), cast(Any, Stream()))
    machine.carry_out()
    return made


def say(session: Session, *commands: bytes) -> None:
    for command in commands:
        session.received(b"$%s#%02x" % (command, sum(command) % 256))


@pytest.mark.parametrize("late", [False, True])
def test_harts_are_not_held_for_a_gdb_that_is_gone(machine: Machine, session: Session, late: bool) -> None:
    """Nor if its last command was under way when it went."""
    say(session, b"vCont;c:1")
    if late:
        session.ended()
        machine.carry_out()
    else:
        machine.carry_out()
        assert machine.held == [1]
        assert not machine.condition.paused
        session.ended()
        machine.carry_out()
    assert machine.held == []
    assert not machine.condition.paused


def test_a_machine_that_somebody_paused_meanwhile_stays_so(machine: Machine, session: Session) -> None:
    say(session, b"vCont;c:1")
    machine.carry_out()
    machine.condition.paused = True
    session.ended()
    machine.carry_out()
    assert machine.held == []
    assert machine.condition.paused


def test_nor_are_they_held_when_the_machine_did_not_go_on(machine: Machine, session: Session) -> None:
    machine.running_is_refused = True
    say(session, b"vCont;c:1")
    machine.carry_out()
    assert machine.held == [1]
    session.ended()
    machine.carry_out()
    assert machine.held == []
    assert machine.condition.paused


def test_who_leaves_nothing_does_not_touch_the_machine(machine: Machine, session: Session) -> None:
    say(session, b"vCont;c")
    machine.carry_out()
    before = len(machine.asked)
    session.ended()
    machine.carry_out()
    assert len(machine.asked) == before
    assert not machine.condition.paused
