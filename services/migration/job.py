"""What the service does in a thread of its own: one job at a time, be it to send, to receive, to save or to load."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from vmesh import errors
from vmesh.log import Log
from vmesh.segment import amount
from vmesh.v1 import migration_pb2 as messages
from vmesh_services.migration.machine import MachineActions
from vmesh_services.migration.pager import Pager
from vmesh_services.migration.ram import GuestRam
from vmesh_services.migration.status import Status


@dataclass(frozen=True, slots=True)
class Context:
    """What a job stands on. `parameters` and `capabilities` change while it runs."""

    machine: MachineActions
    ram: GuestRam
    configuration: messages.Configuration  # of this machine
    parameters: messages.MigrationParameters
    capabilities: messages.MigrationCapabilities
    log: Log
    report: Callable[[messages.MigrationStatus], None]  # tells the monitor; as the others below, from any thread
    shoot_down: Callable[[], None]  # no hart has a stale TLB entry when it returns: after dirty flags were cleared
    throttle: Callable[[int], None]  # how much of their time harts are to stand still, in percent
    fault: Callable[[str], None]  # the machine cannot go on
    pager: Pager
    keep: Callable[[messages.MigrationRecord], None]  # in the slot, for the next life, when it returns; from any thread


class Job:
    """A job. `run` is called in its thread; the other methods in the service's main thread, while it runs."""

    def __init__(self, context: Context, status: Status) -> None:
        self.context = context
        self.status = status
        self.cancelled = False

    def run(self) -> None:
        """Do it, to its end. A VmeshError or OSError is its failure."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Give up; the machine goes on as before."""
        self.cancelled = True

    def start_postcopy(self) -> None:
        self._refuse("start-postcopy")

    def pause(self) -> None:
        self._refuse("pause")

    def recover(self, uri: str) -> None:
        self._refuse("recover")

    def resume(self, uri: str) -> None:
        self._refuse("resume")

    def close(self) -> None:
        """The service ends: let go of what others wait for."""

    def enter(self, state: messages.MigrationState.ValueType) -> None:
        """Change the state, and tell the monitor; of the last state it hears when the next job may begin."""
        self.status.state = state
        self.context.log.info("migration", state=messages.MigrationState.Name(state), error=self.status.error)
        if self.status.under_way:
            self.context.report(self.status.message())
        else:
            self.status.ended = time.monotonic()

    def _refuse(self, what: str) -> None:
        state = messages.MigrationState.Name(self.status.state)
        raise errors.BadRequest(f"migration {what}", expected="another state of the migration", got=state)


def check_same_machine(mine: messages.Configuration, theirs: messages.Configuration) -> None:
    """Raises BadState unless a machine of `theirs` can go on as `mine`: the same board, RAM and services."""
    if theirs.board != mine.board:
        raise errors.BadState("board", expected=mine.board, got=repr(theirs.board[:64]))
    if list(theirs.segments) != list(mine.segments):
        _refuse_memory(mine.segments, theirs.segments)
    here = {each.name: each for each in mine.services}
    there = {each.name: each for each in theirs.services}
    for name in sorted(here.keys() | there.keys()):
        what = f"service '{name[:64]}'"
        if name not in here or name not in there or here[name].kind != there[name].kind:
            wanted, got = (repr(side[name].kind[:64]) if name in side else "none" for side in (here, there))
            raise errors.BadState(what, expected=wanted, got=got)
        if there[name].seen:
            _check_seen(what, here[name].seen, there[name].seen)


def _check_seen(what: str, mine: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            wanted, got = (side[name][:400] if name in side else "none" for side in (mine, theirs))
            raise errors.BadState(f"{what}: {name[:64]}", expected=wanted, got=got)


def _refuse_memory(mine: Sequence[messages.RamSegment], theirs: Sequence[messages.RamSegment]) -> NoReturn:
    """Raises BadState; where the one difference is how much RAM there is, in the words of the flag that says it."""
    differ = [pair for pair in zip(mine, theirs, strict=False) if pair[0] != pair[1]]
    if len(mine) == len(theirs) and len(differ) == 1:
        (here, there), resized = differ[0], messages.RamSegment()
        resized.CopyFrom(there)
        resized.size = here.size
        if here.name == "ram" and resized == here:
            raise errors.BadState("memory", expected=f"{amount(here.size)} of RAM (-m)", got=amount(there.size))
    raise errors.BadState("memory", expected=_memory(mine), got=_memory(theirs))


def _memory(segments: Sequence[messages.RamSegment]) -> str:
    return ", ".join(f"{each.name[:16]} of {amount(each.size)} at {each.base:#x}" for each in segments[:8]) or "none"
