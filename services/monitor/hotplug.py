"""Devices that come and go while the machine runs: device_add and device_del.

A device that comes is started on trial while the guest runs; memory refuses what lies over something else. Only to put
it on the cpu's board the machine is paused and drained. One that goes leaves the board first, then it ends.
"""

from __future__ import annotations

from vmesh.board import virt
from vmesh.errors import VmeshError, said
from vmesh.properties import HelpRequested
from vmesh.qdev import hotplug
from vmesh.spawn import ServiceCommand
from vmesh.v1 import cpu_pb2, gateway_pb2, lifecycle_pb2, memory_pb2
from vmesh_services.monitor import operations
from vmesh_services.monitor.operations import Operation, Request, RequestError, Roster
from vmesh_services.monitor.supervisor.supervisor import Supervisor


def add(supervisor: Supervisor, request: gateway_pb2.AddDeviceRequest, reply: gateway_pb2.AddDeviceReply) -> Operation:
    """Put a device on the board, in the words of the request; fills in `reply`. RequestError if it cannot be: then
    nothing was changed."""
    _check_now(supervisor)
    roster, stay_paused = supervisor.roster, supervisor.condition.paused
    command = _parse(supervisor, request)
    name = command.name
    failed = f"the device {name} cannot be added"
    try:
        yield from operations.undone(
            _put_on_board(supervisor, command),
            lambda: _let_go(supervisor, name),
            lambda: _detach(roster, name),
            lambda: operations.resume_unless(stay_paused, roster),
        )
    except RequestError as error:
        raise RequestError(f"{failed}: {error}", callers_fault=True) from None
    except Exception as error:
        raise RequestError(f"{failed}: {said(error)}") from error
    supervisor.lives.accept(name)
    yield from operations.resume_unless(stay_paused, supervisor.roster)
    reply.name = name
    reply.base, reply.irq = hotplug.place(command)


def _put_on_board(supervisor: Supervisor, command: ServiceCommand) -> Operation:
    name = command.name
    supervisor.lives.add(command)
    yield [Request(name, lifecycle_pb2.Health())]
    yield from operations.stop(supervisor.roster)
    (packet,) = yield [Request(supervisor.roster.memory, memory_pb2.MapRequest())]
    (description,) = [each for each in packet.address_map.devices if each.name == name]
    yield [Request(supervisor.roster.cpu, cpu_pb2.AddDevice(description=description))]


def _let_go(supervisor: Supervisor, name: str) -> Operation:
    if supervisor.condition.is_device(name):
        supervisor.lives.remove(name)
    yield []


def _detach(roster: Roster, name: str) -> Operation:
    yield [Request(roster.memory, memory_pb2.Detach(name=name))]


def remove(supervisor: Supervisor, name: str) -> Operation:
    """Take a device away. RequestError for one that is not there or belongs to the board."""
    _check_now(supervisor)
    removable = [each for each in supervisor.roster.devices if each not in virt.OWN_DEVICES]
    if name not in removable:
        there = "no device of this machine can be unplugged"
        if removable:
            there = f"expected one of: {', '.join(removable)}"
        raise RequestError(f"no device '{name}' can be taken away; {there}", callers_fault=True)
    roster, stay_paused = supervisor.roster, supervisor.condition.paused
    yield from operations.undone(
        _take_off_board(supervisor, name), lambda: operations.resume_unless(stay_paused, roster)
    )
    yield from operations.resume_unless(stay_paused, supervisor.roster)


def _take_off_board(supervisor: Supervisor, name: str) -> Operation:
    roster = supervisor.roster
    yield from operations.stop(roster)
    yield [Request(roster.cpu, cpu_pb2.RemoveDevice(name=name))]
    yield [Request(roster.memory, memory_pb2.Detach(name=name))]
    supervisor.lives.remove(name)


def _check_now(supervisor: Supervisor) -> None:
    if reason := supervisor.condition.devices_refusal():
        raise RequestError(f"no device can be added or taken away now: {reason}", callers_fault=True)


def _parse(supervisor: Supervisor, request: gateway_pb2.AddDeviceRequest) -> ServiceCommand:
    there = [service.command for service in supervisor.services.values()]
    try:
        return hotplug.service(
            request.device, request.drives, request.netdevs, request.fsdevs, supervisor.machine.path, there
        )
    except HelpRequested:
        raise RequestError(f"device '{request.device}': expected a device", callers_fault=True) from None
    except ValueError as error:
        raise RequestError(str(error), callers_fault=True) from None
    except (OSError, VmeshError) as error:  # a file that it names
        raise RequestError(str(said(error)), callers_fault=True) from None
