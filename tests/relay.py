"""A link between two hosts, for tests and benchmarks: what goes through it is delayed, held up or cut off."""

from __future__ import annotations

import math
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

_PIECE = 256 << 10  # bytes read at a time
_ON_THE_WAY = 8 << 20  # bytes of one direction, beyond which its sender is not read
_AT_ONCE = b"\1\0\0\0\0\0\0\0"  # struct linger: close with a reset


@dataclass(slots=True, eq=False)
class _End:
    """One side of a connection. `coming` is on its way to it, with the time when it arrives (empty: the end); `queue`
    has arrived and waits for `socket` to take it; both together have `way` bytes."""

    socket: socket.socket
    coming: deque[tuple[float, bytes]] = field(default_factory=deque)
    queue: bytearray = field(default_factory=bytearray)
    way: int = 0
    ended: bool = False  # nothing comes from it any more
    other: _End = field(init=False)


@dataclass(slots=True)
class Passage:
    """One address that is passed on to another one."""

    address: tuple[str, int]
    target: tuple[str, int]
    listener: socket.socket
    held: bool = False
    ends: set[_End] = field(default_factory=set)
    kept: bytearray = field(default_factory=bytearray)  # what went through, if that is recorded


class Relay:
    """A thread that passes TCP connections on, each piece `delay` seconds after it came, in order.

    While a passage is held nothing goes through, in neither direction, nor does a new connection get further than to
    this end; what was under way goes on when it is let go. That is what hosts see of a link that is down for a while:
    TCP repeats what was lost.
    """

    def __init__(self, delay: float = 0.0, *, record: bool = False) -> None:
        self.delay = delay
        self.connections = self.bytes = 0
        self._record = record
        self._passages: list[Passage] = []
        self._calls: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._running = True
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def passage(self, target: tuple[str, int], host: str = "127.0.0.1") -> Passage:
        """Listen at a free port of `host` for what is to reach `target`."""
        listener = socket.create_server((host, 0))
        listener.setblocking(False)
        made = Passage(listener.getsockname()[:2], target, listener)
        self._call(lambda: self._passages.append(made))
        return made

    def hold(self, *passages: Passage) -> None:
        """Nothing goes through from now on."""
        self._call(lambda: self._set_held(passages, True))

    def release(self, *passages: Passage) -> None:
        self._call(lambda: self._set_held(passages, False))

    def reset(self, *passages: Passage) -> None:
        """Both ends of each connection get a reset; what was under way is lost."""
        self._call(lambda: self._reset(passages))

    def recorded(self) -> list[bytes]:
        """What has come by each passage, both directions in one."""
        return [bytes(passage.kept) for passage in self._passages]

    def close(self) -> None:
        self._call(self._stop)
        self._thread.join()

    def _call(self, work: Callable[[], None]) -> None:
        """Have `work` done in the thread; returns when it is done."""
        done = threading.Event()

        def call() -> None:
            work()
            done.set()

        with self._lock:
            self._calls.append(call)
        os.eventfd_write(self._wake, 1)
        if not done.wait(30):
            raise AssertionError("the relay does not answer")

    def _set_held(self, passages: tuple[Passage, ...], held: bool) -> None:
        for passage in passages:
            passage.held = held

    def _reset(self, passages: tuple[Passage, ...]) -> None:
        for passage in passages:
            for end in list(passage.ends):
                self._drop(passage, end, reset=True)

    def _stop(self) -> None:
        self._running = False
        for passage in self._passages:
            passage.listener.close()
            for end in list(passage.ends):
                self._drop(passage, end, reset=True)

    def _run(self) -> None:
        while self._running:
            reading: list[int | socket.socket] = [self._wake]
            writing = []
            next_arrival = math.inf
            for passage in self._passages:
                if passage.held:
                    continue
                reading.append(passage.listener)
                for end in passage.ends:
                    if not end.ended and end.other.way < _ON_THE_WAY:
                        reading.append(end.socket)
                    if end.queue:
                        writing.append(end.socket)
                    if end.coming:
                        next_arrival = min(next_arrival, end.coming[0][0])
            timeout = max(0.0, next_arrival - time.monotonic()) if next_arrival < math.inf else None
            readable, writable, _ = select.select(reading, writing, [], timeout)
            if self._wake in readable:
                os.eventfd_read(self._wake)
                with self._lock:
                    calls, self._calls = self._calls, []
                for call in calls:
                    call()
                continue  # what was readable may be closed
            for passage in self._passages:
                if passage.listener in readable:
                    self._accept(passage)
                for end in list(passage.ends):
                    if end.socket in readable:
                        self._read(passage, end)
                    if end.socket in writable:
                        self._write(passage, end)
                if not passage.held:
                    self._deliver(passage)

    def _accept(self, passage: Passage) -> None:
        try:
            near, _ = passage.listener.accept()
        except OSError:
            return
        far = socket.socket(socket.AF_INET)
        try:
            far.settimeout(5)
            far.connect(passage.target)
        except OSError:
            near.close()
            far.close()
            return
        ends = _End(near), _End(far)
        ends[0].other, ends[1].other = ends[1], ends[0]
        for end in ends:
            end.socket.setblocking(False)
            end.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            passage.ends.add(end)
        self.connections += 1

    def _read(self, passage: Passage, end: _End) -> None:
        if end not in passage.ends:
            return
        try:
            data = end.socket.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            self._drop(passage, end, reset=True)
            return
        end.ended = not data
        if self._record:
            passage.kept += data
        self.bytes += len(data)
        end.other.way += len(data)
        end.other.coming.append((time.monotonic() + self.delay, data))

    def _deliver(self, passage: Passage) -> None:
        """What has been under way for long enough has arrived."""
        now = time.monotonic()
        for end in list(passage.ends):
            while end in passage.ends and end.coming and end.coming[0][0] <= now:
                _, data = end.coming.popleft()
                if not data:
                    self._drop(passage, end)
                    break
                end.queue += data
                self._write(passage, end)

    def _write(self, passage: Passage, end: _End) -> None:
        if end not in passage.ends:
            return
        try:
            sent = end.socket.send(end.queue)
        except BlockingIOError:
            return
        except OSError:
            self._drop(passage, end, reset=True)
            return
        end.way -= sent
        del end.queue[:sent]

    def _drop(self, passage: Passage, end: _End, *, reset: bool = False) -> None:
        for each in {end, end.other} & passage.ends:
            passage.ends.discard(each)
            with suppress(OSError):
                if reset:
                    each.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                elif each.queue:
                    each.socket.settimeout(1)
                    each.socket.sendall(each.queue)
            each.socket.close()
