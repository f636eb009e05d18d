"""Descriptors from one service to another of the same host (proto/vmesh/v1/files.proto)."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from vmesh import connecting, doorbell, errors, listening
from vmesh.loop import Loop

TOKEN_BYTES = 16
MOST_OFFERS = 64  # that nobody has taken
MOST_FILES = 16  # of one offer
OFFER_SECONDS = 10.0
_MOST_CLIENTS = 16  # that have sent no token yet: one more, and the oldest goes
_ANSWER_SECONDS = 5.0
_NAME_LIMIT = 64


class FileServer:
    """Gives what was offered to whoever has its token. Raises OSError if it cannot listen."""

    def __init__(self, path: Path, loop: Loop) -> None:
        self._loop = loop
        self._listener = listening.listen(path, _MOST_CLIENTS, kind=socket.SOCK_SEQPACKET)
        self._offers: dict[bytes, tuple[float, list[int]]] = {}  # by token: until when
        self._tokens: dict[object, bytes] = {}  # by whom it was made for
        self._clients: list[socket.socket] = []
        loop.watch(self._listener.fileno(), read=self._accept)

    def offer(self, paths: Sequence[Path], whom: object) -> bytes:
        """The token for descriptors of these files, to read and write, until they were given, their time is over, or
        there is another offer for `whom`. Raises TooMany, OSError."""
        self._take_back(self._tokens.pop(whom, b""))
        self._expire()
        if len(self._offers) == MOST_OFFERS:
            raise errors.TooMany("TakeFiles", expected=f"at most {MOST_OFFERS} that were not taken", got="one more")
        fds = list[int]()
        try:
            for path in paths:
                fds.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError:
            _close(fds)
            raise
        token = secrets.token_bytes(TOKEN_BYTES)
        self._offers[token] = time.monotonic() + OFFER_SECONDS, fds
        self._tokens[whom] = token
        self._loop.call_in("offers", OFFER_SECONDS, self._expire)
        return token

    def _accept(self) -> None:
        client = self._loop.accept(self._listener)
        if client is None:
            return
        if len(self._clients) == _MOST_CLIENTS:
            self._end(self._clients[0])
        self._clients.append(client)
        self._loop.watch(client.fileno(), read=partial(self._give, client))

    def _give(self, client: socket.socket) -> None:
        """It has sent something; nothing else of it is heard."""
        with suppress(OSError):
            token = client.recv(TOKEN_BYTES + 1)
            _, fds = self._offers.pop(token, (0.0, []))
            try:
                if fds:
                    socket.send_fds(client, [token], fds)
            finally:
                _close(fds)
        self._end(client)

    def _end(self, client: socket.socket) -> None:
        self._clients.remove(client)
        self._loop.watch(client.fileno())
        client.close()

    def _take_back(self, token: bytes) -> None:
        _, fds = self._offers.pop(token, (0.0, []))
        _close(fds)

    def _expire(self) -> None:
        now = time.monotonic()
        for token, (until, _) in list(self._offers.items()):
            if now >= until:
                self._take_back(token)
        self._tokens = {whom: token for whom, token in self._tokens.items() if token in self._offers}
        if self._offers:
            self._loop.call_in("offers", OFFER_SECONDS, self._expire)


def take(path: Path, token: bytes, count: int) -> list[int]:
    """So many descriptors that were offered there. Raises OSError."""
    with connecting.now(path, socket.SOCK_SEQPACKET) as client:
        client.settimeout(_ANSWER_SECONDS)
        client.send(token)
        echo, fds, _, _ = socket.recv_fds(client, TOKEN_BYTES, MOST_FILES)
    if echo != token or len(fds) != count:
        _close(fds)
        raise PermissionError(None, f"expected {count} descriptors, got {len(fds)}")
    for fd in fds:
        os.set_inheritable(fd, False)
    return fds


def is_name(name: str) -> bool:
    """Whether a socket may have it: a plain name, in the machine directory."""
    return len(name) <= _NAME_LIMIT and doorbell.is_name(name)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
