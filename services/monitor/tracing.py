"""The bus's traffic for whoever wants to see it: the services record while somebody does, and are asked for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from vmesh.errors import PeerError
from vmesh.v1 import trace_pb2
from vmesh.v1.packet_pb2 import Packet

if TYPE_CHECKING:
    from vmesh_services.monitor.supervisor.supervised import Supervised
    from vmesh_services.monitor.supervisor.supervisor import Supervisor

Subscriber = Callable[[trace_pb2.TraceRecords], None]

_INTERVAL = 0.1  # seconds between two questions to a service
_TIMER = "trace"


class Tracing:
    """Of the loop's thread only."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._subscribers: dict[object, Subscriber] = {}
        self._recording: dict[str, int] = {}  # the epoch of each service that was asked to record
        self._owing: dict[str, int] = {}  # and of those that have not answered

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Give `subscriber` each message from now on; call the result to end that. It must return at once."""
        token = object()
        self._subscribers[token] = subscriber
        if len(self._subscribers) == 1:
            self._ask()

        def end() -> None:
            self._subscribers.pop(token, None)

        return end

    def _ask(self) -> None:
        """What each service has recorded; services that came meanwhile begin to record."""
        if not self._subscribers:
            self._stop()
            return
        for service in self._services():
            name = service.command.name
            with suppress(PeerError):  # it is busy, or gone
                if self._recording.get(name) != service.epoch:
                    self._recording[name] = service.epoch
                    service.link.ask(trace_pb2.TraceControl(on=True), lambda packet: None)
                if self._owing.get(name) != service.epoch:
                    self._owing[name] = service.epoch
                    service.link.ask(trace_pb2.TraceTake(), partial(self._take, name))
        self._supervisor.loop.call_in(_TIMER, _INTERVAL, self._ask)

    def _take(self, name: str, packet: Packet) -> None:
        self._owing.pop(name, None)
        if packet.WhichOneof("body") != "trace_records":
            return  # a device that knows nothing of this
        records = packet.trace_records
        if records.records or records.dropped:
            for subscriber in list(self._subscribers.values()):
                subscriber(records)

    def _stop(self) -> None:
        self._recording.clear()
        self._owing.clear()
        for service in self._services():
            with suppress(PeerError):
                service.link.ask(trace_pb2.TraceControl(on=False), lambda packet: None)

    def _services(self) -> list[Supervised]:
        return [service for service in self._supervisor.services.values() if service.ready and service.alive]
