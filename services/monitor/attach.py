"""Who is attached to a console beside its own terminal: the keeper's side of the gateway's Attach.

Any number of clients, each a Unix socket of type SOCK_SEQPACKET. What the console writes goes to all of them as
ConsoleOutput packets, what they send is typed. Nobody waits for a client: what it does not take in time it misses.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vmesh.loop import Loop
from vmesh.v1.gateway_pb2 import ConsoleOutput

INPUT_BYTES = 512  # of one packet that a client sends
_OUTPUT_BYTES = 16 << 10  # of one packet that it gets
_BACKLOG = 256 << 10  # bytes that a client has not taken, beyond which the oldest are dropped
_HISTORY = 4096  # bytes that a client gets of what was written before
_CLIENTS = 16


@dataclass(slots=True, eq=False)
class _Client:
    socket: socket.socket
    backlog: bytearray = field(default_factory=bytearray)
    dropped: int = 0  # bytes before the backlog that it misses


class Attachments:
    """Listens at `path`. `room` gives how many bytes may be typed now, `typed` takes them."""

    def __init__(self, path: Path, loop: Loop, room: Callable[[], int], typed: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._room = room
        self._typed = typed
        self._clients: list[_Client] = []
        self._history = bytearray()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        self._listener.listen(4)
        loop.watch(self._listener.fileno(), read=self._accept)

    def output(self, data: bytes) -> None:
        """The console has written this."""
        self._history += data
        if len(self._history) > 2 * _HISTORY:
            del self._history[:-_HISTORY]
        for client in list(self._clients):
            self._add(client, data)

    def input_changed(self) -> None:
        """There may be room for what clients have typed."""
        for client in self._clients:
            self._watch(client)

    def _accept(self) -> None:
        connection = self._loop.accept(self._listener)
        if connection is None:
            return
        if len(self._clients) == _CLIENTS:
            connection.close()
            return
        client = _Client(connection)
        self._clients.append(client)
        self._add(client, bytes(self._history[-_HISTORY:]))
        self._watch(client)

    def _add(self, client: _Client, data: bytes) -> None:
        client.backlog += data
        if (surplus := len(client.backlog) - _BACKLOG) > 0:
            del client.backlog[:surplus]
            client.dropped += surplus
        self._send(client)

    def _send(self, client: _Client) -> None:
        try:
            while client.backlog:
                packet = ConsoleOutput(data=bytes(client.backlog[:_OUTPUT_BYTES]), dropped=client.dropped)
                client.socket.send(packet.SerializeToString())
                client.dropped = 0
                del client.backlog[:_OUTPUT_BYTES]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        self._watch(client)

    def _watch(self, client: _Client) -> None:
        if client not in self._clients:
            return
        read = (lambda: self._read(client)) if self._room() >= INPUT_BYTES else None
        write = (lambda: self._send(client)) if client.backlog else None
        self._loop.watch(client.socket.fileno(), read=read, write=write)

    def _read(self, client: _Client) -> None:
        if self._room() < INPUT_BYTES:  # another one has filled it
            self._watch(client)
            return
        try:
            data = client.socket.recv(INPUT_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        self._typed(data)
        self.input_changed()

    def _drop(self, client: _Client) -> None:
        self._loop.watch(client.socket.fileno())
        client.socket.close()
        self._clients.remove(client)
