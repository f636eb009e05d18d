"""The gateway's streams: whoever has a thread has a place, also before the first word."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.waiting import LIMIT as PATIENCE
from tests.waiting import wait_for
from vmesh.machine import MachineDirectory
from vmesh.v1 import gateway_pb2
from vmesh.v1.gateway_pb2_grpc import MachineServicer, MachineStub, add_MachineServicer_to_server
from vmesh_services.monitor.gateway import REFLECTIONS, Reflection
from vmesh_services.monitor.streams import LIMIT, Streams


class Served(MachineServicer):
    """The streams of a machine with a console whose other end is here."""

    def __init__(self, folder: Path) -> None:
        machine = MachineDirectory(folder)
        self.console = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.console.bind(str(machine.attached_console("uart0")))
        self.console.listen()
        self.console.settimeout(PATIENCE)
        self.at_end: set[Callable[[], None]] = set()
        self.streams = Streams(
            cast(Any, SimpleNamespace(machine=machine, call=lambda work: work(), at_end=self.at_end))
        )
        self.target = f"unix:{folder / 's'}"
        self._server = grpc.server(ThreadPoolExecutor(2 * LIMIT))
        add_MachineServicer_to_server(self, self._server)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(Reflection(()), self._server)  # type: ignore[no-untyped-call]
        self._server.add_insecure_port(self.target)
        self._server.start()

    def Attach(self, request_iterator: Any, context: grpc.ServicerContext) -> Iterator[gateway_pb2.ConsoleOutput]:
        return self.streams.attach(request_iterator, context)

    def close(self) -> None:
        self._server.stop(None).wait(PATIENCE)
        self.console.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)  # type: ignore[abstract]
    yield made
    made.close()


class Client:
    """Says what it is given, one message after the other, and nothing else."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def silent(self) -> Iterator[Any]:
        self.over.wait(PATIENCE)
        yield from ()


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.over.set()


def one_refused(calls: list[Any]) -> Any:
    refused = [each for each in calls if not each.is_active()]
    return refused[0] if len(refused) == 1 else None


def test_silent_attachers_are_bounded_as_all_streams_are(served: Served, client: Client) -> None:
    with grpc.insecure_channel(served.target) as channel:
        calls = [MachineStub(channel).Attach(client.silent(), timeout=PATIENCE) for _ in range(LIMIT + 1)]
        wait_for(lambda: one_refused(calls), "one to be refused")
        assert one_refused(calls).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        wait_for(lambda: len(served.at_end) == LIMIT, "all others to have their places")
        for call in calls:
            call.cancel()
        wait_for(lambda: not served.at_end, "all places to be free again")


def talk(served: Served, channel: grpc.Channel, client: Client) -> tuple[Any, socket.socket]:
    def say() -> Iterator[gateway_pb2.ConsoleInput]:
        yield gateway_pb2.ConsoleInput(device="uart0", data=b"typed")
        yield from client.silent()

    call = MachineStub(channel).Attach(say(), timeout=PATIENCE)
    there = served.console.accept()[0]
    there.settimeout(PATIENCE)
    assert there.recv(100) == b"typed"
    there.send(gateway_pb2.ConsoleOutput(data=b"shown").SerializeToString())
    assert next(call).data == b"shown"
    return call, there


def test_an_attached_client_talks_until_the_machine_ends(served: Served, client: Client) -> None:
    with grpc.insecure_channel(served.target) as channel:
        call, there = talk(served, channel, client)
        for end in list(served.at_end):
            end()
        with there:
            assert there.recv(100) == b""
        assert list(call) == []
        wait_for(lambda: not served.at_end, "its place to be free again")


def test_a_client_that_goes_is_hung_up(served: Served, client: Client) -> None:
    with grpc.insecure_channel(served.target) as channel:
        call, there = talk(served, channel, client)
        call.cancel()
        with there:
            assert there.recv(100) == b""
        wait_for(lambda: not served.at_end, "its place to be free again")


def test_silent_reflection_is_bounded(served: Served, client: Client) -> None:
    with ExitStack() as channels:
        channel = channels.enter_context(grpc.insecure_channel(served.target))
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        calls = [stub.ServerReflectionInfo(client.silent(), timeout=PATIENCE) for _ in range(REFLECTIONS + 1)]
        wait_for(lambda: one_refused(calls), "one to be refused")
        assert one_refused(calls).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()

        def is_free() -> bool:
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            try:
                return bool(next(stub.ServerReflectionInfo(iter([request]), timeout=PATIENCE)))
            except grpc.RpcError:
                return False

        wait_for(is_free, "a place to be free again")


def test_a_client_that_goes_before_its_stream_has_begun_leaves_no_subscription(tmp_path: Path) -> None:
    subscribed: list[object] = []

    def subscribe(listener: object) -> Callable[[], None]:
        subscribed.append(listener)
        return lambda: subscribed.remove(listener)

    def gone(_: object) -> None:
        raise grpc.RpcError

    supervisor = SimpleNamespace(
        machine=MachineDirectory(tmp_path),
        call=lambda work: work(),
        at_end=set(),
        events=SimpleNamespace(subscribe=subscribe),
    )
    context = SimpleNamespace(add_callback=lambda end: True, is_active=lambda: False, send_initial_metadata=gone)
    with pytest.raises(grpc.RpcError):
        next(Streams(cast(Any, supervisor)).events(cast(Any, context)))
    assert subscribed == []
    assert supervisor.at_end == set()
