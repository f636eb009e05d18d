"""Character devices: where the bytes of a serial port go to and come from.

Chosen by a specification, in QEMU's words where QEMU has it:
    socket:PATH                  a Unix stream socket for any number of clients: all see the output, all may type; a
                                 client that comes late first gets the last 64 KiB of output
    unix:PATH[,server][,nowait]  one peer over a Unix stream socket (vmesh/endpoint.py); a server waits for it unless
                                 `nowait`
    file:PATH                    output only
    pty                          a pseudo-terminal; its name is in the log, and is `place`
    stdio                        this process's own standard input and output
    kept:PATH                    one of the above in the process that listens at PATH and outlives this one: nothing is
                                 lost and nothing comes twice when the device is killed (proto/vmesh/v1/console.proto)
    null                         nothing in, nothing kept
Without a client, output is lost (but for the
history of `socket:`). A client that does not read makes the guest's output wait; one that is gone does not. Nobody else
waits for it: what is on its way is bounded, is part of the device's state, and is given up at the end after a while.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import termios
import time
import tty
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError

from vmesh import connecting, endpoint, errors
from vmesh.endpoint import Endpoint, Listener, connect
from vmesh.log import Log
from vmesh.loop import Callback, Loop
from vmesh.stdio import write_piece
from vmesh.v1.console_pb2 import ConsolePacket

_HISTORY_BYTES = 64 << 10
_QUEUE_BYTES = 64 << 10  # of output that a client has not taken, before the device has to wait
_WRITE_BYTES = 64 << 10
_MAX_CLIENTS = 16
_STALL_SECONDS = 2.0  # at the end: how long a client may take nothing before it is given up
_FINISH_SECONDS = 5.0  # at the end: how long it may take, however slowly
_PTY_LOOK_SECONDS = 0.25
_PTY_SECONDS, _PTY_QUIET_LOOKS = 0.005, 4  # at the end: between two looks whether all was read, and how many find that
_SEEK_SECONDS = 0.2  # between two looks for the next keeper
_KEEPER_SECONDS = 10.0  # for the keeper to listen: it starts when the device does
_UNTAKEN_BYTES = 16 << 10  # of output, all in the slot, that the keeper has not taken, before the device waits
#: Of that, bytes that a state may have. A device that waits gets more with every pause of the machine: up to here.
PENDING_BYTES = 256 << 10
_TAKING_SECONDS = 2.0  # for the keeper to take what it has given leave to send
_PACKET_BYTES = 32 << 10
#: What a journal comes to at most: output that has no leave yet, as much as a state has, and what has been sent.
JOURNAL_BYTES = PENDING_BYTES + _QUEUE_BYTES + 64
_VERSION = 2  # of console.proto


@dataclass(slots=True, eq=False)
class _Client:
    """One peer: `source` is read, `sink` is written (they may be the same file); -1 is none."""

    source: int
    sink: int
    read: Callback = lambda: None
    write: Callback = lambda: None
    queue: bytearray = field(default_factory=bytearray)


class Chardev:
    """What a serial device talks to; as it is, `null`.

    `wanted` tells how many bytes of input the device could take now, `receive` gets them (never more).
    """

    def __init__(self, loop: Loop, log: Log, wanted: Callable[[], int], receive: Callable[[bytes], None]) -> None:
        self.lost = 0  # bytes of output that a client did not get
        self.place = ""  # where it is, in QEMU's words, if the specification does not say so
        #: Told what is amiss though the guest goes on, in one line; and with nothing when that is over.
        self.amiss: Callable[[str], None] = lambda text: None
        self._loop = loop
        self._log = log
        self._wanted = wanted
        self._receive = receive
        self._clients: list[_Client] = []

    def start(self) -> None:
        """Begin. Raises ConfigError if that cannot be."""

    @property
    def ready(self) -> bool:
        """Whether it has the peer that is to be waited for."""
        return True

    def wait(self, lifeline: int) -> None:
        """Wait until it is ready. Raises LifelineEnded when `lifeline` ends first, ConfigError."""

    def recover(self, journal: bytes) -> None:
        """Before `start`, in the next life of a device: go on where `journal` says."""

    def journal(self) -> bytes:
        """What `recover` needs; changes with `write` and with what is received."""
        return b""

    def commit(self) -> None:
        """What has been written and received is in the slot, with `journal`."""

    def write(self, data: bytes) -> None:
        """Send to every client what it takes, and keep the rest for it."""
        for client in list(self._clients):
            client.queue += data
            self._send(client)

    @property
    def waiting(self) -> int:
        """Bytes of output that the client which is furthest behind has not taken."""
        return max((len(client.queue) for client in self._clients), default=0)

    @property
    def room(self) -> int:
        """Bytes of output that it takes from the device at once."""
        return max(0, _QUEUE_BYTES - self.waiting)

    @property
    def full(self) -> bool:
        """Whether a client has so much untaken output that the device should wait; room ends in a turn of the loop."""
        return self.waiting > _QUEUE_BYTES

    def pending(self) -> bytes:
        """Output that goes with the device's state, since it is nobody's yet: none of it leaves before `release`."""
        return b""

    def restore(self, pending: bytes) -> None:
        """The device has taken a state with that."""

    def release(self) -> None:
        """The machine goes on."""

    def hand_over(self) -> None:
        """What was pending is another machine's, unless `release` comes."""

    def input_changed(self) -> None:
        """`wanted` may give another number now."""
        for client in self._clients:
            self._watch(client)

    def finish(self) -> None:
        """Wait until the clients have taken all output, unless they take nothing for a while, or long for it."""
        progress = time.monotonic()
        end = progress + _FINISH_SECONDS
        while waiting := [client for client in self._clients if client.queue]:
            remaining = min(progress + _STALL_SECONDS, end) - time.monotonic()
            if remaining <= 0:
                for client in waiting:
                    self._drop(client, "does not read")
                return
            poller = select.poll()
            for client in waiting:
                poller.register(client.sink, select.POLLOUT)
            poller.poll(remaining * 1000)
            for client in waiting:
                before = len(client.queue)
                self._send(client)
                if len(client.queue) < before:
                    progress = time.monotonic()

    def close(self) -> None:
        """The end: nobody else can come. A socket that was listened at is removed."""

    def _add(self, source: int, sink: int, greeting: bytes = b"") -> _Client:
        client = _Client(source, sink)
        client.read = lambda: self._readable(client)
        client.write = lambda: self._send(client)
        client.queue += greeting
        self._clients.append(client)
        self._send(client)
        return client

    def _drop(self, client: _Client, reason: str) -> None:
        """Let go of a client that is gone or failed."""
        if client not in self._clients:
            return
        self._clients.remove(client)
        if client.queue:
            self.lost += len(client.queue)
            self._log.warning("console output lost", bytes=len(client.queue), reason=reason)
        for fd in {client.source, client.sink} - {-1}:
            self._loop.watch(fd)
            os.close(fd)

    def _send(self, client: _Client) -> None:
        try:
            while client.queue:
                # Copied: a bytearray cannot shrink while a view of it is out.
                count = self._write(client.sink, bytes(client.queue[:_WRITE_BYTES]))
                del client.queue[:count]
        except BlockingIOError:
            pass
        except OSError as error:
            if client.source != client.sink or not isinstance(error, (BrokenPipeError, ConnectionResetError)):
                self._log.warning("console output failed", reason=error.strerror)
            client.queue.clear()  # nobody is there to miss it
            self._drop(client, "")
            return
        self._watch(client)

    def _write(self, sink: int, data: bytes) -> int:
        """How much of `data` was written. Raises BlockingIOError if that would have to wait, OSError."""
        return os.write(sink, data)

    def _readable(self, client: _Client) -> None:
        count = self._wanted()
        if count > 0:
            try:
                data = os.read(client.source, count)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._ended(client)
                return
            self._receive(data)
        self.input_changed()

    def _ended(self, client: _Client) -> None:
        """The client will type no more. It may still read: what is sent to it shows whether it is there."""
        if client.source != client.sink:
            self._loop.watch(client.source)
            os.close(client.source)
        client.source = -1
        self._watch(client)

    def _watch(self, client: _Client) -> None:
        read = client.read if client.source >= 0 and self._wanted() > 0 else None
        write = client.write if client.queue else None
        if client.source in (client.sink, -1):
            self._loop.watch(client.sink, read=read, write=write)
        else:
            self._loop.watch(client.source, read=read)
            if client.sink >= 0:
                self._loop.watch(client.sink, write=write)


class _File(Chardev):
    """Output into a file, which is made anew. What it has no room for is lost; what comes later is tried again."""

    def __init__(self, path: Path, *rest: *_Rest) -> None:
        super().__init__(*rest)
        self._path = path
        self._failing = ""

    def start(self) -> None:
        try:
            # O_NONBLOCK is for what is no file, which is not waited for.
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise errors.ConfigError(f"cannot write {self._path}: {error.strerror}") from error
        self._add(-1, fd)

    def _send(self, client: _Client) -> None:
        try:
            while client.queue:
                count = self._write(client.sink, bytes(client.queue[:_WRITE_BYTES]))
                del client.queue[:count]
                self._say("")
        except OSError as error:
            self.lost += len(client.queue)
            client.queue.clear()
            self._say(f"cannot write {self._path}: {error.strerror}")

    def _say(self, failing: str) -> None:
        """Once for each change."""
        if failing == self._failing:
            return
        self._failing = failing
        if failing:
            self._log.warning("console output lost", reason=failing)
        else:
            self._log.info("console output goes on", lost=self.lost)
        self.amiss(failing)

    def _watch(self, client: _Client) -> None:
        """A regular file is always ready, and epoll's and poll's answers for it mean nothing."""


class _Stdio(Chardev):
    """Standard input and output. Their mode is that of whoever shares them, a shell say, so they are blocking: what is
    written in small pieces, to a file that polls as writable, waits for nobody all the same."""

    def start(self) -> None:
        self._add(os.dup(0), os.dup(1))

    def _write(self, sink: int, data: bytes) -> int:
        if not (count := write_piece(sink, data, 0.0)):
            raise BlockingIOError
        return count


class _Socket(Chardev):
    """Listens; every client gets the output, a new one first the history."""

    def __init__(self, path: Path, *rest: *_Rest) -> None:
        super().__init__(*rest)
        self._path = path
        self._listener: Listener | None = None
        self._history = bytearray()

    def start(self) -> None:
        listener = self._listener = Listener(Endpoint(self._path))
        self._loop.watch(listener.fileno(), read=lambda: self._accept(listener))

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()

    def write(self, data: bytes) -> None:
        self._history += data
        del self._history[:-_HISTORY_BYTES]
        super().write(data)

    def _accept(self, listener: Listener) -> None:
        connection = self._loop.accept(listener.socket)
        if connection is None:
            return
        if len(self._clients) >= _MAX_CLIENTS:
            for client in [client for client in self._clients if client.source < 0]:
                self._drop(client, "ended its input, and the place was needed")
        if len(self._clients) >= _MAX_CLIENTS:
            self._log.warning("console client refused", expected=f"at most {_MAX_CLIENTS}")
            connection.close()
            return
        fd = connection.detach()
        self._add(fd, fd, bytes(self._history))


class _Unix(Chardev):
    """One peer at a time."""

    def __init__(self, where: Endpoint, *rest: *_Rest) -> None:
        super().__init__(*rest)
        self._where = where
        self._wait = where.wait
        self._listener: Listener | None = None

    @property
    def ready(self) -> bool:
        return not self._wait

    def start(self) -> None:
        if not self._where.server:
            self._take(connect(self._where))
            return
        listener = self._listener = Listener(self._where)
        self._loop.watch(listener.fileno(), read=lambda: self._accept(listener))
        if self._wait:
            self._log.info("waiting for a client", at=self._where)

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()

    def wait(self, lifeline: int) -> None:
        while self._listener is not None and not self.ready:
            _poll(self._listener, lifeline)
            self._accept(self._listener)

    def _accept(self, listener: Listener) -> None:
        connection = self._loop.accept(listener.socket)
        if connection is not None:
            for former in [client for client in self._clients if client.source < 0]:
                self._drop(former, "ended its input, and another one came")
            if self._clients:
                connection.close()
            else:
                self._take(connection)

    def _take(self, peer: socket.socket) -> None:
        self._wait = False
        peer.setblocking(False)
        fd = peer.detach()
        self._add(fd, fd)


class _Pty(Chardev):
    """A pseudo-terminal. While nobody has it open, output is lost and there is no input to wait for."""

    def start(self) -> None:
        try:
            master, slave = os.openpty()
        except OSError as error:
            raise errors.ConfigError(f"cannot make a pseudo-terminal: {error.strerror}") from error
        tty.setraw(slave, termios.TCSANOW)
        self.place = f"pty:{os.ttyname(slave)}"
        self._log.info("pty", path=os.ttyname(slave))
        os.close(slave)
        os.set_blocking(master, False)
        self._add(master, master)

    def finish(self) -> None:
        """What the system keeps of it for who has it open is lost when this end is closed: that is waited for, too."""
        super().finish()
        if any(map(self._is_open, self._clients)):
            with suppress(OSError):
                slave = os.open(self.place.removeprefix("pty:"), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    _wait_unread(slave)
                finally:
                    os.close(slave)

    def _send(self, client: _Client) -> None:
        if self._is_open(client):
            super()._send(client)
        else:
            client.queue.clear()
            self._watch(client)

    def _ended(self, client: _Client) -> None:
        self._watch(client)

    def _watch(self, client: _Client) -> None:
        if self._is_open(client):
            super()._watch(client)
        else:
            # A closed pseudo-terminal is always "readable": look again later instead.
            self._loop.watch(client.sink)
            self._loop.call_in("pty", _PTY_LOOK_SECONDS, self.input_changed)

    def _is_open(self, client: _Client) -> bool:
        poller = select.poll()
        poller.register(client.sink, select.POLLIN)
        return not any(events & select.POLLHUP for _, events in poller.poll(0))


def _wait_unread(terminal: int) -> None:
    """Wait until what is to be read there was read, unless nothing is for a while, or it takes long. What was just
    written is there a moment later."""
    progress = time.monotonic()
    end, before, quiet = progress + _FINISH_SECONDS, 0, 0
    while quiet < _PTY_QUIET_LOOKS and time.monotonic() < min(progress + _STALL_SECONDS, end):
        (unread,) = struct.unpack("i", fcntl.ioctl(terminal, termios.FIONREAD, bytes(4)))
        if unread < before:
            progress = time.monotonic()
        before, quiet = unread, 0 if unread else quiet + 1
        time.sleep(_PTY_SECONDS)


class _Kept(Chardev):
    """The device's side of console.proto. Output leaves, and input counts as taken, when it is in the slot."""

    def __init__(self, path: Path, *rest: *_Rest) -> None:
        super().__init__(*rest)
        self._path = path
        self._keeper = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._fresh = True
        self._greeted = False
        self._output = bytearray()  # that the keeper has not said it has taken
        self._position = 0  # of the first byte of it
        self._in_slot = 0  # bytes of it that are in the slot: a next life has no others, so no others may be sent
        self._sent = 0  # bytes of it that have been sent
        self._limit = 0  # the position before which the keeper lets it be sent
        self._held = False  # what has not been sent is in a state that was saved
        self._handed_over = False
        self._input = bytearray()  # that the device has no room for
        self._taken = 0  # of input
        self._taken_in_slot = 0  # of that, what is in the slot: only then may the keeper forget it
        self._told = 0  # what the keeper was last told of that

    def recover(self, journal: bytes) -> None:
        if journal:
            self._fresh = False
            former = ConsolePacket.FromString(journal)
            self._position, self._taken = former.position, former.taken
            self._output[:] = former.data
            self._in_slot, self._taken_in_slot = len(self._output), self._taken

    def journal(self) -> bytes:
        return ConsolePacket(position=self._position, data=bytes(self._output), taken=self._taken).SerializeToString()

    def start(self) -> None:
        deadline = time.monotonic() + _KEEPER_SECONDS
        while True:
            try:
                self._keeper = connecting.now(self._path, socket.SOCK_SEQPACKET)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise errors.ConfigError(f"cannot connect to {self._path}: {error.strerror}") from error
                time.sleep(0.002)
        hello = ConsolePacket(version=_VERSION, position=self._position, taken=self._taken_in_slot, fresh=self._fresh)
        self._keeper.send(hello.SerializeToString())

    def wait(self, lifeline: int) -> None:
        _poll(self._keeper, lifeline)
        self._keeper.setblocking(False)
        self._receive_packet()
        if not self._greeted:
            raise errors.ConfigError(f"no console at {self._path}", expected="a keeper that answers")
        self._loop.watch(self._keeper.fileno(), read=self._receive_packet)
        self._send_output()

    def write(self, data: bytes) -> None:
        self._output += data
        if (surplus := len(self._output) - self._sent - PENDING_BYTES) > 0:
            del self._output[self._sent : self._sent + surplus]
            self._in_slot = min(self._in_slot, self._sent)  # what follows is another than the slot has
            self._lose(surplus, "the console is not read")

    @property
    def waiting(self) -> int:
        return len(self._output)

    def pending(self) -> bytes:
        self._await_taking()
        self._held = True
        return bytes(self._output)

    def restore(self, pending: bytes) -> None:
        self._await_taking()
        self._output[self._sent :] = pending
        self._in_slot = min(self._in_slot, self._sent)

    def release(self) -> None:
        self._held = self._handed_over = False
        self._go_on()

    def hand_over(self) -> None:
        self._handed_over = True

    def commit(self) -> None:
        self._in_slot, self._taken_in_slot = len(self._output), self._taken
        self._go_on()

    def _go_on(self) -> None:
        """Send what may be sent. In the midst of a turn that is not all that the device has said."""
        if self._greeted:
            self._send_output()
            if self._told != self._taken_in_slot:
                self._send_packet(ConsolePacket(position=self._position + self._sent))

    @property
    def full(self) -> bool:
        return len(self._output) > _UNTAKEN_BYTES

    def input_changed(self) -> None:
        # Not at once: who calls may be about to change its state again.
        if self._input:
            self._loop.call_in("console input", 0, self._deliver)

    def finish(self) -> None:
        """Wait until the keeper has taken all output, unless it takes nothing for a while, or long for it."""
        if self._handed_over:
            return
        self._held = False
        progress, before = time.monotonic(), len(self._output)
        end = progress + _FINISH_SECONDS
        while self._output and self._greeted and time.monotonic() < min(progress + _STALL_SECONDS, end):
            self._send_output()
            self._receive_within(0.05)
            if len(self._output) < before:
                progress, before = time.monotonic(), len(self._output)
        if self._output:
            self._lose(len(self._output), "the console is not read")

    def _await_taking(self) -> None:
        """Until what was sent is the keeper's. One that is gone or hangs finds out from its number what it has."""
        end = time.monotonic() + _TAKING_SECONDS
        while self._sent and self._greeted and time.monotonic() < end:
            self._receive_within(0.05)

    def _receive_within(self, seconds: float) -> None:
        poller = select.poll()  # select() has no room for descriptors from 1024 on
        poller.register(self._keeper, select.POLLIN)
        if poller.poll(seconds * 1000):
            self._receive_packet()

    def _lose(self, count: int, reason: str) -> None:
        self.lost += count
        self._log.warning("console output lost", bytes=count, reason=reason)

    def _send_output(self) -> None:
        while not self._held and self._sent < self._in_slot:
            position = self._position + self._sent
            count = min(_PACKET_BYTES, self._in_slot - self._sent, self._limit - position)
            if count <= 0:
                return
            piece = bytes(self._output[self._sent : self._sent + count])
            if not self._send_packet(ConsolePacket(position=position, data=piece)):
                return
            self._sent += len(piece)

    def _send_packet(self, packet: ConsolePacket) -> bool:
        packet.version, packet.taken, packet.time_ns = _VERSION, self._taken_in_slot, self._loop.clock.now_ns()
        try:
            self._keeper.send(packet.SerializeToString())
        except BlockingIOError:
            self._loop.watch(self._keeper.fileno(), read=self._receive_packet, write=self._writable)
            return False
        except OSError:
            self._ended_keeper()
            return False
        self._told = self._taken_in_slot
        return True

    def _writable(self) -> None:
        self._loop.watch(self._keeper.fileno(), read=self._receive_packet)
        self._go_on()

    def _receive_packet(self) -> None:
        try:
            data = self._keeper.recv(2 * _PACKET_BYTES)
            packet = ConsolePacket.FromString(data)
        except BlockingIOError:
            return
        except (OSError, DecodeError):
            data = b""
        if not data:
            self._ended_keeper()
            return
        if self._fresh and not self._greeted:
            self._position = packet.taken
            self._taken = self._taken_in_slot = packet.position
        self._greeted = True
        took = packet.taken - self._position
        if not 0 <= took <= len(self._output):
            expected = f"{self._position} to {self._position + len(self._output)} taken"
            self._log.error("console out of step", expected=expected, got=packet.taken)
            self._ended_keeper()
            return
        del self._output[:took]
        self._position += took
        self._in_slot = max(0, self._in_slot - took)
        self._sent = max(0, self._sent - took)
        self._limit = packet.limit
        known = self._taken + len(self._input)
        self._input += packet.data[max(0, known - packet.position) :] if packet.position <= known else b""
        self._deliver()

    def _deliver(self) -> None:
        """Hand over the input that the device has room for; the end of this turn of the loop commits it."""
        while self._input and (room := self._wanted()) > 0:
            piece = bytes(self._input[:room])
            del self._input[: len(piece)]
            self._taken += len(piece)
            self._receive(piece)

    def _ended_keeper(self) -> None:
        self._greeted = False
        self._loop.watch(self._keeper.fileno())
        self._log.warning("the keeper of the console is gone")
        self._loop.call_in("keeper", _SEEK_SECONDS, self._seek)

    def _seek(self) -> None:
        """Where somebody else starts the services, there may be another keeper soon: tell it where we are."""
        self._keeper.close()
        try:
            self._keeper = connecting.now(self._path, socket.SOCK_SEQPACKET)
            self._input.clear()  # what has not been taken is sent again
            self._sent = 0
            said = ConsolePacket(version=_VERSION, position=self._position, taken=self._taken_in_slot)
            self._keeper.send(said.SerializeToString())
        except OSError:
            self._loop.call_in("keeper", _SEEK_SECONDS, self._seek)
            return
        self._keeper.setblocking(False)
        self._loop.watch(self._keeper.fileno(), read=self._found)

    def _found(self) -> None:
        self._loop.watch(self._keeper.fileno(), read=self._receive_packet)
        self._receive_packet()
        if self._greeted:
            self._log.info("the console has a keeper again")
            self._send_output()


_Rest = tuple[Loop, Log, Callable[[], int], Callable[[bytes], None]]


#: Of --chardev, for those who start a device by hand.
USAGE = "socket:PATH, unix:, file:, pty, stdio, null, kept:PATH; `kept`: at its place in the machine directory"


def make(
    specification: str, loop: Loop, log: Log, wanted: Callable[[], int], receive: Callable[[bytes], None]
) -> Chardev:
    """The character device of that specification, not started. Raises ConfigError for what is none."""
    rest: _Rest = (loop, log, wanted, receive)
    kind, _, argument = specification.partition(":")
    match kind, argument:
        case "null", "":
            return Chardev(*rest)
        case "stdio", "":
            return _Stdio(*rest)
        case "pty", "":
            return _Pty(*rest)
        case "file", path if path:
            return _File(Path(path), *rest)
        case "kept", path if path:
            return _Kept(Path(path), *rest)
        case "socket", path if path:
            return _Socket(Path(path), *rest)
        case "unix", text if text:
            return _Unix(endpoint.parse(specification), *rest)
    raise errors.ConfigError(
        "chardev",
        expected="socket:PATH, unix:PATH[,server][,nowait], file:PATH, kept:PATH, pty, stdio or null",
        got=specification or "nothing",
    )


def found(specification: str, kept: Path) -> str:
    """The specification, where `kept` alone means the one at its place in the machine directory."""
    return f"kept:{kept}" if specification == "kept" else specification


def check_pending(name: str, output: bytes) -> None:
    """What a device's state has of `pending`. Raises BadState."""
    if len(output) > PENDING_BYTES:
        raise errors.BadState(f"{name} output", expected=f"at most {PENDING_BYTES} bytes", got=str(len(output)))


def _poll(source: socket.socket | Listener, lifeline: int) -> None:
    """Wait until `source` is readable. Raises LifelineEnded."""
    poller = select.poll()
    poller.register(source, select.POLLIN)
    if lifeline >= 0:
        poller.register(lifeline, select.POLLIN)
    if any(fd == lifeline for fd, _ in poller.poll()):
        raise errors.LifelineEnded("the end came while waiting for a console's peer")
