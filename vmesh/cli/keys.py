"""What the keys of the terminal mean, as pure state: the Ctrl-A multiplexer.

The keys are those of QEMU's -nographic (qemu-system-riscv64(1), "Keys in the character backend multiplexer").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

ESCAPE = 0x01  # Ctrl-A


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
