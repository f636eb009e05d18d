"""The typed client of a machine's gRPC gateway (proto/vmesh/v1/gateway.proto), for the CLI and for other programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

# Errors reach the user as one line of ours; gRPC's own log would come between. Read when grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

from vmesh.machine import Machine
from vmesh.v1 import cpu_pb2, gateway_pb2
from vmesh.v1.gateway_pb2_grpc import MachineStub

Reply = TypeVar("Reply")


class GatewayError(Exception):
    """A call that the machine refused or did not answer; the message is one line for the user."""


class MachineClient:
    """One connection to one machine. Every call raises GatewayError, also when `timeout` seconds have passed."""

    def __init__(self, machine: Machine, timeout: float = 10.0) -> None:
        self._name = machine.name
        self._timeout = timeout
        self._channel = grpc.insecure_channel(f"unix:{machine.gateway}")
        self._stub = MachineStub(self._channel)

    def __enter__(self) -> MachineClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def status(self) -> gateway_pb2.MachineStatus:
        return self._call(self._stub.Status, gateway_pb2.StatusRequest())

    def pause(self) -> None:
        self._call(self._stub.Pause, gateway_pb2.PauseRequest())

    def resume(self) -> None:
        self._call(self._stub.Resume, gateway_pb2.ResumeRequest())

    def reset(self) -> None:
        self._call(self._stub.Reset, gateway_pb2.ResetMachineRequest())

    def quit(self) -> None:
        self._call(self._stub.Quit, gateway_pb2.QuitRequest())

    def registers(self, hart: int = 0) -> cpu_pb2.HartRegisters:
        return self._call(self._stub.Registers, gateway_pb2.RegistersRequest(hart=hart))

    def swap(self, device: str, command: Sequence[str], directory: str) -> gateway_pb2.SwapDeviceReply:
        """Put a program, started in `directory`, in the place of a device. Refused, the former one goes on."""
        request = gateway_pb2.SwapDeviceRequest(name=device, command=command, directory=directory)
        return self._call(self._stub.SwapDevice, request)

    def _call(self, method: Callable[..., Reply], request: Any) -> Reply:
        try:
            # Waiting for the gateway: it opens a moment after the guest has begun to run.
            return method(request, timeout=self._timeout, wait_for_ready=True)
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() not in (
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.UNAVAILABLE,
            ):
                raise GatewayError(f"machine '{self._name}': {error.details()}") from error
            reason = error.details() if isinstance(error, grpc.Call) else str(error)
            raise GatewayError(f"machine '{self._name}' does not answer at its gateway: {reason}") from error
