"""How a call of the gateway fails, and what its client is told."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from tests.waiting import LIMIT
from vmesh.client import GatewayError, MachineClient
from vmesh.machine import MachineDirectory
from vmesh.v1.gateway_pb2_grpc import add_MachineServicer_to_server
from vmesh_services.monitor.gateway import _Machine
from vmesh_services.monitor.operations import RequestError, StateError

FAILED = "service 'mov0': Save to mov0: expected Drain before it, got none"


@pytest.fixture
def failing() -> Iterator[tuple[MachineClient, list[Exception]]]:
    """A client of a gateway behind which every operation fails, and with what."""
    errors: list[Exception] = []

    def submit(operation: object, **_: object) -> Future[None]:
        failed: Future[None] = Future()
        failed.set_exception(errors[0])
        return failed

    supervisor: Any = SimpleNamespace(submit=submit, run_state=SimpleNamespace(pause=lambda: None))
    with tempfile.TemporaryDirectory(prefix="vmesh-") as folder:
        machine = MachineDirectory(Path(folder))
        server = grpc.server(ThreadPoolExecutor(1))
        add_MachineServicer_to_server(_Machine(supervisor, supervisor), server)
        server.add_insecure_port(f"unix:{machine.gateway}")
        server.start()
        with MachineClient(machine, LIMIT) as client:
            yield client, errors
        server.stop(None).wait(LIMIT)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestError(FAILED), grpc.StatusCode.INTERNAL),
        (RequestError(FAILED, callers_fault=True), grpc.StatusCode.INVALID_ARGUMENT),
        (StateError(FAILED), grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
def test_client_is_told_the_failure_itself_by_a_gateway_that_answers(
    failing: tuple[MachineClient, list[Exception]], error: Exception, code: grpc.StatusCode
) -> None:
    client, errors = failing
    errors.append(error)
    with pytest.raises(GatewayError) as told:
        client.pause()
    assert str(told.value) == f"machine '{client.name}': {FAILED}"
    assert isinstance(told.value.__cause__, grpc.Call)
    assert told.value.__cause__.code() == code
