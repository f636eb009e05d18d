"""The answers to DMA, for devices that may not read their sockets: what waits is not bytes, but how to make them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from google.protobuf.message import Message

from vmesh import errors, limits
from vmesh.service import Runtime
from vmesh.wire import Client

# Of these, as they may be 1 MiB each, a connection has so many in this process, made. What is no answer to DMA shares
# the room, and is lost without it: more than what an honest peer has asked for before its thread reads.
UNREAD = 128
MOST_OPEN = 4096  # answers that one connection has not read
_RETRY_SECONDS = 0.005
_AT_ONCE = 16  # of one connection, before others have their turn

_Answer = Callable[[], Message]


class Answers:
    """Sends each answer as soon as its connection has room, in order; content is read when it is sent."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._waiting: dict[bytes, tuple[Client, deque[tuple[int, _Answer]]]] = {}  # by identity

    def send(self, client: Client, packet_id: int, make: _Answer) -> None:
        """Raises TooMany, and forgets the connection, if too many of its answers wait."""
        if not packet_id:
            return
        _, waiting = self._waiting.get(client.identity, (client, deque()))
        if not waiting and self._runtime.server.send(client, make(), packet_id):
            return
        if client.identity not in self._runtime.server.clients:
            self._waiting.pop(client.identity, None)
            return
        if len(waiting) >= MOST_OPEN:
            del self._waiting[client.identity], self._runtime.server.clients[client.identity]
            self._runtime.complain(client.name, limits.BROKEN, f"it does not read {MOST_OPEN} answers")
            raise errors.TooMany("answers that are not read", expected=f"at most {MOST_OPEN}")
        waiting.append((packet_id, make))
        self._waiting[client.identity] = client, waiting
        self._runtime.loop.call_in("answers", _RETRY_SECONDS, self._retry)

    def _retry(self) -> None:
        server = self._runtime.server
        for identity, (client, waiting) in list(self._waiting.items()):
            for _ in range(min(_AT_ONCE, len(waiting))):
                packet_id, make = waiting[0]
                if identity in server.clients and not server.send(client, make(), packet_id):
                    break
                waiting.popleft()
            if not waiting or identity not in server.clients:
                del self._waiting[identity]
        if self._waiting:
            self._runtime.loop.call_in("answers", _RETRY_SECONDS, self._retry)
