"""The lifeline: the read end of a pipe whose write end only the parent process holds. At its end the parent is gone."""

from __future__ import annotations

import os
from collections.abc import Callable

from vmesh import errors
from vmesh.loop import Loop


def watch(loop: Loop, fd: int, ended: Callable[[], None]) -> None:
    """Call `ended` once, when the pipe ends. Raises ConfigError if `fd` is not an open file."""
    try:
        os.set_blocking(fd, False)
    except OSError as error:
        raise errors.ConfigError("--lifeline", expected="an open pipe", got=f"{fd}: {error.strerror}") from error

    def readable() -> None:
        try:
            if os.read(fd, 4096):
                return  # nobody should write to it; what comes means nothing
        except BlockingIOError:
            return
        except OSError:
            pass
        loop.watch(fd)
        ended()

    loop.watch(fd, read=readable)
