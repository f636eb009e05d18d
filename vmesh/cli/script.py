"""Input for a guest that nobody watches, as pure state: when to give it and in which form, and what the guest tells.

The default guest tells when it wants input, and how it has ended, in control strings on its console
(vmesh/guest/initramfs.py says which). They are taken out of what the user sees.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum, auto

_BEGIN, _END = b"\x1b_vmesh:", b"\x1b\\"
_WORD = rb"[a-z0-9:]{%d,32}"
_MARK = re.compile(_BEGIN + b"(" + _WORD % 1 + b")" + re.escape(_END))
# Bytes of input at a time. The guest's terminal holds 4096; each byte costs the guest round trips to the serial port in
# its interrupt handler, which has to come to an end now and then, on a busy host too.
_PIECE = 256
_HEADER = b"\x01%d\n"
_END_OF_TRANSMISSION = b"\x04"
_AGAIN = 1.0  # seconds after which Ctrl-D is typed again: what ran meanwhile may have had it
_WITHHELD = 256 << 10  # bytes of the boot that are kept for the case that it fails


def _begun_mark() -> re.Pattern[bytes]:
    """The begin of a mark, the rest of which is to come."""
    rest = _WORD % 0 + b"\x1b?"
    for byte in reversed(_BEGIN[1:]):
        rest = b"(?:" + re.escape(bytes((byte,))) + rest + b")?"
    return re.compile(_BEGIN[:1] + rest + rb"\Z")


_BEGUN = _begun_mark()


class Form(Enum):
    """How a guest gets what is piped into `vmesh run`."""

    RAW = auto()  # when it comes, and nothing at its end: what other guests get
    TYPED = auto()  # when it comes, and Ctrl-D at its end
    AT_PROMPT = auto()  # the same, once the guest is ready
    PIECES = auto()  # piece by piece, as the guest asks for them


@dataclass(slots=True)
class Script:
    """What goes between the launcher's pipes and a guest.

    With `quiet` nothing is shown but what the guest's commands write. `status` is their exit status, once it is told.
    """

    form: Form
    quiet: bool = False
    status: int | None = None
    due: float = float("inf")  # when `give` may have something though nothing happens
    _ready: bool = False  # the guest has told that it wants input
    _told: bool = False  # anything
    _pending: bytearray = field(default_factory=bytearray)
    _any: bool = False  # whether there was input
    _ended: bool = False
    _newline: bool = True  # what was given ends in one
    _asked: int | None = None  # for which piece
    _pieces: int = 0  # given
    _partial: bytes = b""  # the begin of a mark
    _withheld: bytearray = field(default_factory=bytearray)

    def output(self, data: bytes, now: float) -> bytes:
        """What the user sees of the guest's output; `now` is in seconds of a monotonic clock."""
        data = self._partial + data
        shown = bytearray()
        at = 0
        for found in _MARK.finditer(data):
            shown += self._visible(data[at : found.start()])
            self._take(found[1].decode(), now)
            at = found.end()
        begun = _BEGUN.search(data, at)
        end = begun.start() if begun else len(data)
        self._partial = data[end:]
        return bytes(shown + self._visible(data[at:end]))

    def end(self) -> bytes:
        """There is no more output: the rest of what the user sees, of a boot that came to nothing all of it."""
        rest, self._partial = self._visible(self._partial), b""
        return rest if self._told else bytes(self._withheld) + rest

    @property
    def waiting(self) -> int:
        """Bytes of input that cannot be given yet."""
        return len(self._pending)

    def typed(self, data: bytes) -> None:
        """There is input; b"" is its end."""
        self._pending += data
        self._any = self._any or bool(data)
        if not data:
            self._ended, self.due = True, 0.0

    def give(self, now: float) -> bytes:
        """What the guest is to get now; to be asked for when the former has gone out."""
        if self.form is Form.PIECES or (self.form is Form.AT_PROMPT and not self._ready):
            self.due = float("inf")  # until the guest tells that it wants input
            return self._piece() if self.form is Form.PIECES else b""
        given = bytes(self._pending)
        self._pending.clear()
        self._newline = given.endswith(b"\n") if given else self._newline
        if self._ended and now >= self.due:
            self.due = float("inf")
            if self.form is not Form.RAW and (self._any or self._told or self.form is Form.AT_PROMPT):
                given += (b"" if self._newline else b"\n") + _END_OF_TRANSMISSION
                self._newline = True
                self.due = now + _AGAIN
        return given

    def _piece(self) -> bytes:
        if self._asked is None or self._asked < self._pieces or not (self._pending or self._ended):
            return b""
        self._pieces, self._asked = self._asked + 1, None
        piece = bytes(self._pending[:_PIECE])
        del self._pending[:_PIECE]
        return _HEADER % len(piece) + piece

    def _take(self, word: str, now: float) -> None:
        """The guest tells this."""
        self._told = True
        match word.split(":"):
            case ["ready"]:
                self._ready = True
                self.form = Form.TYPED if self.form is Form.RAW else self.form
                self.due = now if self._ended else self.due
            case ["more", number] if number.isdecimal():
                self._asked = int(number)
            case ["status", number] if number.isdecimal():
                self.status = min(int(number), 255)

    def _visible(self, data: bytes) -> bytes:
        if not self.quiet or (self._told and self.status is None):
            return data
        if not self._told:
            self._withheld += data
            del self._withheld[:-_WITHHELD]
        return b""
