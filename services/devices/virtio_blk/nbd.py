"""A disk that a server has: the client's side of NBD, fixed newstyle, simple replies.

Source: the NBD protocol, doc/proto.md of the nbd project. libnbd would serve, but its Python binding is on no package
index, and Debian's is for Debian's own interpreter; and it has no way to leave a wait and to come back to it.

One request is under way at a time, and never given up: a server may take as long as it likes, as with QEMU. A request
that is not answered soon raises Later, and goes on when it is made again, so that the device answers others meanwhile,
can be paused, saved and ended. When the connection is lost, requests fail until the server is there again: each tries
anew.

**No write of a former connection comes after one of a later.** We never close a connection that owes an answer, however
long that takes: a request that nobody wants any more (the driver has reset the device) is waited for, before the next
one is sent. So a new connection follows one that the server has closed, or one that is broken, and what the guest wrote
by that has failed. A device that is killed has a guard for its connection (guard.py). What is left is the server: one
that closes a connection and then writes what came by it.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from vmesh import connecting, errors
from vmesh_services.devices.virtio_blk import guard
from vmesh_services.devices.virtio_blk.image import SECTOR, Buffers, Later, behind, first, wait

PORT = 10809
MAX_TRANSFER = 16 << 20  # servers take 32 MiB

CONNECT_SECONDS = 10.0  # for a server at the start of the machine
_PATIENCE = 0.02  # seconds for an answer, in which the device does nothing else
_RETRY_SECONDS = 0.1  # a server whose queue of connections is full
_INIT = struct.Struct(">8s8sH")  # NBDMAGIC, IHAVEOPT, handshake flags
_OPTION = struct.Struct(">8sII")  # IHAVEOPT, option, length
_OPTION_REPLY = struct.Struct(">QIII")  # magic, option, type, length
_EXPORT = struct.Struct(">HQH")  # NBD_INFO_EXPORT, size, transmission flags
_BLOCK_SIZE = struct.Struct(">HIII")  # NBD_INFO_BLOCK_SIZE, minimum, preferred, maximum
_REQUEST = struct.Struct(">IHHQQI")  # magic, command flags, type, cookie, offset, length
_REPLY = struct.Struct(">IIQ")  # magic, error, cookie
_OPTION_MAGIC, _OPTION_REPLY_MAGIC = b"IHAVEOPT", 0x3E889045565A9
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_GO, _REP_ACK, _REP_INFO = 7, 1, 3
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_READ, _WRITE, _FLUSH, _TRIM, _WRITE_ZEROES = 0, 1, 3, 4, 6
_F_READ_ONLY, _F_SEND_FLUSH, _F_SEND_TRIM, _F_SEND_WRITE_ZEROES = 2, 4, 32, 64
_CMD_NO_HOLE = 2
_MOST_REPLY = 64 << 10  # bytes of an option's reply that we look at
_MOST_INFORMATION = 64  # replies to one option
_MOST_BLOCK = 64 << 10  # the largest minimum: proto.md, "Block size constraints"
_MOST_PARTS = 512  # buffers of one sendmsg or recvmsg
_ZEROES = memoryview(bytes(1 << 20))

Steps = Generator[Later, None, None]
"""What is to be done with the server: yields, where it would wait, what for."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens, a path or a host and port, and the name of the export."""

    path: str
    host: str
    port: int
    export: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nbd server {self.path or f'{host}:{self.port}'}"


@dataclass(frozen=True, slots=True)
class Export:
    """What the server says of its disk: bytes, transmission flags, and what its requests have to be multiples of."""

    size: int
    flags: int
    block: int = 1
    most: int = MAX_TRANSFER


def parse(text: str) -> Address | None:
    """The server that QEMU's file= names; None for a file. Raises ConfigError.

    `nbd:unix:PATH[:exportname=NAME]`, `nbd:HOST:PORT[:exportname=NAME]`, `nbd://HOST[:PORT]/NAME`,
    `nbd+unix:///NAME?socket=PATH`; an IPv6 address is in brackets.
    """
    if text.startswith(("nbd://", "nbd+tcp://", "nbd+unix://")):
        try:
            url = urlsplit(text)
            export = unquote(url.path.removeprefix("/"))
            if url.scheme != "nbd+unix":
                return Address("", url.hostname or "localhost", url.port or PORT, export)
        except ValueError as error:
            raise errors.ConfigError(f"{text}: {error}") from error
        path = parse_qs(url.query).get("socket", [""])[0]
        if not path:
            raise errors.ConfigError(f"{text}: expected ?socket=PATH")
        return Address(path, "", 0, export)
    if not text.startswith("nbd:"):
        return None
    rest, _, export = text.removeprefix("nbd:").partition(":exportname=")
    if rest.startswith("unix:") and rest != "unix:":
        return Address(rest.removeprefix("unix:"), "", 0, export)
    host, _, port = rest.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""  # which of the colons is the port's?
    if host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536:
        return Address("", host, int(port), export)
    raise errors.ConfigError(f"{text}: expected nbd:unix:PATH, nbd:HOST:PORT or nbd://HOST:PORT/NAME")


@dataclass(slots=True, eq=False)
class _Request:
    """One that was begun. `asked`: type, flags, offset, length. `data` is still to be sent, `answer` to be received,
    what has been received is in `filled`."""

    asked: tuple[int, int, int, int]
    data: Buffers
    answer: Buffers
    filled: Buffers
    steps: Steps | None = None
    unwanted: bool = False
    error: int = 0  # what the server has answered

    def keep(self) -> None:
        """What lies in guest memory may change before it is sent."""
        self.data = [memoryview(b"".join(self.data))] if self.data else []

    def give_up(self) -> None:
        """Its answer goes nowhere."""
        self.unwanted = True
        missing = sum(map(len, self.answer))
        self.answer = [memoryview(bytearray(missing))] if missing else []


class NbdImage:
    """The export at `address`; waits `patience` seconds for one that does not listen yet. Raises ConfigError.

    `block` is what offsets and lengths have to be multiples of, but for a disk that ends inside of one. `kept` is a
    file for what the server says of the disk: the next life of the device need not wait for it to begin, but connects
    when the server has done what it owes to this one.
    """

    def __init__(self, address: Address, *, read_only: bool, patience: float = 0.0, kept: Path | None = None) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        self._cookie = 0
        self._request: _Request | None = None
        self._done: list[tuple[tuple[int, int, int, int], Buffers]] = []  # of what has to be made again, if it is Later
        self._place = 0  # in that
        self._kept = kept
        self._guard = -1
        self._export = _read(kept) if kept is not None else None
        if self._export is None:
            self._export = self._meet(patience)
            if kept is not None:
                _write(kept, self._export)
        if self._export.flags & _F_READ_ONLY and not read_only:
            raise errors.ConfigError(f"{address} lets nobody write: readonly=on is needed")
        self.block = self._export.block
        # Behind its last whole block there is nothing to be had. What is no multiple of a sector ends inside of one:
        # the rest of that is read as zeroes, as with QEMU, and as of a file.
        self._end = self._export.size // self.block * self.block
        self.size = -(-self._end // SECTOR) * SECTOR
        self.odd = self._export.size % max(SECTOR, self.block)  # bytes of a disk that ends inside of a block
        self._most = max(self.block, min(MAX_TRANSFER, self._export.most) // self.block * self.block)

    def begin(self, *, again: bool) -> None:
        self._place = 0
        if not again:
            self._done.clear()
            if self._request is not None:
                self._request.give_up()

    def read(self, offset: int, buffers: Buffers) -> None:
        inside, outside = self._cut(offset, buffers)
        for start, part in self._transfers(offset, inside):
            self._ask(_READ, start, sum(map(len, part)), answer=part)
        for buffer in outside:
            buffer[:] = bytes(len(buffer))

    def write(self, offset: int, buffers: Buffers) -> None:
        inside, outside = self._cut(offset, buffers)
        if any(map(any, outside)):
            raise OSError(errno.ENOSPC, f"{self._address}: the disk ends inside of this sector")
        for start, part in self._transfers(offset, inside):
            self._ask(_WRITE, start, sum(map(len, part)), data=part)

    def flush(self) -> None:
        if self._flags & _F_SEND_FLUSH:
            self._ask(_FLUSH, 0, 0)

    def discard(self, offset: int, length: int) -> None:
        start, end = -(-offset // self.block) * self.block, min(offset + length, self._end) // self.block * self.block
        if self._flags & _F_SEND_TRIM and start < end:
            self._ask(_TRIM, start, end - start)

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        length = min(offset + length, self._end) - offset
        if self._flags & _F_SEND_WRITE_ZEROES and length > 0:
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

    @property
    def _flags(self) -> int:
        assert self._export is not None
        return self._export.flags

    def _cut(self, offset: int, buffers: Buffers) -> tuple[Buffers, Buffers]:
        """What lies on the server's disk, and what behind its end."""
        inside = self._end - offset
        if inside >= sum(map(len, buffers)):
            return buffers, []
        return first(buffers, inside), behind(buffers, max(0, inside))

    def _transfers(self, offset: int, buffers: Buffers) -> Iterator[tuple[int, Buffers]]:
        """`buffers` in parts that the server takes, with the offset of each."""
        length = sum(map(len, buffers))
        for start in range(0, length, self._most):
            size = min(self._most, length - start)
            yield offset + start, first(buffers, size)
            buffers = behind(buffers, size)

    def _meet(self, patience: float) -> Export:
        """The first connection. Raises ConfigError."""
        began = time.monotonic()
        while True:
            steps = self._connect()
            try:
                while (later := next(steps, None)) is not None:
                    if not wait(later, began + CONNECT_SECONDS - time.monotonic()):
                        raise errors.ConfigError(f"{self._address} has not answered for {CONNECT_SECONDS:g} s")
                assert self._export is not None
                return self._export
            except errors.PeerError as error:
                raise errors.ConfigError(str(error)) from error
            except OSError as error:
                if time.monotonic() >= began + patience:
                    raise errors.ConfigError(f"{self._address}: {error.strerror or error}") from error
                time.sleep(0.02)

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._guard >= 0:
            os.close(self._guard)
            self._guard = -1

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
        """Raises OSError: what the server says, or that it is not there; Later."""
        asked = (kind, flags, offset, length)
        if self._place < len(self._done):
            before, filled = self._done[self._place]
            if before == asked:
                self._place += 1
                _copy(filled, answer)
                return
            self.begin(again=False)  # the guest has changed what it had asked for
        request = self._request
        if request is not None and (request.unwanted or request.asked != asked):
            request.give_up()
            with suppress(OSError):  # nobody asks for it any more
                self._continue(request)
            request = None
        if begun := request is None:
            request = self._request = _Request(asked, [*data], [*answer], [*answer])
            request.steps = self._perform(request)
        self._continue(request)
        if request.error:
            raise OSError(request.error, os.strerror(request.error))
        if not begun:
            _copy(request.filled, answer)
        self._done.append((asked, request.filled))
        self._place += 1

    def _continue(self, request: _Request) -> None:
        """Raises Later, or OSError if the connection is lost."""
        assert request.steps is not None
        deadline = time.monotonic() + _PATIENCE
        try:
            while (later := next(request.steps, None)) is not None:
                if not wait(later, deadline - time.monotonic()):
                    request.keep()
                    raise later
        except errors.PeerError as error:
            self._request = None
            self._drop()
            raise OSError(errno.EIO, str(error)) from error
        except OSError:
            self._request = None
            self._drop()
            raise
        self._request = None

    def _perform(self, request: _Request) -> Steps:
        """Send it, and receive what the server answers. Raises OSError, PeerError."""
        if self._socket is None:
            yield from self._connect()
        self._cookie += 1
        kind, flags, offset, length = request.asked
        header = _REQUEST.pack(_REQUEST_MAGIC, flags, kind, self._cookie, offset, length)
        request.data = [memoryview(header), *request.data]
        while request.data:
            yield from self._send(request)
        reply = bytearray(_REPLY.size)
        yield from self._fill([memoryview(reply)])
        magic, request.error, cookie = _REPLY.unpack(reply)
        if magic != _REPLY_MAGIC or cookie != self._cookie:
            raise errors.PeerError(f"{self._address}: an answer that is no NBD")
        if not request.error:
            while request.answer:
                count = yield from self._receive(request.answer)
                request.answer = behind(request.answer, count)

    def _connect(self) -> Steps:
        """Raises OSError; PeerError for a server that does not have what is wanted."""
        lock = -1
        while self._kept is not None and lock < 0:
            try:
                lock = guard.claim(self._kept.with_suffix(".guard"))
            except BlockingIOError:
                yield Later(seconds=_RETRY_SECONDS)
        try:
            yield from self._dial()
            assert self._socket is not None
            if self._kept is not None:
                lock, given = -1, lock
                self._guard = guard.begin(self._socket, given, self._kept.with_suffix(".guard"))
            found = yield from self._negotiate()
            if self._export is not None and (found.size, found.block) != (self._export.size, self._export.block):
                raise errors.PeerError(f"{self._address} is another disk now")
            self._export = found
        except BaseException:
            self._drop()
            raise
        finally:
            if lock >= 0:
                os.close(lock)

    def _dial(self) -> Steps:
        """Raises OSError."""
        address = self._address
        places = connecting.places(Path(address.path) if address.path else (address.host, address.port))
        while self._socket is None:
            try:
                self._socket = connecting.begin(places[0])
                if not address.path:
                    yield Later(self._socket.fileno(), write=True)
                    connecting.check(self._socket)
                    self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except BlockingIOError:
                yield Later(seconds=_RETRY_SECONDS)
            except OSError:
                self._drop()
                if not places[1:]:
                    raise
                places = places[1:]

    def _negotiate(self) -> Generator[Later, None, Export]:
        address = self._address
        magic, option, handshake = _INIT.unpack((yield from self._take(_INIT.size)))
        if (magic, option) != (b"NBDMAGIC", _OPTION_MAGIC) or not handshake & _FIXED_NEWSTYLE:
            raise errors.PeerError(f"{address}: expected an NBD server of the fixed newstyle")
        name = address.export.encode()
        wanted = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, _INFO_BLOCK_SIZE)
        flags = struct.pack(">I", handshake & (_FIXED_NEWSTYLE | _NO_ZEROES))
        said = flags + _OPTION.pack(_OPTION_MAGIC, _OPT_GO, len(wanted)) + wanted
        hello = _Request((0, 0, 0, 0), [memoryview(said)], [], [])
        while hello.data:
            yield from self._send(hello)
        found: Export | None = None
        block, most = 1, MAX_TRANSFER
        for _ in range(_MOST_INFORMATION):
            magic, option, kind, length = _OPTION_REPLY.unpack((yield from self._take(_OPTION_REPLY.size)))
            if magic != _OPTION_REPLY_MAGIC or option != _OPT_GO or length > _MOST_REPLY:
                raise errors.PeerError(f"{address}: an answer that is no NBD")
            data = yield from self._take(length)
            information = int.from_bytes(data[:2], "big") if kind == _REP_INFO else -1
            if information == _INFO_EXPORT and length == _EXPORT.size:
                found = Export(*_EXPORT.unpack(data)[1:])
            elif information == _INFO_BLOCK_SIZE and length == _BLOCK_SIZE.size:
                _, block, _, most = _BLOCK_SIZE.unpack(data)
                if not 1 <= block <= _MOST_BLOCK or block & block - 1 or most < block:
                    raise errors.PeerError(f"{address}: blocks of {block} to {most} bytes are no NBD")
            elif kind == _REP_ACK and found is not None:
                return replace(found, block=block, most=most)
            elif kind != _REP_INFO:
                text = bytes(data[:200]).decode(errors="replace")
                raise errors.PeerError(f"{address} refuses the export '{address.export}': {text or hex(kind)}")
        raise errors.PeerError(f"{address}: an answer that does not end")

    def _send(self, request: _Request) -> Generator[Later, None, None]:
        """Some of its data. Raises OSError."""
        assert self._socket is not None
        try:
            request.data = behind(request.data, self._socket.sendmsg(request.data[:_MOST_PARTS]))
        except BlockingIOError:
            yield Later(self._socket.fileno(), write=True)

    def _take(self, size: int) -> Generator[Later, None, bytearray]:
        data = bytearray(size)
        if size:
            yield from self._fill([memoryview(data)])
        return data

    def _fill(self, buffers: Buffers) -> Generator[Later, None, None]:
        while buffers:
            count = yield from self._receive(buffers)
            buffers = behind(buffers, count)

    def _receive(self, buffers: Buffers) -> Generator[Later, None, int]:
        """Something, into the first of `buffers`; gives how many bytes, 0 after a wait. Raises OSError."""
        assert self._socket is not None
        try:
            count = self._socket.recvmsg_into(buffers[:_MOST_PARTS])[0]
        except BlockingIOError:
            yield Later(self._socket.fileno())
            return 0
        if not count:
            raise OSError(errno.EIO, f"{self._address} has closed the connection")
        return count


def _copy(source: Buffers, target: Sequence[memoryview]) -> None:
    data = memoryview(b"".join(source))
    for buffer in target:
        buffer[:] = data[: len(buffer)]
        data = data[len(buffer) :]


def _read(kept: Path) -> Export | None:
    try:
        return Export(**json.loads(kept.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write(kept: Path, export: Export) -> None:
    """Raises ConfigError."""
    fresh = kept.with_suffix(".fresh")
    try:
        fresh.write_text(json.dumps(asdict(export)))
        fresh.replace(kept)
    except OSError as error:
        raise errors.ConfigError(f"cannot keep {kept}: {error.strerror}") from error
