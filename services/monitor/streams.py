"""The gateway's streams: events, consoles, the bus's traffic. Each has a thread of the gateway's while it lasts.

What comes from the supervisor's loop goes through a bounded queue, so that neither the loop waits for a client nor a
queue grows.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import NoReturn, TypeVar

import grpc

from vmesh import connecting
from vmesh.board import virt
from vmesh.v1 import gateway_pb2, trace_pb2
from vmesh_services.monitor.attach import INPUT_BYTES
from vmesh_services.monitor.events import Event
from vmesh_services.monitor.feed import Feed
from vmesh_services.monitor.supervisor.supervisor import Supervisor
from vmesh_services.monitor.tracing import Tracing

LIMIT = 32  # streams at once
_EVENTS = 1024  # that are kept for a client
_TRACES = 8  # messages of a trace that are kept for a client; all clients have the same ones
_OUTPUT_BYTES = 64 << 10  # of one ConsoleOutput, at least as large as the keeper's packets

_LOOK_SECONDS = 1.0  # between two looks whether a client that waits is still there

Item = TypeVar("Item")


class Places:
    """For calls that may stay: so many at once, as each has a thread of the gateway's, whether it says anything or not.
    `taken` is what one too many is told."""

    def __init__(self, number: int, taken: str) -> None:
        self._free = threading.Semaphore(number)
        self._taken = taken

    @contextmanager
    def one(self, context: grpc.ServicerContext) -> Iterator[None]:
        if not self._free.acquire(blocking=False):
            refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._taken}; end one")
        try:
            yield
        finally:
            self._free.release()


class Streams:
    """All that are open."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._tracing = Tracing(supervisor)
        self._places = Places(LIMIT, f"there are {LIMIT} streams already")

    def events(self, context: grpc.ServicerContext) -> Iterator[gateway_pb2.Event]:
        feed: Feed[Event] = Feed(_EVENTS)
        with self._stream(context, feed.close):
            unsubscribe = self._subscribe(self._supervisor.events.subscribe, feed, context)
            try:
                for dropped, event in feed:
                    data = json.dumps(event.data)
                    yield gateway_pb2.Event(name=event.name, data=data, time_us=event.time_us, dropped=dropped)
            finally:
                unsubscribe()

    def attach(
        self, request_iterator: Iterator[gateway_pb2.ConsoleInput], context: grpc.ServicerContext
    ) -> Iterator[gateway_pb2.ConsoleOutput]:
        over = threading.Event()
        consoles: list[socket.socket] = []

        def end() -> None:
            over.set()
            for console in consoles:
                _hang_up(console)

        # A place is taken before anything is waited for: who says nothing has a thread, too.
        with self._stream(context, end):
            first = next(request_iterator, None)
            if first is None:
                return
            with self._console(first.device, context) as console:
                consoles.append(console)
                if over.is_set():
                    return
                yield from _talk(console, first, request_iterator)

    def trace(self, context: grpc.ServicerContext) -> Iterator[trace_pb2.TraceRecords]:
        feed: Feed[trace_pb2.TraceRecords] = Feed(_TRACES, lambda records: len(records.records) + records.dropped)
        with self._stream(context, feed.close):
            end = self._subscribe(self._tracing.subscribe, feed, context)
            try:
                for dropped, records in feed:
                    if dropped:
                        yield trace_pb2.TraceRecords(dropped=dropped)
                    yield records
            finally:
                end()

    def _console(self, device: str, context: grpc.ServicerContext) -> socket.socket:
        """A connection to the keeper's side of a console."""
        machine = self._supervisor.machine
        there = sorted(path.stem for path in machine.path.glob("*.attach"))
        name = device or (virt.UART0.name if virt.UART0.name in there else there[0] if there else "")
        if name not in there:
            expected = f"expected one of {', '.join(there)}" if there else "this machine has none"
            refuse(context, grpc.StatusCode.NOT_FOUND, f"there is no console '{name[:80]}'; {expected}")
        try:
            return connecting.connect(machine.attached_console(name), kind=socket.SOCK_SEQPACKET)
        except OSError as error:
            refuse(context, grpc.StatusCode.INTERNAL, f"console '{name}': {error.strerror}")

    @contextmanager
    def _stream(self, context: grpc.ServicerContext, end: Callable[[], None]) -> Iterator[None]:
        """For as long as a stream lasts; `end` is called when the client has gone, or the machine ends."""
        with self._places.one(context):
            try:
                self._supervisor.call(lambda: self._supervisor.at_end.add(end))
                if not context.add_callback(end):
                    end()  # it has gone already
                yield
            finally:
                self._supervisor.call(lambda: self._supervisor.at_end.discard(end))

    def _subscribe(
        self,
        subscribe: Callable[[Callable[[Item], None]], Callable[[], None]],
        feed: Feed[Item],
        context: grpc.ServicerContext,
    ) -> Callable[[], None]:
        """Have the loop fill `feed`; call the result to end that. The client learns from the call's initial metadata
        that from now on it misses nothing."""
        ends: list[Callable[[], None]] = []
        begun = threading.Event()

        def end() -> None:
            ends.pop()()

        def begin() -> None:
            ends.append(subscribe(feed.put))
            begun.set()

        self._supervisor.call(begin)
        while not begun.wait(_LOOK_SECONDS) and context.is_active():
            pass
        try:
            context.send_initial_metadata(())
        except Exception:  # the client has gone
            self._supervisor.call(end)
            raise
        return lambda: self._supervisor.call(end)


def _talk(
    console: socket.socket, first: gateway_pb2.ConsoleInput, more: Iterator[gateway_pb2.ConsoleInput]
) -> Iterator[gateway_pb2.ConsoleOutput]:
    """What comes from a console, while what the client sends goes there."""
    threading.Thread(target=_type, args=(console, first, more), daemon=True).start()
    # The keeper drops what is not taken from this socket in time.
    while data := console.recv(_OUTPUT_BYTES):
        yield gateway_pb2.ConsoleOutput.FromString(data)


def _hang_up(console: socket.socket) -> None:
    with suppress(OSError):
        console.shutdown(socket.SHUT_RDWR)


def _type(console: socket.socket, first: gateway_pb2.ConsoleInput, more: Iterator[gateway_pb2.ConsoleInput]) -> None:
    """What a client sends becomes input of the console as the guest takes it; gRPC's flow control holds up the rest."""
    with suppress(OSError, grpc.RpcError):  # either end has gone
        for message in chain((first,), more):
            for place in range(0, len(message.data), INPUT_BYTES):
                console.send(message.data[place : place + INPUT_BYTES])


def refuse(context: grpc.ServicerContext, code: grpc.StatusCode, text: str) -> NoReturn:
    """End a call with an error, one line for people."""
    context.abort(code, text)
    raise AssertionError("abort returned")
