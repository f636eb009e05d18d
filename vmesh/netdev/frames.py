"""Frames over a stream socket, as QEMU's `-netdev stream` sends them: four bytes of length, big endian, then the frame.

Between machines that have agreed on it (`guest-time=on`), eight bytes of guest time at which it was sent, in
nanoseconds and big endian, stand before the frame, and are counted in its length, which has the same limits. A frame
that is too long for that is not sent, one that is too short to have it not taken: through a hub it may come from
somebody else.

Neither direction waits for the other, and neither grows: what has come in and is not taken yet lies in one buffer of
fixed size, and what a full socket has not taken of the last frames sent is kept, after which none are taken until it
is out.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from vmesh import errors
from vmesh.netdev.port import MAX_FRAME, MIN_FRAME, Frame
from vmesh.time import Clock

_LENGTH = struct.Struct(">I")
_TIME = struct.Struct(">Q")
STAMP_BYTES = _TIME.size
_BUFFER_BYTES = 512 << 10
_SOCKET_BYTES = 1 << 20  # asked of the host, which may give less: net.core.wmem_max
_PIECES = 512  # buffers of one call: less than IOV_MAX, 1024 on Linux
_MAX_PIECES = 64  # of a frame; one of more is copied


class FrameSocket:
    """A connected stream socket, which becomes non-blocking. With a `clock` frames have guest time; `time_ns` is what
    the last one taken has said."""

    def __init__(self, connection: socket.socket, clock: Clock | None = None) -> None:
        connection.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)
        self.time_ns = 0
        self._clock = clock
        self._stamp = 0 if clock is None else STAMP_BYTES
        self._ends: list[int] = []  # where each of `frames` ends, in the buffer
        self._connection = connection
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = self._end = 0  # of what has come and is not taken
        self._kept = b""  # of what was sent

    def fileno(self) -> int:
        return self._connection.fileno()

    @property
    def full(self) -> bool:
        return bool(self._kept)

    def fill(self) -> None:
        """Read what is there, as far as there is room. Raises PeerError at the end, OSError if the peer is gone."""
        buffer = self._buffer
        if self._start == self._end:
            self._start = self._end = 0
        elif len(buffer) - self._end < _LENGTH.size + MAX_FRAME:
            rest = bytes(buffer[self._start : self._end])
            buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        if self._end == len(buffer):
            return
        try:
            count = self._connection.recv_into(buffer[self._end :])
        except BlockingIOError:
            return
        if not count:
            raise errors.PeerError("the peer has closed the connection")
        self._end += count

    def frames(self) -> list[memoryview]:
        """Those that have come whole and are not taken, valid until the next `fill`.

        Raises PeerError for a length that none has.
        """
        found = []
        self._ends.clear()
        at = self._start
        while self._end - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, at)
            if not MIN_FRAME <= length <= MAX_FRAME:
                raise errors.PeerError("frame length", expected=f"{MIN_FRAME} to {MAX_FRAME}", got=str(length))
            at += _LENGTH.size
            if self._end - at < length:
                break
            if length >= self._stamp + MIN_FRAME:
                found.append(self._buffer[at + self._stamp : at + length])
                self._ends.append(at + length)
            elif not found:
                self._start = at + length
            at += length
        return found

    def take(self, frames: Sequence[memoryview]) -> None:
        """The first of `frames()` are done with."""
        if not frames:
            return
        self._start = self._ends[len(frames) - 1]
        del self._ends[: len(frames)]
        if self._stamp:
            (self.time_ns,) = _TIME.unpack_from(self._buffer, self._start - len(frames[-1]) - self._stamp)

    def send(self, frames: Sequence[Frame]) -> int:
        """Send the first of `frames`; gives how many. If not all, the socket is full: see `flush`. Raises OSError."""
        if self._kept:
            return 0
        sent = 0
        stamp = b"" if self._clock is None else _TIME.pack(self._clock.now_ns())
        while sent < len(frames):
            ends: list[int] = []
            pieces: list[memoryview | bytes] = []
            total = 0
            for frame in frames[sent:]:
                parts: Frame = frame if len(frame) <= _MAX_PIECES else [memoryview(b"".join(frame))]
                if ends and len(pieces) + 1 + len(parts) > _PIECES:
                    break
                length = len(stamp) + sum(len(part) for part in parts)
                if length > MAX_FRAME:
                    ends.append(total)  # as if it were on its way
                    continue
                pieces += (_LENGTH.pack(length) + stamp, *parts)
                total += _LENGTH.size + length
                ends.append(total)
            try:
                count = self._connection.sendmsg(pieces)
            except BlockingIOError:
                return sent
            whole = sum(end <= count for end in ends)
            sent += whole
            if count < total:
                begun = ends[whole - 1] if whole else 0
                if count > begun:
                    # The rest of a frame that has begun has to follow.
                    self._kept = b"".join(pieces)[count : ends[whole]]
                    sent += 1
                return sent
        return sent

    def flush(self) -> bool:
        """Send what was kept; gives whether frames can be sent again. Raises OSError."""
        while self._kept:
            try:
                count = self._connection.send(self._kept)
            except BlockingIOError:
                return False
            self._kept = self._kept[count:]
        return True

    def close(self) -> None:
        self._connection.close()
