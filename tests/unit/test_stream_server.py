"""Streams in the supervisor's loop: what a client may do to the others, which is nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmesh import endpoint
from vmesh.endpoint import Endpoint
from vmesh.loop import Loop
from vmesh_services.monitor.stream_server import HIGH_WATER, LIMIT, MOST_CLIENTS, Stream, StreamServer

DEADLINE = 60.0  # seconds


class Recorder:
    """A session that keeps what it is told."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.data = b""
        self.drains = 0
        self.gone = False

    def received(self, data: bytes) -> None:
        self.data += data

    def drained(self) -> None:
        self.drains += 1

    def ended(self) -> None:
        self.gone = True


class Rig:
    def __init__(self, where: Endpoint) -> None:
        self.loop = Loop()
        self.sessions: list[Recorder] = []
        self.server = StreamServer(self.loop, where, self._session)

    def _session(self, stream: Stream) -> Recorder:
        self.sessions.append(Recorder(stream))
        return self.sessions[-1]

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline
            self.loop.call_in("step", 0.01, self.loop.stop)
            self.loop.run()

    def client(self) -> tuple[socket.socket, Recorder]:
        count = len(self.sessions)
        if self.server.where.path is not None:
            peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            peer.connect(str(self.server.where.path))
        else:
            peer = socket.create_connection(("127.0.0.1", self.server.port))
        self.until(lambda: len(self.sessions) > count)
        return peer, self.sessions[-1]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(Endpoint(path=tmp_path / "s"))
    yield made
    made.server.close()


def test_stream_of_two_clients_each_gets_its_own(rig: Rig) -> None:
    one, its = rig.client()
    two, others = rig.client()
    one.sendall(b"1")
    two.sendall(b"2")
    rig.until(lambda: its.data == b"1" and others.data == b"2")
    its.stream.write(b"one")
    others.stream.write(b"two")
    assert (one.recv(9), two.recv(9)) == (b"one", b"two")


def test_stream_socket_is_its_owners(rig: Rig) -> None:
    assert rig.server.where.path is not None
    assert os.stat(rig.server.where.path).st_mode & 0o077 == 0


def test_stream_client_that_does_not_read_is_not_read_and_then_given_up(rig: Rig) -> None:
    peer, session = rig.client()
    while session.stream.backlog <= HIGH_WATER:
        session.stream.write(b"x" * 65536)
    peer.sendall(b"more")
    other, its = rig.client()
    other.sendall(b"1")
    rig.until(lambda: its.data == b"1")
    assert session.data == b""
    session.stream.write(bytes(LIMIT))
    assert session.gone
    assert session.stream.backlog == 0


def test_stream_client_that_reads_again_is_read_again(rig: Rig) -> None:
    peer, session = rig.client()
    while not session.stream.crowded:
        session.stream.write(b"x" * 65536)
    peer.sendall(b"more")
    peer.setblocking(False)

    def drained() -> bool:
        with contextlib.suppress(BlockingIOError):
            peer.recv(1 << 20)
        return session.data == b"more"

    rig.until(drained)
    assert session.drains


def test_stream_finish_closes_when_all_is_taken(rig: Rig) -> None:
    peer, session = rig.client()
    session.stream.write(b"x" * (1 << 20))
    session.stream.finish()
    got = 0
    peer.setblocking(False)

    def ended() -> bool:
        nonlocal got
        try:
            data = peer.recv(1 << 20)
        except BlockingIOError:
            return False
        got += len(data)
        return not data

    rig.until(ended)
    assert got == 1 << 20


def test_stream_held_client_is_read_later(rig: Rig) -> None:
    peer, session = rig.client()
    session.stream.hold(True)
    peer.sendall(b"wait")
    _, _ = rig.client()
    assert session.data == b""
    session.stream.hold(False)
    rig.until(lambda: session.data == b"wait")


def test_stream_over_tcp_on_loopback() -> None:
    rig = Rig(endpoint.parse("tcp:127.0.0.1:0,server=on,wait=off"))
    peer, session = rig.client()
    peer.sendall(b"hello")
    rig.until(lambda: session.data == b"hello")
    rig.server.close()


def test_stream_of_many_clients_the_silent_ones_make_room(rig: Rig) -> None:
    peers = [rig.client()[0] for _ in range(MOST_CLIENTS)]
    peers[0].sendall(b"1")
    rig.until(lambda: rig.sessions[0].data == b"1")
    peers.append(rig.client()[0])
    assert [session.gone for session in rig.sessions] == [False, True] + [False] * (MOST_CLIENTS - 1)
    assert peers[1].recv(1) == b""


def test_stream_of_many_clients_that_all_speak_one_more_is_turned_away(rig: Rig) -> None:
    peers = [rig.client()[0] for _ in range(MOST_CLIENTS)]
    for peer in peers:
        peer.sendall(b"1")
    rig.until(lambda: all(session.data == b"1" for session in rig.sessions))
    assert rig.server.where.path is not None
    late = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    late.connect(str(rig.server.where.path))
    late.setblocking(False)
    ends: list[bytes] = []

    def ended() -> bool:
        with contextlib.suppress(BlockingIOError):
            ends.append(late.recv(1))
        return bool(ends)

    rig.until(ended)
    assert ends == [b""]
    assert len(rig.server.streams) == MOST_CLIENTS


def test_stream_what_fails_for_a_client_costs_that_client(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Exception] = []
    rig.loop.failed = told.append
    peer, session = rig.client()
    monkeypatch.setattr(session, "received", lambda data: 1 // 0)
    other, its = rig.client()
    peer.sendall(b"1")
    other.sendall(b"2")
    rig.until(lambda: session.gone and its.data == b"2")
    assert [type(error) for error in told] == [ZeroDivisionError]
