"""A gdb of the tests: says packets and gets the replies, without any idea of what they mean."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.waiting import LIMIT


def packet(content: bytes) -> bytes:
    """`content`, which needs no escapes, as a packet."""
    return b"$%s#%02x" % (content, sum(content) % 256)


class GdbClient:
    """Connected to the Unix socket at `path`; without acknowledgments after `quiet`."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(LIMIT)
        self.socket.connect(str(path))
        self._data = b""

    def quiet(self) -> GdbClient:
        assert self.ask(b"QStartNoAckMode") == b"OK"
        return self

    def say(self, content: bytes) -> None:
        self.socket.sendall(packet(content))

    def ask(self, content: bytes) -> bytes:
        self.say(content)
        return self.reply()

    def reply(self) -> bytes:
        """The next packet's content, as it came; b"" at the end too. Acknowledgments are dropped."""
        while True:
            before, found, after = self._data.partition(b"#")
            if found and len(after) >= 2:
                self._data = after[2:]
                return before.rpartition(b"$")[2]
            piece = self.socket.recv(65536)
            if not piece:
                return b""
            self._data += piece

    def raw(self, count: int) -> bytes:
        """Exactly so many bytes, as they come."""
        while len(self._data) < count:
            piece = self.socket.recv(65536)
            assert piece, "the server has ended the connection"
            self._data += piece
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def close(self) -> None:
        self.socket.close()
