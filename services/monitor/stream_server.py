"""Byte streams in the supervisor's loop: a listening socket, and its clients, none of which can hold up the others.

What a client sends is handed over in pieces. What it does not take is kept for it; beyond `HIGH_WATER` no more is read
from it, so that whoever does not read its answers gives no more orders, and beyond `LIMIT` it is given up.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from vmesh.endpoint import Endpoint, Listener, connect
from vmesh.loop import Loop

HIGH_WATER = 64 << 10  # bytes that a client has not taken, beyond which it is not read
LIMIT = 8 << 20  # beyond which it is given up
_PIECE = 64 << 10
MOST_CLIENTS = 32


class Session(Protocol):
    """One side of a conversation: gets what the client sends. Made when the client comes."""

    def received(self, data: bytes) -> None: ...

    def drained(self) -> None:
        """The client has taken so much that it is not `crowded` any more."""

    def ended(self) -> None:
        """The client is gone, or was given up; nothing can be sent any more."""


class Stream:
    """A connected client, read until it ends or `close`."""

    def __init__(self, loop: Loop, connection: socket.socket, gone: Callable[[Stream], object]) -> None:
        self.spoke = False  # the client has said something
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop = loop
        self._socket = connection
        self._fd = connection.fileno()
        self._gone = gone
        self._session: Session | None = None
        self._output = bytearray()
        self._held = False
        self._closing = False
        self._closed = False

    def begin(self, session: Session) -> None:
        """Hand what comes to `session` from now on."""
        self._session = session
        self._watch()

    @property
    def backlog(self) -> int:
        """Bytes that the client has not taken."""
        return len(self._output)

    @property
    def crowded(self) -> bool:
        """Whether the client has so much to read that it should get no more answers."""
        return len(self._output) > HIGH_WATER

    @property
    def closed(self) -> bool:
        return self._closed or self._closing

    def write(self, data: bytes) -> None:
        """Send, now or when the client takes it; after `LIMIT` bytes that it did not take it is given up."""
        if self.closed:
            return
        self._output += data
        self._send()
        if len(self._output) > LIMIT:
            self.close()

    def hold(self, held: bool) -> None:
        """Read nothing from the client while it is held: it has given an order that is not done."""
        self._held = held
        self._watch()

    def finish(self) -> None:
        """Close when the client has taken what it was sent."""
        if not self.closed:
            self._closing = True
            self._send()

    def close(self) -> None:
        """Close at once."""
        if self._closed:
            return
        self._closed = True
        self._loop.watch(self._fd)
        self._socket.close()
        self._output.clear()
        if self._session is not None:
            self._session.ended()
        self._gone(self)

    def _read(self) -> None:
        try:
            data = self._socket.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
        elif (session := self._session) is not None and not self._closing:
            self.spoke = True
            self.attempt(lambda: session.received(data))

    def attempt(self, work: Callable[[], None]) -> None:
        """Do something for this client. What fails there without being foreseen costs the client, nobody else."""
        try:
            work()
        except Exception as error:
            self.close()
            self._loop.fail(error)

    def _send(self) -> None:
        was_crowded = self.crowded
        try:
            while self._output:
                count = self._socket.send(memoryview(bytes(self._output[:_PIECE])))
                del self._output[:count]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._closing and not self._output:
            self.close()
            return
        self._watch()
        if was_crowded and not self.crowded and self._session is not None:
            self._session.drained()

    def _watch(self) -> None:
        if self._closed or self._session is None:
            return
        read = None if self._held or self.crowded else self._read
        self._loop.watch(self._fd, read=read, write=self._send if self._output else None)


class StreamServer:
    """Listens at (or connects to) `where`, and makes a session for each client.

    Of `most` clients the one that has longest said nothing makes room for another; if all have said something, that one
    is turned away. Raises ConfigError where that cannot be.
    """

    def __init__(
        self, loop: Loop, where: Endpoint, session: Callable[[Stream], Session], most: int = MOST_CLIENTS
    ) -> None:
        self.where = where
        self._most = most
        self._loop = loop
        self._session = session
        self._streams: dict[Stream, None] = {}  # in the order in which they came
        self._listener: Listener | None = None
        if where.server:
            self._listener = Listener(where)
            loop.watch(self._listener.fileno(), read=self._accept)
        else:
            self._take(connect(where))

    @property
    def streams(self) -> frozenset[Stream]:
        """The clients that are there."""
        return frozenset(self._streams)

    @property
    def port(self) -> int:
        """The TCP port that is listened at: the one that was chosen, where 0 was asked for."""
        return self._listener.port if self._listener is not None else 0

    def wait(self, ends: Sequence[int]) -> bool:
        """Before the loop runs: wait for a client; False if one of the descriptors `ends` became readable first."""
        poller = select.poll()
        for fd in ends:
            poller.register(fd, select.POLLIN)
        if self._listener is not None:
            poller.register(self._listener, select.POLLIN)
        while not self._streams and self._listener is not None:
            if any(fd in ends for fd, _ in poller.poll()):
                return False
            self._accept()
        return True

    def close(self) -> None:
        """Listen no more, and let go of all clients."""
        if self._listener is not None:
            self._loop.watch(self._listener.fileno())
            self._listener.close()
            self._listener = None
        for stream in list(self._streams):
            stream.close()

    def _accept(self) -> None:
        if self._listener is None:
            return
        connection = self._loop.accept(self._listener.socket)
        if connection is None:
            return
        silent = [stream for stream in self._streams if not stream.spoke]
        if len(self._streams) >= self._most and silent:
            silent[0].close()
        if len(self._streams) >= self._most:
            connection.close()
        else:
            self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        stream = Stream(self._loop, connection, lambda gone: self._streams.pop(gone, None))
        self._streams[stream] = None
        stream.attempt(lambda: stream.begin(self._session(stream)))
