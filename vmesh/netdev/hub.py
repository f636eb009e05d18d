"""A hub: what one machine sends, all others get, over Unix stream sockets (`-netdev stream,addr.path=...`).

Nobody waits for anybody. For a machine that does not read, QUEUE_BYTES are kept, and then frames are dropped, whole.
While there are MAX_MACHINES, nobody listens: the link of another stays down, until one leaves and it tries again.
"""

from __future__ import annotations

import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmesh import errors, listening
from vmesh.loop import Callback, Loop
from vmesh.netdev.frames import FrameSocket
from vmesh.netdev.stream import listen

MAX_MACHINES = 64
QUEUE_BYTES = 1 << 20
_FRAME_BYTES = 64  # beside its content, in the queue


@dataclass(slots=True, eq=False)
class _Machine:
    frames: FrameSocket
    queue: deque[bytes] = field(default_factory=deque)
    queued: int = 0  # bytes in it, and what Python needs for each frame
    read: Callback = lambda: None
    write: Callback = lambda: None


class Hub:
    """Listens at `path`. Raises ConfigError if that cannot be. `say` is told when it is full, and no longer full."""

    def __init__(self, loop: Loop, path: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self.forwarded = self.dropped = 0  # frames, counted for each receiver
        self._loop = loop
        self._path = path
        self._machines: list[_Machine] = []
        self._say = say
        self._closed = False
        self._listener: socket.socket | None = None
        self._listen()

    @property
    def machines(self) -> int:
        return len(self._machines)

    def close(self) -> None:
        self._closed = True
        self._listen_no_more()
        for machine in list(self._machines):
            self._remove(machine)
        listening.remove(self._path, self._made)

    def _listen(self) -> None:
        """Raises ConfigError."""
        self._listener = listen(self._path)
        self._made = listening.identity(self._path)
        self._loop.watch(self._listener.fileno(), read=self._accept)

    def _listen_no_more(self) -> None:
        if self._listener is not None:
            self._loop.watch(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        assert self._listener is not None
        connection = self._loop.accept(self._listener)
        if connection is not None:
            self._add(connection)

    def _add(self, connection: socket.socket) -> None:
        machine = _Machine(FrameSocket(connection))
        machine.read = lambda: self._readable(machine)
        machine.write = lambda: self._writable(machine)
        self._machines.append(machine)
        self._watch(machine)
        if len(self._machines) >= MAX_MACHINES:
            self._listen_no_more()
            self._say(f"full: {MAX_MACHINES} machines are linked, no other is until one leaves")

    def _remove(self, machine: _Machine) -> None:
        if machine not in self._machines:
            return
        self._machines.remove(machine)
        self._loop.watch(machine.frames.fileno())
        machine.frames.close()
        if self._listener is None and not self._closed:
            self._again()

    def _again(self) -> None:
        """Listen again. If somebody else does by now, there is no way to: say so, and link those that are there."""
        try:
            self._listen()
            self._say("there is a place again")
        except errors.ConfigError as error:
            self._say(str(error))

    def _readable(self, machine: _Machine) -> None:
        try:
            machine.frames.fill()
            frames = machine.frames.frames()
        except (errors.PeerError, OSError):
            self._remove(machine)
            return
        for other in [each for each in self._machines if each is not machine]:
            self._forward(other, frames)
        machine.frames.take(frames)

    def _forward(self, machine: _Machine, frames: Sequence[memoryview]) -> None:
        sent = 0
        if not machine.queue:
            try:
                sent = machine.frames.send([(frame,) for frame in frames])
            except OSError:
                self._remove(machine)
                return
        self.forwarded += sent
        for frame in frames[sent:]:
            if machine.queued + _FRAME_BYTES + len(frame) > QUEUE_BYTES:
                self.dropped += 1
            else:
                machine.queue.append(bytes(frame))
                machine.queued += _FRAME_BYTES + len(frame)
        self._watch(machine)

    def _writable(self, machine: _Machine) -> None:
        try:
            if machine.frames.flush():
                sent = machine.frames.send([(memoryview(frame),) for frame in machine.queue])
                self.forwarded += sent
                for _ in range(sent):
                    machine.queued -= _FRAME_BYTES + len(machine.queue.popleft())
        except OSError:
            self._remove(machine)
            return
        self._watch(machine)

    def _watch(self, machine: _Machine) -> None:
        write = machine.write if machine.queue or machine.frames.full else None
        self._loop.watch(machine.frames.fileno(), read=machine.read, write=write)


def run(path: Path) -> int:
    """Be a hub until SIGINT or SIGTERM; gives the exit status."""
    loop = Loop()
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)
    loop.watch(reader.fileno(), read=loop.stop)
    try:
        hub = Hub(loop, path, lambda text: print(f"vmesh hub: {text}", flush=True))
    except errors.ConfigError as error:
        print(f"vmesh hub: {error}", file=sys.stderr)
        return 1
    print(f"vmesh hub: -netdev stream,id=NAME,addr.type=unix,addr.path={path} joins", flush=True)
    loop.run()
    hub.close()
    print(f"vmesh hub: {hub.forwarded} frames forwarded, {hub.dropped} dropped")
    return 0
