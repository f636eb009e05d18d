"""A client of the gateway that has no file of ours: all it knows it has from server reflection."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.faults.conftest import Rig
from tests.system import programs
from tests.waiting import wait_for

SERVICE = "vmesh.v1.Machine"


class Stranger:
    """Calls methods by name, with the fields of the request as keywords."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._found = ProtoReflectionDescriptorDatabase(channel)
        self.methods = DescriptorPool(self._found).FindServiceByName(SERVICE).methods_by_name
        self.services = self._found.get_services()

    def make(self, name: str, /, **fields: Any) -> Any:
        return GetMessageClass(self.methods[name].input_type)(**fields)

    def call(self, name: str, /, **fields: Any) -> Any:
        return self._callable(self.methods[name])(self.make(name, **fields), timeout=60)

    def stream(self, name: str, requests: Any) -> Any:
        return self._callable(self.methods[name])(requests, timeout=60)

    def _callable(self, method: MethodDescriptor) -> Any:
        kinds = {
            (False, False): self._channel.unary_unary,
            (False, True): self._channel.unary_stream,
            (True, True): self._channel.stream_stream,
        }
        kind: Callable[..., Any] = kinds[method.client_streaming, method.server_streaming]
        return kind(
            f"/{SERVICE}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )


@pytest.fixture
def stranger(root: Path) -> Iterator[Stranger]:
    rig = Rig(Path(tempfile.mkdtemp(prefix="vmesh-peers-")), root)
    kernel = rig.runtime / "program.elf"
    kernel.write_bytes(programs.elf(programs.sleep(42)))
    rig.start_real("-bios", "none", "-kernel", str(kernel), "-serial", "null")
    wait_for(rig.machine.gateway.exists, "the gateway's socket")
    with grpc.insecure_channel(f"unix:{rig.machine.gateway}") as channel:
        grpc.channel_ready_future(channel).result(60)
        yield Stranger(channel)
    rig.close()


def test_all_of_a_machine(stranger: Stranger) -> None:
    assert {SERVICE, "grpc.health.v1.Health"} <= set(stranger.services)
    wait_for(lambda: stranger.call("Status").harts, "the hart")
    status = stranger.call("Status", usage=True)
    assert {service.name for service in status.services} >= {"memory", "cpu", "uart0"}
    assert all(service.usage.rss_bytes for service in status.services)

    def register(name: str) -> int:
        found: dict[str, int] = {each.name: each.value for each in stranger.call("Registers", hart=0).registers}
        return found[name]

    wait_for(lambda: register("a0") == 42, "the program to run")
    stranger.call("WriteRegisters", hart=0, registers=[{"name": "s5", "value": 7}])
    assert register("s5") == 7
    code = stranger.call("ReadMemory", physical=True, address=0x8000_0000, size=4).data
    stranger.call("WriteMemory", physical=True, address=0x8010_0000, data=code)
    assert stranger.call("ReadMemory", physical=True, address=0x8010_0000, size=4).data == code
    events = stranger.stream("Events", stranger.make("Events"))
    seen: list[str] = []

    def told() -> bool:
        stranger.call("Pause")
        stranger.call("Resume")
        seen.append(next(events).name)
        return "STOP" in seen or "RESUME" in seen

    wait_for(told, "an event")
    events.cancel()
    assert "vmesh_uptime_seconds" in stranger.call("Metrics").text


def test_errors_are_one_line(stranger: Stranger) -> None:
    wait_for(lambda: stranger.call("Status").harts, "the hart")
    refused = (
        ("Registers", {"hart": 7}, grpc.StatusCode.INVALID_ARGUMENT),
        ("WriteRegisters", {"registers": [{"name": "nix", "value": 1}]}, grpc.StatusCode.INVALID_ARGUMENT),
        ("ReadMemory", {"physical": True, "address": 0x7000_0000, "size": 4}, grpc.StatusCode.INVALID_ARGUMENT),
        ("ReadMemory", {"physical": True, "address": 0x8000_0000, "size": 2 << 20}, grpc.StatusCode.INVALID_ARGUMENT),
        ("SwapDevice", {"name": "nothing"}, grpc.StatusCode.INVALID_ARGUMENT),
        ("WriteMemory", {"data": bytes(2 << 20)}, grpc.StatusCode.RESOURCE_EXHAUSTED),
    )
    for name, fields, code in refused:
        with pytest.raises(grpc.RpcError) as error:
            stranger.call(name, **fields)
        assert isinstance(error.value, grpc.Call)
        assert (error.value.code(), "\n" in (error.value.details() or "")) == (code, False), name
    console = stranger.stream("Attach", iter([stranger.make("Attach", device="uart9")]))
    with pytest.raises(grpc.RpcError) as error:
        next(console)
    assert isinstance(error.value, grpc.Call)
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
