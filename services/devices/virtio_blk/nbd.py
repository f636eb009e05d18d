"""A disk that a server has: the client's side of NBD, fixed newstyle, simple replies.

Source: the NBD protocol, doc/proto.md of the nbd project. One request is under way at a time. When the connection is
lost, requests fail until the server is there again: each tries anew.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from services.devices.virtio_blk.image import SECTOR, Buffers, behind, first
from vmesh import errors

PORT = 10809
MAX_TRANSFER = 16 << 20  # servers take 32 MiB

_TIMEOUT = 5.0  # seconds for an answer; the device does nothing else meanwhile
_INIT = struct.Struct(">8s8sH")  # NBDMAGIC, IHAVEOPT, handshake flags
_OPTION = struct.Struct(">8sII")  # IHAVEOPT, option, length
_OPTION_REPLY = struct.Struct(">QIII")  # magic, option, type, length
_EXPORT = struct.Struct(">HQH")  # NBD_INFO_EXPORT, size, transmission flags
_REQUEST = struct.Struct(">IHHQQI")  # magic, command flags, type, cookie, offset, length
_REPLY = struct.Struct(">IIQ")  # magic, error, cookie
_OPTION_MAGIC, _OPTION_REPLY_MAGIC = b"IHAVEOPT", 0x3E889045565A9
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_GO, _REP_ACK, _REP_INFO = 7, 1, 3
_READ, _WRITE, _FLUSH, _TRIM, _WRITE_ZEROES = 0, 1, 3, 4, 6
_F_READ_ONLY, _F_SEND_FLUSH, _F_SEND_TRIM, _F_SEND_WRITE_ZEROES = 2, 4, 32, 64
_CMD_NO_HOLE = 2
_MOST_REPLY = 64 << 10  # bytes of an option's reply that we look at
_MOST_PARTS = 512  # buffers of one sendmsg or recvmsg
_ZEROES = memoryview(bytes(1 << 20))


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens, a path or a host and port, and the name of the export."""

    path: str
    host: str
    port: int
    export: str

    def __str__(self) -> str:
        return f"nbd server {self.path or f'{self.host}:{self.port}'}"


def parse(text: str) -> Address | None:
    """The server that QEMU's file= names; None for a file. Raises ConfigError.

    `nbd:unix:PATH[:exportname=NAME]`, `nbd:HOST:PORT[:exportname=NAME]`, `nbd://HOST[:PORT]/NAME`,
    `nbd+unix:///NAME?socket=PATH`.
    """
    if text.startswith(("nbd://", "nbd+unix://")):
        url = urlsplit(text)
        export = unquote(url.path.removeprefix("/"))
        if url.scheme == "nbd+unix":
            path = parse_qs(url.query).get("socket", [""])[0]
            if not path:
                raise errors.ConfigError(f"{text}: expected ?socket=PATH")
            return Address(path, "", 0, export)
        try:
            return Address("", url.hostname or "localhost", url.port or PORT, export)
        except ValueError as error:
            raise errors.ConfigError(f"{text}: {error}") from error
    if not text.startswith("nbd:"):
        return None
    rest, _, export = text.removeprefix("nbd:").partition(":exportname=")
    kind, _, place = rest.rpartition(":") if not rest.startswith("unix:") else rest.partition(":")
    if kind == "unix" and place:
        return Address(place, "", 0, export)
    if kind and place.isdecimal() and int(place) < 65536:
        return Address("", kind, int(place), export)
    raise errors.ConfigError(f"{text}: expected nbd:unix:PATH, nbd:HOST:PORT or nbd://HOST:PORT/NAME")


class NbdImage:
    """The export at `address`; waits `patience` seconds for the server. Raises ConfigError."""

    def __init__(self, address: Address, *, read_only: bool, patience: float = 0.0) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        self._cookie = 0
        deadline = time.monotonic() + patience
        while True:
            try:
                size, self._flags = self._connect()
                break
            except errors.PeerError as error:
                raise errors.ConfigError(str(error)) from error
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise errors.ConfigError(f"{address}: {error}") from error
                time.sleep(0.02)
        if self._flags & _F_READ_ONLY and not read_only:
            raise errors.ConfigError(f"{address} lets nobody write: readonly=on is needed")
        self.size = size // SECTOR * SECTOR

    def read(self, offset: int, buffers: Buffers) -> None:
        for start, part in _transfers(offset, buffers):
            self._ask(_READ, start, sum(map(len, part)), answer=part)

    def write(self, offset: int, buffers: Buffers) -> None:
        for start, part in _transfers(offset, buffers):
            self._ask(_WRITE, start, sum(map(len, part)), data=part)

    def flush(self) -> None:
        if self._flags & _F_SEND_FLUSH:
            self._ask(_FLUSH, 0, 0)

    def discard(self, offset: int, length: int) -> None:
        if self._flags & _F_SEND_TRIM:
            self._ask(_TRIM, offset, length)

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        if self._flags & _F_SEND_WRITE_ZEROES:
            self._ask(_WRITE_ZEROES, offset, length, flags=0 if unmap else _CMD_NO_HOLE)
            return
        for start in range(offset, offset + length, len(_ZEROES)):
            self.write(start, [_ZEROES[: offset + length - start]])

    def take(self) -> None:
        """Nothing: others may use it too."""

    def release(self) -> None:
        """Nothing."""

    def close(self) -> None:
        self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> tuple[int, int]:
        """Size and transmission flags. Raises OSError, PeerError for a server that does not have what is wanted."""
        address = self._address
        if address.path:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            connection = socket.create_connection((address.host, address.port), _TIMEOUT)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(_TIMEOUT)
        try:
            if address.path:
                connection.connect(address.path)
            self._socket = connection
            return self._negotiate(connection)
        except BaseException:
            self._socket = None
            connection.close()
            raise

    def _negotiate(self, connection: socket.socket) -> tuple[int, int]:
        magic, option, handshake = _INIT.unpack(self._receive(_INIT.size))
        if (magic, option) != (b"NBDMAGIC", _OPTION_MAGIC) or not handshake & _FIXED_NEWSTYLE:
            raise errors.PeerError(f"{self._address}: expected an NBD server of the fixed newstyle")
        connection.sendall(struct.pack(">I", handshake & (_FIXED_NEWSTYLE | _NO_ZEROES)))
        name = self._address.export.encode()
        wanted = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        connection.sendall(_OPTION.pack(_OPTION_MAGIC, _OPT_GO, len(wanted)) + wanted)
        found: tuple[int, int] | None = None
        while True:
            magic, option, kind, length = _OPTION_REPLY.unpack(self._receive(_OPTION_REPLY.size))
            if magic != _OPTION_REPLY_MAGIC or option != _OPT_GO or length > _MOST_REPLY:
                raise errors.PeerError(f"{self._address}: an answer that is no NBD")
            data = self._receive(length)
            if kind == _REP_INFO and length == _EXPORT.size and data[:2] == b"\0\0":
                _, size, flags = _EXPORT.unpack(data)
                found = (size, flags)
            elif kind == _REP_ACK and found is not None:
                return found
            elif kind != _REP_INFO:
                text = bytes(data[:200]).decode(errors="replace")
                raise errors.PeerError(
                    f"{self._address} refuses the export '{self._address.export}': {text or hex(kind)}"
                )

    def _ask(
        self,
        kind: int,
        offset: int,
        length: int,
        *,
        flags: int = 0,
        data: Sequence[memoryview] = (),
        answer: Sequence[memoryview] = (),
    ) -> None:
        """Raises OSError: what the server says, or that it is not there."""
        if self._socket is None:
            try:
                size, self._flags = self._connect()
            except errors.PeerError as error:
                raise OSError(errno.EIO, str(error)) from error
            if size < self.size:
                self._drop()
                raise OSError(errno.EIO, f"{self._address} is another disk now")
        try:
            self._cookie += 1
            self._send([memoryview(_REQUEST.pack(_REQUEST_MAGIC, flags, kind, self._cookie, offset, length)), *data])
            magic, code, cookie = _REPLY.unpack(self._receive(_REPLY.size))
            if magic != _REPLY_MAGIC or cookie != self._cookie:
                raise OSError(errno.EIO, f"{self._address}: an answer that is no NBD")
            if not code:
                self._receive_into([*answer])
        except OSError:
            self._drop()
            raise
        if code:
            raise OSError(code, os.strerror(code))

    def _send(self, buffers: Buffers) -> None:
        assert self._socket is not None
        while buffers:
            buffers = behind(buffers, self._socket.sendmsg(buffers[:_MOST_PARTS]))

    def _receive(self, size: int) -> bytearray:
        data = bytearray(size)
        self._receive_into([memoryview(data)] if size else [])
        return data

    def _receive_into(self, buffers: Buffers) -> None:
        assert self._socket is not None
        while buffers:
            count = self._socket.recvmsg_into(buffers[:_MOST_PARTS])[0]
            if not count:
                raise OSError(errno.EIO, f"{self._address} has closed the connection")
            buffers = behind(buffers, count)


def _transfers(offset: int, buffers: Buffers) -> Iterator[tuple[int, Buffers]]:
    """`buffers` in parts of at most MAX_TRANSFER bytes, with the offset of each."""
    length = sum(map(len, buffers))
    for start in range(0, length, MAX_TRANSFER):
        size = min(MAX_TRANSFER, length - start)
        yield offset + start, first(buffers, size)
        buffers = behind(buffers, size)
