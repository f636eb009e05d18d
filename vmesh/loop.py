"""The event loop of a service: one poll over ZeroMQ sockets, file descriptors and timers, callbacks in one thread."""

from __future__ import annotations

import time
from collections.abc import Callable

import zmq

Callback = Callable[[], None]
# As plain numbers: arithmetic with zmq's flags costs half a microsecond each.
_IN, _OUT = int(zmq.POLLIN), int(zmq.POLLOUT)
_NOT_IN, _NOT_OUT = ~_IN, ~_OUT


class Loop:
    """Calls back what is ready, until `stop`. An exception of a callback ends the loop."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._callbacks: dict[object, tuple[Callback | None, Callback | None]] = {}
        self._timers: dict[str, tuple[int, Callback]] = {}
        self._running = False
        self.settle: Callback | None = None  # called after each turn, when all that was ready has been called back

    def watch(
        self, source: int | zmq.Socket[bytes], *, read: Callback | None = None, write: Callback | None = None
    ) -> None:
        """Call `read` when `source` is readable (or at its end), `write` when it is writable.

        Replaces what was asked for that source before; without either, it is forgotten.
        """
        known = self._callbacks.get(source)
        if known == (read, write):
            return
        if read is None and write is None:
            if known is not None:
                del self._callbacks[source]
                self._poller.unregister(source)
            return
        self._callbacks[source] = (read, write)
        self._poller.register(source, (_IN if read else 0) | (_OUT if write else 0))

    def call_at(self, name: str, when_ns: int, callback: Callback) -> None:
        """Call once at `when_ns` of time.monotonic_ns(). Replaces the timer of that name."""
        self._timers[name] = (when_ns, callback)

    def call_in(self, name: str, seconds: float, callback: Callback) -> None:
        """Call once, `seconds` from now. Replaces the timer of that name."""
        self.call_at(name, time.monotonic_ns() + int(seconds * 1e9), callback)

    def cancel(self, name: str) -> None:
        self._timers.pop(name, None)

    def run(self) -> None:
        self._running = True
        while self._running:
            self._step()

    def stop(self) -> None:
        self._running = False

    def _step(self) -> None:
        timeout: int | None = None
        if self._timers:
            remaining = min(when for when, _ in self._timers.values()) - time.monotonic_ns()
            timeout = max(0, -(-remaining // 1_000_000))
        for source, events in self._poller.poll(timeout):
            # A callback before this one may have changed or ended the watch.
            read, write = self._callbacks.get(source, (None, None))
            if read is not None and events & _NOT_OUT:
                read()
                write = self._callbacks.get(source, (None, None))[1]
            if write is not None and events & _NOT_IN:
                write()
        if self._timers:
            now = time.monotonic_ns()
            for name, (when, callback) in list(self._timers.items()):
                if when <= now and self._timers.get(name) == (when, callback):
                    del self._timers[name]
                    callback()
        if self.settle is not None:
            self.settle()
