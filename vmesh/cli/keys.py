"""What the keys of the terminal mean, as pure state: the Ctrl-A multiplexer.

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


#: Of `vmesh attach`.
ATTACHED_KEYS: Mapping[str, tuple[Action, str]] = {
    "h": (Action.HELP, "print this help"),
    "d": (Action.EXIT, "detach: the machine goes on"),
    "x": (Action.EXIT, "the same"),
}


def key_help(keys: Mapping[str, tuple[Action, str]] = KEYS) -> str:
    """The text of Ctrl-A h, lines ending in a newline."""
    lines = [f"Ctrl-A {key}       {what}" for key, (_, what) in keys.items()]
    return "\n".join(["", *lines, "Ctrl-A Ctrl-A  send Ctrl-A", ""])


@dataclass(slots=True)
class KeyMux:
    """Splits the bytes typed into those for whoever has the focus and the actions of Ctrl-A `keys`, in their order."""

    keys: Mapping[str, tuple[Action, str]] = field(default_factory=lambda: KEYS)
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
            elif action := self.keys.get(chr(byte)):
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
