"""The machine, for the threads of this service: each method asks the monitor to have something done, and waits.

The sockets belong to the service's main thread; what a thread wants sent goes there.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import NamedTuple

from google.protobuf.message import Message

from vmesh import errors
from vmesh.migration.package import States
from vmesh.migration.states import in_messages
from vmesh.v1 import migration_pb2 as messages
from vmesh.v1.cpu_pb2 import CatchUp
from vmesh.v1.lifecycle_pb2 import ServiceState

ANSWER_SECONDS = 60.0  # the monitor bounds each operation by itself


class MachineFailed(errors.VmeshError):
    """The monitor could not have it done."""


class Stopped(NamedTuple):
    """A machine that stands still: its states, if they were asked for, whether it ran, and since when guest time stands
    still by time.monotonic_ns()."""

    states: States
    ran: bool
    since_ns: int
    reset_due: bool = False  # the guest has asked for a reset, which was not made


class MachineActions:
    """`send` brings a message to the monitor, from any thread."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._number = 0
        self._answers: queue.SimpleQueue[messages.MachineAnswer] = queue.SimpleQueue()

    def answered(self, answer: messages.MachineAnswer) -> None:
        """In the main thread: the monitor has answered."""
        self._answers.put(answer)

    def stop(self) -> bool:
        """Everything stands still when this returns; gives whether the guest ran."""
        return self._ask(messages.MACHINE_STOP).ran

    def save(self) -> Stopped:
        """As `stop`; gives the states too."""
        return self._ask(messages.MACHINE_SAVE)

    def check(self, states: States) -> None:
        """Raises MachineFailed for states that the services would not take; nothing was changed."""
        self._ask(messages.MACHINE_CHECK, states)

    def load(self, states: States) -> None:
        """Every service takes its own. Raises MachineFailed if one does not, which is then as it was."""
        self._ask(messages.MACHINE_LOAD, states)

    def hand_over(self) -> None:
        self._ask(messages.MACHINE_HAND_OVER)

    def go(self, since_ns: int, *, reset_due: bool = False) -> None:
        """Run, unless the machine was started to stay paused. Guest time is as if it had stood still until `since_ns`
        of time.monotonic_ns(), and no longer: a negative time, if that was before this host was switched on."""
        self._ask(messages.MACHINE_GO, catch_up=CatchUp(since_ns=since_ns), reset_due=reset_due)

    def stay(self, *, reset_due: bool = False) -> None:
        """It has come in, and stays paused as it was where it came from."""
        self._ask(messages.MACHINE_STAY, reset_due=reset_due)

    def go_on(self, *, catch_up: bool = False) -> None:
        """As it was before `stop`; or even, to `catch_up`, as if it had not been stopped."""
        self._ask(messages.MACHINE_GO_ON, catch_up=CatchUp() if catch_up else None)

    def moved(self) -> None:
        """It runs elsewhere."""
        self._ask(messages.MACHINE_MOVED)

    def _ask(
        self,
        action: messages.MachineAction.ValueType,
        states: States | None = None,
        *,
        catch_up: CatchUp | None = None,
        reset_due: bool = False,
    ) -> Stopped:
        with self._lock:
            self._number += 1
            number = self._number
            for part, more in in_messages(states or {}):
                self._send(
                    messages.MachineRequest(
                        number=number, action=action, states=part, more=more, catch_up=catch_up, reset_due=reset_due
                    )
                )
            return self._collect(number, messages.MachineAction.Name(action))

    def _collect(self, number: int, name: str) -> Stopped:
        got: dict[str, ServiceState] = {}
        while True:
            try:
                answer = self._answers.get(timeout=ANSWER_SECONDS)
            except queue.Empty:
                raise MachineFailed(f"{name}: the monitor does not answer") from None
            if answer.number != number:
                continue
            if answer.error:
                raise MachineFailed(answer.error)
            got.update((each.service, each.state) for each in answer.states)
            if not answer.more:
                return Stopped(got, answer.ran, answer.stopped_ns, answer.reset_due)
