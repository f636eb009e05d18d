"""The typed client of a machine's gRPC gateway (proto/vmesh/v1/gateway.proto), for the CLI and for other programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc

from vmesh.errors import ConfigError
from vmesh.machine import MachineDirectory, find
from vmesh.remote import Remote, is_remote, parse
from vmesh.v1 import cpu_pb2, gateway_pb2, migration_pb2, trace_pb2
from vmesh.v1.gateway_pb2_grpc import MachineStub

Reply = TypeVar("Reply")

_SNAPSHOT_SECONDS = 3600.0  # a large machine on a slow disk
_CALL_SECONDS = 70.0  # longer than the gateway's own limit: what it says then is the better reason
_CONNECT_SECONDS = 10.0  # for a gateway on another host to be there

_OPTIONS = [
    ("grpc.max_receive_message_length", 16 << 20),  # bytes: a busy bus's trace
    # A gateway opens a moment after its machine has started. gRPC's own pauses double up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class GatewayError(Exception):
    """A call that the machine refused or did not answer; the message is one line for the user."""


def connect(name: str, timeout: float = _CALL_SECONDS) -> MachineClient:
    """A client of the machine of that name, or at `tcp:HOST:PORT,tls-creds=FOLDER`.

    Raises MachineError if there is none of that name, GatewayError for an address that is none and bad keys.
    """
    if not is_remote(name):
        return MachineClient(find(name), timeout)
    try:
        return MachineClient(parse(name), timeout)
    except ConfigError as error:
        raise GatewayError(str(error)) from error


class MachineClient:
    """One connection to one machine. Every call raises GatewayError, also when `timeout` seconds have passed.

    ConfigError for keys of a remote one that cannot be used.
    """

    def __init__(self, machine: MachineDirectory | Remote, timeout: float = _CALL_SECONDS) -> None:
        self._timeout = timeout
        self._elsewhere = isinstance(machine, Remote)
        self._connected = False
        if isinstance(machine, MachineDirectory):
            self._name = machine.name
            self._channel = grpc.insecure_channel(f"unix:{machine.gateway}", _OPTIONS)
        else:
            self._name = machine.target
            keys = machine.keys(server=False)
            credentials = grpc.ssl_channel_credentials(keys.authority, keys.key, keys.certificate)
            self._channel = grpc.secure_channel(machine.target, credentials, _OPTIONS)
        self._stub = MachineStub(self._channel)

    def __enter__(self) -> MachineClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The machine's, or its address."""
        return self._name

    def close(self) -> None:
        self._channel.close()

    def status(self, *, usage: bool = False) -> gateway_pb2.MachineStatus:
        """`usage`: also what the processes use of their host."""
        return self._call(self._stub.Status, gateway_pb2.StatusRequest(usage=usage))

    def health(self, service: str, seconds: float = 0.0) -> Iterator[bool]:
        """Whether a service is well, by the gateway's health service: now, and for so many seconds whenever it changes.

        An empty name is the gateway's own.
        """
        from grpc_health.v1 import health_pb2, health_pb2_grpc  # here: nobody else needs it

        stub: Any = health_pb2_grpc.HealthStub(self._channel)  # the package's type information has no methods
        request = health_pb2.HealthCheckRequest(service=service)
        if not seconds:
            yield self._call(stub.Check, request).status == health_pb2.HealthCheckResponse.SERVING
            return
        try:
            for reply in stub.Watch(request, timeout=seconds):
                yield reply.status == health_pb2.HealthCheckResponse.SERVING
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                raise GatewayError(f"machine '{self._name}': {error.details()}") from error

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

    def migrate(self, uri: str, *, resume: bool = False) -> None:
        """Begin to send the machine to `uri`; with `resume` go on with a post-copy whose connection broke."""
        self._call(self._stub.Migrate, gateway_pb2.MigrateRequest(uri=uri, resume=resume))

    def migrate_incoming(self, uri: str) -> None:
        """Have a machine that was started with `-incoming defer` listen."""
        self._call(self._stub.MigrateIncoming, gateway_pb2.MigrateIncomingRequest(uri=uri))

    def migrate_cancel(self) -> None:
        self._control(gateway_pb2.MIGRATE_CANCEL)

    def migrate_start_postcopy(self) -> None:
        self._control(gateway_pb2.MIGRATE_START_POSTCOPY)

    def migrate_pause(self) -> None:
        """Break the connection of a post-copy, to recover it on another."""
        self._control(gateway_pb2.MIGRATE_PAUSE)

    def migrate_recover(self, uri: str) -> None:
        """Have the destination of a broken post-copy listen again."""
        self._call(self._stub.MigrateRecover, gateway_pb2.MigrateRecoverRequest(uri=uri))

    def migrate_set(self, **settings: int | bool) -> None:
        """Change parameters and capabilities, by the names of their fields: `max_bandwidth=0, postcopy_ram=True`."""
        parameters = {field.name for field in migration_pb2.MigrationParameters.DESCRIPTOR.fields}
        made = gateway_pb2.MigrateSettings(names=settings)
        for name, value in settings.items():
            setattr(made.parameters if name in parameters else made.capabilities, name, value)
        self._call(self._stub.MigrateSet, made)

    def query_migrate(self) -> gateway_pb2.MigrateInformation:
        return self._call(self._stub.QueryMigrate, gateway_pb2.QueryMigrateRequest())

    def snapshot_save(self, path: Path) -> migration_pb2.MigrationStatus:
        """Write the machine into a file; returns when it is safe there."""
        request = gateway_pb2.SnapshotRequest(path=str(path.absolute()))
        return self._call(self._stub.SnapshotSave, request, _SNAPSHOT_SECONDS).status

    def snapshot_load(self, path: Path) -> migration_pb2.MigrationStatus:
        """Have the machine be as it was when the snapshot was saved."""
        request = gateway_pb2.SnapshotRequest(path=str(path.absolute()))
        return self._call(self._stub.SnapshotLoad, request, _SNAPSHOT_SECONDS).status

    def _control(self, action: gateway_pb2.MigrateAction.ValueType) -> None:
        self._call(self._stub.MigrateControl, gateway_pb2.MigrateControlRequest(action=action))

    def add_device(
        self, device: str, drives: Sequence[str] = (), netdevs: Sequence[str] = (), fsdevs: Sequence[str] = ()
    ) -> gateway_pb2.AddDeviceReply:
        """Put a device on the board; the texts are those behind -device, -drive, -netdev and -fsdev."""
        request = gateway_pb2.AddDeviceRequest(device=device, drives=drives, netdevs=netdevs, fsdevs=fsdevs)
        return self._call(self._stub.AddDevice, request)

    def remove_device(self, name: str) -> None:
        """Take a device away that was added, or that a flag has put there."""
        self._call(self._stub.RemoveDevice, gateway_pb2.RemoveDeviceRequest(name=name))

    def write_registers(self, values: Mapping[str, int], hart: int = 0) -> None:
        """All of them, or none with an error. The machine is paused for it, and goes on if it ran."""
        registers = [cpu_pb2.RegisterValue(name=name, value=value) for name, value in values.items()]
        self._call(self._stub.WriteRegisters, cpu_pb2.WriteRegisters(hart=hart, registers=registers))

    def read_memory(self, address: int, size: int, *, hart: int = 0, physical: bool = False) -> bytes:
        """Guest memory, at most 1 MiB; less than `size` where it ends."""
        request = cpu_pb2.ReadMemory(address=address, size=size, hart=hart, physical=physical)
        return self._call(self._stub.ReadMemory, request).data

    def write_memory(self, address: int, data: bytes, *, hart: int = 0, physical: bool = False) -> None:
        """All of it, or nothing with an error."""
        request = cpu_pb2.WriteMemory(address=address, data=data, hart=hart, physical=physical)
        self._call(self._stub.WriteMemory, request)

    def metrics(self) -> str:
        """The machine's counters in Prometheus's text format."""
        return self._call(self._stub.Metrics, gateway_pb2.MetricsRequest()).text

    def events(self) -> Iterator[gateway_pb2.Event]:
        """What happens from now on, until the machine ends."""
        return self._stream(self._stub.Events, gateway_pb2.EventsRequest(), begun=True)

    def trace(self) -> Iterator[trace_pb2.TraceRecords]:
        """The bus's traffic from now on, until the iterator is closed or the machine ends."""
        return self._stream(self._stub.Trace, gateway_pb2.TraceRequest(), begun=True)

    def attach(self, typed: Iterable[bytes], device: str = "") -> Iterator[gateway_pb2.ConsoleOutput]:
        """A console's output, until the machine ends. `typed`, read in a thread of gRPC's, is its input.

        Closing the iterator detaches.
        """

        def requests() -> Iterator[gateway_pb2.ConsoleInput]:
            yield gateway_pb2.ConsoleInput(device=device)
            for data in typed:
                yield gateway_pb2.ConsoleInput(data=data)

        return self._stream(self._stub.Attach, requests())

    def _stream(self, method: Callable[..., Any], request: Any, *, begun: bool = False) -> Iterator[Any]:
        """The messages of a stream that has no end of its own. That the machine ends is no error. With `begun`, which
        takes a gateway that says so, nothing is missed that happens after this has returned."""
        self._connect()
        call = method(request)
        if begun:
            call.initial_metadata()
        return self._messages(call)

    def _connect(self) -> None:
        """Nobody may be there, or not for our keys."""
        try:
            patience = min(self._timeout, _CONNECT_SECONDS) if self._elsewhere else self._timeout
            grpc.channel_ready_future(self._channel).result(patience)
            self._connected = True
        except grpc.FutureTimeoutError:
            raise GatewayError(f"machine '{self._name}' does not answer at its gateway") from None

    def _messages(self, call: Any) -> Iterator[Any]:
        try:
            yield from call
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() not in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.CANCELLED,
            ):
                raise GatewayError(f"machine '{self._name}': {error.details()}") from error
        finally:
            call.cancel()

    def _call(self, method: Callable[..., Reply], request: Any, timeout: float = 0.0) -> Reply:
        if self._elsewhere and not self._connected:
            self._connect()
        try:
            # Waiting for the gateway: it opens a moment after the guest has begun to run.
            return method(request, timeout=timeout or self._timeout, wait_for_ready=True)
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() not in (
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.UNAVAILABLE,
            ):
                raise GatewayError(f"machine '{self._name}': {error.details()}") from error
            reason = error.details() if isinstance(error, grpc.Call) else str(error)
            raise GatewayError(f"machine '{self._name}' does not answer at its gateway: {reason}") from error
