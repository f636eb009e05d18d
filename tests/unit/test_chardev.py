"""Character devices in one process: every kind, peers that come, go, do not read and do not write."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from vmesh import chardev, errors
from vmesh.log import Log
from vmesh.loop import Loop

SECONDS = 10.0
FULL = 2 << 20  # more than a socket and the queue hold


def readable(peer: socket.socket) -> bool:
    """Whatever number its descriptor has."""
    look = select.poll()
    look.register(peer, select.POLLIN)
    return bool(look.poll(0))


class Port:
    """A serial port that takes `room` bytes of input and keeps them."""

    def __init__(self, directory: Path, specification: str, room: int = 1 << 20) -> None:
        self.loop = Loop()
        self.room = room
        self.got = b""
        self.log = directory / "log"
        self.chardev = chardev.make(specification, self.loop, Log("port", self.log), self._wanted, self._receive)

    def _wanted(self) -> int:
        return self.room - len(self.got)

    def _receive(self, data: bytes) -> None:
        assert len(data) <= self._wanted()
        self.got += data

    def until(self, true: Callable[[], bool]) -> None:
        """Turn the loop until `true()`."""

        def look() -> None:
            if true():
                self.loop.stop()
            else:
                self.loop.call_in("look", 0.005, look)

        self.loop.call_in("look", 0, look)
        self.loop.call_in("patience", SECONDS, lambda: pytest.fail("waited in vain"))
        self.loop.run()


def client(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.connect(str(path))
    made.settimeout(SECONDS)
    return made


def test_null(tmp_path: Path) -> None:
    port = Port(tmp_path, "null")
    port.chardev.start()
    port.chardev.write(bytes(FULL))
    assert not port.chardev.full


def test_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"of an earlier run, longer than this one")
    port = Port(tmp_path, f"file:{tmp_path}/out")
    port.chardev.start()
    port.chardev.write(b"one ")
    port.chardev.write(b"two")
    assert (tmp_path / "out").read_bytes() == b"one two"
    Port(tmp_path, f"file:{tmp_path}/fresh").chardev.start()
    assert (tmp_path / "fresh").stat().st_mode & 0o077 == 0


def test_a_file_that_takes_no_more_is_said_once_and_goes_on_when_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = Port(tmp_path, f"file:{tmp_path}/out")
    said: list[str] = []
    port.chardev.amiss = said.append
    port.chardev.start()
    port.chardev.write(b"before ")

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(port.chardev, "_write", full)
        for _ in range(5):
            port.chardev.write(b"x")
    assert not port.chardev.full
    assert port.log.read_text().count("No space left") == 1
    assert (said, port.chardev.lost) == ([f"cannot write {tmp_path}/out: No space left on device"], 5)
    port.chardev.write(b"after")
    assert (tmp_path / "out").read_bytes() == b"before after"
    assert said[1:] == [""]


def test_socket_clients_come_and_go(tmp_path: Path) -> None:
    port = Port(tmp_path, f"socket:{tmp_path}/s")
    port.chardev.start()
    assert (tmp_path / "s").stat().st_mode & 0o077 == 0
    port.chardev.write(b"before ")
    first, second = client(tmp_path / "s"), client(tmp_path / "s")
    first.sendall(b"ab")
    second.sendall(b"cd")
    port.until(lambda: sorted(port.got) == sorted(b"abcd"))
    first.close()
    port.chardev.write(b"after")
    port.chardev.write(b".")
    port.chardev.finish()
    assert second.recv(13, socket.MSG_WAITALL) == b"before after."
    second.close()


def test_input_is_taken_only_as_there_is_room(tmp_path: Path) -> None:
    port = Port(tmp_path, f"socket:{tmp_path}/s", room=3)
    port.chardev.start()
    peer = client(tmp_path / "s")
    peer.sendall(b"abcdefg")
    port.until(lambda: len(port.got) == 3)
    port.room = 5
    port.chardev.input_changed()
    port.until(lambda: len(port.got) == 5)
    assert port.got == b"abcde"
    peer.close()


def test_a_client_that_has_no_more_to_type_still_reads(tmp_path: Path) -> None:
    port = Port(tmp_path, f"socket:{tmp_path}/s")
    port.chardev.start()
    peer = client(tmp_path / "s")
    peer.sendall(b"last")
    peer.shutdown(socket.SHUT_WR)
    port.until(lambda: port.got == b"last")
    port.chardev.write(b"still here")
    assert peer.recv(100) == b"still here"
    peer.close()


def test_a_client_that_does_not_read(tmp_path: Path) -> None:
    port = Port(tmp_path, f"socket:{tmp_path}/s")
    port.chardev.start()
    slow = client(tmp_path / "s")
    slow.sendall(b"!")
    port.until(lambda: port.got == b"!")
    port.chardev.write(bytes(FULL))
    assert port.chardev.full
    took = 0

    def take() -> bool:
        nonlocal took
        took += len(slow.recv(1 << 16, socket.MSG_DONTWAIT)) if readable(slow) else 0
        return not port.chardev.full

    port.until(take)
    assert 0 < took < FULL
    slow.close()
    port.chardev.write(b"x")
    assert not port.chardev.full


def test_finish_waits_for_a_slow_client_and_gives_up_a_stuck_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chardev, "_STALL_SECONDS", 1.0)
    port = Port(tmp_path, f"socket:{tmp_path}/s")
    port.chardev.start()
    reader, stuck = client(tmp_path / "s"), client(tmp_path / "s")
    for peer in (reader, stuck):
        peer.sendall(b"!")
    port.until(lambda: port.got == b"!!")
    got = bytearray()

    def read() -> None:
        while len(got) < FULL and (piece := reader.recv(1 << 16)):
            got.extend(piece)

    thread = threading.Thread(target=read)
    thread.start()
    port.chardev.write(bytes(FULL))
    port.chardev.finish()
    thread.join(SECONDS)
    assert got == bytes(FULL)
    assert 0 < port.chardev.lost < FULL
    assert "console output lost" in port.log.read_text()


def test_unix_client(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    port = Port(tmp_path, f"unix:{tmp_path}/s")
    port.chardev.start()
    listener.settimeout(SECONDS)
    peer, _ = listener.accept()
    peer.settimeout(SECONDS)
    port.chardev.write(b"hello")
    assert peer.recv(10) == b"hello"
    peer.sendall(b"back")
    port.until(lambda: port.got == b"back")
    peer.close()
    port.chardev.write(b"nobody")
    port.chardev.write(b"nobody")
    listener.close()


@pytest.mark.parametrize("options", ["server,nowait", "server=on,wait=off"])
def test_unix_server_takes_one_peer_after_the_other(tmp_path: Path, options: str) -> None:
    port = Port(tmp_path, f"unix:{tmp_path}/s,{options}")
    port.chardev.start()
    port.chardev.write(b"lost")
    first = client(tmp_path / "s")
    first.sendall(b"1")
    port.until(lambda: port.got == b"1")
    second = client(tmp_path / "s")
    port.until(lambda: readable(second))
    assert second.recv(10) == b""  # refused: the place is taken
    first.close()
    port.until(lambda: port.chardev._clients[0].source < 0)
    third = client(tmp_path / "s")
    third.sendall(b"3")
    port.until(lambda: port.got == b"13")
    port.chardev.write(b"hello")
    assert third.recv(10) == b"hello"


def test_unix_server_waits_for_its_peer(tmp_path: Path) -> None:
    port = Port(tmp_path, f"unix:{tmp_path}/s,server")
    peers = []

    port.chardev.start()
    assert not port.chardev.ready
    thread = threading.Thread(target=lambda: peers.append(client(tmp_path / "s")))
    thread.start()
    port.chardev.wait(-1)
    assert port.chardev.ready
    thread.join(SECONDS)
    port.chardev.write(b"you")
    assert peers[0].recv(10) == b"you"


def test_waiting_ends_with_the_lifeline(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    port = Port(tmp_path, f"unix:{tmp_path}/s,server")
    port.chardev.start()
    with pytest.raises(errors.LifelineEnded):
        port.chardev.wait(reader)
    os.close(reader)


def test_pty(tmp_path: Path) -> None:
    port = Port(tmp_path, "pty")
    port.chardev.start()
    port.chardev.write(bytes(FULL))  # nobody has it open
    assert not port.chardev.full
    name = port.log.read_text().split("path=")[1].split()[0]

    def got(text: bytes) -> bool:
        return port.got == text

    for text in (b"one\r\n", b"\x03two"):  # opened twice; raw both times
        fd = os.open(name, os.O_RDWR | os.O_NOCTTY)
        os.write(fd, text)
        port.got = b""
        port.until(partial(got, text))
        port.chardev.write(b"out\n")
        assert os.read(fd, 10) == b"out\n"
        os.close(fd)


@pytest.mark.parametrize("reads", [True, False])
def test_who_has_a_pty_open_gets_what_was_written_last(tmp_path: Path, reads: bool) -> None:
    """Unless it does not read."""
    port = Port(tmp_path, "pty")
    port.chardev.start()
    text = b"Power off.\r\n" * 100
    with open(port.chardev.place.removeprefix("pty:"), "rb", buffering=0) as terminal:
        port.chardev.write(text)
        ending = threading.Thread(target=port.chardev.finish)
        ending.start()
        got = b""
        while reads and len(got) < len(text):
            got += terminal.read(1000)
        ending.join(SECONDS)
        assert not ending.is_alive()
        assert got == (text if reads else b"")


def test_stdio() -> None:
    script = """
import sys
from pathlib import Path
from vmesh import chardev
from vmesh.log import Log
from vmesh.loop import Loop
loop, got = Loop(), bytearray()
def receive(data):
    got.extend(data)
    device.write(data.upper())
    if b"." in data:
        loop.stop()
device = chardev.make("stdio", loop, Log("x", Path("/dev/null")), lambda: 100, receive)
device.start()
loop.run()
device.finish()
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], input=b"hello.", capture_output=True, timeout=SECONDS, cwd=root, check=True
    )
    assert done.stdout == b"HELLO."


@pytest.mark.parametrize(
    "specification",
    ["", "nul", "null:x", "file:", "socket:", "unix:", "unix:,server", "unix:/x,server,now", "pty:x", "tcp:1.2.3.4:5"],
)
def test_what_is_no_specification(tmp_path: Path, specification: str) -> None:
    with pytest.raises(errors.ConfigError, match="expected"):
        Port(tmp_path, specification)
