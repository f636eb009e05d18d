"""What happens to the machine, for whoever wants to know: one hub in the supervisor's loop.

Names and data are QMP's (QEMU's qapi/run-state.json and others; ours begin with `__org.vmesh_`), described in
services/monitor/qmp/schema. A subscriber is called in the loop and must return at once; it bounds what it keeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    """`data` is JSON; `time_us` is microseconds since 1970."""

    name: str
    data: Mapping[str, object] = field(default_factory=dict)
    time_us: int = field(default_factory=lambda: time.time_ns() // 1000)


Subscriber = Callable[[Event], None]


class EventHub:
    """Gives every event to every subscriber, in order. Of the loop's thread only."""

    def __init__(self) -> None:
        self._subscribers: dict[object, Subscriber] = {}

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with each event from now on; call the result to end that."""
        token = object()
        self._subscribers[token] = subscriber

        def end() -> None:
            self._subscribers.pop(token, None)

        return end

    def publish(self, name: str, data: Mapping[str, object] | None = None) -> None:
        event = Event(name, data or {})
        for subscriber in list(self._subscribers.values()):
            subscriber(event)
