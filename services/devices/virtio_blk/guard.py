"""Who waits for a server that owes an answer to a device that was killed, so that the next life does not overtake it.

When a process is killed, the host closes its connections, and a server may still do what came by one of them, after
what comes by the next. So each connection has a guard, a child of the device that does nothing but hold it too, and the
lock on a file in the machine directory, which the next life has to have before it connects. When the device is gone,
the guard tells the server that nothing more will come, and waits until the server has closed the connection, with all
done; or until the machine is gone.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
from pathlib import Path
from typing import NoReturn

from vmesh import waiting

_LOOK_MS = 200  # between two looks whether the machine is still there


def claim(path: Path) -> int:
    """The descriptor with the lock. Raises OSError, BlockingIOError while the guard of a former connection has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def begin(connection: socket.socket, lock: int, path: Path) -> int:
    """Start the guard of `connection`, which gets `lock`; gives the descriptor at whose end it begins to wait.

    Raises OSError.
    """
    try:
        watched, held = os.pipe()
        try:
            between = os.fork()
            if not between:
                _detach(connection, lock, watched, path)
            os.waitpid(between, 0)
        except OSError:
            os.close(held)
            raise
        finally:
            os.close(watched)
    finally:
        os.close(lock)
    return held


def _detach(connection: socket.socket, lock: int, watched: int, path: Path) -> NoReturn:
    """In the child: become nobody's child, and guard. Python's exit is never reached: it is the device's."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        _close_all_but(connection.fileno(), lock, watched)
        waiting.readable(watched)  # until the device has closed it, or is gone
        connection.shutdown(socket.SHUT_WR)
        poller = select.poll()
        poller.register(connection, select.POLLIN)
        while path.exists():
            if poller.poll(_LOOK_MS) and not connection.recv(1 << 16):
                break
    finally:
        os._exit(0)


def _close_all_but(*kept: int) -> None:
    below = 0
    for fd in sorted(kept):
        os.closerange(below, fd)
        below = fd + 1
    os.closerange(below, os.sysconf("SC_OPEN_MAX"))
