"""The machine's end: services are asked to end in the order in which they write to each other, and killed if they do
not. A device that dies meanwhile has another life, which brings out what the guest has written."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from vmesh.errors import PeerError
from vmesh.log import Log
from vmesh.v1 import gateway_pb2, lifecycle_pb2
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.monitor.events import EventHub
from vmesh_services.monitor.operations import StateError
from vmesh_services.monitor.supervisor.condition import Condition
from vmesh_services.monitor.supervisor.runs import Runs
from vmesh_services.monitor.supervisor.supervised import Supervised

# Seconds for each step of an orderly end; what then still lives is killed. A console has 5 for a client that is slow.
END_LIMIT = 6.0
FAILED_END_LIMIT = 1.0  # the same after a failure


class Ending:
    """`begun` is called when the machine begins to end; `gone` when a service on another host has, whose end is not
    seen here."""

    def __init__(self, condition: Condition, runs: Runs, events: EventHub, log: Log) -> None:
        self.begun: Callable[[], None] = lambda: None
        self.gone: Callable[[Supervised, str], None] = lambda service, how: None
        self._condition, self._runs = condition, runs
        self._events, self._log = events, log
        self._deadline = float("inf")
        self._next: deque[tuple[str, ...]] = deque()  # whom to ask, in order
        self._asked: tuple[str, ...] = ()

    def end(self, status: int, failure: str = "", *, reason: str = "host-qmp-quit") -> None:
        """End the machine with this exit status, for a failure if there is one. Only the first call counts.

        `reason` is QEMU's ShutdownCause (qapi/run-state.json).
        """
        condition = self._condition
        if condition.ending:
            return
        reason = "host-error" if failure else reason
        condition.exit_status = status
        self._events.publish("SHUTDOWN", {"guest": reason.startswith("guest-"), "reason": reason})
        condition.state = gateway_pb2.MACHINE_ENDING
        condition.failure = failure
        self._deadline = time.monotonic() + (FAILED_END_LIMIT if failure else END_LIMIT)
        self._log.info("ending", status=status, failure=failure)
        self._runs.close(StateError(f"the machine ends{f': {failure}' if failure else ''}"))
        self.begun()
        self._next.extend(condition.roster.shutdown_order())
        self.go_on()

    def go_on(self) -> None:
        """Ask the next group to end once all of the one before it are gone: the first once all devices are there."""
        services = self._condition.services
        if not self._asked and any(map(self._comes_back, services.values())):
            return
        while self._next and not any(self.is_there(services[name]) for name in self._asked):
            self._asked = self._next.popleft()
            if not self._condition.failure:
                self.extend()
            for service in (services[name] for name in self._asked):
                if service.alive and service.welcomed:
                    self._ask(service)
                elif service.alive and not (service.was_ready and self.has_more(service)):
                    service.kill()  # it waits for others to start, and has nothing to bring to an end

    def came(self, service: Supervised) -> bool:
        """The next life of a service is there: whether it is its turn to end, of which it is told."""
        if self._condition.ending and service.name in self._asked:
            self._ask(service)
            return True
        return False

    def has_more(self, service: Supervised) -> bool:
        """Whether a device that has died while the machine ends has another life, which brings out what the former one
        has left in its slot, and handles what harts have written since."""
        condition = self._condition
        return (
            not condition.attached
            and not condition.failure
            and not condition.lost
            and self._deadline < float("inf")
            and condition.may_return(service)
            and not (service.finished or service.broken or service.leaving or service.on_trial)
            and not service.dies_too_often
        )

    def is_there(self, service: Supervised) -> bool:
        """Whether somebody's end is waited for: a process', or at the machine's end that of a device's next life."""
        return service.alive or self._comes_back(service)

    def extend(self) -> None:
        """Another step of the end begins, with a time of its own."""
        self._deadline = max(self._deadline, time.monotonic() + END_LIMIT)

    def forgive(self, seconds: float) -> None:
        """Nobody owes anything for a time in which this process was stopped."""
        self._deadline += seconds

    def is_late(self, now: float) -> bool:
        return now >= self._deadline

    def kill_all(self) -> None:
        """What is still there has had its time."""
        self._deadline = float("inf")
        for service in self._condition.services.values():
            if service.alive:
                self._log.info("killed, as it did not end in time", service=service.name)
                service.kill()

    def _comes_back(self, service: Supervised) -> bool:
        """Whether the machine ends, and waits for the next life of a device."""
        return (
            self._condition.ending and service.state == "restarting" and not service.welcomed and self.has_more(service)
        )

    def _ask(self, service: Supervised) -> None:
        with suppress(PeerError):  # it will then be killed
            service.link.ask(lifecycle_pb2.Shutdown(), partial(self._answered, service))

    def _answered(self, service: Supervised, packet: Packet) -> None:
        """It has brought out what the guest has written."""
        service.finished |= packet.WhichOneof("body") == "done"
        if service.link.remote and service.alive:
            service.link.close()
            self.gone(service, "has ended")
