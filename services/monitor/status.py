"""All that is known of the machine: from the supervisor, from the cpu, and from the host."""

from __future__ import annotations

from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress

from vmesh.v1 import cpu_pb2, gateway_pb2
from vmesh_services.monitor import operations
from vmesh_services.monitor.operations import RequestError, StateError
from vmesh_services.monitor.supervisor.supervisor import Supervisor
from vmesh_services.monitor.usage import add_usage

_LIMIT = 60.0  # seconds


def machine_status(supervisor: Supervisor, *, usage: bool = False) -> gateway_pb2.MachineStatus:
    """From any thread but the loop's; what the cpu does not say now is missing. Raises StateError after the end."""
    cpu = cpu_pb2.CpuStatus()
    if supervisor.roster.cpu:
        with suppress(StateError, RequestError, FutureTimeoutError):
            supervisor.submit(operations.cpu_status(supervisor.roster, cpu), exclusive=False).result(_LIMIT)
    try:
        status = supervisor.ask(supervisor.machine_status).result(_LIMIT)
    except FutureTimeoutError:
        raise StateError("the monitor has ended") from None
    status.harts.extend(cpu.harts)
    if cpu.HasField("bus"):
        status.bus.CopyFrom(cpu.bus)
    status.guest_seconds = cpu.time_ns / 1e9
    if usage:
        add_usage(status, supervisor.other_processes)
    return status
