"""What the keys of the terminal mean, as pure state: the Ctrl-A multiplexer and the prompt's line editor.

The keys are those of QEMU's -nographic (qemu-system-riscv64(1), "Keys in the character backend multiplexer").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

ESCAPE = 0x01  # Ctrl-A
SILENCE = 0.2  # seconds without output after which a guest at a prompt waits for input

_TAIL_BYTES = 256
_UNSEEN = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x1f\x7f]")  # control sequences (ECMA-48, 5.4) and characters


class Action(Enum):
    """What the launcher is to do besides passing bytes on."""

    HELP = auto()
    EXIT = auto()
    SWITCH = auto()


KEYS: Mapping[str, tuple[Action, str]] = {
    "h": (Action.HELP, "print this help"),
    "x": (Action.EXIT, "end the machine"),
    "c": (Action.SWITCH, "switch between the console and the monitor prompt"),
}


def key_help() -> str:
    """The text of Ctrl-A h, lines ending in a newline."""
    lines = [f"Ctrl-A {key}       {what}" for key, (_, what) in KEYS.items()]
    return "\n".join(["", *lines, "Ctrl-A Ctrl-A  send Ctrl-A", ""])


@dataclass(slots=True)
class KeyMux:
    """Splits the bytes typed into those for whoever has the focus and the actions of Ctrl-A keys, in their order."""

    escaped: bool = False

    def feed(self, typed: bytes) -> list[bytes | Action]:
        """The pieces that `typed` completes. A Ctrl-A at its end waits for the next call; unknown keys are dropped."""
        pieces: list[bytes | Action] = []
        plain = bytearray()
        for byte in typed:
            if not self.escaped:
                if byte == ESCAPE:
                    self.escaped = True
                else:
                    plain.append(byte)
                continue
            self.escaped = False
            if byte == ESCAPE:
                plain.append(byte)
            elif action := KEYS.get(chr(byte)):
                if plain:
                    pieces.append(bytes(plain))
                    plain.clear()
                pieces.append(action[0])
        if plain:
            pieces.append(bytes(plain))
        return pieces


@dataclass(slots=True)
class PromptWatch:
    """Whether the guest waits for input: it has begun a line, not ended it, and been silent for a while.

    A guess, made where somebody types without looking: what comes before the guest has opened its serial port is lost.
    """

    _tail: bytes = b""
    _last: float = 0.0

    def output(self, data: bytes, now: float) -> None:
        """The guest wrote `data` at `now`, in seconds of a monotonic clock."""
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        self._last = now

    def answered(self) -> None:
        """It was given what it waits for."""
        self._tail = b""

    @property
    def mid_line(self) -> bool:
        """Whether the cursor stands behind something."""
        return bool(_UNSEEN.sub(b"", self._tail.rpartition(b"\n")[2]))

    @property
    def due(self) -> float | None:
        """When it waits, if it writes nothing before; None if it is at no prompt."""
        return self._last + SILENCE if self.mid_line else None


@dataclass(slots=True)
class LineEditor:
    """The prompt's line: printable keys, backspace, Ctrl-U, Ctrl-C, and the arrows for the lines before."""

    line: str = ""
    history: list[str] = field(default_factory=list)
    _place: int = 0  # in the history; its length where nothing was recalled
    _sequence: bytes = b""  # of an escape sequence, as far as it came

    def feed(self, typed: bytes) -> tuple[str, list[str]]:
        """The text to echo and the lines that Return completed. A line is not longer than 1,000 characters."""
        echo: list[str] = []
        lines: list[str] = []
        for byte in typed:
            if self._sequence:
                echo.append(self._escape(byte))
            elif byte in b"\r\n":
                echo.append("\n")
                lines.append(self.line)
                if self.line:
                    self.history.append(self.line)
                self._start()
            elif byte in b"\x7f\x08" and self.line:
                self.line = self.line[:-1]
                echo.append("\b \b")
            elif byte == 0x15:
                echo.append(self._replace(""))
            elif byte == 0x03:
                self._start()
                echo.append("^C\n")
                lines.append("")
            elif byte == 0x1B:
                self._sequence = b"\x1b"
            elif 0x20 <= byte < 0x7F and len(self.line) < 1000:
                self.line += chr(byte)
                echo.append(chr(byte))
        return "".join(echo), lines

    def _start(self) -> None:
        self.line = ""
        self._place = len(self.history)

    def _replace(self, line: str) -> str:
        erased = "\b \b" * len(self.line)
        self.line = line
        return erased + line

    def _escape(self, byte: int) -> str:
        """CSI A and CSI B (ECMA-48, 5.4) recall; all other sequences are swallowed whole."""
        self._sequence += bytes([byte])
        if self._sequence == b"\x1b[" or (self._sequence.startswith(b"\x1b[") and not 0x40 <= byte <= 0x7E):
            return ""
        step = {b"\x1b[A": -1, b"\x1b[B": 1}.get(self._sequence, 0)
        self._sequence = b""
        if not step:
            return ""
        self._place = min(max(self._place + step, 0), len(self.history))
        return self._replace([*self.history, ""][self._place])
