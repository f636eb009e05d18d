"""Descriptors that one process gives another: who gets them, how often, how many wait."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from tests.waiting import LIMIT
from vmesh import connecting, errors, files
from vmesh.files import FileServer
from vmesh.loop import Loop


class Server:
    def __init__(self, folder: Path) -> None:
        self.path, self.loop = folder / "m.files", Loop()
        self.files = FileServer(self.path, self.loop)
        self.file = folder / "file"
        self.file.write_bytes(b"content")

    def take(self, token: bytes, count: int = 1) -> list[int]:
        """As a client in another process would: the loop turns meanwhile."""
        found: list[list[int] | OSError] = []

        def ask() -> None:
            try:
                found.append(files.take(self.path, token, count))
            except OSError as error:
                found.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        while thread.is_alive():
            self.turn()
        thread.join(LIMIT)
        (answer,) = found
        if isinstance(answer, OSError):
            raise answer
        return answer

    def turn(self) -> None:
        self.loop.call_in("turn", 0.005, lambda: None)
        self.loop._step()


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def descriptors(file: Path) -> int:
    """How many of this process's stand for that file."""
    return sum(os.path.realpath(f"/proc/self/fd/{fd}") == os.path.realpath(file) for fd in os.listdir("/proc/self/fd"))


def test_a_file_is_given_once_to_who_has_its_token(server: Server) -> None:
    token = server.files.offer([server.file, server.file], "w")
    first, second = server.take(token, 2)
    for fd in (first, second):
        assert os.pread(fd, 100, 0) == b"content"
        assert not os.get_inheritable(fd)
        os.close(fd)
    with pytest.raises(PermissionError, match="descriptors"):
        server.take(token, 2)


def test_nobody_else_gets_anything_and_nothing_is_left_open(server: Server) -> None:
    token = server.files.offer([server.file], "w")
    for wrong in (b"", bytes(16), token[:-1], token + b"x"):
        with pytest.raises(PermissionError, match="descriptors"):
            server.take(wrong)
    with pytest.raises(PermissionError, match="descriptors"):
        server.take(token, 2)  # fewer than it wants: it has taken them all the same
    server.turn()
    assert descriptors(server.file) == 0


def test_offers_are_bounded_and_end(server: Server) -> None:
    first = server.files.offer([server.file], "who asks again and again")
    for _ in range(2 * files.MOST_OFFERS):
        token = server.files.offer([server.file], "who asks again and again")
    assert descriptors(server.file) == 1, "the newest takes the place of the former one"
    with pytest.raises(PermissionError, match="descriptors"):
        server.take(first)
    (fd,) = server.take(token)
    os.close(fd)
    for number in range(files.MOST_OFFERS):
        server.files.offer([server.file], number)
    with pytest.raises(errors.TooMany):
        server.files.offer([server.file], "one more")
    server.files._offers = {token: (0.0, fds) for token, (_, fds) in server.files._offers.items()}
    server.files._expire()
    assert descriptors(server.file) == 0
    with pytest.raises(FileNotFoundError):
        server.files.offer([server.file, server.file.with_name("absent")], "w")
    assert descriptors(server.file) == 0


def test_who_says_nothing_holds_nobody_up(server: Server) -> None:
    silent = [connecting.now(server.path, socket.SOCK_SEQPACKET) for _ in range(16)]
    for _ in silent:
        server.turn()
    more = connecting.now(server.path, socket.SOCK_SEQPACKET)
    (fd,) = server.take(server.files.offer([server.file], "w"))
    os.close(fd)
    silent[0].setblocking(True)
    assert silent[0].recv(1) == b"", "the oldest went"
    for each in (*silent, more):
        each.close()


def test_only_its_owner_can_connect(server: Server) -> None:
    assert server.path.stat().st_mode & 0o077 == 0
