"""The answers of a service to peers that may not read their sockets: none is lost to one that reads again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from google.protobuf.message import Message

from vmesh import limits
from vmesh.loop import Loop
from vmesh.wire import Client, Server

MOST_OPEN = 4096  # answers that one connection has not read
_RETRY_SECONDS = 0.005
_AT_ONCE = 16  # of one connection, before others have their turn

Make = Callable[[], Message]


class Answers:
    """Sends each answer as soon as its connection has room, in order.

    What waits beyond the server's `unread` is not bytes, but how to make them. A connection that leaves more than
    `MOST_OPEN` unread is forgotten, and `complain` gets its name and why.
    """

    def __init__(self, server: Server, loop: Loop, complain: Callable[[str, str, str], None]) -> None:
        self._server = server
        self._loop = loop
        self._complain = complain
        self._waiting: dict[bytes, tuple[Client, deque[tuple[int, Make]]]] = {}  # by identity

    def send(self, client: Client, packet_id: int, make: Make) -> None:
        """Answer the request `packet_id` with what `make` gives, once there is room."""
        _, waiting = self._waiting.get(client.identity, (client, deque()))
        if not waiting and self._server.send(client, make(), packet_id):
            return
        if client.identity not in self._server.clients:
            self._waiting.pop(client.identity, None)
        elif len(waiting) < MOST_OPEN:
            waiting.append((packet_id, make))
            self._waiting[client.identity] = client, waiting
            self._loop.call_in("answers", _RETRY_SECONDS, self._retry)
        else:
            del self._waiting[client.identity], self._server.clients[client.identity]
            self._complain(client.name, limits.BROKEN, f"it does not read {MOST_OPEN} answers")

    def _retry(self) -> None:
        for identity, (client, waiting) in list(self._waiting.items()):
            for _ in range(min(_AT_ONCE, len(waiting))):
                packet_id, make = waiting[0]
                if identity in self._server.clients and not self._server.send(client, make(), packet_id):
                    break
                waiting.popleft()
            if not waiting or identity not in self._server.clients:
                del self._waiting[identity]
        if self._waiting:
            self._loop.call_in("answers", _RETRY_SECONDS, self._retry)
