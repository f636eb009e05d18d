"""The user's terminal: raw while the machine has it, and as it was on every way out."""

from __future__ import annotations

import os
import termios
from contextlib import suppress
from types import TracebackType


class RawTerminal:
    """Raw mode on `fd` for a `with` block, if `fd` is a terminal.

    With `signals` the keys for signals (Ctrl-C, Ctrl-Z, Ctrl-\\) keep their meaning, otherwise they are mere bytes.
    What was written is not waited for: it may never be read.
    """

    def __init__(self, fd: int, *, signals: bool) -> None:
        self._fd = fd
        self._signals = signals
        self._before = termios.tcgetattr(fd) if os.isatty(fd) else None

    def __enter__(self) -> RawTerminal:
        self.apply()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def apply(self) -> None:
        """Make it raw, as cfmakeraw(3) does, but leave output processing on, as QEMU does."""
        if self._before is None:
            return
        iflag, oflag, cflag, lflag, ispeed, ospeed, cc = termios.tcgetattr(self._fd)
        iflag &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
            | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
        if not self._signals:
            lflag &= ~termios.ISIG
        cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        cc = [*cc]
        # A read never waits: what poll has seen may be gone, since the kernel drops what was typed before a Ctrl-C.
        cc[termios.VMIN], cc[termios.VTIME] = 0, 0
        # A terminal that was closed meanwhile needs no mode.
        with suppress(termios.error):
            termios.tcsetattr(
                self._fd, termios.TCSANOW, [iflag, oflag | termios.OPOST, cflag, lflag, ispeed, ospeed, cc]
            )

    def restore(self) -> None:
        if self._before is not None:
            with suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSANOW, self._before)
