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


def begin(address: Address, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A non-blocking socket: of Unix, connected; of TCP, connected when it is writable and `check` says nothing.

    Raises OSError. A host's name is looked up, which waits for the resolver.
    """
    if isinstance(address, Path):
        made = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    else:
        family, _, protocol, _, place = socket.getaddrinfo(*address, type=kind)[0]
        made = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    try:
        code = made.connect_ex(os.fspath(address) if isinstance(address, Path) else place)
        if code == errno.EAGAIN:
            raise BlockingIOError(code, "it does not accept connections: its queue is full")
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
    except BaseException:
        made.close()
        raise
    return made


def check(connection: socket.socket) -> None:
    """Raises OSError if it could not be connected."""
    if code := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(code, os.strerror(code))


def connect(address: Address, seconds: float = SECONDS, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A connected, blocking socket. Raises OSError: TimeoutError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            made = begin(address, kind)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_FULL_SECONDS)
    try:
        poller = select.poll()
        poller.register(made, select.POLLOUT)
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError(errno.ETIMEDOUT, f"it has not answered for {seconds:g} s")
        check(made)
        made.setblocking(True)
    except BaseException:
        made.close()
        raise
    return made
