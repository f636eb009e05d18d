"""The log of a machine: one line an event, from every service, in `log` of the machine directory.

Warnings and errors also go to stderr. A line is `<UTC time> <level> <service> <event> key=value ...`. Values are quoted
where they need it, and cut at 400 characters, since they may come from a guest or a peer. What is written while an
access of the guest is handled ends with its id, `trace=device/hart/sequence` (proto/vmesh/v1/trace.proto).
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PLAIN = re.compile(r"[A-Za-z0-9_./:+,@%*-]+")
_VALUE_LIMIT = 400


class Log:
    """Writes lines of one service. Without `path`, and for warnings and errors, to stderr."""

    def __init__(self, name: str, path: Path | None = None) -> None:
        self.trace: Callable[[], str] = lambda: ""  # gives the id of the access that is being handled, if one is
        self._name = name
        self._fd = -1
        if path is not None:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def info(self, event: str, **fields: object) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._write("error", event, fields)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        if trace := self.trace():
            fields["trace"] = trace
        values = "".join(f" {key}={_quote(str(value))}" for key, value in fields.items())
        line = f"{stamp} {level} {self._name} {event}{values}\n"
        if self._fd >= 0:
            with suppress(OSError):  # the log must not end a service
                os.write(self._fd, line.encode())  # one write: lines of several processes do not mix
        if level != "info" or self._fd < 0:
            with suppress(OSError, ValueError):
                sys.stderr.write(line)
                sys.stderr.flush()


def _quote(value: str) -> str:
    value = value[:_VALUE_LIMIT]
    return value if _PLAIN.fullmatch(value) else json.dumps(value)
