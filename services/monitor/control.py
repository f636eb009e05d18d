"""What QMP and HMP commands stand on: the machine, and how work on it is carried out for a client.

A command's handler gives its answer, or the `Work` whose result is the answer. Work is carried out by the supervisor's
loop like everything else; nobody waits for it but the client that asked.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from vmesh.log import Log
from vmesh.v1 import lifecycle_pb2, memory_pb2
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.monitor.migration import Migration
from vmesh_services.monitor.operations import Batch, Operation, Request, Roster
from vmesh_services.monitor.qmp.errors import QmpError
from vmesh_services.monitor.supervisor.supervised import Supervised
from vmesh_services.monitor.supervisor.supervisor import Supervisor

_MAX_FLAGS = 256

Parts = Generator[Batch, Sequence[Packet], object]
Done = Callable[[object], None]


@dataclass(frozen=True, slots=True)
class Work:
    """An operation whose result is the answer; exclusive if it must have the machine for itself. `mends`: it may be
    carried out while a device is broken."""

    parts: Parts
    exclusive: bool = False
    mends: bool = False


@dataclass(frozen=True, slots=True)
class Awaited:
    """Something under way elsewhere whose end is the answer: `answer` makes it from the result or the QmpError."""

    future: Future[Any]
    answer: Callable[[object], object] = lambda outcome: outcome


@dataclass(slots=True)
class Job:
    """A snapshot command that was begun, in QEMU's words (qapi/job.json)."""

    name: str
    kind: str
    status: str = "created"
    error: str = ""


@dataclass(slots=True)
class Control:
    """One machine under control. `consoles` are the serial devices' chardevs, `monitors` those of the doors.

    `gdbserver`, where there is one, starts it on a device in QEMU's words, and gives the line that says so.
    """

    supervisor: Supervisor
    migration: Migration
    log: Log
    consoles: dict[str, str]
    monitors: dict[str, str] = field(default_factory=dict)
    gdbserver: Callable[[str], str] | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    drives: dict[str, str] = field(default_factory=dict)  # blockdev-add and netdev_add: flags by name, for device_add
    netdevs: dict[str, str] = field(default_factory=dict)

    @property
    def roster(self) -> Roster:
        return self.supervisor.roster

    def devices(self) -> list[Supervised]:
        """The services that are devices."""
        return [self.supervisor.services[name] for name in self.roster.devices]

    def options(self, name: str) -> dict[str, str]:
        """The command line of a service, as `Supervised.options` has it."""
        return self.supervisor.services[name].options

    @property
    def reserved(self) -> list[tuple[str, int, int]]:
        """What the cpu answers for itself: name, address and bytes, as memory is told to keep it free."""
        words = self.supervisor.services[self.roster.memory].command.arguments
        found = [value for option, value in pairwise(words) if option == "--reserve"]
        parts = [(name, *place.split(":")) for name, _, place in (each.partition("=") for each in found)]
        return [(name, int(base, 0), int(size, 0)) for name, base, size in parts]

    @property
    def harts(self) -> int:
        return int(self.options(self.roster.cpu).get("harts", "1")) if self.roster.cpu else 0

    def hart(self, index: object) -> int:
        """A hart that is there. Raises QmpError."""
        if not isinstance(index, int) or not 0 <= index < self.harts:
            raise QmpError(f"Parameter 'cpu-index' expects a CPU number, 0 to {self.harts - 1}")
        return index

    def keep(self, flags: dict[str, str], name: str, text: str) -> None:
        """Remember a flag for a device to come. Raises QmpError for too many."""
        if len(flags) >= _MAX_FLAGS:
            raise QmpError(f"at most {_MAX_FLAGS} are kept for devices to come")
        flags[name] = text

    def carry_out(self, command: Callable[[], object], done: Done) -> None:
        """Run a handler; `done` gets its answer, or the QmpError that it failed with, now or in a later turn.

        As with QEMU, whoever has an answer of a machine with -incoming can migrate to it.
        """
        self.migration.when_reachable(lambda: self._carry_out(command, done))

    def _carry_out(self, command: Callable[[], object], done: Done) -> None:
        try:
            answer = command()
        except QmpError as error:
            answer = error
        except Exception as error:  # the boundary of what a client orders
            answer = QmpError(str(self.supervisor.as_failure(error)))
        if isinstance(answer, Awaited):
            awaited = answer
            awaited.future.add_done_callback(lambda future: done(awaited.answer(_outcome(future))))
            return
        if not isinstance(answer, Work):
            done(answer)
            return
        result: list[object] = []
        operation = self._operation(answer.parts, result)
        future = self.supervisor.submit(operation, exclusive=answer.exclusive, mends=answer.mends)
        future.add_done_callback(lambda future: done(_outcome(future) or result[0]))

    def _operation(self, parts: Parts, result: list[object]) -> Operation:
        try:
            result.append((yield from parts))
        except QmpError as error:
            result.append(error)


def _outcome(future: Future[Any]) -> object:
    error = future.exception()
    return future.result() if error is None else QmpError(str(error))


def counters(name: str) -> Generator[Batch, Sequence[Packet], dict[str, int]]:
    """What a service has counted, as of now."""
    (packet,) = yield [Request(name, lifecycle_pb2.Health())]
    return dict(packet.health_report.counters)


def address_map(roster: Roster) -> Generator[Batch, Sequence[Packet], memory_pb2.AddressMap]:
    """Segments and devices, as memory has them."""
    (packet,) = yield [Request(roster.memory, memory_pb2.MapRequest())]
    return packet.address_map
