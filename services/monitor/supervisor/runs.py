"""Operations under way: each waits for the answers to a batch of requests, and is stepped when all have come.

Its boundary: whatever an operation raises fails that operation, and the machine goes on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from vmesh.errors import HostLimit, from_message, said
from vmesh.log import Log
from vmesh.loop import Inbox, Loop
from vmesh.v1 import common_pb2
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.monitor.link import Link
from vmesh_services.monitor.operations import Operation, Request, RequestError, StateError
from vmesh_services.monitor.output import Output, one_line
from vmesh_services.monitor.supervisor.condition import Condition
from vmesh_services.monitor.supervisor.supervised import Supervised

Found = TypeVar("Found")


@dataclass(slots=True, eq=False)
class _Run:
    """An operation under way: the batch it waits for."""

    operation: Operation
    future: Future[None]
    exclusive: bool
    mends: bool = False
    begun: bool = False
    requests: Sequence[Request] = ()
    answers: list[Packet] = field(default_factory=list)
    # by place: whom was asked, under which id; None: a device that is being restarted, and is asked then
    open: dict[int, tuple[Link | None, int]] = field(default_factory=dict)
    deadline: float = 0.0


class Runs:
    """`submit`, `call` and `ask` are for any thread; the rest is the loop's.

    `limit`: seconds for the answers to a batch. `finished` is called when an exclusive operation has ended, before
    whoever asked for it is told; `reported` with a report on a service's health that an operation has asked for.
    """

    def __init__(self, condition: Condition, loop: Loop, limit: float, output: Output, log: Log) -> None:
        self.finished: Callable[[], None] = lambda: None
        self.reported: Callable[[Supervised, Packet], None] = lambda service, packet: None
        self._condition = condition
        self._limit = limit
        self._output, self._log = output, log
        self._inbox = Inbox(loop)
        self._runs: list[_Run] = []
        self._waiting: deque[_Run] = deque()

    # From any thread

    def submit(self, operation: Operation, *, exclusive: bool, mends: bool = False) -> Future[None]:
        """Carry out an operation. Exclusive ones follow each other, once the machine has started; while a device is
        broken only those that may mend it are begun.

        The future fails with RequestError or StateError.
        """
        run = _Run(operation, Future(), exclusive, mends)
        self.call(lambda: self._begin(run))
        return run.future

    def call(self, work: Callable[[], None]) -> None:
        """Have `work` done in the loop."""
        self._inbox.call(work)

    def ask(self, work: Callable[[], Found]) -> Future[Found]:
        """What `work` gives, called in the loop; what it raises is the future's."""
        found: Future[Found] = Future()

        def call() -> None:
            try:
                answer = work()
            except Exception as error:
                found.set_exception(self.as_failure(error))
            else:
                found.set_result(answer)

        self.call(call)
        return found

    def as_failure(self, error: Exception) -> Exception:
        """How an operation that has raised `error` has failed: what was not foreseen is in the log, too."""
        if isinstance(error, RequestError | StateError):
            return error
        reason = said(error)
        the_host_refuses = isinstance(reason, HostLimit)  # else we are wrong
        write = self._log.info if the_host_refuses else self._log.error
        write("an operation failed in a way that was not foreseen", reason=reason, error=repr(error))
        return RequestError(one_line(str(reason)))

    # What becomes of the services

    @property
    def exclusive(self) -> bool:
        """Whether an operation has the machine for itself."""
        return any(run.exclusive for run in self._runs)

    def next(self) -> None:
        """The next exclusive operation may begin."""
        condition = self._condition
        if condition.starting or self.exclusive or not self._waiting:
            return
        if not all(service.ready or service.broken for service in condition.services.values()):
            return  # a device comes back first
        run = self._waiting.popleft()
        if condition.broken and not run.mends:
            why = condition.why_stopped or "a device is broken"
            way = condition.way_on if condition.lost else "`vmesh resume` or `vmesh swap` comes first"
            self._finish(run, StateError(f"the machine is stopped: {why}; {way}"))
        else:
            self._runs.append(run)
            self._advance(run, None)

    def is_back(self, service: Supervised) -> None:
        """Its next life is ready: what its former one was asked and had not answered is asked again."""
        for run in list(self._runs):
            for place, (link, _) in list(run.open.items()):
                if run.requests[place].service == service.name and link is not service.link:
                    error = self._ask(run, place)
                    if error is not None:
                        self._advance(run, error)
                        break
        self.next()

    def is_gone(self, service: Supervised, why: str) -> None:
        """It has no next life: what waits for it has failed."""
        for run in [run for run in self._runs if _waits_for(run, service)]:
            self._advance(run, RequestError(why))

    def close(self, error: StateError) -> None:
        """The machine ends: whatever is under way has failed."""
        for run in [*self._runs, *self._waiting]:
            self._finish(run, error)
        self._waiting.clear()

    # Time, in seconds of the monotonic clock

    def look(self, now: float) -> None:
        """Fail what has waited for too long."""
        for run in [run for run in self._runs if now >= run.deadline]:
            names = [run.requests[place].service for place in run.open]
            self._advance(run, RequestError(f"no answer from {', '.join(names)} for {self._limit:g} s"))

    def forgive(self, seconds: float) -> None:
        """The services owe nothing for a time in which this process was stopped."""
        for run in self._runs:
            run.deadline += seconds

    # A run's way

    def _begin(self, run: _Run) -> None:
        if self._condition.ending:
            self._finish(run, StateError("the machine ends"))
        elif run.exclusive:
            self._waiting.append(run)
            self.next()
        else:
            self._runs.append(run)
            self._advance(run, None)

    def _advance(self, run: _Run, error: RequestError | None) -> None:
        """Step the operation with the answers it waited for, or with the error that one of them was."""
        self._forget(run)
        try:
            if error is not None:
                run.requests = run.operation.throw(error)
            elif run.begun:
                run.requests = run.operation.send(run.answers)
            else:
                run.requests = next(run.operation)
        except StopIteration:
            self._finish(run, None)
            return
        except Exception as failed:
            self._finish(run, self.as_failure(failed))
            return
        run.begun = True
        run.answers = [Packet()] * len(run.requests)
        run.deadline = time.monotonic() + self._limit
        # All are asked, whoever cannot be: those that can are to go on, for instance.
        errors = [error for place in range(len(run.requests)) if (error := self._ask(run, place)) is not None]
        if errors or not run.requests:
            self._advance(run, errors[0] if errors else None)

    def _ask(self, run: _Run, place: int) -> RequestError | None:
        """Ask one service its part of a batch; gives why it cannot be."""
        request = run.requests[place]
        service = self._condition.services[request.service]
        if service.on_trial and service.state == "dead" and service.successor is None:
            how = ": ".join(filter(None, (service.last_error, self._output.last_line(service.name))))
            return RequestError(f"it has ended: {how}")
        comes = (service.was_ready or service.on_trial) and not service.broken
        if comes and not service.ready and self._condition.is_device(service.name):
            run.open[place] = (None, 0)  # asked when it is back
            return None
        if not service.welcomed or not service.alive:
            return RequestError(f"service '{request.service}' is {service.state}")
        try:
            number = service.link.ask(request.body, partial(self._answered, run, place))
        except Exception as error:
            return RequestError(str(said(error)))
        run.open[place] = (service.link, number)
        return None

    def _answered(self, run: _Run, place: int, packet: Packet) -> None:
        run.open.pop(place, None)
        name = run.requests[place].service
        match packet.WhichOneof("body"):
            case "error":
                text = f"service '{name}': {one_line(str(from_message(packet.error)))}"
                bad_request = packet.error.code == common_pb2.ERROR_BAD_REQUEST
                self._advance(run, RequestError(text, callers_fault=bad_request))
                return
            case "refused":
                self._advance(run, RequestError(f"service '{name}' refused: {one_line(packet.refused.reason)}"))
                return
            case "health_report":
                self.reported(self._condition.services[name], packet)
        run.answers[place] = packet
        if not run.open:
            self._advance(run, None)

    def _forget(self, run: _Run) -> None:
        for link, number in run.open.values():
            if link is not None:
                link.forget(number)
        run.open.clear()

    def _finish(self, run: _Run, error: Exception | None) -> None:
        self._forget(run)
        if run in self._runs:
            self._runs.remove(run)
        if run.exclusive and not (self._condition.starting or self._condition.ending):
            self.finished()
        if error is None:
            run.future.set_result(None)
        else:
            run.future.set_exception(error)
        self.next()


def _waits_for(run: _Run, service: Supervised) -> bool:
    return any(run.requests[place].service == service.name for place in run.open)
