"""What the services write to stderr: their warnings, and the last words of one that dies of an unforeseen error."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from typing import TextIO

from vmesh.log import Log
from vmesh.stdio import Stderr

_LINE_LIMIT = 4096  # bytes
_SHOWN_LIMIT = 300  # characters
# A service has written the lines of vmesh.log to the machine's log itself.
_REASON = re.compile(r'reason=("(?:[^"\\]|\\.)*"|\S+)')
_LOGGED = re.compile(r"\S+Z (info|warning|error) \S+ ")


class Output:
    """Takes the services' output from their pipes, line by line; `mirror`, if any, gets a copy for the user."""

    def __init__(self, log: Log, mirror: TextIO | Stderr | None = None) -> None:
        self._log = log
        self.mirror = mirror
        self._partial: dict[str, bytes] = {}
        self._last: dict[str, str] = {}

    def drain(self, service: str, fd: int) -> None:
        """Take what there is in `fd`, which does not block; at its end also a last line without a newline."""
        try:
            while data := os.read(fd, 65536):
                *lines, rest = (self._partial.pop(service, b"") + data).split(b"\n")
                if len(rest) > _LINE_LIMIT:
                    lines.append(rest)
                    rest = b""
                self._partial[service] = rest
                for line in lines:
                    self._take(service, line)
        except BlockingIOError:
            return
        self._take(service, self._partial.pop(service, b""))

    def last_line(self, service: str) -> str:
        """What `service` said last; empty if nothing."""
        return self._last.get(service, "")

    def forget(self, service: str) -> None:
        """Another program is to speak under this name."""
        self._last.pop(service, None)

    def _take(self, service: str, raw: bytes) -> None:
        line = one_line(raw[:_LINE_LIMIT].decode(errors="replace"), _LINE_LIMIT)
        if not line:
            return
        logged = _LOGGED.match(line)
        text = line[logged.end() :] if logged else line
        reason = _REASON.search(text) if logged else None
        self._last[service] = _unquoted(reason[1] if reason else text)[:_SHOWN_LIMIT]
        if not logged:
            self._log.info("output", service=service, text=line)
        if self.mirror is not None:
            with suppress(OSError):
                print(f"{service}: {text}", file=self.mirror, flush=True)


def _unquoted(text: str) -> str:
    """A value of a vmesh.log line as it was before it was quoted."""
    with suppress(ValueError):
        if text.startswith('"'):
            return str(json.loads(text))
    return text


def one_line(text: str, limit: int = _SHOWN_LIMIT) -> str:
    """Text from a service as people may see it: one line, no control characters, at most `limit` of the others."""
    return "".join(c if c.isprintable() else " " for c in text[:limit]).strip()
