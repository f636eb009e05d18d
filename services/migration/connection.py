"""Connections that carry records: to a place, or from one, with TLS where it has keys, and no faster than is wanted."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from vmesh import connecting, errors, listening
from vmesh.migration import uri
from vmesh.migration.uri import Place, Tcp, Unix

CONNECT_SECONDS = 10.0
_SILENT_MS = 10_000  # what was sent is not acknowledged for so long: the link is cut
_BUFFER = 4 << 20
_MOST_BUFFERS = 64  # of one sendmsg
_BURST_SECONDS = 0.02
_TLS_BYTES = 256 << 10
_LOOK_SECONDS = 0.5
_BACKLOG = 128

T = TypeVar("T")


class Connection:
    """One side of a connection: a sink and a source of records. `limit` is in bytes a second; 0: none."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self.limit = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._free_at = 0.0  # when the bytes sent so far may have been sent
        link.settimeout(0.0 if isinstance(link, ssl.SSLSocket) else None)
        with suppress(OSError):
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        if link.family != socket.AF_UNIX:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_MS)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)

    def fileno(self) -> int:
        return self._link.fileno()

    def handshake(self) -> None:
        """Of TLS, where the connection has it; until `cut`. Raises OSError."""
        if isinstance(self._link, ssl.SSLSocket):
            self._tls(self._link, self._link.do_handshake)

    def write(self, buffers: Sequence[Any]) -> None:
        """All of them, at the pace of `limit`. Raises OSError."""
        if isinstance(self._link, ssl.SSLSocket):
            self._write_tls(self._link, memoryview(b"".join(buffers)))
            return
        left = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        self._pace(sum(map(len, left)))
        while left:
            sent = self._link.sendmsg(left[:_MOST_BUFFERS])
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = left[0][sent:]

    def read_into(self, buffer: memoryview) -> None:
        """Fill it. Raises EOFError at the end, OSError."""
        while buffer:
            if isinstance(self._link, ssl.SSLSocket):
                count = self._read_tls(self._link, buffer)
            else:
                count = self._link.recv_into(buffer)
            if not count:
                raise EOFError
            buffer = buffer[count:]

    def cut(self) -> None:
        """End it for both sides; a thread that waits in it wakes up. From any thread."""
        self._over.set()
        with suppress(OSError):
            # The socket's own: an SSLSocket's forgets its TLS too, which another thread may be using.
            socket.socket.shutdown(self._link, socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        self._link.close()

    def _write_tls(self, link: ssl.SSLSocket, data: memoryview) -> None:
        self._pace(len(data))
        while data:
            part = data[:_TLS_BYTES]
            data = data[self._tls(link, partial(link.send, part)) :]

    def _read_tls(self, link: ssl.SSLSocket, buffer: memoryview) -> int:
        try:
            return self._tls(link, partial(link.recv_into, buffer))
        except ssl.SSLZeroReturnError:
            return 0

    def _tls(self, link: ssl.SSLSocket, do: Callable[[], T]) -> T:
        """OpenSSL's connection is for one thread at a time: whoever would block lets the other one have it."""
        while True:
            try:
                with self._lock:
                    return do()
            except ssl.SSLWantReadError:
                _wait(link, select.POLLIN)
            except ssl.SSLWantWriteError:
                _wait(link, select.POLLOUT)

    def wait_turn(self, limit: Callable[[], int]) -> None:
        """Until the next write may be made at the pace of `limit`, which becomes that of this connection."""
        while (now_limit := limit()) and (wait := self._free_at - time.monotonic()) > 0 and not self._over.is_set():
            self._over.wait(min(wait, _LOOK_SECONDS))
        self.limit = now_limit

    def _pace(self, size: int) -> None:
        if self.limit:
            self.wait_turn(lambda: self.limit)
            self._free_at = max(self._free_at, time.monotonic() - _BURST_SECONDS) + size / self.limit


class Listener:
    """Listens at a place. Raises ConfigError if that cannot be."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.closed = False
        self._tls = None
        if isinstance(place, Tcp) and place.keys is not None:
            self._tls = uri.tls(place.keys, server=True)
        try:
            self._socket = _listen(place)
        except OSError as error:
            raise errors.ConfigError(f"cannot listen on {place}: {error.strerror or error}") from error
        self._made = listening.identity(place.path) if isinstance(place, Unix) else None
        if isinstance(place, Tcp) and not place.port:
            self.place = Tcp(place.host, self._socket.getsockname()[1], place.keys)

    def is_at(self, place: Place) -> bool:
        """Whether that is where it listens, and can be found."""
        made = listening.identity(place.path) if isinstance(place, Unix) else None
        return not self.closed and place == self.place and made == self._made

    def accept(self) -> Connection:
        """The next connection; with TLS its `handshake` is still to be made, which the next one must not wait for.
        Raises OSError, also when it is closed from another thread."""
        link, _ = self._socket.accept()
        try:
            if self._tls is not None:
                link = self._tls.wrap_socket(link, server_side=True, do_handshake_on_connect=False)
            return Connection(link)
        except OSError:
            link.close()
            raise ConnectionError from None

    def close(self) -> None:
        self.closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        if isinstance(self.place, Unix):
            listening.remove(self.place.path, self._made)


def connect(place: Place) -> Connection:
    """Raises ConfigError if nobody answers there."""
    try:
        if isinstance(place, Unix):
            link = connecting.connect(place.path, CONNECT_SECONDS)
            link.settimeout(CONNECT_SECONDS)
        else:
            link = socket.create_connection((place.host or "localhost", place.port), CONNECT_SECONDS)
            if place.keys is not None:
                context = uri.tls(place.keys, server=False)
                return Connection(context.wrap_socket(link, server_hostname=place.host))
    except OSError as error:
        raise errors.ConfigError(f"cannot connect to {place}: {error.strerror or error}") from error
    return Connection(link)


def _listen(place: Place) -> socket.socket:
    if isinstance(place, Tcp):
        return socket.create_server((place.host, place.port), family=_family(place.host), backlog=_BACKLOG)
    made = listening.listen(place.path, _BACKLOG)
    made.setblocking(True)
    return made


def _family(host: str) -> socket.AddressFamily:
    return socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)[0][0]


def _wait(link: socket.socket, event: int) -> None:
    poller = select.poll()
    poller.register(link, event)
    poller.poll(_LOOK_SECONDS * 1000)
