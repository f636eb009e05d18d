"""The translator: a process of its own that compiles hot code, since LLVM would hold up the harts.

Requests and answers are messages on a socket pair (SOCK_SEQPACKET): a header, then bytes. It holds no state: killed, it
is started again by the next request.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .regions import Translation

if TYPE_CHECKING:
    from .isa.riscv.region import Region

_REQUEST = struct.Struct("<16sHH")  # digest, offset of the entry, number of feature bytes; then features and the page
_ANSWER = struct.Struct("<16sHHI")  # digest, bytes of steps, of entries, of code; then these
_LARGEST = 1 << 20
#: Requests that are compiled as one module: a module costs LLVM 1 to 2 ms of its own, and the first has to wait for
#: the last.
BATCH = 4
#: Requests that wait; of more, the oldest are forgotten: what is hot now matters.
MOST_WAITING = 256
#: Niceness of the process: harts go first.
NICENESS = 10

Answer = Callable[[bytes, Translation], None]


def _receive(connection: socket.socket) -> bytes:
    """The next message; empty at the end."""
    return connection.recv(_LARGEST)


def _answer_of(message: bytes) -> tuple[bytes, Translation]:
    """The digest and the translation in an answer; raises OSError if its lengths do not fit."""
    if len(message) >= _ANSWER.size:
        digest, steps, entries, code = _ANSWER.unpack_from(message)
        body = message[_ANSWER.size :]
        if steps + entries + code == len(body):
            return digest, Translation(body[:steps], body[steps : steps + entries], body[steps + entries :])
    raise OSError(errno.EBADMSG, f"expected a header and what it says, got {len(message)} bytes")


class TranslatorProcess:
    """The cpu's side: starts the process with the first request, and hands on what it compiles."""

    def __init__(self, features: frozenset[str], answer: Answer, keep: bool) -> None:
        """``keep``: translations go to the disk too."""
        self._keep = keep
        self._features = ",".join(sorted(features)).encode()
        self._answer = answer
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._lock = threading.Lock()

    def request(self, digest: bytes, page: bytes, offset: int) -> bool:
        """Asks for the region at ``offset`` of a page. Never waits: False if the translator has no room, ask again
        later."""
        message = _REQUEST.pack(digest, offset, len(self._features)) + self._features + page
        with self._lock:
            if self._connection is None:
                self._start()
            assert self._connection is not None
            try:
                self._connection.send(message, socket.MSG_DONTWAIT)
            except OSError:
                return False  # no room; or it was killed, and its reader is about to find out
        return True

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
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
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [
            sys.executable,
            "-m",
            "services.cpu.translator",
            str(theirs.fileno()),
            *(["--keep"] if self._keep else []),
        ]
        root = str(Path(__file__).resolve().parents[2])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)
        theirs.close()
        self._connection = ours
        threading.Thread(target=self._read, args=(ours,), name="translations", daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        """Hands on answers until the process ends, or says what cannot be one: then it is ended."""
        with contextlib.suppress(OSError):
            while message := _receive(connection):
                self._answer(*_answer_of(message))
        with self._lock:
            if self._connection is connection:
                self._end()
        connection.close()


def compile_batch(requests: list[tuple[bytes, int, frozenset[str], bytes]]) -> list[tuple[bytes, Translation]]:
    """Compiles regions given by (digest, entry offset, features, page) as one module."""
    from .isa.riscv.region import RegionModule, emit, form
    from .native.build import build_region

    module = RegionModule()
    regions: list[tuple[bytes, Region, str]] = []
    for digest, offset, features, page in requests:
        region = form(page, offset, features)
        if region is not None:
            name = f"r{len(regions)}"
            emit(module, name, region)
            regions.append((digest, region, name))
    if not regions:
        return []
    code = build_region(module.text())
    if len(code.image) > code.text_size and len(requests) > 1:
        # constants are shared by the module's functions: these cannot be taken apart
        return [each for request in requests for each in compile_batch([request])]
    starts = sorted([*code.symbols.values(), len(code.image)])
    translations = []
    for digest, region, name in regions:
        start = code.symbols[name]
        end = starts[starts.index(start) + 1] if len(regions) > 1 else len(code.image)
        steps = b"".join(offset.to_bytes(2, "little") for offset in sorted(region.steps))
        entries = b"".join(offset.to_bytes(2, "little") for offset in region.entries)
        translations.append((digest, Translation(steps, entries, code.image[start:end])))
    return translations


def serve(connection: socket.socket, store: Path | None) -> None:
    """Answers requests until the other side is gone; keeps translations in the file ``store``."""
    from .region_store import append

    waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
    while True:
        while not waiting or select.select([connection], [], [], 0)[0]:
            message = _receive(connection)
            if not message:
                return
            waiting.append(message)
        requests = []
        # the newest first: what has become hot just now
        for each in [waiting.pop() for _ in range(min(BATCH, len(waiting)))]:
            digest, offset, length = _REQUEST.unpack_from(each)
            features = each[_REQUEST.size : _REQUEST.size + length].decode().split(",")
            requests.append((digest, offset, frozenset(features), each[_REQUEST.size + length :]))
        translations = compile_batch(requests)
        for digest, translation in translations:
            head = _ANSWER.pack(digest, len(translation.steps), len(translation.entries), len(translation.code))
            connection.send(head + translation.steps + translation.entries + translation.code)
        if store is not None:
            append(translations, store)


def main(argv: list[str]) -> int:
    """The process: ``python -m services.cpu.translator FD [--keep]``."""
    os.nice(NICENESS)
    from .region_store import store_path

    store = store_path() if "--keep" in argv else None
    with socket.socket(fileno=int(argv[0])) as connection, contextlib.suppress(OSError):
        serve(connection, store)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
