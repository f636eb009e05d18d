"""The event loop of a service: one poll over ZeroMQ sockets, file descriptors and timers, callbacks in one thread.

A loop has one boundary, `failed`: what a callback raises and nobody foresaw is told there, and the loop goes on. What
the callback had begun it has undone itself by then (context managers, `finally`): docs/architecture.md has the rule.
"""

from __future__ import annotations

import os
import queue
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from vmesh.time import NEVER_NS, Clock, HostClock, host_ns

Callback = Callable[[], None]
# As plain numbers: arithmetic with zmq's flags costs half a microsecond each.
_IN, _OUT = int(zmq.POLLIN), int(zmq.POLLOUT)
_NOT_IN, _NOT_OUT = ~_IN, ~_OUT
_LONGEST_MS = (1 << 31) - 1  # that poll(2) waits
REST_SECONDS = 0.1  # for a source whose callback failed: it would be ready again at once, and fail again


@dataclass(frozen=True, slots=True)
class _Timer:
    when_ns: int
    callback: Callback
    guest: bool  # it is of guest time, else of the host's


class Loop:
    """Calls back what is ready, until `stop`. Timers of guest time follow `clock`; all others are patience, of the
    host's time.

    `failed` is told of an exception that a callback did not handle; the loop then goes on, unless `failed` raises.
    Without it an exception ends the loop.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or HostClock()
        self._poller = zmq.Poller()
        self._callbacks: dict[object, tuple[Callback | None, Callback | None]] = {}
        self._timers: dict[str, _Timer] = {}
        self._running = False
        self.settle: Callback | None = None  # called after each turn, when all that was ready has been called back
        self.failed: Callable[[Exception], object] | None = None

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
                if source in self._poller:  # it does not rest
                    self._poller.unregister(source)
            return
        self._callbacks[source] = (read, write)
        self._poller.register(source, (_IN if read else 0) | (_OUT if write else 0))

    def call_at(self, name: str, when_ns: int, callback: Callback) -> None:
        """Call once when guest time is `when_ns`. Replaces the timer of that name."""
        self._timers[name] = _Timer(when_ns, callback, guest=True)

    def call_in(self, name: str, seconds: float, callback: Callback) -> None:
        """Call once, `seconds` of the host from now. Replaces the timer of that name."""
        self._timers[name] = _Timer(host_ns() + int(seconds * 1e9), callback, guest=False)

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
        if (due := min(map(self._due_ns, self._timers.values()), default=NEVER_NS)) != NEVER_NS:
            timeout = min(max(0, -(-(due - host_ns()) // 1_000_000)), _LONGEST_MS)
        try:
            ready = self._poller.poll(timeout)
        except zmq.ZMQError as error:  # poll(2): no memory, or a lower limit of open files than there are
            self.fail(error)
            time.sleep(REST_SECONDS)
            return
        for source, events in ready:
            # A callback before this one may have changed or ended the watch.
            read, write = self._callbacks.get(source, (None, None))
            try:
                if read is not None and events & _NOT_OUT:
                    read()
                    write = self._callbacks.get(source, (None, None))[1]
                if write is not None and events & _NOT_IN:
                    write()
            except Exception as error:
                self.fail(error)
                self._rest(source)
        if self._timers:
            now = host_ns()
            for name, timer in list(self._timers.items()):
                if self._due_ns(timer) <= now and self._timers.get(name) is timer:
                    del self._timers[name]
                    try:
                        timer.callback()
                    except Exception as error:
                        self.fail(error)
        if self.settle is not None:
            try:
                self.settle()
            except Exception as error:
                self.fail(error)

    def _due_ns(self, timer: _Timer) -> int:
        """In the host's time; NEVER_NS while guest time stands still."""
        if not timer.guest:
            return timer.when_ns
        due = self.clock.due_ns(timer.when_ns)
        return NEVER_NS if due is None else due

    def fail(self, error: Exception) -> None:
        """What was done in the loop failed without being foreseen."""
        if self.failed is None:
            raise error
        self.failed(error)

    def accept(self, listener: socket.socket) -> socket.socket | None:
        """Who has come to a listening socket, not blocking; None if nobody is there. Without a descriptor for them the
        listener rests, and they wait."""
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return None
        except OSError as error:
            self._rest(listener.fileno())
            if self.failed is not None:
                self.failed(error)
            return None
        connection.setblocking(False)
        return connection

    def _rest(self, source: object) -> None:
        """Do not look at a source for a while."""
        if source not in self._callbacks or source not in self._poller:
            return
        self._poller.unregister(source)
        self.call_in(f"rest {source}", REST_SECONDS, lambda: self._wake(source))

    def _wake(self, source: object) -> None:
        if (known := self._callbacks.get(source)) is not None:
            read, write = known
            self._poller.register(source, (_IN if read else 0) | (_OUT if write else 0))


class Inbox:
    """Work for a loop from other threads. Each piece is apart from the others: one that fails ends none of them."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._work: queue.SimpleQueue[Callback] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.watch(self._wake, read=self._do)

    def call(self, work: Callback) -> None:
        """From any thread: have `work` done in the loop."""
        self._work.put(work)
        os.eventfd_write(self._wake, 1)

    def _do(self) -> None:
        os.eventfd_read(self._wake)
        while not self._work.empty():
            try:
                self._work.get()()
            except Exception as error:
                self._loop.fail(error)
