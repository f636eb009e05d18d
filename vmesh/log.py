"""The log of a machine: one line an event, from every service, in `log` of the machine directory.

Warnings and errors also go to stderr. A line is `<UTC time> <level> <service> <event> key=value ...`. Values are quoted
where they need it, and cut at 400 characters, since they may come from a guest or a peer. What is written while an
access of the guest is handled ends with its id, `trace=device/hart/sequence` (proto/vmesh/v1/trace.proto).

A guest may cause as many events as it likes, and the machine directory is memory. So the log is bounded twice:

* Of each cause the 1st, 10th, 100th, ... line is written, and one that comes `SECONDS` after the last; it tells how
  many were left out. A cause is an event and all that is said of it, or where that varies its `cause`. Of one event
  there are `_MOST_CAUSES` at most; all that follow are one.
* A log of `TURN_BYTES` becomes `log.1`, in the place of the former one, and a new one begins. Not so the file that -D
  names: it is the user's, who may want all of it, and may have another program look after it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60.0
TURN_BYTES = 1 << 20

_PLAIN = re.compile(r"[A-Za-z0-9_./:+,@%*-]+")
_VALUE_LIMIT = 400
_MOST_CAUSES = 64


@dataclass(slots=True)
class _Cause:
    """How often it came, when a line of it was written last, and how many were not written since."""

    count: int = 0
    written: float = 0.0
    left_out: int = 0

    def take(self, now: float) -> bool:
        """Whether to write one more line."""
        self.count += 1
        if str(self.count).strip("0") != "1" and now - self.written < SECONDS:
            self.left_out += 1
            return False
        self.written = now
        return True


class Log:
    """Writes lines of one service. Without `path`, and for warnings and errors, to stderr.

    `info`, `warning` and `error` tell whether the line was written.
    """

    def __init__(self, name: str, path: Path | None = None) -> None:
        self.trace: Callable[[], str] = lambda: ""  # gives the id of the access that is being handled, if one is
        self._name = name
        self._path = path
        self._turns = path is not None and not path.is_symlink()  # else it is the file of -D
        self._fd = -1 if path is None else _open(path)
        self._causes: dict[str, dict[str, _Cause]] = {}  # of each event

    def info(self, event: str, **fields: object) -> bool:
        return self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> bool:
        return self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> bool:
        return self._write("error", event, fields)

    def close(self) -> None:
        """Say what was left out last, and write no more to the file."""
        for event, causes in self._causes.items():
            if left_out := sum(cause.left_out for cause in causes.values()):
                self._put("info", "left out", {"event": event, "left_out": left_out})
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, level: str, event: str, fields: dict[str, object]) -> bool:
        cause = self._cause(event, fields)
        if not cause.take(time.monotonic()):
            return False
        if cause.left_out:
            fields["left_out"], cause.left_out = cause.left_out, 0
        self._put(level, event, fields)
        return True

    def _cause(self, event: str, fields: dict[str, object]) -> _Cause:
        said = fields.get("cause") or " ".join(str(value)[:_VALUE_LIMIT] for value in fields.values())
        causes = self._causes.setdefault(event, {})
        return causes.setdefault(str(said) if len(causes) < _MOST_CAUSES or said in causes else "", _Cause())

    def _put(self, level: str, event: str, fields: dict[str, object]) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        if trace := self.trace():
            fields["trace"] = trace
        values = "".join(f" {key}={_quote(str(value))}" for key, value in fields.items())
        line = f"{stamp} {level} {self._name} {event}{values}\n"
        if self._fd >= 0:
            with suppress(OSError):  # the log must not end a service
                self._follow()
                os.write(self._fd, line.encode())  # one write: lines of several processes do not mix
                self._turn()
        if level != "info" or self._fd < 0:
            with suppress(OSError, ValueError):
                sys.stderr.write(line)
                sys.stderr.flush()

    def _follow(self) -> None:
        """Another process of the machine may have begun a new log."""
        if self._turns and not self._is_current():
            fresh = _open(self._path) if self._path is not None else -1
            os.close(self._fd)
            self._fd = fresh

    def _turn(self) -> None:
        if self._path is None or not self._turns or os.fstat(self._fd).st_size < TURN_BYTES:
            return
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            if self._is_current():  # else another process has turned it meanwhile
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._follow()

    def _is_current(self) -> bool:
        assert self._path is not None
        try:
            return os.path.samestat(os.fstat(self._fd), self._path.stat())
        except FileNotFoundError:
            return False


def _open(path: Path) -> int:
    """Whatever -D names is not waited for: what has no room for a line loses it."""
    flags = os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, os.O_WRONLY | flags, 0o600)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.open(path, os.O_RDWR | flags, 0o600)  # a FIFO that nobody reads yet


def _quote(value: str) -> str:
    value = value[:_VALUE_LIMIT]
    return value if _PLAIN.fullmatch(value) else json.dumps(value)
