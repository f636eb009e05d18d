"""Packets of gdb's remote serial protocol (gdb's manual, E.1): framing, checksums, escapes. No sockets here."""

from __future__ import annotations

import enum
from dataclasses import dataclass

#: Bytes between `$` and `#` at most, in both directions; what is longer is refused. Told to gdb as PacketSize.
LIMIT = 0x4000
_START, _END, _ESCAPE = b"$#}"
_ESCAPED = frozenset(b"$#}*")
_FLIP = 0x20
_CHECKSUM = 2  # digits


class Sign(enum.Enum):
    """What may come beside packets."""

    ACK = "+"
    NACK = "-"
    INTERRUPT = "\x03"
    DAMAGED = "damaged"  # a packet that is too long, or whose checksum is wrong


_SIGNS = {ord(sign.value): sign for sign in (Sign.ACK, Sign.NACK, Sign.INTERRUPT)}


@dataclass(slots=True)
class Framer:
    """Takes packets and signs out of a stream that may hold anything; keeps `LIMIT` bytes of an unfinished packet."""

    verify: bool = True  # checksums; off when acknowledgments are, since nobody would send again
    _inside: bool = False
    _too_long: bool = False

    def take(self, data: bytearray) -> bytes | Sign | None:
        """The next packet's content (escapes undone) or sign, which leaves `data`; None if there is none yet.

        What is between packets is dropped. A `$` inside of a packet begins it anew: the former one was cut off.
        """
        while data:
            if not self._inside:
                sign = _SIGNS.get(data[0])
                self._inside = data[0] == _START
                del data[0]
                if sign is not None:
                    return sign
                continue
            restart = data.rfind(b"$", 0, _place(data, b"#"))
            if restart >= 0:
                del data[: restart + 1]
                self._too_long = False
            end = data.find(b"#")
            if end < 0:
                if len(data) > LIMIT:
                    self._too_long = True
                    del data[:]
                return None
            if len(data) < end + 1 + _CHECKSUM:
                return None
            content, checksum = bytes(data[:end]), bytes(data[end + 1 : end + 1 + _CHECKSUM])
            del data[: end + 1 + _CHECKSUM]
            damaged = self._too_long or len(content) > LIMIT or (self.verify and not _matches(content, checksum))
            self._inside = self._too_long = False
            return Sign.DAMAGED if damaged else unescape(content)
        return None


def frame(content: bytes) -> bytes:
    """A packet that holds `content`, escapes made."""
    body = b"".join(bytes((_ESCAPE, byte ^ _FLIP)) if byte in _ESCAPED else bytes((byte,)) for byte in content)
    return b"$%s#%02x" % (body, sum(body) % 256)


def unescape(content: bytes) -> bytes:
    """The bytes that were sent; an escape at the end, which escapes nothing, is dropped."""
    if _ESCAPE not in content:
        return content
    first, *rest = content.split(b"}")
    return first + b"".join(bytes((piece[0] ^ _FLIP,)) + piece[1:] for piece in _escaped(rest))


def _escaped(pieces: list[bytes]) -> list[bytes]:
    """What follows each escape. An escape never stands for itself, so an empty piece is nonsense."""
    return [piece for piece in pieces if piece]


def _place(data: bytearray, what: bytes) -> int:
    found = data.find(what)
    return len(data) if found < 0 else found


def _matches(content: bytes, checksum: bytes) -> bool:
    try:
        return int(checksum, 16) == sum(content) % 256
    except ValueError:
        return False
