"""HMP's line editor: the monitor edits, as QEMU's does, so that any byte stream will do for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

_MAX_LINE = 4096  # characters
_MAX_HISTORY = 100


@dataclass(slots=True)
class LineEditor:
    """Printable keys, backspace, Ctrl-U, Ctrl-C, Tab, Ctrl-R (the line anew), and the arrows for the lines before.

    `complete` gives the words that could stand where the line's last one is.
    """

    prompt: str
    complete: Callable[[str], list[str]]
    line: str = ""
    history: list[str] = field(default_factory=list)
    _place: int = 0  # in the history; its length where nothing was recalled
    _sequence: bytes = b""  # of an escape sequence, as far as it came
    _returned: bool = False  # a newline behind a carriage return is none of its own

    def key(self, byte: int) -> tuple[str, str | None]:
        """The text to echo, and the line if this key completed one."""
        returned, self._returned = self._returned, byte == 0x0D
        if self._sequence:
            return self._escape(byte), None
        match byte:
            case 0x0A if returned:
                return "", None
            case 0x0D | 0x0A:
                line = self.line
                if line.strip() and line not in self.history[-1:]:
                    self.history = [*self.history, line][-_MAX_HISTORY:]
                self._start()
                return "\n", line
            case 0x7F | 0x08 if self.line:
                self.line = self.line[:-1]
                return "\b \b", None
            case 0x15:
                return self._replace(""), None
            case 0x03:
                self._start()
                return "^C\n", ""
            case 0x12:
                return f"\n{self.prompt}{self.line}", None
            case 0x09:
                return self._tab(), None
            case 0x1B:
                self._sequence = b"\x1b"
            case _ if 0x20 <= byte < 0x7F and len(self.line) < _MAX_LINE:
                self.line += chr(byte)
                return chr(byte), None
        return "", None

    def _start(self) -> None:
        self.line = ""
        self._place = len(self.history)

    def _replace(self, line: str) -> str:
        erased = "\b \b" * len(self.line)
        self.line = line
        return erased + line

    def _tab(self) -> str:
        words = self.complete(self.line)
        if not words:
            return ""
        last = self.line.rpartition(" ")[2]
        common = _common_beginning(words)
        more = common[len(last) :] + (" " if len(words) == 1 else "")
        self.line += more
        if more or len(words) == 1:
            return more
        return "\n" + "  ".join(words) + f"\n{self.prompt}{self.line}"

    def _escape(self, byte: int) -> str:
        """CSI A and CSI B (ECMA-48, 5.4) recall; all other sequences are swallowed whole."""
        self._sequence += bytes([byte])
        if self._sequence == b"\x1b[" or (
            self._sequence.startswith(b"\x1b[") and not 0x40 <= byte <= 0x7E and len(self._sequence) < 16
        ):
            return ""
        step = {b"\x1b[A": -1, b"\x1b[B": 1}.get(self._sequence, 0)
        self._sequence = b""
        if not step:
            return ""
        self._place = min(max(self._place + step, 0), len(self.history))
        return self._replace([*self.history, ""][self._place])


def _common_beginning(words: list[str]) -> str:
    shortest, *_ = sorted(words, key=len)
    count = 0
    while count < len(shortest) and len({word[count] for word in words}) == 1:
        count += 1
    return shortest[:count]
