"""Netdevs over sockets: frames, peers that are slow, gone or hostile."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.models.clock import FakeClock
from tests.waiting import wait_for
from vmesh import errors
from vmesh.log import Log
from vmesh.loop import Loop
from vmesh.netdev.frames import STAMP_BYTES, FrameSocket
from vmesh.netdev.hub import Hub
from vmesh.netdev.options import Stream
from vmesh.netdev.port import MAX_FRAME, MIN_FRAME
from vmesh.netdev.stream import StreamNetdev
from vmesh.time import Clock

FRAME = bytes(range(60))


class FakePort:
    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.room: int | None = None
        self.links: list[bool] = []
        self.writables = 0

    def receive(self, frames: Sequence[memoryview]) -> int:
        count = len(frames) if self.room is None else min(self.room, len(frames))
        self.got += [bytes(frame) for frame in frames[:count]]
        if self.room is not None:
            self.room -= count
        return count

    def writable(self) -> None:
        self.writables += 1

    def link(self, up: bool) -> None:
        self.links.append(up)


class Wire:
    """A netdev with its loop, and the peer's socket."""

    def __init__(self, path: Path, *, server: bool, clock: Clock | None = None) -> None:
        self.loop = Loop(clock)
        self.port = FakePort()
        asked = Stream(str(path), server, 0.001, guest_time=clock is not None)
        self.netdev = StreamNetdev(asked, self.loop, Log("net", Path("/dev/null")), self.port)

    def until(self, done: Callable[[], bool]) -> None:
        for _ in range(2000):
            if done():
                return
            self.loop.call_in("test", 0.01, lambda: None)  # a turn ends, if nothing else does it
            self.loop._step()
        raise AssertionError("it did not happen")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def wire(path: Path) -> Iterator[tuple[Wire, socket.socket]]:
    made = Wire(path, server=True)
    made.netdev.start()
    peer = connect(path)
    made.until(lambda: made.port.links == [True])
    with peer:
        yield made, peer
    made.netdev.close()


def connect(path: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(20)
    peer.connect(str(path))
    return peer


def packet(frame: bytes) -> bytes:
    return struct.pack(">I", len(frame)) + frame


def read_exactly(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = peer.recv(size - len(data))
        assert part
        data += part
    return data


def test_both_ways(wire: tuple[Wire, socket.socket]) -> None:
    made, peer = wire
    assert made.netdev.send([[memoryview(FRAME[:10]), memoryview(FRAME[10:])], [memoryview(FRAME[:20])]]) == 2
    assert read_exactly(peer, 88) == packet(FRAME) + packet(FRAME[:20])
    peer.sendall(packet(FRAME) + packet(bytes(MAX_FRAME)))
    made.until(lambda: len(made.port.got) == 2)
    assert made.port.got == [FRAME, bytes(MAX_FRAME)]


@pytest.mark.parametrize("through_hub", [False, True])
def test_frames_carry_guest_time_between_machines_that_have_agreed_on_it(path: Path, through_hub: bool) -> None:
    loop, hub = Loop(), None
    if through_hub:
        hub = Hub(loop, path)
    clocks = FakeClock(), FakeClock()
    clocks[0].advance(1_000)
    wires = [Wire(path, server=not (through_hub or number), clock=clock) for number, clock in enumerate(clocks)]
    first, second = wires
    for each in wires:
        each.netdev.start()

    def turned(reached: Callable[[], bool]) -> bool:
        for each in (loop, *(wire.loop for wire in wires)):
            each.call_in("turn", 0.002, lambda: None)
            each._step()
        return reached()

    wait_for(lambda: turned(lambda: all(each.port.links[-1:] == [True] for each in wires)), "the links")
    largest = bytes(MAX_FRAME - STAMP_BYTES)
    assert first.netdev.send([[memoryview(FRAME)], [memoryview(largest)]]) == 2
    wait_for(lambda: turned(lambda: len(second.port.got) == 2), "the frames")
    assert second.port.got == [FRAME, largest]
    assert second.netdev._frames is not None
    assert second.netdev._frames.time_ns == 1_000
    for each in wires:
        each.netdev.close()
    if hub is not None:
        hub.close()


def test_a_frame_without_the_time_that_it_should_have_is_nobodys(path: Path) -> None:
    made = Wire(path, server=True, clock=FakeClock())
    made.netdev.start()
    short, right = packet(bytes(MIN_FRAME + STAMP_BYTES - 1)), packet(struct.pack(">Q", 7) + FRAME)
    with connect(path) as peer:
        made.until(lambda: made.port.links == [True])
        peer.sendall(short + right + short + right + short)
        made.until(lambda: len(made.port.got) == 2)
        made.port.room = 0
        peer.sendall(short + right + short)
        made.until(lambda: made.netdev._refused)
        made.port.room = None
        made.netdev.resume()
        assert made.port.got == [FRAME] * 3
        assert made.netdev._frames is not None
        assert made.netdev._frames.time_ns == 7
        longest = bytes(MAX_FRAME - STAMP_BYTES)
        assert made.netdev.send([[memoryview(bytes(MAX_FRAME))], [memoryview(longest)]]) == 2
        assert read_exactly(peer, 4 + STAMP_BYTES + len(longest)) == packet(bytes(STAMP_BYTES) + longest)
    made.netdev.close()


def test_a_peer_that_listens_and_does_not_accept(path: Path) -> None:
    """Its queue is full: the card does not wait for it, its link is down until there is a place."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with connect(path):
            made = Wire(path, server=False)
            made.netdev.start()
            for _ in range(3):
                made.loop.call_in("test", 0.002, lambda: None)
                made.loop._step()
            assert made.port.links == []
            assert made.netdev.send([[memoryview(FRAME)]]) == 1  # lost, as with no peer at all
            listener.accept()[0].close()
            made.until(lambda: made.port.links == [True])
            made.netdev.close()


def test_byte_by_byte(wire: tuple[Wire, socket.socket]) -> None:
    made, peer = wire
    for byte in packet(FRAME) + packet(FRAME[::-1]):
        peer.sendall(bytes((byte,)))
        made.netdev._readable()
    assert made.port.got == [FRAME, FRAME[::-1]]


@pytest.mark.parametrize("length", [0, 13, MAX_FRAME + 1, 0xFFFF_FFFF])
def test_a_length_that_no_frame_has_ends_the_connection(wire: tuple[Wire, socket.socket], length: int) -> None:
    made, peer = wire
    peer.sendall(struct.pack(">I", length) + bytes(100))
    made.until(lambda: made.port.links == [True, False])
    assert not made.port.got
    assert peer.recv(1) == b""


def test_what_is_not_taken_waits_and_is_not_read_on(wire: tuple[Wire, socket.socket]) -> None:
    made, peer = wire
    made.port.room = 1
    for number in range(5):
        peer.sendall(packet(bytes([number]) * 20))
    made.until(lambda: len(made.port.got) == 1)
    peer.settimeout(0)
    sent = 0
    with suppress(BlockingIOError):  # the peer finds out
        while sent < 16 << 20:
            sent += peer.send(bytes(1 << 16))
            made.loop.call_in("test", 0, lambda: None)
            made.loop._step()
    assert sent < 16 << 20
    made.port.room = None
    made.netdev.resume()
    assert made.port.got[:5] == [bytes([number]) * 20 for number in range(5)]


def test_a_peer_that_does_not_read_gets_whole_frames_in_order(wire: tuple[Wire, socket.socket]) -> None:
    made, peer = wire
    frames = [struct.pack(">I", number) * 4000 for number in range(400)]
    accepted = 0
    while accepted < len(frames):
        count = made.netdev.send([[memoryview(frame)] for frame in frames[accepted : accepted + 16]])
        accepted += count
        if not count:
            break
    assert 0 < accepted < len(frames)
    assert made.netdev.send([[memoryview(FRAME)]]) == 0
    size = len(packet(frames[0]))
    received = b""
    for number in range(accepted):
        while len(received) < size:
            part = peer.recv(1 << 20)
            assert part
            received += part
            made.loop.call_in("test", 0, lambda: None)
            made.loop._step()
        assert received[:size] == packet(frames[number])
        received = received[size:]
    made.until(lambda: made.port.writables > 0)
    assert made.netdev.send([[memoryview(FRAME)]]) == 1
    assert read_exactly(peer, 64 - len(received)) == packet(FRAME)


def test_a_frame_of_very_many_pieces(wire: tuple[Wire, socket.socket]) -> None:
    made, peer = wire
    data = bytes(number % 251 for number in range(3000))
    pieces = [memoryview(data[at : at + 1]) for at in range(len(data))]
    few = [memoryview(FRAME)[at : at + 2] for at in range(0, 60, 2)]
    assert made.netdev.send([pieces, *[few] * 40]) == 41
    assert read_exactly(peer, 3004 + 40 * 64) == packet(data) + 40 * packet(FRAME)


def test_without_a_peer_frames_are_lost_and_the_next_one_is_taken(wire: tuple[Wire, socket.socket], path: Path) -> None:
    made, peer = wire
    peer.sendall(packet(FRAME)[:9])  # a part, which the next peer's frames do not continue
    peer.close()
    made.until(lambda: made.port.links == [True, False])
    assert made.netdev.send([[memoryview(FRAME)]]) == 1
    with connect(path) as other:
        made.until(lambda: made.port.links == [True, False, True])
        other.sendall(packet(FRAME[::-1]))
        made.until(lambda: bool(made.port.got))
    assert made.port.got == [FRAME[::-1]]


def test_a_second_peer_waits_for_the_end_of_the_first(wire: tuple[Wire, socket.socket], path: Path) -> None:
    made, peer = wire
    with connect(path) as other:
        other.sendall(packet(FRAME))
        peer.sendall(packet(FRAME[::-1]))
        made.until(lambda: bool(made.port.got))
        peer.close()
        made.until(lambda: len(made.port.got) == 2)
    assert made.port.got == [FRAME[::-1], FRAME]


def test_a_client_tries_again(path: Path) -> None:
    made = Wire(path, server=False)
    made.netdev.start()
    assert made.port.links == []
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen()
            made.until(lambda: made.port.links[-1:] == [True])
            connection, _ = listener.accept()
            with connection:
                connection.sendall(packet(FRAME))
                made.until(lambda: made.port.got[-1:] == [FRAME])
        path.unlink()
        made.until(lambda: made.port.links[-1:] == [False])
        made.port.got.clear()
    assert made.port.links == [True, False, True, False]
    made.netdev.close()


def test_a_peer_that_is_gone_is_noticed_when_sending(wire: tuple[Wire, socket.socket]) -> None:
    made, peer = wire
    peer.close()
    assert made.netdev.send([[memoryview(FRAME)]]) == 1
    assert made.port.links == [True, False]


def test_a_path_where_somebody_listens_is_refused(wire: tuple[Wire, socket.socket], path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="cannot listen"):
        Wire(path, server=True).netdev.start()


def test_a_path_that_was_left_behind_is_taken(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as former:
        former.bind(str(path))
    made = Wire(path, server=True)
    made.netdev.start()
    assert path.stat().st_mode & 0o77 == 0
    with connect(path):
        made.until(lambda: made.port.links == [True])
    made.netdev.close()


def test_a_frame_longer_than_what_is_left_of_the_buffer() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames = FrameSocket(ours)
        theirs.settimeout(20)
        got = 0
        for number in range(60):
            theirs.sendall(packet(bytes([number]) * 40_000))
            frames.fill()
            for frame in (found := frames.frames()):
                assert bytes(frame) == bytes([got]) * 40_000
                got += 1
            frames.take(found)
        while got < 60:
            frames.fill()
            found = frames.frames()
            got += len(found)
            frames.take(found)
