"""Writing to a standard output that others have too, such as a shell, so that it cannot be made non-blocking."""

from __future__ import annotations

import os
import select
from contextlib import suppress

# The most that is written at once: a terminal or pipe that polls as writable takes this much without blocking.
_PIECE = 1024


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
