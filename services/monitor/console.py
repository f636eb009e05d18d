"""A console kept for a serial device that may be killed at any moment: the keeper's side of console.proto."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from vmesh import chardev
from vmesh.log import Log
from vmesh.loop import Loop
from vmesh.v1.console_pb2 import ConsolePacket
from vmesh_services.monitor.attach import Attachments

_PACKET_BYTES = 32 << 10
_RECEIVE_BYTES = 64 << 10
_LIVES = 8  # connections at once: of the device, and of those that are about to be its next life
_INPUT_BYTES = 4096  # that the device has not taken, before no more is read
_LEAVE_BYTES = 32 << 10  # of output: a device that may send less is told when there is room for as much
_VERSION = 2  # of console.proto


@dataclass(slots=True, eq=False)
class _Connection:
    """One life of the device."""

    socket: socket.socket
    hello: ConsolePacket | None = None
    answered: bool = False
    sent: int = 0  # position in the input up to which it was sent
    limit: int = 0  # position in the output up to which it may send


class KeptConsole:
    """Owns the character device of `specification`, and listens at `path` for the device: its lives, one by one; and at
    `attach` for whoever else wants to see and type.

    While two are there (one is about to take the other's place), the older one has the input. Raises ConfigError.
    """

    def __init__(self, path: Path, attach: Path, specification: str, loop: Loop, log: Log) -> None:
        self._loop = loop
        self._log = log
        self._chardev = chardev.make(specification, loop, log, self._room, self._typed)
        self._lives: list[_Connection] = []
        self._output = 0  # bytes taken from the device
        self._input = bytearray()  # that no life has taken for good
        self._position = 0  # of the first byte of it
        self._met = False  # a life of the device: a keeper that follows another one learns from it where they are
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        self._listener.listen(4)
        loop.watch(self._listener.fileno(), read=self._accept)
        self._attached = Attachments(attach, loop, self._room, self._typed)
        self._chardev.start()

    @property
    def place(self) -> str:
        """Where it is, as query-chardev has it, if `specification` does not say so itself; else empty."""
        return self._chardev.place

    def tell_amiss(self, told: Callable[[str], None]) -> None:
        """Have `told` hear what is amiss with the character device, see `Chardev.amiss`."""
        self._chardev.amiss = told

    def look(self) -> None:
        """At the end of each turn of the loop: the other end may have come, or taken something."""
        if not self._chardev.ready:
            return
        for life in list(self._lives):
            if life.hello is not None and not life.answered:
                self._answer(life)
            elif life.answered and life.limit - self._output < _LEAVE_BYTES <= self._chardev.room:
                self._send(life, ConsolePacket(position=life.sent))

    def finish(self) -> None:
        """Wait until the other end has taken all output, unless it takes nothing for a while."""
        self._chardev.finish()

    def close(self) -> None:
        """Nobody can come any more."""
        self._chardev.close()

    def _room(self) -> int:
        return _INPUT_BYTES - len(self._input)

    def _typed(self, data: bytes) -> None:
        self._input += data
        self._send_input()

    def _accept(self) -> None:
        connection = self._loop.accept(self._listener)
        if connection is None:
            return
        if len(self._lives) == _LIVES:
            connection.close()
            return
        life = _Connection(connection)
        self._lives.append(life)
        self._watch(life)

    def _watch(self, life: _Connection) -> None:
        self._loop.watch(life.socket.fileno(), read=lambda: self._read(life))

    def _read(self, life: _Connection) -> None:
        try:
            data = life.socket.recv(_RECEIVE_BYTES)
            packet = ConsolePacket.FromString(data)
        except BlockingIOError:
            return
        except (OSError, DecodeError):
            data = b""
        if not data or not self._take(life, packet):
            self._drop(life)

    def _take(self, life: _Connection, packet: ConsolePacket) -> bool:
        """Whether it is what this life may say."""
        if life.hello is None:
            life.hello = packet
            return True
        if not life.answered:
            return False
        old = self._output - packet.position
        beyond = packet.data and packet.position + len(packet.data) > life.limit
        if old < 0 or beyond or not self._taken(packet.taken):
            self._log.error("console out of step", position=packet.position, taken=packet.taken)
            return False
        if fresh := packet.data[old:]:
            self._output += len(fresh)
            self._chardev.write(fresh)
            self._attached.output(fresh)
        if packet.data:
            self._send(life, ConsolePacket(position=life.sent))
        return True

    def _answer(self, life: _Connection) -> None:
        hello = life.hello
        assert hello is not None
        if not self._met and not hello.fresh:
            self._output, self._position = hello.position, hello.taken
        self._met = True
        if not hello.fresh and (hello.position > self._output or not self._taken(hello.taken)):
            self._log.error("console out of step", position=hello.position, taken=hello.taken)
            self._drop(life)
            return
        life.answered = True
        life.sent = self._position
        self._send(life, ConsolePacket(position=life.sent))
        self._send_input()

    def _taken(self, position: int) -> bool:
        """Forget the input that a device has taken for good; whether that can be."""
        count = position - self._position
        if count > len(self._input):
            return False
        if count > 0:
            del self._input[:count]
            self._position = position
            self._chardev.input_changed()
            self._attached.input_changed()
        return True

    def _send_input(self) -> None:
        """To the life that has the input, what it has not been sent."""
        if not self._lives or not self._lives[0].answered:
            return
        life = self._lives[0]
        data = bytes(self._input[max(0, life.sent - self._position) :])
        if data and self._send(life, ConsolePacket(position=life.sent, data=data)):
            life.sent += len(data)

    def _send(self, life: _Connection, packet: ConsolePacket) -> bool:
        packet.version, packet.taken = _VERSION, self._output
        packet.limit = max(life.limit, self._output + self._chardev.room)
        try:
            life.socket.send(packet.SerializeToString())
        except OSError:  # it is gone, or reads nothing: what it missed is sent to its next life
            return False
        life.limit = packet.limit
        return True

    def _drop(self, life: _Connection) -> None:
        self._loop.watch(life.socket.fileno())
        life.socket.close()
        self._lives.remove(life)
        self._send_input()
