"""`stream`: frames over a Unix stream socket, to QEMU, to `vmesh hub`, to another machine or to any other program.

While nobody is at the other end the link is down and what the guest sends is lost, as on a wire that is not plugged in.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from vmesh import connecting, errors, listening
from vmesh.log import Log
from vmesh.loop import Loop
from vmesh.netdev import options
from vmesh.netdev.frames import FrameSocket
from vmesh.netdev.port import Frame, Port
from vmesh.time import Clock

_TIMER = "netdev"
_BACKLOG = 8


class SocketNetdev(ABC):
    """A netdev whose frames go over one connection at a time; who makes it has to say how one is come by."""

    offload = False

    def __init__(self, loop: Loop, log: Log, port: Port) -> None:
        self._loop = loop
        self._log = log
        self._port = port
        self._frames: FrameSocket | None = None
        self._refused = False  # the card has not taken all that came
        self._waiting = False  # the card wants to know when it can send
        self._clock: Clock | None = None  # whose time is to be in frames

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def _again(self) -> None:
        """It is time to try that."""

    @abstractmethod
    def _lost(self, reason: str) -> None:
        """The connection has ended; try to get another one."""

    def send(self, frames: Sequence[Frame]) -> int:
        if self._frames is None:
            return len(frames)
        try:
            sent = self._frames.send(frames)
        except OSError as error:
            self._end(error.strerror or str(error))
            return len(frames)
        self._waiting = sent < len(frames)
        if self._waiting or self._frames.full:
            self._watch()
        return sent

    def resume(self) -> None:
        if self._frames is not None and self._refused:
            self._deliver()

    def set_offload(self, features: int) -> None:
        raise AssertionError("a stream has no place for a header")

    def close(self) -> None:
        self._loop.cancel(_TIMER)
        if self._frames is not None:
            self._loop.watch(self._frames.fileno())
            self._frames.close()
            self._frames = None

    def _connected(self, connection: socket.socket) -> None:
        self._frames = FrameSocket(connection, self._clock)
        self._refused = self._waiting = False
        self._watch()
        self._port.link(True)

    def _later(self, seconds: float) -> None:
        self._loop.call_in(_TIMER, seconds, self._again)

    def _end(self, reason: str) -> None:
        self.close()
        self._port.link(False)
        self._lost(reason)

    def _readable(self) -> None:
        if self._frames is None:
            return
        try:
            self._frames.fill()
            self._deliver()
        except (errors.PeerError, OSError) as error:
            self._end(str(error))

    def _deliver(self) -> None:
        assert self._frames is not None
        try:
            frames = self._frames.frames()
        except errors.PeerError as error:
            self._end(str(error))
            return
        taken = self._port.receive(frames)
        self._frames.take(frames[:taken])
        self._refused = taken < len(frames)
        self._watch()

    def _writable(self) -> None:
        if self._frames is None:
            return
        try:
            ready = self._frames.flush()
        except OSError as error:
            self._end(error.strerror or str(error))
            return
        if ready:
            waiting, self._waiting = self._waiting, False
            self._watch()
            if waiting:
                self._port.writable()

    def _watch(self) -> None:
        assert self._frames is not None
        read = None if self._refused else self._readable
        write = self._writable if self._waiting or self._frames.full else None
        self._loop.watch(self._frames.fileno(), read=read, write=write)


class StreamNetdev(SocketNetdev):
    """Connects, again and again, or listens for one peer at a time."""

    def __init__(self, asked: options.Stream, loop: Loop, log: Log, port: Port) -> None:
        super().__init__(loop, log, port)
        self._asked = asked
        self._clock = loop.clock if asked.guest_time else None
        self._listener: socket.socket | None = None
        self._said = ""

    def start(self) -> None:
        if not self._asked.server:
            self._connect()
            return
        if self._listener is None:
            self._listener = listen(Path(self._asked.path))
        self._loop.watch(self._listener.fileno(), read=self._accept)

    def close(self) -> None:
        super().close()
        if self._listener is not None:
            self._loop.watch(self._listener.fileno())

    def _lost(self, reason: str) -> None:
        self._say(reason)
        if self._asked.server:
            self.start()
        else:
            self._later(self._asked.reconnect)

    def _again(self) -> None:
        self._connect()

    def _connect(self) -> None:
        try:
            connection = connecting.now(Path(self._asked.path))
        except OSError as error:
            self._lost(error.strerror or str(error))
            return
        self._say("connected")
        self._connected(connection)

    def _accept(self) -> None:
        assert self._listener is not None
        connection = self._loop.accept(self._listener)
        if connection is not None:
            self._loop.watch(self._listener.fileno())  # the next has to wait for the end of this one
            self._say("connected")
            self._connected(connection)

    def _say(self, state: str) -> None:
        """Into the log, once: it is tried again and again."""
        if state != self._said:
            self._said = state
            self._log.info("netdev", path=self._asked.path, state=state)


def listen(path: Path) -> socket.socket:
    """A listening socket that only its owner can connect to; one that nobody listens at is replaced.

    Raises ConfigError.
    """
    try:
        return listening.listen(path, _BACKLOG)
    except OSError as error:
        raise errors.ConfigError(f"cannot listen on {path}: {error.strerror or error}") from error
