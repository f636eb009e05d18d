"""The boundaries: whatever is raised in an operation, behind a door or in a service's request fails there, is said in
one line, and all else goes on. tests/faults/test_failing_operations.py has the same of a host that has run out of
something, under a guest."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import zmq
from google.protobuf.message import DecodeError, Message

from tests.waiting import LIMIT
from vmesh import errors, service, wire
from vmesh.addresses import Addresses
from vmesh.endpoint import Endpoint
from vmesh.log import Log
from vmesh.machine import MachineDirectory
from vmesh.spawn import ServiceCommand
from vmesh.v1 import common_pb2, cpu_pb2, gateway_pb2, lifecycle_pb2
from vmesh.v1.gateway_pb2_grpc import MachineStub
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.monitor import gateway, operations
from vmesh_services.monitor.control import Control, Work
from vmesh_services.monitor.hmp import commands as hmp
from vmesh_services.monitor.hmp import info
from vmesh_services.monitor.hmp.command import Command
from vmesh_services.monitor.migration import IncomingOptions, Migration
from vmesh_services.monitor.operations import Operation, Request, RequestError, Roster
from vmesh_services.monitor.output import Output
from vmesh_services.monitor.qmp.handlers import registry
from vmesh_services.monitor.qmp.session import Session
from vmesh_services.monitor.stream_server import StreamServer
from vmesh_services.monitor.supervisor.settings import Settings
from vmesh_services.monitor.supervisor.supervisor import Supervisor

ERRORS: dict[str, Exception] = {
    "No space left on device": OSError(28, "No space left on device"),
    "not enough memory": MemoryError(),
    "DecodeError: truncated": DecodeError("truncated"),
    "KeyError: 'what nobody\\nforesaw'": KeyError("what nobody\nforesaw"),
}
ROSTER = Roster("memory", "cpu", ("uart0", "rtc"))

every_error = pytest.mark.parametrize("error", ERRORS.values(), ids=lambda error: type(error).__name__)


def said_of(error: Exception) -> str:
    return next(said for said, each in ERRORS.items() if each is error)


# Operations


def states() -> dict[str, lifecycle_pb2.ServiceState]:
    return {name: lifecycle_pb2.ServiceState() for name in ROSTER.all}


OPERATIONS: dict[str, Callable[[], Operation]] = {
    "pause": lambda: operations.pause(ROSTER),
    "stop": lambda: operations.stop(ROSTER),
    "halt": lambda: operations.halt(ROSTER, {"rtc"}),
    "resume": lambda: operations.resume(ROSTER, cpu_pb2.CatchUp()),
    "reset": lambda: operations.reset(ROSTER, stay_paused=False),
    "reset of a paused one": lambda: operations.reset(ROSTER, stay_paused=True),
    "load": lambda: operations.load(ROSTER, states(), check_only=False),
    "hand over": lambda: operations.hand_over(ROSTER),
    "write registers": lambda: operations.write_registers(ROSTER, cpu_pb2.WriteRegisters(), stay_paused=False),
    "write memory": lambda: operations.write_memory(ROSTER, cpu_pb2.WriteMemory()),
    "read memory": lambda: operations.read_memory(ROSTER, cpu_pb2.ReadMemory(size=1), bytearray()),
    "registers": lambda: operations.registers(ROSTER, 0, cpu_pb2.HartRegisters()),
    "cpu status": lambda: operations.cpu_status(ROSTER, cpu_pb2.CpuStatus()),
}
#: They have the machine run again if it did, unless the guest's state is half another one by then.
COMPENSATED = ("pause", "reset", "write registers")


def carry_out(operation: Operation, fails_at: int, error: Exception) -> list[Request]:
    """What was asked of operations whose batch number `fails_at` fails; raises what the operation does."""
    asked: list[Request] = []
    try:
        batch = next(operation)
        while True:
            asked += batch
            fails_at -= 1
            batch = operation.throw(error) if fails_at == -1 else operation.send([Packet() for _ in batch])
    except StopIteration:
        return asked
    except Exception as raised:
        cast(Any, raised).asked = asked
        raise


def length(name: str) -> int:
    with_no_failure = OPERATIONS[name]()
    count = 0
    try:
        batch = next(with_no_failure)
        while True:
            count += 1
            batch = with_no_failure.send([Packet() for _ in batch])
    except StopIteration:
        return count


STEPS = [(name, step) for name in OPERATIONS for step in range(length(name))]


@pytest.mark.parametrize(("name", "step"), STEPS)
@every_error
def test_an_operation_that_fails_anywhere_undoes_what_it_has_begun(name: str, step: int, error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        carry_out(OPERATIONS[name](), step, error)
    assert raised.value is error
    asked: list[Request] = cast(Any, raised.value).asked
    reset = any(isinstance(each.body, lifecycle_pb2.Reset) and each.service != "memory" for each in asked)
    if name in COMPENSATED and not reset:
        last = {each.service: type(each.body) for each in asked if each.body.DESCRIPTOR.name in ("Pause", "Resume")}
        assert set(last.values()) <= {lifecycle_pb2.Resume}, last


@every_error
def test_what_cannot_be_undone_either_is_said_with_the_reason(error: Exception) -> None:
    def fails() -> Operation:
        raise error
        yield []

    def undo(what: str) -> Operation:
        yield []
        undone.append(what)

    undone: list[str] = []
    failing = operations.undone(fails(), fails, lambda: undo("the other"))
    with pytest.raises(RequestError, match="nor could it be undone: ") as raised:
        carry_out(failing, 99, error)
    assert said_of(error).split("\n")[0][:12] in str(raised.value)
    assert undone == ["the other"]


# Doors


class Monitored:
    """A supervisor in a loop of its own; its services are not there."""

    def __init__(self, folder: Path) -> None:
        self.machine, self.log = MachineDirectory(folder), Log("monitor", folder / "log")
        commands = [ServiceCommand(name, name, f"vmesh_services.{name}", ()) for name in ("memory", "cpu")]
        output = Output(self.log, None)
        self.supervisor = Supervisor(
            self.machine, commands, Settings(), None, self.log, output, Addresses(self.machine)
        )
        migration = Migration(self.supervisor, None, self.log, output, IncomingOptions())
        self.supervisor.attach()
        self.control = Control(self.supervisor, migration, self.log, {})
        self._thread = threading.Thread(target=self.supervisor.loop.run)
        self._thread.start()

    def done(self, command: Callable[[], object]) -> object:
        """What comes of a client's command."""
        found, there = list[object](), threading.Event()

        def done(answer: object) -> None:
            found.append(answer)
            there.set()

        self.supervisor.call(lambda: self.control.carry_out(command, done))
        assert there.wait(LIMIT)
        return found[0]

    @property
    def logged(self) -> str:
        return self.machine.log.read_text(encoding="utf-8")

    def close(self) -> None:
        self.supervisor.call(self.supervisor.loop.stop)
        self._thread.join(LIMIT)
        for each in self.supervisor.services.values():
            each.link.close()
        cast(Any, self.supervisor.lives)._context.destroy(0)


@pytest.fixture(scope="module")
def monitored() -> Iterator[Monitored]:
    with tempfile.TemporaryDirectory(prefix="vmesh-") as folder:  # pytest's are too long for a socket
        made = Monitored(Path(folder))
        yield made
        made.close()


def is_said(answer: object, error: Exception) -> bool:
    text = str(answer)
    return said_of(error).replace("\n", " ").split("\\n")[0] in text and "\n" not in text


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


def failing_work(error: Exception) -> Callable[..., Work]:
    """An operation that fails in its second step."""

    def parts() -> Any:
        yield []
        raise error

    return lambda *_: Work(parts())


@every_error
@pytest.mark.parametrize("how", [raising, failing_work])
@pytest.mark.parametrize("name", sorted(registry.COMMANDS))
def test_qmp(
    monitored: Monitored, monkeypatch: pytest.MonkeyPatch, name: str, how: Callable[..., Any], error: Exception
) -> None:
    monkeypatch.setitem(registry.HANDLERS, name, how(error))
    monkeypatch.setattr(registry, "check_arguments", lambda *_: None)
    answer = monitored.done(lambda: registry.execute(monitored.control, name, {}))
    assert type(answer).__name__ == "QmpError"
    assert is_said(answer, error)
    other = "query-name" if name == "query-version" else "query-version"
    assert isinstance(monitored.done(lambda: registry.execute(monitored.control, other, {})), dict)


LINES = {" ".join(each.names[:1]): each for each in hmp.COMMANDS} | {
    f"info {each.names[0]}": each for each in info.TOPICS
}


@every_error
@pytest.mark.parametrize("how", [raising, failing_work])
@pytest.mark.parametrize("line", sorted(LINES))
def test_hmp(
    monitored: Monitored, monkeypatch: pytest.MonkeyPatch, line: str, how: Callable[..., Any], error: Exception
) -> None:
    """The answer is one line for the client, whatever fails behind its command."""
    former = LINES[line]
    failing = Command(former.names, "", former.help, how(error))
    where = (info.BY_NAME, former.names[0]) if line.startswith("info ") else (hmp._BY_NAME, line)
    monkeypatch.setitem(cast(Any, where[0]), where[1], failing)
    answer = monitored.done(lambda: hmp.execute(monitored.control, line))
    assert is_said(str(answer).strip(), error), answer
    assert "help" in str(monitored.done(lambda: hmp.execute(monitored.control, "help help")))


METHODS = gateway_pb2.DESCRIPTOR.services_by_name["Machine"].methods


@pytest.fixture(scope="module")
def failing_gateway(monitored: Monitored) -> Iterator[tuple[MachineStub, list[Exception]]]:
    """A gateway whose every method raises what the list has last; without, Status answers."""
    raised: list[Exception] = []
    patch = pytest.MonkeyPatch()
    for method in METHODS:
        former = getattr(gateway._Machine, method.name)

        def call(self: Any, request: Any, context: Any, former: Any = former) -> Any:
            if raised:
                raise raised[-1]
            return former(self, request, context)

        patch.setattr(gateway._Machine, method.name, call)
    with tempfile.TemporaryDirectory(prefix="vmesh-") as folder:
        served = gateway.serve(monitored.supervisor, monitored.control.migration, Path(folder) / "s")
        with grpc.insecure_channel(f"unix:{folder}/s") as channel:
            yield MachineStub(channel), raised
        served.stop(None).wait(LIMIT)
    patch.undo()


@every_error
@pytest.mark.parametrize("method", [each.name for each in METHODS])
def test_gateway(
    monitored: Monitored, failing_gateway: tuple[MachineStub, list[Exception]], method: str, error: Exception
) -> None:
    stub, raised = failing_gateway
    described = METHODS_BY_NAME[method]
    request: Any = getattr(gateway_pb2, described.input_type.name, None) or getattr(cpu_pb2, described.input_type.name)
    raised.append(error)

    def call_it() -> None:
        asked = iter([request()]) if described.client_streaming else request()
        answer = getattr(stub, method)(asked, timeout=LIMIT)
        if described.server_streaming:
            next(answer)

    try:
        with pytest.raises(grpc.RpcError) as failed:
            call_it()
    finally:
        raised.clear()
    call = cast(grpc.Call, failed.value)
    assert call.code() == grpc.StatusCode.INTERNAL
    assert is_said(call.details(), error)
    assert said_of(error).split("\\n")[0][:20] in monitored.logged
    assert stub.Status(gateway_pb2.StatusRequest(), timeout=LIMIT).name == monitored.machine.name


METHODS_BY_NAME = {each.name: each for each in METHODS}


@every_error
@pytest.mark.parametrize("where", ["received", "drained", "ended"])
def test_a_session_that_fails_costs_its_client_and_nobody_else(
    monitored: Monitored, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    """QMP's here; HMP and gdb stand on the same streams."""
    path = monitored.machine.path / f"qmp-{where}"
    made: list[Session] = []

    def session(stream: Any) -> Session:
        made.append(Session(monitored.control, stream))
        return made[-1]

    servers: list[StreamServer] = []
    begun = monitored.supervisor.ask(
        lambda: servers.append(
            StreamServer(monitored.supervisor.loop, Endpoint(path, server=True, wait=False), session)
        )
    )
    begun.result(LIMIT)

    def client() -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(LIMIT)
        peer.connect(str(path))
        assert b"QMP" in peer.recv(1 << 16)
        return peer

    with client() as bad, client() as good:
        monkeypatch.setattr(made[0], where, raising(error))
        bad.sendall(b'{"execute":"qmp_capabilities"}' if where == "received" else b"x")
        if where == "received":
            assert bad.recv(1 << 16) == b"", "it is let go of"
        else:
            bad.close()
        good.sendall(b'{"execute":"qmp_capabilities"}')
        assert b"return" in good.recv(1 << 16)
    monitored.supervisor.ask(servers[0].close).result(LIMIT)


# Services


class Failing(service.Service):
    """Everything that it is asked for raises `error`, if there is one."""

    kind = "failing"

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.started = threading.Event()

    def start(self) -> None:
        self.started.set()

    def _do(self, *_: object) -> Any:
        if self.error is not None:
            raise self.error
        return None

    pause = halt = drain = save = hand_over = load = resume = reset = trace = handle = _do  # type: ignore[assignment]


ASKED: list[tuple[Message, Message]] = [
    (lifecycle_pb2.Pause(), lifecycle_pb2.Resume()),
    (lifecycle_pb2.Pause(at_once=True), lifecycle_pb2.Resume()),
    (lifecycle_pb2.Resume(), lifecycle_pb2.Resume()),
    (lifecycle_pb2.Reset(), lifecycle_pb2.Resume()),
    (lifecycle_pb2.Load(state=lifecycle_pb2.ServiceState(), check_only=True), lifecycle_pb2.Resume()),
    (cpu_pb2.CpuStatusRequest(), lifecycle_pb2.Resume()),
]


def test_a_request_that_fails_is_answered_with_an_error_and_the_service_goes_on(made: MachineDirectory) -> None:
    failing = Failing()
    runtime = service.Runtime(service.parser("memory", None).parse_args(["--machine", str(made.path)]))
    thread = threading.Thread(target=partial(_serve, runtime, failing))
    thread.start()
    assert failing.started.wait(LIMIT)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    peer = wire.Peer(context, runtime.endpoint, wire.hello(common_pb2.ROLE_MONITOR, "monitor", machine="m"))
    peer.greet(LIMIT)
    for error in ERRORS.values():
        for asked, mends in ASKED:
            failing.error = error
            with pytest.raises(errors.VmeshError) as told:
                peer.request(asked, LIMIT)
            assert is_said(told.value, error), told.value
            failing.error = None
            assert isinstance(peer.request(lifecycle_pb2.Health(), LIMIT), lifecycle_pb2.HealthReport)
            peer.request(mends, LIMIT)
    peer.request(lifecycle_pb2.Shutdown(), LIMIT)
    thread.join(LIMIT)
    peer.abandon()
    context.destroy(0)


def _serve(runtime: service.Runtime, failing: Failing) -> None:
    runtime._watch_signals = lambda: None  # type: ignore[method-assign]  # they are the main thread's
    runtime.serve(failing)
    runtime.close()
