"""Another program in the place of a device, while the guest runs: `vmesh swap`.

The machine is paused and drained, so that nothing is under way. The device's process is then ended and the new one
started as its next life, which finds the state in the slot as after a kill. It must answer, take the state of its
predecessor, and give it back. If it does not, the former program is started again on the slot that it had left: to the
guest both ways are a pause. Two processes are never there at once, since they may need the same disk or interface.
A device that has died too often, for which the machine was stopped, is mended so, too.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path

from vmesh.errors import said
from vmesh.spawn import ServiceCommand
from vmesh.v1 import gateway_pb2, lifecycle_pb2, memory_pb2
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.monitor import operations
from vmesh_services.monitor.operations import Batch, Operation, Request, RequestError, Roster
from vmesh_services.monitor.output import one_line
from vmesh_services.monitor.supervisor.supervised import EXTERNAL, Successor, by_hand
from vmesh_services.monitor.supervisor.supervisor import Supervisor

_STANDARD = ("--machine", "--name", "--base", "--irq")  # options that every device has

_SHOWN = 300  # characters of what comes from a program or its author

Parts = Generator[Batch, Sequence[Packet], int]


def swap(
    supervisor: Supervisor, name: str, command: Sequence[str], directory: str, reply: gateway_pb2.SwapDeviceReply
) -> Operation:
    """Put the program `command`, started in `directory`, in the place of the device `name`; fills in `reply`.

    RequestError if it cannot take it; the former one goes on then.
    """
    former = _check(supervisor, name, command, directory)
    if supervisor.services[name].broken:
        yield from _mend(supervisor, former, _external(former, command, directory), reply)
        return
    roster, stay_paused = supervisor.roster, supervisor.condition.paused
    began = time.monotonic()
    slot = supervisor.machine.path / f"{name}.slot"
    left = slot.with_suffix(".former")
    answers: list[Packet] = []
    yield from operations.undone(
        _keep_state(roster, name, slot, left, answers), lambda: operations.resume_unless(stay_paused, roster)
    )
    packet, report = answers
    saved, kind = packet.service_state, report.health_report.kind
    runs = _described(kind, saved)
    new = _external(former, command, directory)
    supervisor.lives.put_in_place(name, Successor(new, prepare=lambda: None), on_trial=True)
    try:
        version = yield from _take_over(name, kind, saved)
    except Exception as failure:
        error = failure if isinstance(failure, RequestError) else said(failure)
        # Whatever the new one has made of the slot, the former one finds it as it had left it.
        go_back = Successor(former, prepare=lambda: os.replace(left, slot))
        supervisor.lives.put_in_place(name, go_back, on_trial=False)
        text = f"'{one_line(shlex.join(command), _SHOWN)}' cannot take the place of {name} ({runs})"
        try:
            yield [Request(name, lifecycle_pb2.Health())]
        except RequestError as late:
            raise RequestError(f"{text}: {error}; the former one does not come back: {late}") from None
        yield from operations.resume_unless(stay_paused, roster)
        raise RequestError(f"{text}, which goes on: {error}", callers_fault=True) from None
    supervisor.lives.accept(name)
    with suppress(OSError):
        left.unlink()
    yield from operations.resume_unless(stay_paused, roster)
    reply.kind, reply.state_type, reply.former_version, reply.version = kind, saved.type, saved.version, version
    reply.epoch = supervisor.services[name].epoch
    reply.pause_seconds = time.monotonic() - began


def _mend(
    supervisor: Supervisor, former: ServiceCommand, new: ServiceCommand, reply: gateway_pb2.SwapDeviceReply
) -> Operation:
    """As `swap`, for a device that is not there any more: its state is in the slot, and nowhere else."""
    roster, name, began = supervisor.roster, former.name, time.monotonic()
    slot = supervisor.machine.path / f"{name}.slot"
    left = slot.with_suffix(".former")
    (packet,) = yield [Request(roster.memory, memory_pb2.MapRequest())]
    (was,) = [each for each in packet.address_map.devices if each.name == name]
    _copy(slot, left)
    supervisor.lives.put_in_place(name, Successor(new, prepare=lambda: None), on_trial=True)
    try:
        (packet,) = yield [Request(name, lifecycle_pb2.Health())]
        kind = packet.health_report.kind
        *_, packet = yield [
            Request(name, each()) for each in (lifecycle_pb2.Pause, lifecycle_pb2.Drain, lifecycle_pb2.Save)
        ]
        state = packet.service_state
        if (kind, state.type) != (was.kind, was.state_type):
            raise RequestError(f"it is {_described(kind, state)}")
    except Exception as failure:
        error = failure if isinstance(failure, RequestError) else said(failure)
        supervisor.lives.put_back(name, former)
        os.replace(left, slot)
        text = f"the program cannot take the place of {name} ({was.kind}, state {was.state_type}), which has died"
        raise RequestError(f"{text}: {error}", callers_fault=True) from None
    supervisor.lives.accept(name)
    with suppress(OSError):
        left.unlink()
    stay_paused = not supervisor.run_state.goes_on_when_mended()
    yield from operations.resume_unless(stay_paused, roster)
    supervisor.run_state.mended()
    reply.kind, reply.state_type, reply.former_version, reply.version = (
        kind,
        state.type,
        was.state_version,
        state.version,
    )
    reply.epoch = supervisor.services[name].epoch
    reply.pause_seconds = time.monotonic() - began


def _keep_state(roster: Roster, name: str, slot: Path, left: Path, answers: list[Packet]) -> Operation:
    """Stop everything; have the device's state and health in `answers`, and a copy of its slot at `left`."""
    yield from operations.stop(roster)
    answers += yield [Request(name, lifecycle_pb2.Save()), Request(name, lifecycle_pb2.Health())]
    _copy(slot, left)


def _check(supervisor: Supervisor, name: str, command: Sequence[str], directory: str) -> ServiceCommand:
    """The command of the device that is to be replaced. RequestError for what is refused before anything stops."""
    if reason := supervisor.condition.devices_refusal():
        raise RequestError(f"no device can be swapped now: {reason}", callers_fault=True)
    if name not in supervisor.roster.devices:
        there = ", ".join(supervisor.roster.devices)
        raise RequestError(f"there is no device '{name}'; expected one of {there}", callers_fault=True)
    former = supervisor.services[name].command
    if by_hand(former):
        text = f"{name} was started by hand: end it, and start the other one with the next --epoch"
        raise RequestError(text, callers_fault=True)
    if not command or shutil.which(os.path.join(directory, command[0]) if "/" in command[0] else command[0]) is None:
        text = f"there is no program '{command[0] if command else ''}' to take the place of {name}"
        raise RequestError(text, callers_fault=True)
    return former


def _copy(slot: Path, left: Path) -> None:
    try:
        shutil.copyfile(slot, left)
    except OSError as error:
        with suppress(OSError):
            left.unlink()
        raise RequestError(f"cannot keep a copy of {slot}: {error.strerror}") from error


def _take_over(name: str, kind: str, saved: lifecycle_pb2.ServiceState) -> Parts:
    """Have the new process take the state of a device of this kind; gives the version in which it has it."""
    (packet,) = yield [Request(name, lifecycle_pb2.Health())]
    new_kind = packet.health_report.kind
    yield [Request(name, lifecycle_pb2.Pause())]
    yield [Request(name, lifecycle_pb2.Drain())]
    (packet,) = yield [Request(name, lifecycle_pb2.Save())]
    offered = packet.service_state
    try:
        if new_kind != kind:
            raise RequestError("another kind of device")
        yield [Request(name, lifecycle_pb2.Load(state=saved, check_only=True))]
        if offered != saved:  # it keeps its slot in another form, or its state in a later version
            yield [Request(name, lifecycle_pb2.Load(state=saved))]
            (packet,) = yield [Request(name, lifecycle_pb2.Save())]
        if packet.service_state.type != saved.type:
            raise RequestError("it does not give the state back")
    except RequestError as error:
        raise RequestError(f"it is {_described(new_kind, offered)}: {error}") from None
    return packet.service_state.version


def _described(kind: str, state: lifecycle_pb2.ServiceState) -> str:
    return one_line(f"{kind}, state {state.type} version {state.version}", _SHOWN)


def _external(former: ServiceCommand, command: Sequence[str], directory: str) -> ServiceCommand:
    """The command line of the new process: the user's, with the standard options of the former one."""
    pairs = zip(former.arguments, former.arguments[1:], strict=False)
    arguments = [word for option, value in pairs if option in _STANDARD for word in (option, value)]
    arguments += ["--directory", directory, "--command", shlex.join(command)]
    return ServiceCommand(former.name, former.kind, EXTERNAL, tuple(arguments))
