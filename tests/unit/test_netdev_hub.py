"""The hub: who gets what, and what a machine that is slow, hostile or gone does to the others."""

from __future__ import annotations

import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vmesh.loop import Loop
from vmesh.netdev import hub
from vmesh.netdev.hub import MAX_MACHINES, QUEUE_BYTES, Hub
from vmesh.netdev.port import MAX_FRAME

FRAME = bytes(range(60))


class Network:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = Loop()
        self.said: list[str] = []
        self.hub = Hub(self.loop, path, self.said.append)
        self.sockets: list[socket.socket] = []

    def join(self) -> socket.socket:
        before = self.hub.machines
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sockets.append(made)
        made.connect(str(self.path))
        made.settimeout(0)
        self.until(lambda: self.hub.machines == before + 1)
        return made

    def until(self, done: Callable[[], bool]) -> None:
        for _ in range(2000):
            if done():
                return
            self.turn(0.01)
        raise AssertionError("it did not happen")

    def turn(self, seconds: float = 0.0) -> None:
        self.loop.call_in("test", seconds, lambda: None)
        self.loop._step()

    def send(self, machine: socket.socket, data: bytes) -> None:
        """As much as the hub takes, while it works."""
        rest = data

        def done() -> bool:
            nonlocal rest
            with suppress(BlockingIOError):
                rest = rest[machine.send(rest) :]
            return not rest

        self.until(done)

    def read(self, machine: socket.socket, size: int) -> bytes:
        data = b""

        def done() -> bool:
            nonlocal data
            try:
                data += machine.recv(size - len(data))
            except BlockingIOError:
                return False
            return len(data) == size

        self.until(done)
        return data


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    made = Network(tmp_path / "hub")
    yield made
    for each in made.sockets:
        each.close()
    made.hub.close()
    assert not made.path.exists()


def packet(frame: bytes) -> bytes:
    return struct.pack(">I", len(frame)) + frame


def test_all_others_get_a_frame(network: Network) -> None:
    first, second, third = (network.join() for _ in range(3))
    network.send(first, packet(FRAME))
    assert network.read(second, 64) == network.read(third, 64) == packet(FRAME)
    network.send(third, packet(FRAME[::-1]))
    assert network.read(first, 64) == packet(FRAME[::-1])  # and not its own


def test_only_the_owner_may_join(network: Network) -> None:
    assert stat.S_IMODE(network.path.stat().st_mode) & 0o77 == 0


def test_a_machine_that_does_not_read_loses_whole_frames_and_holds_nobody_up(network: Network) -> None:
    sender, slow, quick = (network.join() for _ in range(3))
    frames = [struct.pack(">I", number) * 8000 for number in range(200)]
    for frame in frames:
        network.send(sender, packet(frame))
        assert network.read(quick, len(frame) + 4) == packet(frame)
    assert network.hub.dropped > 0
    kept = next(each for each in network.hub._machines if each.queue)
    assert kept.queued <= QUEUE_BYTES
    size = len(packet(frames[0]))
    got = 200 - network.hub.dropped
    assert got > QUEUE_BYTES // size
    assert network.read(slow, got * size) == b"".join(packet(frame) for frame in frames[:got])
    network.until(lambda: not kept.queue)
    network.send(sender, packet(FRAME))
    assert network.read(slow, 64) == packet(FRAME)  # and goes on


def test_many_small_frames_are_bounded_too(network: Network) -> None:
    sender, _slow = network.join(), network.join()
    slow = network.hub._machines[1]
    for _ in range(1000):
        network.send(sender, packet(bytes(14)) * 1000)
        if network.hub.dropped:
            break
    assert network.hub.dropped
    assert len(slow.queue) < QUEUE_BYTES // 64


@pytest.mark.parametrize("length", [0, 13, MAX_FRAME + 1])
def test_a_machine_that_sends_nonsense_is_put_out(network: Network, length: int) -> None:
    bad, first, second = (network.join() for _ in range(3))
    network.send(bad, struct.pack(">I", length) + FRAME)
    network.until(lambda: network.hub.machines == 2)
    network.send(first, packet(FRAME))
    assert network.read(second, 64) == packet(FRAME)


def test_a_machine_may_go_in_the_middle_of_a_frame(network: Network) -> None:
    gone, first, second = (network.join() for _ in range(3))
    network.send(gone, packet(FRAME)[:20])
    gone.close()
    network.until(lambda: network.hub.machines == 2)
    network.send(first, packet(FRAME))
    assert network.read(second, 64) == packet(FRAME)


def test_more_machines_than_there_is_room_for_are_refused(network: Network) -> None:
    machines = [network.join() for _ in range(MAX_MACHINES - 1)]
    assert network.said == []
    last = network.join()
    assert "full: 64 machines" in network.said[0]
    late = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    network.sockets.append(late)
    with pytest.raises(ConnectionRefusedError):
        late.connect(str(network.path))  # its link stays down
    machines[0].close()
    network.until(lambda: network.hub.machines == MAX_MACHINES - 1)
    assert len(network.said) == 2
    again = network.join()
    network.send(last, packet(FRAME))
    assert network.read(again, 64) == packet(FRAME)


def test_a_full_hub_whose_place_was_taken(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_MACHINES", 2)
    first, second = network.join(), network.join()
    network.path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(network.path))
        other.listen()
        first.close()
        network.until(lambda: network.hub.machines == 1)
        assert "cannot listen" in network.said[-1]
    second.close()
    network.until(lambda: network.hub.machines == 0)
