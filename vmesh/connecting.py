"""How every service connects to what may not accept: without waiting in a loop, and nowhere without a limit.

A Unix socket is connected at once, or refused; while the listener's queue is full (EAGAIN) there is nothing to wait for
but time (connect(2)). TCP takes a while, and the socket is writable when it has succeeded or failed.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from pathlib import Path

SECONDS = 5.0  # the limit, where a user waits for it
_FULL_SECONDS = 0.02  # between two tries at a queue that is full

Address = Path | tuple[str, int]
"""Of a Unix socket, or host and port of TCP."""
Place = tuple[int, str | tuple[str, int] | tuple[str, int, int, int]]
"""An address family, and the address as connect(2) takes it."""


def places(address: Address) -> list[Place]:
    """Where that is, the best first. Raises OSError. A host's name is looked up, which waits for the resolver."""
    if isinstance(address, Path):
        return [(socket.AF_UNIX, os.fspath(address))]
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    return [(family, place) for family, _, _, _, place in found]  # type: ignore[misc]


def begin(place: Place, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A non-blocking socket: of Unix, connected; of TCP, connected when it is writable and `check` says nothing.

    Raises OSError, BlockingIOError for a queue that is full.
    """
    family, address = place
    made = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        code = made.connect_ex(address)
        if code == errno.EAGAIN:
            raise BlockingIOError(code, "it does not accept: its queue of connections is full")
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
    except BaseException:
        made.close()
        raise
    return made


def now(path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A non-blocking connection to a Unix socket. Raises OSError, BlockingIOError for a queue that is full."""
    return begin((socket.AF_UNIX, os.fspath(path)), kind)


def check(connection: socket.socket) -> None:
    """Raises OSError if it could not be connected."""
    if code := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(code, os.strerror(code))


def connect(address: Address, seconds: float = SECONDS, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A connected, blocking socket. Raises OSError: TimeoutError after `seconds`."""
    deadline = time.monotonic() + seconds
    found = places(address)
    for last, place in enumerate(found, 1 - len(found)):
        try:
            return _wait(place, deadline, kind)
        except OSError:
            if last == 0 or time.monotonic() >= deadline:
                raise
    raise OSError(errno.EADDRNOTAVAIL, "it has no address")


def _wait(place: Place, deadline: float, kind: int) -> socket.socket:
    while True:
        try:
            made = begin(place, kind)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_FULL_SECONDS)
    try:
        poller = select.poll()
        poller.register(made, select.POLLOUT)
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "it does not answer")
        check(made)
        made.setblocking(True)
    except BaseException:
        made.close()
        raise
    return made
