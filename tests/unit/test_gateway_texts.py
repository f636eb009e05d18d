"""What a client of the gateway may say in a text."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.waiting import LIMIT
from vmesh.v1 import gateway_pb2
from vmesh.v1.gateway_pb2_grpc import MachineServicer, MachineStub, add_MachineServicer_to_server
from vmesh_services.monitor.texts import Texts, with_nul


class Served(MachineServicer):
    def AddDevice(
        self, request: gateway_pb2.AddDeviceRequest, context: grpc.ServicerContext
    ) -> gateway_pb2.AddDeviceReply:
        return gateway_pb2.AddDeviceReply(name=request.device)


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[MachineStub]:
    server = grpc.server(ThreadPoolExecutor(1), interceptors=[Texts()])
    add_MachineServicer_to_server(Served(), server)  # type: ignore[abstract]
    server.add_insecure_port(f"unix:{tmp_path / 's'}")
    server.start()
    with grpc.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        yield MachineStub(channel)
    server.stop(None).wait(LIMIT)


def test_nul_is_refused_where_it_is(stub: MachineStub) -> None:
    request = gateway_pb2.AddDeviceRequest(device="virtio-blk-device", drives=["file=a", "file=b\0c"])
    with pytest.raises(grpc.RpcError) as refused:
        stub.AddDevice(request, timeout=LIMIT)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "drives: expected a text without NUL"
    assert stub.AddDevice(gateway_pb2.AddDeviceRequest(device="x"), timeout=LIMIT).name == "x"


def test_others_are_as_they_were(stub: MachineStub) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.Status(gateway_pb2.StatusRequest(), timeout=LIMIT)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_inside_of_others() -> None:
    added = gateway_pb2.MachineStatus(
        services=[gateway_pb2.ServiceStatus(name="a"), gateway_pb2.ServiceStatus(last_error="\0")]
    )
    assert with_nul(added) == "services.last_error"
