"""`vmesh attach NAME`: a console of a running machine on this terminal, beside the one that it has."""

from __future__ import annotations

import os
import queue
import select
import sys
import threading
from contextlib import suppress

from vmesh.cli.keys import ATTACHED_KEYS, Action, KeyMux, key_help
from vmesh.cli.terminal import RawTerminal
from vmesh.client import GatewayError, MachineClient, connect
from vmesh.machine import MachineError

STDIN, STDOUT = 0, 1
_PIECE = 4096
_PIECES = 16  # typed, that the machine has not taken
_LOOK_MS = 50


class _Attached:
    """Shows the console's output in a thread of its own; `run` takes what is typed."""

    def __init__(self, client: MachineClient, device: str, *, read_only: bool) -> None:
        self.failure = ""
        self._typed: queue.Queue[bytes | None] = queue.Queue(_PIECES)
        self._mux = KeyMux(ATTACHED_KEYS)
        self._escapes = os.isatty(STDIN) and not read_only
        self._reads = not read_only
        self._ended, self._end = os.pipe2(os.O_CLOEXEC)
        self._stream = client.attach(iter(self._typed.get, None), device)
        self._thread = threading.Thread(target=self._show, daemon=True)

    def run(self) -> None:
        """Until the user detaches, or the machine ends."""
        self._thread.start()
        poll = select.poll()
        poll.register(self._ended, select.POLLIN)
        while True:
            full = self._typed.full() and not self._escapes
            if self._reads and not full:
                poll.register(STDIN, select.POLLIN)
            ready = dict(poll.poll(_LOOK_MS if full else None))
            if self._ended in ready:
                return
            if STDIN in ready:
                poll.unregister(STDIN)
                if not self._take(ready[STDIN]):
                    return

    def _take(self, events: int) -> bool:
        """What was typed; whether it goes on."""
        data = os.read(STDIN, _PIECE)
        if not data and os.isatty(STDIN) and not events & (select.POLLHUP | select.POLLERR):
            return True  # see RawTerminal: no end, but nothing to read
        if not data:
            self._reads = False  # the end of a file: what the console writes is shown on
            return not os.isatty(STDIN)
        for piece in self._mux.feed(data) if self._escapes else [data]:
            if piece is Action.EXIT:
                return False
            if piece is Action.HELP:
                _write(key_help(ATTACHED_KEYS).encode())
            elif isinstance(piece, bytes):
                self._put(piece)
        return True

    def _put(self, data: bytes) -> None:
        """At a terminal, what the machine does not take is lost, with a bell: Ctrl-A d must be heard."""
        if not self._escapes:
            self._typed.put(data)
            return
        try:
            self._typed.put_nowait(data)
        except queue.Full:
            _write(b"\a")

    def _show(self) -> None:
        try:
            for output in self._stream:
                if output.dropped:
                    print(f"\n[vmesh: {output.dropped} bytes were not shown]", file=sys.stderr)
                _write(output.data)
        except GatewayError as error:
            self.failure = str(error)
        except OSError:  # nobody reads what is shown
            pass
        with suppress(OSError):
            os.write(self._end, b"x")


def attach(name: str, device: str, *, read_only: bool) -> int:
    """Until Ctrl-A d, or the machine ends. Returns the exit status."""
    try:
        with connect(name) as client:
            attached = _Attached(client, device, read_only=read_only)
            if os.isatty(STDIN):
                leave = "Ctrl-C" if read_only else "Ctrl-A d"
                print(f"attached to '{client.name}'; {leave} detaches", file=sys.stderr)
            with RawTerminal(STDIN, signals=read_only):
                attached.run()
    except (MachineError, GatewayError) as error:
        print(f"vmesh attach: {error}", file=sys.stderr)
        return 1
    if attached.failure:
        print(f"vmesh attach: {attached.failure}", file=sys.stderr)
        return 1
    if os.isatty(STDIN):
        print("\ndetached", file=sys.stderr)
    return 0


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(STDOUT, data) :]
