"""Files that users name. What is no file is not waited for, as a FIFO is until somebody opens its other end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_file(path: Path, flags: int, *, disk: bool = False) -> int:
    """The descriptor of a file, with `disk` of a block device too: open(2). Raises OSError, also for what is neither;
    that is left as it is."""
    fd = os.open(path, flags & ~os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or (disk and stat.S_ISBLK(mode))):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        if flags & os.O_TRUNC:
            os.truncate(fd, 0)
    except OSError:
        os.close(fd)
        raise
    return fd
