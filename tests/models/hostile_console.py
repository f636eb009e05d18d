"""Lives of a serial device that say anything to the keeper of its console (console.proto)."""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path

from google.protobuf.message import DecodeError

from tests.models.hostile_bus import Inventor
from vmesh.v1.console_pb2 import ConsolePacket

_LIVES = 5  # at once: the keeper has room for three more
_PIECES = (0, 1, 100, 32 << 10, (32 << 10) + 1)


class Lives:
    """Dial the keeper's socket at `path`, and users of the console that at `attached`. Call `step` often."""

    def __init__(self, path: Path, attached: Path, seed: int) -> None:
        self.inventor = Inventor(seed)
        self.sent: Counter[str] = Counter()
        self._path, self._attached = path, attached
        self._open: list[tuple[socket.socket, ConsolePacket]] = []  # and what the keeper has said last
        self._users: list[socket.socket] = []

    def step(self) -> None:
        rng = self.inventor.random
        with suppress(OSError):
            if not self._open or (len(self._open) < _LIVES and rng.random() < 0.1):
                life = _connect(self._path, socket.SOCK_SEQPACKET)
                self._open.append((life, ConsolePacket()))
                life.send(ConsolePacket(fresh=rng.random() < 0.8, version=rng.choice((2, 2, 1, 3))).SerializeToString())
                self.sent["hello"] += 1
            if len(self._users) < 2 and rng.random() < 0.01:
                self._users.append(_connect(self._attached, socket.SOCK_SEQPACKET))
        if self._users and rng.random() < 0.05:
            user = rng.choice(self._users)
            with suppress(OSError):
                user.send(rng.randbytes(rng.choice((1, 100, 5000))))
                self.sent["typed"] += 1
            if rng.random() < 0.1:
                user.close()
                self._users.remove(user)
        if self._open:
            self._say(rng.randrange(len(self._open)))

    def close(self) -> None:
        for each in (*self._users, *(life for life, _ in self._open)):
            each.close()
        self._open.clear()

    def _say(self, place: int) -> None:
        rng = self.inventor.random
        life, heard = self._open[place]
        try:
            with suppress(BlockingIOError, DecodeError):
                while rng.random() < 0.9:
                    if not (data := life.recv(1 << 16)):
                        raise ConnectionResetError
                    heard.CopyFrom(ConsolePacket.FromString(data))
                    self.inventor.listen(heard)
            with suppress(BlockingIOError):
                life.send(self._packet(heard))
            if rng.random() < 0.02:
                raise ConnectionResetError
        except OSError:  # it was too long, or the keeper will have no more of it
            life.close()
            del self._open[place]
            self.sent["ended"] += 1

    def _packet(self, heard: ConsolePacket) -> bytes:
        rng = self.inventor.random
        packet = ConsolePacket(position=heard.taken, taken=heard.position + len(heard.data), version=2)
        packet.data = rng.randbytes(min(rng.choice(_PIECES), max(0, heard.limit - heard.taken)))
        match rng.random():
            case chance if chance < 0.7:
                self.sent["packet"] += 1
            case chance if chance < 0.95:
                self.inventor.spoil(packet)
                self.sent["spoilt"] += 1
            case _:
                self.sent["no packet"] += 1
                return rng.randbytes(rng.choice(_PIECES[1:]))
        return packet.SerializeToString()


def answered(path: Path, seconds: float) -> bool:
    """Whether a life that says what it should is answered."""
    with _connect(path, socket.SOCK_SEQPACKET) as life:
        life.settimeout(seconds)
        life.send(ConsolePacket(fresh=True, version=2).SerializeToString())
        return bool(life.recv(1 << 16))


def _connect(path: Path, kind: socket.SocketKind) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, kind)
    try:
        made.connect(str(path))
    except OSError:
        made.close()
        raise
    made.setblocking(False)
    return made
