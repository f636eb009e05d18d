"""The gRPC gateway: vmesh.v1.Machine, the standard health service and reflection, on the machine's Unix socket.

The only threads of the monitor are here. Each call becomes an operation that the supervisor's loop carries out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import TypeVar

import grpc
from grpc_health.v1 import health as health_service
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from vmesh import descriptors
from vmesh.remote import Remote
from vmesh.v1 import cpu_pb2, gateway_pb2, migration_pb2, trace_pb2
from vmesh.v1.gateway_pb2_grpc import MachineServicer, add_MachineServicer_to_server
from vmesh_services.monitor import health, hotplug, operations
from vmesh_services.monitor import streams as open_streams
from vmesh_services.monitor.boundary import Boundary
from vmesh_services.monitor.migration import Migration
from vmesh_services.monitor.operations import Operation, RequestError, Roster, StateError
from vmesh_services.monitor.status import machine_status
from vmesh_services.monitor.streams import Places, Streams, refuse
from vmesh_services.monitor.supervisor.supervisor import Supervisor
from vmesh_services.monitor.swap import swap
from vmesh_services.monitor.texts import Texts

SERVICE = gateway_pb2.DESCRIPTOR.services_by_name["Machine"].full_name
REFLECTIONS = 8  # at once
# Each call has a thread while it lasts, made when it is first needed; streams and watchers leave some to the others.
_THREADS = open_streams.LIMIT + health.WATCHERS + REFLECTIONS + 16
_MEMORY_BYTES = 1 << 20  # of one ReadMemory or WriteMemory
_MESSAGE_BYTES = _MEMORY_BYTES + (64 << 10)  # of what a client sends
# An operation fails by itself when a service owes an answer too long; this only bounds a chain of slow ones.
_CALL_LIMIT = 60.0
_CONNECTIONS = 64  # at once, to each socket, whether they have shown a key or not
_HANDSHAKE_MS = 5000  # until a connection has done TLS's and HTTP/2's; then it is cut
_SNAPSHOT_LIMIT = 3600.0  # a large machine on a slow disk

Found = TypeVar("Found")


def serve(supervisor: Supervisor, migration: Migration, socket: Path, remote: Remote | None = None) -> grpc.Server:
    """Open the gateway at `socket`, for its owner only, and at `remote`, as long as the result is kept.

    Raises RuntimeError if it cannot listen there, ConfigError for keys that cannot be used.
    """
    server = grpc.server(
        ThreadPoolExecutor(_THREADS, thread_name_prefix="gateway"),
        maximum_concurrent_rpcs=_THREADS,
        interceptors=[Boundary(supervisor), Texts()],
        options=[
            ("grpc.max_receive_message_length", _MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
            (
                "grpc.max_allowed_incoming_connections",
                descriptors.for_clients(len(supervisor.roster.all), _CONNECTIONS),
            ),
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ],
    )
    add_MachineServicer_to_server(_Machine(supervisor, migration), server)
    state = health.Health("", SERVICE)
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    supervisor.call(lambda: setattr(supervisor, "tell_health", state.tell))
    described = Reflection((SERVICE, health_service.SERVICE_NAME, reflection.SERVICE_NAME))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(described, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{socket}")
    if remote is not None:
        keys = remote.keys(server=True)
        pairs = [(keys.key, keys.certificate)]
        credentials = grpc.ssl_server_credentials(pairs, keys.authority, require_client_auth=True)
        server.add_secure_port(remote.target, credentials)
    server.start()
    return server


class Reflection(reflection.ReflectionServicer):
    """gRPC's reflection, for a bounded number at once."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self._places = Places(REFLECTIONS, f"{REFLECTIONS} look already")

    def ServerReflectionInfo(  # type: ignore[override]  # there is no other kind of server here
        self, request_iterator: Iterable[reflection_pb2.ServerReflectionRequest], context: grpc.ServicerContext
    ) -> Iterator[reflection_pb2.ServerReflectionResponse]:
        with self._places.one(context):
            yield from super().ServerReflectionInfo(request_iterator, context)


class _Machine(MachineServicer):
    def __init__(self, supervisor: Supervisor, migration: Migration) -> None:
        self._supervisor, self._migration = supervisor, migration
        self._streams = Streams(supervisor)

    def Status(self, request: gateway_pb2.StatusRequest, context: grpc.ServicerContext) -> gateway_pb2.MachineStatus:
        return self._status(context, usage=request.usage)

    def Metrics(self, request: gateway_pb2.MetricsRequest, context: grpc.ServicerContext) -> gateway_pb2.MetricsReply:
        from vmesh_services.monitor.metrics import exposition  # here: whoever does not ask need not have it imported

        return gateway_pb2.MetricsReply(text=exposition(self._status(context, usage=True)))

    def Events(self, request: gateway_pb2.EventsRequest, context: grpc.ServicerContext) -> Iterator[gateway_pb2.Event]:
        return self._streams.events(context)

    def Attach(
        self, request_iterator: Iterator[gateway_pb2.ConsoleInput], context: grpc.ServicerContext
    ) -> Iterator[gateway_pb2.ConsoleOutput]:
        return self._streams.attach(request_iterator, context)

    def Trace(
        self, request: gateway_pb2.TraceRequest, context: grpc.ServicerContext
    ) -> Iterator[trace_pb2.TraceRecords]:
        return self._streams.trace(context)

    def _status(self, context: grpc.ServicerContext, *, usage: bool) -> gateway_pb2.MachineStatus:
        try:
            return machine_status(self._supervisor, usage=usage)
        except StateError as error:
            refuse(context, grpc.StatusCode.UNAVAILABLE, str(error))

    def Pause(self, request: gateway_pb2.PauseRequest, context: grpc.ServicerContext) -> gateway_pb2.PauseReply:
        self._do(self._supervisor.run_state.pause(), context, mends=True)
        return gateway_pb2.PauseReply()

    def Resume(self, request: gateway_pb2.ResumeRequest, context: grpc.ServicerContext) -> gateway_pb2.ResumeReply:
        self._do(self._supervisor.run_state.resume(), context, mends=True)
        return gateway_pb2.ResumeReply()

    def Reset(self, request: gateway_pb2.ResetMachineRequest, context: grpc.ServicerContext) -> gateway_pb2.ResetReply:
        self._do(self._supervisor.run_state.reset(), context)
        return gateway_pb2.ResetReply()

    def Quit(self, request: gateway_pb2.QuitRequest, context: grpc.ServicerContext) -> gateway_pb2.QuitReply:
        context.add_callback(lambda: self._supervisor.call(lambda: self._supervisor.end(0)))
        return gateway_pb2.QuitReply()

    def Registers(self, request: gateway_pb2.RegistersRequest, context: grpc.ServicerContext) -> cpu_pb2.HartRegisters:
        found = cpu_pb2.HartRegisters()
        roster = self._roster_with_cpu(context)
        self._do(operations.registers(roster, request.hart, found), context, exclusive=False)
        return found

    def WriteRegisters(
        self, request: cpu_pb2.WriteRegisters, context: grpc.ServicerContext
    ) -> gateway_pb2.WriteRegistersReply:
        self._roster_with_cpu(context)
        self._do(self._supervisor.run_state.write_registers(request), context)
        return gateway_pb2.WriteRegistersReply()

    def ReadMemory(self, request: cpu_pb2.ReadMemory, context: grpc.ServicerContext) -> cpu_pb2.MemoryContent:
        if not 0 < request.size <= _MEMORY_BYTES:
            refuse(
                context, grpc.StatusCode.INVALID_ARGUMENT, f"size: expected 1 to {_MEMORY_BYTES}, got {request.size}"
            )
        content = bytearray()
        self._do(operations.read_memory(self._roster_with_cpu(context), request, content), context, exclusive=False)
        return cpu_pb2.MemoryContent(data=bytes(content))

    def WriteMemory(self, request: cpu_pb2.WriteMemory, context: grpc.ServicerContext) -> gateway_pb2.WriteMemoryReply:
        self._roster_with_cpu(context)
        self._do(self._supervisor.run_state.write_memory(request), context, exclusive=False)
        return gateway_pb2.WriteMemoryReply()

    def _roster_with_cpu(self, context: grpc.ServicerContext) -> Roster:
        if not self._supervisor.roster.cpu:
            refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "the machine has no cpu service")
        return self._supervisor.roster

    def SwapDevice(
        self, request: gateway_pb2.SwapDeviceRequest, context: grpc.ServicerContext
    ) -> gateway_pb2.SwapDeviceReply:
        reply = gateway_pb2.SwapDeviceReply()
        operation = swap(self._supervisor, request.name, request.command, request.directory, reply)
        self._do(operation, context, mends=True)
        return reply

    def Migrate(self, request: gateway_pb2.MigrateRequest, context: grpc.ServicerContext) -> gateway_pb2.MigrateReply:
        if request.resume:
            return self._ask_migration(migration_pb2.MigrationRequest(resume=request.uri), context)
        return self._ask_migration(migration_pb2.MigrationRequest(outgoing=request.uri), context)

    def MigrateIncoming(
        self, request: gateway_pb2.MigrateIncomingRequest, context: grpc.ServicerContext
    ) -> gateway_pb2.MigrateReply:
        return self._ask_migration(migration_pb2.MigrationRequest(incoming=request.uri), context)

    def MigrateControl(
        self, request: gateway_pb2.MigrateControlRequest, context: grpc.ServicerContext
    ) -> gateway_pb2.MigrateReply:
        made = migration_pb2.MigrationRequest()
        match request.action:
            case gateway_pb2.MIGRATE_CANCEL:
                made.cancel.SetInParent()
            case gateway_pb2.MIGRATE_START_POSTCOPY:
                made.start_postcopy.SetInParent()
            case gateway_pb2.MIGRATE_PAUSE:
                made.pause.SetInParent()
            case _:
                refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "expected an action")
        return self._ask_migration(made, context)

    def MigrateRecover(
        self, request: gateway_pb2.MigrateRecoverRequest, context: grpc.ServicerContext
    ) -> gateway_pb2.MigrateReply:
        return self._ask_migration(migration_pb2.MigrationRequest(recover=request.uri), context)

    def MigrateSet(
        self, request: gateway_pb2.MigrateSettings, context: grpc.ServicerContext
    ) -> gateway_pb2.MigrateReply:
        self._in_loop(lambda: self._migration.set(request), context)
        return gateway_pb2.MigrateReply()

    def QueryMigrate(
        self, request: gateway_pb2.QueryMigrateRequest, context: grpc.ServicerContext
    ) -> gateway_pb2.MigrateInformation:
        return self._in_loop(self._migration.information, context)

    def SnapshotSave(
        self, request: gateway_pb2.SnapshotRequest, context: grpc.ServicerContext
    ) -> gateway_pb2.MigrateInformation:
        return self._snapshot(migration_pb2.MigrationRequest(save=request.path), context)

    def SnapshotLoad(
        self, request: gateway_pb2.SnapshotRequest, context: grpc.ServicerContext
    ) -> gateway_pb2.MigrateInformation:
        return self._snapshot(migration_pb2.MigrationRequest(load=request.path), context)

    def _ask_migration(
        self, request: migration_pb2.MigrationRequest, context: grpc.ServicerContext
    ) -> gateway_pb2.MigrateReply:
        _result(self._migration.request(request), context)
        return gateway_pb2.MigrateReply()

    def _snapshot(
        self, request: migration_pb2.MigrationRequest, context: grpc.ServicerContext
    ) -> gateway_pb2.MigrateInformation:
        status = _result(self._migration.request_to_end(request), context, _SNAPSHOT_LIMIT)
        if status.state != migration_pb2.MIGRATION_COMPLETED:
            refuse(context, grpc.StatusCode.FAILED_PRECONDITION, status.error)
        return gateway_pb2.MigrateInformation(status=status)

    def _in_loop(self, work: Callable[[], Found], context: grpc.ServicerContext) -> Found:
        """What `work` gives, called in the supervisor's thread."""
        return _result(self._supervisor.ask(work), context)

    def AddDevice(
        self, request: gateway_pb2.AddDeviceRequest, context: grpc.ServicerContext
    ) -> gateway_pb2.AddDeviceReply:
        reply = gateway_pb2.AddDeviceReply()
        self._do(hotplug.add(self._supervisor, request, reply), context)
        return reply

    def RemoveDevice(
        self, request: gateway_pb2.RemoveDeviceRequest, context: grpc.ServicerContext
    ) -> gateway_pb2.RemoveDeviceReply:
        self._do(hotplug.remove(self._supervisor, request.name), context)
        return gateway_pb2.RemoveDeviceReply()

    def _do(
        self, operation: Operation, context: grpc.ServicerContext, *, exclusive: bool = True, mends: bool = False
    ) -> None:
        """Carry out an operation; its error becomes the status of the call."""
        _result(self._supervisor.submit(operation, exclusive=exclusive, mends=mends), context)


def _result(future: Future[Found], context: grpc.ServicerContext, limit: float = _CALL_LIMIT) -> Found:
    """What the supervisor's thread found; its error becomes the status of the call."""
    try:
        return future.result(limit)
    except StateError as error:
        refuse(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
    except RequestError as error:
        code = grpc.StatusCode.INVALID_ARGUMENT if error.callers_fault else grpc.StatusCode.INTERNAL
        refuse(context, code, str(error))
    except FutureTimeoutError:
        refuse(context, grpc.StatusCode.UNAVAILABLE, f"not done after {limit:g} s")
