"""The translator's process, as the cpu sees it: asked for regions, started again if it dies.

Requests and answers are messages on a socket pair (SOCK_SEQPACKET): a header, then bytes. The process holds no state.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmesh.spawn import python

from .regions import DIGEST, Translation

# digest, entry, address of the page, number of feature bytes, slots that were run; then the features and the page
_REQUEST = struct.Struct(f"<{DIGEST}sHQH256s")
# digest, bytes of steps, of entries, of code, microseconds that it took; then the parts
_ANSWER = struct.Struct(f"<{DIGEST}sHHII")
#: The parts of a request that tell it from others: by its content, digest and entry; by its place, entry and address.
CONTENT, PLACE = slice(0, DIGEST + 2), slice(DIGEST, DIGEST + 10)
_LARGEST = 1 << 20
#: How often the process is started, before it is taken to fail always.
MOST_STARTS = 16
#: After the host could not start it.
RETRY_SECONDS = 1.0

#: Takes a digest, a translation, and the microseconds that it took.
Answer = Callable[[bytes, Translation, int], None]


@dataclass(frozen=True, slots=True)
class Request:
    """The region at ``offset`` of a ``physical`` page, of what has been ``executed`` there (see ``region.form``)."""

    digest: bytes
    offset: int
    physical: int
    features: frozenset[str]
    executed: bytes
    page: bytes

    def pack(self) -> bytes:
        features = ",".join(sorted(self.features)).encode()
        header = _REQUEST.pack(self.digest, self.offset, self.physical, len(features), self.executed)
        return header + features + self.page

    @staticmethod
    def parse(message: bytes) -> Request:
        digest, offset, physical, length, executed = _REQUEST.unpack_from(message)
        features = message[_REQUEST.size : _REQUEST.size + length].decode().split(",")
        return Request(digest, offset, physical, frozenset(features), executed, message[_REQUEST.size + length :])


def pack_answer(digest: bytes, translation: Translation, microseconds: int) -> bytes:
    parts = (translation.steps, translation.entries, translation.code)
    return _ANSWER.pack(digest, *map(len, parts), microseconds) + b"".join(parts)


def receive(connection: socket.socket) -> bytes:
    """The next message; empty at the end."""
    return connection.recv(_LARGEST)


def _answer_of(message: bytes) -> tuple[bytes, Translation, int]:
    """The digest, the translation and the microseconds in an answer; raises OSError if its lengths do not fit."""
    if len(message) >= _ANSWER.size:
        digest, steps, entries, code, microseconds = _ANSWER.unpack_from(message)
        body = message[_ANSWER.size :]
        if steps + entries + code == len(body):
            parts = Translation(body[:steps], body[steps : steps + entries], body[steps + entries :])
            return digest, parts, microseconds
    raise OSError(errno.EBADMSG, f"expected a header and what it says, got {len(message)} bytes")


class TranslatorProcess:
    """The cpu's side: starts the process with the first request, and hands on what it compiles."""

    def __init__(
        self,
        isa: str,
        features: frozenset[str],
        answer: Answer,
        keep: bool,
        start_soon: Callable[[], None] | None = None,
    ) -> None:
        """``isa``: the name of the instruction set. ``keep``: translations go to the disk too. ``start_soon`` has
        another thread call ``start``, so that a hart does not wait for it; without it, the one that asks does."""
        self._keep = keep
        self._start_soon = start_soon or self._start
        self._isa, self._features = isa, features
        self.starts = 0
        self._not_before = 0.0
        self._answer = answer
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._lock = threading.Lock()

    def request(self, digest: bytes, page: bytes, offset: int, executed: bytes, physical: int) -> bool:
        """Asks for the region at ``offset`` of a page, of what has been ``executed`` (see ``region.form``). Never
        waits: False if the translator has no room or is not there yet, ask again later."""
        message = Request(digest, offset, physical, self._features, executed, page).pack()
        with self._lock:
            if self._connection is None:
                self._start_soon()
            if self._connection is None:
                return False
            try:
                self._connection.send(message, socket.MSG_DONTWAIT)
            except OSError:
                return False  # no room; or it was killed, and its reader is about to find out
        return True

    def start(self) -> None:
        """Starts the process, which takes some tenths of a second, before there is something to ask."""
        with self._lock:
            self._start()

    def close(self) -> None:
        """Ends the process for good."""
        with self._lock:
            self.starts = MOST_STARTS
            self._end()

    def _end(self) -> None:
        """Ends the process; its reader closes the connection."""
        if self._connection is not None and self._process is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            self._connection = None
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        """Unless it is there. What the host cannot give now is asked for again later; till then code is interpreted."""
        if self._connection is not None or self.starts == MOST_STARTS or time.monotonic() < self._not_before:
            return
        try:
            with contextlib.ExitStack() as failed:
                self._spawn(failed)
                failed.pop_all()
        except (OSError, RuntimeError) as error:  # the latter: no thread
            self._not_before = time.monotonic() + RETRY_SECONDS
            print(f"vmesh: the translator cannot be started now: {error}", file=sys.stderr)
        else:
            self.starts += 1

    def _spawn(self, failed: contextlib.ExitStack) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        failed.callback(ours.close)
        with theirs:
            self._process = self._run(theirs)
        failed.callback(self._process.kill)
        threading.Thread(target=self._read, args=(ours,), name="translations", daemon=True).start()
        self._connection = ours

    def _run(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        arguments = [self._isa, str(theirs.fileno()), *(["--keep"] if self._keep else [])]
        command = python("vmesh_services.cpu.core.translator", *arguments)
        root = str(Path(__file__).resolve().parents[3])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        return subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)

    def _read(self, connection: socket.socket) -> None:
        """Hands on answers until the process ends, or says what cannot be one: then it is ended."""
        with contextlib.suppress(OSError):
            while message := receive(connection):
                self._answer(*_answer_of(message))
        with self._lock:
            if self._connection is connection:
                self._end()
        connection.close()
