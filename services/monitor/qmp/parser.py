"""QMP's input: JSON values that come in pieces, with whatever a hostile client puts between them.

Limits as QEMU has them (qobject/json-streamer.c), but for the size, which is lower, since the supervisor's loop parses,
and the nesting: what can be read must be written back, an `id` above all, and to write takes more of the stack. An
error costs a client its message, or the rest of its line, never its connection. The byte 0xFF, which is in no JSON,
makes the parser start anew (QEMU, qmp-spec, "Forcing the JSON parser into known-good state").
"""

from __future__ import annotations

import json
import math
import re
from typing import NoReturn

from vmesh_services.monitor.qmp.errors import QmpError

MAX_BYTES = 4 << 20  # of one message
MAX_NESTING = 256

_RESET = 0xFF
_BLANKS = re.compile(rb"[\s,]*")  # QEMU's client library puts commas between messages, some people do too
_WORD = re.compile(rb"[^\s{\[\xff]{1,40}")
_MARK = re.compile(rb"[\"{}\[\]\xff]")
_STRING_END = re.compile(rb"[\"\\\x00-\x1f\xff]")
_NO_TEXT = re.compile("[\\ud800-\\udfff]")
_LINE_END = re.compile(rb"[\n\xff]")


class Parser:
    """Push bytes; take the JSON values that have come whole, and a QmpError for each thing that is none."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._place = 0  # what of the buffer has been looked at
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._skipping = False  # the rest of a line with an error

    def push(self, data: bytes) -> None:
        self._buffer += data

    def take(self) -> tuple[object] | None:
        """The next value or QmpError, if it has come. Each byte is looked at once."""
        buffer = self._buffer
        while self._place < len(buffer):
            if buffer[self._place] == _RESET:
                self._start_over(self._place + 1)
            elif self._skipping:
                self._skip()
            elif self._escaped:
                self._escaped = False
                self._place += 1
            elif self._in_string:
                if not self._scan_string():
                    return (self._fail("JSON parse error, a string is not closed"),)
            elif self._depth:
                if self._scan_value():
                    raw = bytes(buffer[: self._place])
                    self._start_over(self._place)
                    return (parse(raw),)
                if self._depth > MAX_NESTING:
                    return (self._fail("JSON nesting depth limit exceeded"),)
            elif (error := self._scan_between()) is not None:
                return (error,)
            if self._place > MAX_BYTES:
                return (self._fail("JSON token size limit exceeded"),)
        return None

    @property
    def pending(self) -> int:
        """Bytes that are kept of what is not complete."""
        return len(self._buffer)

    def _start_over(self, taken: int = 0) -> None:
        """Forget the first `taken` bytes; what follows begins a value."""
        del self._buffer[:taken]
        self._place = self._depth = 0
        self._in_string = self._escaped = self._skipping = False

    def _scan_between(self) -> QmpError | None:
        """No value has begun: skip blanks; what is neither blank nor the beginning of a value is an error."""
        blanks = _BLANKS.match(self._buffer)
        assert blanks is not None
        del self._buffer[: blanks.end()]
        if not self._buffer or self._buffer[0] == _RESET:
            return None
        if self._buffer[0] in b"{[":
            self._depth, self._place = 1, 1
            return None
        word = _WORD.match(self._buffer)
        assert word is not None
        text = word.group().decode(errors="replace")
        return self._fail(f"JSON parse error, {'invalid keyword' if text.isalpha() else 'stray'} '{text}'")

    def _scan_value(self) -> bool:
        """Look as far as the next mark; whether it ends the value."""
        mark = _MARK.search(self._buffer, self._place)
        if mark is None:
            self._place = len(self._buffer)
            return False
        self._place = mark.end()
        match self._buffer[mark.start()]:
            case 0x22:
                self._in_string = True
            case 0x7B | 0x5B:
                self._depth += 1
            case 0x7D | 0x5D:
                self._depth -= 1
            case _:
                self._place = mark.start()
        return self._depth == 0

    def _scan_string(self) -> bool:
        """Look as far as the next byte that means something in a string; False if it must not be there."""
        mark = _STRING_END.search(self._buffer, self._place)
        if mark is None:
            self._place = len(self._buffer)
            return True
        self._place = mark.end()
        match self._buffer[mark.start()]:
            case 0x22:
                self._in_string = False
            case 0x5C:
                self._escaped = True
            case 0xFF:
                self._place = mark.start()
            case _:
                self._place = mark.start()
                return False
        return True

    def _fail(self, text: str) -> QmpError:
        self._start_over(self._place)
        self._skipping = True
        return QmpError(text)

    def _skip(self) -> None:
        end = _LINE_END.search(self._buffer)
        self._start_over(end.start() if end else len(self._buffer))
        self._skipping = end is None


def parse(raw: bytes) -> object:
    """The value of a JSON text, or the QmpError that says what is wrong with it."""
    try:
        value: object = json.loads(
            raw.decode(), object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_float, parse_int=_int
        )
        if b"\\u" in raw:
            _check_strings(value)
        return value
    except UnicodeDecodeError:
        return QmpError("JSON parse error, invalid UTF-8 sequence in string")
    except json.JSONDecodeError as error:
        return QmpError(f"JSON parse error, {error.msg.lower()} at character {error.pos}")
    except RecursionError:
        return QmpError("JSON nesting depth limit exceeded")
    except QmpError as error:
        return error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise QmpError("JSON parse error, duplicate key")
    return found


def _check_strings(value: object) -> None:
    """An escape can say what is in no text: half a surrogate pair. Raises QmpError."""
    if isinstance(value, str) and (wrong := _NO_TEXT.search(value)):
        raise QmpError(f"JSON parse error, \\u{ord(wrong.group()):04x} is not a valid Unicode character")
    for each in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_strings(each)


def _no_constant(text: str) -> NoReturn:
    raise QmpError(f"JSON parse error, invalid keyword '{text}'")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise QmpError("JSON parse error, a number is too large")
    return value


def _int(text: str) -> int | float:
    """As QEMU, an integer beyond 64 bits is a number like 1e30."""
    if len(text) < 20:
        return int(text)
    value = _float(text)
    return int(text) if -(1 << 63) <= value <= (1 << 64) and len(text) < 40 else value
