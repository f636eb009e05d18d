"""What the monitor asks of the services, in which order: lifecycle.proto's sequences as generators.

A generator yields a batch of requests and is sent their answers, in the same order, once all have come. If one fails,
RequestError is thrown into it. Nothing here knows of sockets or time, so that a test can play the services.

Whatever fails in an operation, foreseen or not, what it has begun is undone: `undone`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass

from google.protobuf.message import Message

from vmesh.errors import said
from vmesh.v1 import cpu_pb2, lifecycle_pb2
from vmesh.v1.packet_pb2 import Packet


@dataclass(frozen=True, slots=True)
class Request:
    """One packet to one service."""

    service: str
    body: Message


MEMORY_PIECE = 256 << 10  # bytes that the cpu is asked for at a time: it answers nothing else meanwhile

Batch = Sequence[Request]
Operation = Generator[Batch, Sequence[Packet], None]


class RequestError(Exception):
    """A service refused a request, failed at it or did not answer in time; the message is one line for people.

    `callers_fault` tells that the request itself could not be followed, such as for a hart that is not there.
    """

    def __init__(self, text: str, *, callers_fault: bool = False) -> None:
        super().__init__(text)
        self.callers_fault = callers_fault


class StateError(Exception):
    """The machine is in no state for what was asked; the message is one line for people."""


def undone(operation: Operation, *undo: Callable[[], Operation]) -> Operation:
    """Carry out `operation`. If any of it fails, in whatever way, each of `undo` is carried out, whether the others
    fail or not, and then the failure goes on."""
    try:
        yield from operation
    except Exception as error:
        failures = []
        for step in undo:
            try:
                yield from step()
            except Exception as late:
                failures.append(f"{_said(late)}")
        if failures:
            raise RequestError(f"{_said(error)}; nor could it be undone: {'; '.join(failures)}") from error
        raise


def _said(error: Exception) -> str:
    return str(error if isinstance(error, RequestError) else said(error))


@dataclass(frozen=True, slots=True)
class Roster:
    """The services' names by their part in the lifecycle.

    `cpu` is empty on a machine without one, `cache` where the cpu is on the host of RAM.
    """

    memory: str
    cpu: str
    devices: tuple[str, ...]
    cache: str = ""

    @property
    def others(self) -> tuple[str, ...]:
        return (*self.devices, self.memory, self.cache) if self.cache else (*self.devices, self.memory)

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.others, self.cpu) if self.cpu else self.others

    def shutdown_order(self) -> tuple[tuple[str, ...], ...]:
        """Who writes ends before those it writes to: harts, then devices, then memory."""
        groups = ((self.cpu,), self.devices, (self.cache,), (self.memory,))
        return tuple(group for group in groups if any(group))


def pause(roster: Roster) -> Operation:
    """Stop the harts, then the devices, and drain the bus. If a part fails, all go on as before and it raises."""
    yield from undone(stop(roster), lambda: go_on(roster))


def go_on(roster: Roster) -> Operation:
    """After a stop that failed: all are asked to go on at once, since one of them may not answer for long."""
    for batch in ([Request(name, lifecycle_pb2.Resume()) for name in roster.all], health(roster)):
        with suppress(RequestError):
            yield batch


def resume(roster: Roster, catch_up: cpu_pb2.CatchUp | None = None) -> Operation:
    """Everyone goes on, the harts last, when there is somebody to answer them."""
    yield from start(roster, catch_up)
    yield health(roster)


def resume_unless(stay_paused: bool, roster: Roster) -> Operation:
    """The machine goes on if it ran before: its harts too, should a device not answer."""
    if not stay_paused:
        yield from undone(resume(roster), lambda: go_on(roster))


def _ask(service: str, body: Message) -> Operation:
    yield [Request(service, body)]


def start(roster: Roster, catch_up: cpu_pb2.CatchUp | None = None) -> Operation:
    """As `resume`, without a look at how they are then. Guest time has stood still unless it is to `catch_up`."""
    yield [Request(name, lifecycle_pb2.Resume()) for name in roster.others]
    if roster.cpu:
        first = [] if catch_up is None else [Request(roster.cpu, catch_up)]
        yield [*first, Request(roster.cpu, lifecycle_pb2.Resume())]


def reset(roster: Roster, *, stay_paused: bool) -> Operation:
    """The state after power-on. Memory comes first: it may refuse, and then all go on as before; and the harts are to
    start from images loaded anew."""
    yield from (stop if stay_paused else pause)(roster)
    yield from undone(_ask(roster.memory, lifecycle_pb2.Reset()), lambda: resume_unless(stay_paused, roster))
    yield [Request(name, lifecycle_pb2.Reset()) for name in roster.devices]
    for name in filter(None, (roster.cache, roster.cpu)):
        yield [Request(name, lifecycle_pb2.Reset())]
    yield from resume_unless(stay_paused, roster)


def load(roster: Roster, states: Mapping[str, lifecycle_pb2.ServiceState], *, check_only: bool) -> Operation:
    """Have every service take its state, or say whether it would. The machine is paused."""
    if missing := set(roster.all) ^ states.keys():
        raise RequestError(f"no state of service '{min(missing)}', or none that could take it")
    yield [Request(name, lifecycle_pb2.Load(state=states[name], check_only=check_only)) for name in roster.all]


def hand_over(roster: Roster) -> Operation:
    """Another machine is about to run with the state that was saved."""
    yield [Request(name, lifecycle_pb2.HandOver()) for name in roster.devices]


def health(roster: Roster) -> Batch:
    return [Request(name, lifecycle_pb2.Health()) for name in roster.all]


def cpu_status(roster: Roster, status: cpu_pb2.CpuStatus) -> Operation:
    """Fill in `status`; it stays empty if the cpu does not answer now."""
    try:
        (packet,) = yield [Request(roster.cpu, cpu_pb2.CpuStatusRequest())]
    except RequestError:
        return
    status.CopyFrom(packet.cpu_status)


def registers(roster: Roster, hart: int, registers: cpu_pb2.HartRegisters) -> Operation:
    """Fill in `registers`."""
    (packet,) = yield [Request(roster.cpu, cpu_pb2.HartRegistersRequest(hart=hart))]
    registers.CopyFrom(packet.hart_registers)


def read_memory(roster: Roster, request: cpu_pb2.ReadMemory, content: bytearray) -> Operation:
    """Append to `content` what is there, up to where no memory is: any number of bytes, in requests of a size that the
    cpu takes. Fails if there is no memory at the first byte."""
    end = request.address + request.size
    while request.address + len(content) < end:
        place = request.address + len(content)
        piece = cpu_pb2.ReadMemory(
            physical=request.physical, hart=request.hart, address=place, size=min(end - place, MEMORY_PIECE)
        )
        try:
            (packet,) = yield [Request(roster.cpu, piece)]
        except RequestError as error:
            if content and error.callers_fault:
                return
            raise
        content += packet.memory_content.data
        if len(packet.memory_content.data) < piece.size:
            return


def write_memory(roster: Roster, request: cpu_pb2.WriteMemory) -> Operation:
    """Write all of it or, if there is no memory at one of its bytes, nothing; 1 MiB at most."""
    yield [Request(roster.cpu, request)]


def write_registers(roster: Roster, request: cpu_pb2.WriteRegisters, *, stay_paused: bool) -> Operation:
    """Write registers by name, between two instructions."""
    yield from (stop if stay_paused else pause)(roster)
    yield from undone(_ask(roster.cpu, request), lambda: resume_unless(stay_paused, roster))
    yield from resume_unless(stay_paused, roster)


def stop(roster: Roster) -> Operation:
    """Stop the harts, then the devices, and drain the bus. What has stopped stays so if a part fails."""
    yield from quiesce(roster)
    yield health(roster)


def halt(roster: Roster, missing: Set[str]) -> Operation:
    """Stop without the devices `missing`, which are gone: harts that wait for them stand still as they are, and nothing
    is drained."""
    there = [name for name in roster.devices if name not in missing]
    if roster.cpu:
        yield [Request(roster.cpu, lifecycle_pb2.Pause(at_once=True))]
    yield [Request(name, lifecycle_pb2.Pause()) for name in there]
    yield [Request(name, lifecycle_pb2.Health()) for name in (*there, roster.memory, roster.cpu) if name]


def quiesce(
    roster: Roster, states: dict[str, lifecycle_pb2.ServiceState] | None = None, status: cpu_pb2.CpuStatus | None = None
) -> Operation:
    """As `stop`, without a look at how they are then; fills in the services' states and the cpu's status, if given.

    The guest stands still meanwhile, so this takes few turns: a service is asked at once for all that it does in order.
    Memory serves the devices, so it stops after them.
    """
    if roster.cpu:
        yield [Request(roster.cpu, lifecycle_pb2.Pause())]
    steps: list[Message] = [lifecycle_pb2.Pause(), lifecycle_pb2.Drain()]
    saved: list[Message] = [] if states is None else [lifecycle_pb2.Save()]
    asked = [Request(name, body) for name in roster.devices for body in (*steps, *saved)]
    answers = list(zip(asked, (yield asked), strict=True))
    updates = {
        request.service: packet.drained.update_sequence
        for request, packet in answers
        if isinstance(request.body, lifecycle_pb2.Drain)
    }
    asked = [Request(roster.memory, body) for body in (*steps, *saved)]
    if roster.cpu:
        asked += [Request(roster.cpu, body) for body in (lifecycle_pb2.Drain(updates=updates), *saved)]
        asked += [] if status is None else [Request(roster.cpu, cpu_pb2.CpuStatusRequest())]
    answers += zip(asked, (yield asked), strict=True)
    if status is not None and roster.cpu:
        status.CopyFrom(answers[-1][1].cpu_status)
    if states is not None:
        states.update(
            (request.service, packet.service_state)
            for request, packet in answers
            if isinstance(request.body, lifecycle_pb2.Save)
        )
