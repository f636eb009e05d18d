"""The bridge between the user's terminal and the machine: its console, its monitor, Ctrl-A keys, signals, the end.

One thread, one poll. It ends when the monitor has ended and every byte that the guest wrote is out.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from vmesh import connecting
from vmesh.cli.flags.options import Serial
from vmesh.cli.keys import Action, KeyMux, key_help
from vmesh.cli.script import Form, Script
from vmesh.cli.terminal import RawTerminal
from vmesh.machine import MachineDirectory
from vmesh.spawn import Child
from vmesh.stdio import write_piece

STDIN, STDOUT = 0, 1
_CONNECT_INTERVAL = 0.005  # seconds between two tries to reach the console before the device listens
_BACKLOG = 256 << 10  # bytes not taken yet by one side, beyond which the other is not read
_CLOSE_LIMIT = 2.0  # seconds that the console has to end after the monitor has
_READER_LIMIT = 3.0  # seconds that who reads stdout may take nothing once the machine has ended
_TAIL_BYTES = 256
_UNSEEN = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x1f\x7f]")  # control sequences (ECMA-48, 5.4) and characters
_SHOW_PROMPT = b"\x12"  # Ctrl-R: the monitor shows its line anew
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


@dataclass(slots=True)
class _Channel:
    """A stream of the machine that the terminal may be connected to, `path` where it has one."""

    path: Path | None
    wanted: bool
    socket: socket.socket | None = None
    outgoing: bytearray = field(default_factory=bytearray)

    def connect(self) -> None:
        """If somebody listens there by now."""
        if self.path is None or self.socket is not None or not self.wanted:
            return
        with suppress(OSError):
            self.socket = connecting.now(self.path)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


class Console:
    """Runs the terminal until the machine has ended.

    `monitor` is its process, and `door` the socket where it speaks HMP (behind Ctrl-A c) or QMP, if the terminal has
    that too. What is between the guest's console and pipes is `script`'s; a terminal types straight to the guest.
    """

    def __init__(
        self,
        machine: MachineDirectory,
        device: str,
        serial: Serial,
        door: Path | None,
        monitor: Child,
        script: Script | None,
    ) -> None:
        self.ended_by = ""  # what the user did to end the machine: for one line
        self.unread = 0  # bytes of the console that nobody took from stdout
        self._serial = serial
        self._monitor = monitor
        self._terminal = RawTerminal(STDIN, signals=not serial.mux)
        self._mux = KeyMux()
        has_guest = serial.kind == "stdio"
        self._at_prompt = door is not None and not has_guest
        self._guest = _Channel(machine.console(device) if has_guest else None, wanted=True)
        self._door = _Channel(door, wanted=self._at_prompt)
        self._to_user = bytearray()
        self._stdin_open = has_guest or door is not None
        self._stdout_open = True
        self._from_terminal = os.isatty(STDIN)
        self._script = script or Script(Form.RAW)
        self._tail = b""  # of what the guest has shown
        self._end_requests = 0
        self._close_by = float("inf")  # when to stop waiting for the rest of the console's bytes
        self._unread_by = float("inf")  # when to stop waiting for stdout to take them
        self._status: int | None = None

    def run(self) -> int:
        """Returns the wait status of the monitor."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        former = [
            (number, signal.signal(number, _noted)) for number in (*_ENDING_SIGNALS, signal.SIGCONT, signal.SIGTSTP)
        ]
        former.append((signal.SIGTTOU, signal.signal(signal.SIGTTOU, signal.SIG_IGN)))
        former_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            with self._terminal:
                while self._status is None or self._connected or (self._to_user and self._stdout_open):
                    self._step(reader)
                    if time.monotonic() > self._unread_by and self._to_user:
                        self.unread = len(self._to_user)
                        self._stdout_open = False
                if self._mid_line and self._stdout_open and os.isatty(STDOUT):
                    os.write(STDOUT, b"\n")
        finally:
            signal.set_wakeup_fd(former_fd)
            for number, handler in former:
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)
        return self._status

    def _step(self, signals: int) -> None:
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        if self._status is None:
            poll.register(self._monitor.pidfd, select.POLLIN)
        room = len(self._focus.outgoing) + self._script.waiting < _BACKLOG
        reads_input = self._stdin_open and room and self._foreground()
        if reads_input:
            poll.register(STDIN, select.POLLIN)
        if self._stdout_open:  # without output too: poll tells when it was closed
            poll.register(STDOUT, select.POLLOUT if self._to_user else 0)
        for channel in self._connected:
            reads = len(self._to_user) < _BACKLOG or self._status is not None
            wanted = (select.POLLIN if reads else 0) | (select.POLLOUT if channel.outgoing else 0)
            if wanted and channel.socket is not None:
                poll.register(channel.socket, wanted)
        ready = dict(poll.poll(self._timeout() * 1000))
        if signals in ready:
            self._signalled(os.read(signals, 64))
        if STDIN in ready:
            self._typed(ready[STDIN])
        if STDOUT in ready and self._stdout_open:
            self._flush(ready[STDOUT])
        for channel in self._connected:
            if channel.socket is not None and (events := ready.get(channel.socket.fileno())):
                self._exchange(channel, events)
        if self._status is None and self._monitor.pidfd in ready:
            self._reap()
        for channel in (self._guest, self._door):
            if time.monotonic() > self._close_by:
                channel.close()
            if self._status is None:
                channel.connect()
        self._give()

    @property
    def _mid_line(self) -> bool:
        """Whether the cursor stands behind something that the guest has shown."""
        return bool(_UNSEEN.sub(b"", self._tail.rpartition(b"\n")[2]))

    @property
    def _focus(self) -> _Channel:
        """What the user types to."""
        return self._door if self._at_prompt else self._guest

    @property
    def _may_give(self) -> bool:
        """Whether the guest may get more of what was piped in."""
        return self._guest.socket is not None and not self._guest.outgoing and not self._from_terminal

    @property
    def _connected(self) -> list[_Channel]:
        return [channel for channel in (self._guest, self._door) if channel.socket is not None]

    def _timeout(self) -> float:
        """Seconds until there is something to do though nothing happens."""
        missing = [each for each in (self._guest, self._door) if each.path and each.wanted and each.socket is None]
        if missing and self._status is None:
            return _CONNECT_INTERVAL
        return min(1.0, max(0.0, self._script.due - time.monotonic())) if self._may_give else 1.0

    # The machine's side

    def _exchange(self, channel: _Channel, events: int) -> None:
        assert channel.socket is not None
        try:
            if events & select.POLLOUT and channel.outgoing:
                sent = channel.socket.send(channel.outgoing)
                del channel.outgoing[:sent]
            if events & ~select.POLLOUT:
                data = channel.socket.recv(65536)
                if not data:
                    raise ConnectionResetError
                if channel is self._guest:
                    data = self._script.output(data, time.monotonic())
                    self._tail = (self._tail + data)[-_TAIL_BYTES:]
                self._to_user += data
        except BlockingIOError:
            pass
        except OSError:
            # The other end is gone: a restarted device is dialled again, otherwise the machine ends.
            channel.close()

    def _give(self) -> None:
        """What was piped in, as the guest wants it."""
        if self._may_give:
            self._guest.outgoing += self._script.give(time.monotonic())

    # The user's side

    def _typed(self, events: int) -> None:
        try:
            data = os.read(STDIN, 4096)
        except OSError:
            data, events = b"", select.POLLERR
        if not data and self._from_terminal and not events & (select.POLLHUP | select.POLLERR):
            return  # see RawTerminal: no end, but nothing to read
        if not data:
            self._stdin_open = False
            self._script.typed(b"")
            return
        for piece in self._mux.feed(data) if self._serial.mux else [data]:
            match piece:
                case Action.EXIT:
                    self.end("terminated by Ctrl-A x")
                case Action.HELP:
                    self._say(key_help())
                case Action.SWITCH:
                    self._switch()
                case bytes() if self._at_prompt or self._from_terminal:
                    self._focus.outgoing += piece
                case bytes():
                    self._script.typed(piece)

    def _switch(self) -> None:
        if self._door.path is None or not self._serial.mux:
            return
        self._at_prompt = not self._at_prompt
        self._say("\n")
        if self._at_prompt and self._door.wanted:
            self._door.outgoing += _SHOW_PROMPT
        self._door.wanted = True  # the first time it greets, and shows the prompt by itself

    def _say(self, text: str) -> None:
        self._to_user += text.encode()

    def _flush(self, events: int) -> None:
        try:
            if events & (select.POLLERR | select.POLLHUP):
                raise BrokenPipeError
            count = write_piece(STDOUT, bytes(self._to_user[:4096]), 0.0)
            del self._to_user[:count]
            if count and self._status is not None:
                self._unread_by = time.monotonic() + _READER_LIMIT
        except OSError:
            self._stdout_open = False
            self.end("stdout was closed")

    def _foreground(self) -> bool:
        """Whether this process may read the terminal: not while it is a job in the background."""
        if not self._from_terminal:
            return True
        try:
            return os.tcgetpgrp(STDIN) == os.getpgrp()
        except OSError:
            return True  # a terminal that is gone reads as closed

    # The end

    def end(self, why: str) -> None:
        """Have the machine end in order; asked again, at once."""
        self.ended_by = self.ended_by or why
        self._end_requests += 1
        number = signal.SIGTERM if self._end_requests == 1 else signal.SIGKILL
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._monitor.pidfd, number)

    def _signalled(self, numbers: bytes) -> None:
        for number in numbers:
            if number in _ENDING_SIGNALS:
                self.end(f"terminated by {signal.Signals(number).name}")
                if number == signal.SIGHUP:
                    self._stdout_open = False
            elif number == signal.SIGTSTP:
                self._terminal.restore()
                os.kill(os.getpid(), signal.SIGSTOP)
            elif number == signal.SIGCONT and self._foreground():
                self._terminal.apply()

    def _reap(self) -> None:
        _, self._status = os.waitpid(self._monitor.pid, 0)
        self._close_by = time.monotonic() + _CLOSE_LIMIT
        self._unread_by = time.monotonic() + _READER_LIMIT


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Signals come through the wakeup pipe; a handler has to be there for that."""
