"""The standard files: closed ones, and writing to one that others have too, such as a shell, so that it cannot be made
non-blocking."""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress

# The most that is written at once: a terminal or pipe that polls as writable takes this much without blocking.
_PIECE = 1024


def open_closed() -> None:
    """What the caller has closed of stdin, stdout and stderr (`>&-`) is /dev/null from now on. Before other files are
    opened: they would get its number, and be written to. Python has None for a file that was closed when it began."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def write_piece(fd: int, data: bytes, timeout: float) -> int:
    """Write some of `data` once `fd` takes it: the count, or 0 if it took none within `timeout` seconds.

    Never blocks longer. Raises OSError if closed.
    """
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if not poll.poll(timeout * 1000):
        return 0
    return os.write(fd, data[:_PIECE])


class Stderr:
    """Standard error as a file for print, of a process that waits for nobody: what is not taken soon is lost."""

    def __init__(self, patience: float = 0.0) -> None:
        """`patience` is in seconds, for each piece."""
        self._patience = patience

    def write(self, text: str) -> None:
        data = text.encode(errors="backslashreplace")
        with suppress(OSError):
            while data and (count := write_piece(2, data, self._patience)):
                data = data[count:]

    def flush(self) -> None:
        pass
