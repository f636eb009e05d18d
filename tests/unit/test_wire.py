"""Packets, errors on the wire, and the refusals of a server, without a service behind them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.waiting import wait_for
from vmesh import connection_events, errors, wire
from vmesh.log import Log
from vmesh.processes import Processes
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import memory_pb2 as memory
from vmesh.v1.common_pb2 import Hello, Welcome
from vmesh.v1.lifecycle_pb2 import Health, Pause
from vmesh.v1.packet_pb2 import Packet

SECONDS = 10.0


def test_every_body_travels() -> None:
    for field in Packet.DESCRIPTOR.oneofs_by_name["body"].fields:
        body = getattr(Packet(), field.name)
        packet = wire.parse(wire.make(body, 7).SerializeToString())
        assert packet.id == 7
        assert packet.WhichOneof("body") == field.name
        assert wire.body_of(packet) == body
    assert wire.body_of(Packet(id=3)) is None


def test_what_is_no_packet() -> None:
    with pytest.raises(errors.BadRequest, match="3 bytes"):
        wire.parse(b"\xff\xff\xff")


@pytest.mark.parametrize(
    "kind", [k for k in vars(errors).values() if isinstance(k, type) and k.__module__ == "vmesh.errors"]
)
def test_errors_survive_the_wire(kind: type[errors.VmeshError]) -> None:
    sent = kind("it failed", expected="this", got="that")
    came = errors.from_message(sent.message())
    assert str(came) == str(sent) == "it failed: expected this, got that"
    if kind.code != "ERROR_INTERNAL":
        assert type(came) is kind


def test_an_error_is_one_line() -> None:
    assert str(errors.BadRequest("a\nb", got="c\n d")) == "a b: got c d"


class Listener:
    """A server, and peers that it answers when asked to."""

    def __init__(self, directory: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.greeted: list[wire.Client] = []
        self.refuse: errors.VmeshError | None = None
        self.path = directory / "one.sock"
        self.server = wire.Server(
            self.context, self.path, "one", Log("one", directory / "log"), self.greet, self.greeted.append
        )

    def greet(self, client: wire.Client) -> Welcome:
        if self.refuse:
            raise self.refuse
        return Welcome(kind="test", epoch=3)

    def peer(self, said: Hello) -> wire.Peer:
        return wire.Peer(self.context, wire.endpoint(self.path), said)

    def ask(self, peer: wire.Peer, packet: Packet) -> Packet:
        """What the server answers by itself."""
        peer.send_packet(packet)
        self.take_in()
        return answer_of(peer)

    def take_in(self) -> None:
        """What comes next, of what the server deals with by itself."""
        assert self.server.socket.poll(int(SECONDS * 1000))
        assert self.server.receive() is None

    def hold(self, said: Hello) -> wire.Peer:
        """A new peer, whose Hello is not answered yet."""
        peer = self.peer(said)
        peer.send(said)
        self.take_in()
        return peer

    def hello(self, role: common.Role.ValueType, name: str) -> Packet:
        """What the server answers to a new peer's Hello."""
        said = wire.hello(role, name)
        return self.ask(self.peer(said), wire.make(said, 1))

    def know(self, **processes: int) -> None:
        """The monitor tells which process is which service."""
        self.server.tell(processes)

    def welcome(self, role: common.Role.ValueType) -> wire.Peer:
        peer = self.peer(wire.hello(role, "peer"))
        answer = self.ask(peer, wire.make(wire.hello(role, "peer"), 1))
        assert answer.welcome.name == "one", answer
        return peer


def answer_of(peer: wire.Peer) -> Packet:
    answer = peer.receive(SECONDS)
    assert answer is not None
    return answer


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    made = Listener(tmp_path)
    yield made
    made.context.destroy(0)


def test_welcome_and_what_follows(listener: Listener) -> None:
    peer = listener.welcome(common.ROLE_MONITOR)
    assert [client.name for client in listener.greeted] == ["peer"]
    number = peer.send(Health())
    assert listener.server.socket.poll(int(SECONDS * 1000))
    received = listener.server.receive()
    assert received is not None
    client, packet = received
    assert (client.role, packet.id, packet.WhichOneof("body")) == (common.ROLE_MONITOR, number, "health")


def test_the_monitor_is_one_process(listener: Listener) -> None:
    """Whoever else says its role is refused, also who has said another one before."""
    listener.server._processes = Processes(os.getpid())
    assert listener.hello(common.ROLE_MONITOR, "monitor").HasField("welcome")
    listener.server._processes = Processes(os.getppid())
    listener.server._processes.tell({"cpu": os.getpid()})
    peer = listener.peer(wire.hello(common.ROLE_MONITOR, "monitor"))
    for role, name, answer in (
        (common.ROLE_MONITOR, "monitor", "refused"),
        (common.ROLE_HART, "cpu", "welcome"),
        (common.ROLE_MONITOR, "monitor", "refused"),
    ):
        said = listener.ask(peer, wire.make(wire.hello(role, name), 1))
        assert said.WhichOneof("body") == answer
        assert said.refused.expected == ("the process that is ROLE_MONITOR monitor" if answer == "refused" else "")


@pytest.mark.parametrize(
    ("owner", "role"),
    [
        ("cpu", common.ROLE_CPU),
        ("cpu", common.ROLE_HART),
        ("cpu", common.ROLE_IRQCHIP),
        ("migration", common.ROLE_MIGRATION),
        ("cache", common.ROLE_CACHE),
        ("uart0", common.ROLE_DEVICE),
    ],
)
def test_a_role_is_for_the_process_that_has_it(listener: Listener, owner: str, role: common.Role.ValueType) -> None:
    listener.server._processes = Processes(os.getppid())
    listener.know(**{"rogue": os.getpid(), owner: 1 << 30})
    refused = listener.hello(role, owner).refused
    assert refused.expected == f"the process that is {common.Role.Name(role)} {owner}"
    listener.know(**{owner: os.getpid()})
    assert listener.hello(role, owner).HasField("welcome")
    listener.know(rogue=os.getpid())  # it was that process, and is no more
    assert not listener.server.clients
    assert listener.server.counters["refused: process"] == 1


def test_a_process_that_the_monitor_has_yet_to_tell_of_waits(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the two comes first; and not for ever."""
    listener.server._processes = Processes(os.getppid())
    said = wire.hello(common.ROLE_CPU, "cpu")
    gone, peer = listener.hold(said), listener.hold(said)
    assert gone.receive() is None
    assert peer.receive() is None
    gone.socket.close(0)
    listener.know(memory=1 << 30)
    assert not listener.server.clients
    listener.know(cpu=os.getpid())
    assert answer_of(peer).HasField("welcome")
    listener.know(memory=1 << 30)
    monkeypatch.setattr(wire, "_HELD_SECONDS", 0.0)
    peer = listener.hold(said)
    listener.server.receive()  # looks at who has waited for too long
    assert answer_of(peer).HasField("refused")
    assert not listener.server._held


def test_who_waits_for_the_monitor_is_bounded(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_MAX_CLIENTS", 3)
    listener.server._processes = Processes(os.getppid())
    said = wire.hello(common.ROLE_CPU, "cpu")
    peers = [listener.hold(said) for _ in range(5)]
    assert len(listener.server._held) == 3
    for peer in peers[:2]:
        assert answer_of(peer).HasField("refused")


def test_a_device_started_by_hand_is_any_process_that_is_no_service(listener: Listener) -> None:
    listener.server._processes = Processes(os.getppid())
    listener.know(copier0=0)
    assert listener.hello(common.ROLE_DEVICE, "copier0").HasField("welcome")
    listener.know(copier0=0, rogue=os.getpid())
    assert listener.hello(common.ROLE_DEVICE, "copier0").HasField("refused")


def test_what_a_service_has_started_is_that_service() -> None:
    """Below it, or left alone in its session; not so what the monitor has started."""
    processes = Processes(os.getpid())
    command = ["sh", "-c", "sleep 60 & echo $!; setsid sleep 60 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as first:
        assert first.stdout is not None
        inside, outside = (int(first.stdout.readline()) for _ in range(2))
        wait_for(lambda: os.getsid(outside) == outside, "it to leave the session")
        there = (os.getpid(), first.pid, inside, outside)
        assert [processes.name_of(each) for each in there] == ["monitor", "", "", ""]
        processes.tell({"copier0": first.pid})
        assert [processes.name_of(each) for each in there] == ["monitor", "copier0", "copier0", "copier0"]
        first.kill()
        first.wait()
        assert [processes.name_of(each) for each in (inside, outside)] == ["copier0", ""]
        for each in (inside, outside):
            os.kill(each, signal.SIGKILL)


def test_what_is_outside_its_limits_is_refused_and_told(listener: Listener) -> None:
    told: list[str] = []
    listener.server._broken = lambda client, how: told.append(f"{client.name}: {how}")
    peer = listener.welcome(common.ROLE_DEVICE)
    answer = listener.ask(peer, wire.make(memory.DmaRead(size=1 << 30), 7))
    assert (answer.id, answer.error.code) == (7, common.ERROR_BAD_REQUEST)
    assert told == ["peer: dma_read.size: expected at most 1048576, got 1073741824"]
    listener.server.send(listener.greeted[0], Welcome(epoch=1 << 40))
    with pytest.raises(errors.OutsideLimits, match="expected at most 4294967295"):
        peer.receive(SECONDS)


def test_the_socket_is_its_owners_only(listener: Listener) -> None:
    assert os.stat(listener.path).st_mode & 0o077 == 0


def test_the_greeter_may_refuse(listener: Listener) -> None:
    listener.refuse = errors.BadRequest("not you", expected="another", got="you")
    peer = listener.peer(wire.hello(common.ROLE_HART, "peer"))
    answer = listener.ask(peer, wire.make(wire.hello(common.ROLE_HART, "peer"), 1))
    assert answer.refused.reason == "not you: expected another, got you"
    assert not listener.server.clients


def test_roles(listener: Listener) -> None:
    hart = listener.welcome(common.ROLE_HART)
    answer = listener.ask(hart, wire.make(Pause(), 2))
    assert (answer.id, answer.error.code) == (2, common.ERROR_NOT_ALLOWED)
    answer = listener.ask(hart, wire.make(Welcome(), 3))
    assert (answer.id, answer.error.code) == (3, common.ERROR_BAD_REQUEST)
    assert listener.server.counters["refused"] == 2


def test_a_client_that_is_gone_is_forgotten(listener: Listener) -> None:
    peer = listener.welcome(common.ROLE_MONITOR)
    client = listener.greeted[0]
    peer.socket.close(0)
    while client.identity in listener.server.clients:
        listener.server.send(client, Health())


def test_connections_are_bounded_and_those_of_the_gone_are_used_again(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_MAX_CLIENTS", 3)
    peers = [listener.welcome(common.ROLE_MONITOR) for _ in range(3)]
    said = wire.hello(common.ROLE_MONITOR, "peer")
    one_more = listener.peer(said)
    assert listener.ask(one_more, wire.make(said, 1)).refused.expected == "at most 3 connections"
    peers[0].socket.close(0)
    for _ in range(100):
        answer = listener.ask(one_more, wire.make(said, 1))
        if answer.WhichOneof("body") == "welcome":
            break
    assert answer.welcome.name == "one"


def test_one_device_does_not_take_the_connections_of_others(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_MAX_OF_DEVICE", 3)
    peers = [listener.welcome(common.ROLE_DEVICE) for _ in range(3)]
    said = wire.hello(common.ROLE_DEVICE, "peer")
    assert listener.ask(listener.peer(said), wire.make(said, 1)).refused.expected == "at most 3 connections"
    assert listener.hello(common.ROLE_DEVICE, "another").HasField("welcome")
    assert listener.hello(common.ROLE_MONITOR, "peer").HasField("welcome")
    for peer in peers:
        peer.socket.close(0)


def test_refusals_are_logged_at_powers_of_ten(listener: Listener, tmp_path: Path) -> None:
    for _ in range(1234):
        listener.server.note_refusal("cause", "text")
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split("count=")[1].split()[0] for line in lines] == ["1", "10", "100", "1000"]


def test_a_peer_waits_no_longer_than_told(listener: Listener) -> None:
    with pytest.raises(errors.PeerTimeout, match="Hello"):
        listener.peer(wire.hello(common.ROLE_MONITOR, "peer")).greet(0.01)


def test_a_peer_ends_with_its_lifeline(listener: Listener) -> None:
    reader, writer = os.pipe()
    said = wire.hello(common.ROLE_MONITOR, "peer")
    peer = wire.Peer(listener.context, wire.endpoint(listener.path), said, lifeline=reader)
    os.close(writer)
    with pytest.raises(errors.LifelineEnded):
        peer.greet(SECONDS)
    os.close(reader)


def test_what_memory_says_to_a_device_is_bounded_though_nobody_reads_it(tmp_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.SNDHWM, 1)
    router.bind(wire.endpoint(tmp_path / "memory.sock"))
    peer = wire.Peer(context, wire.endpoint(tmp_path / "memory.sock"), wire.hello(common.ROLE_DEVICE, "disk"))
    peer.say_hello()
    sender, _ = router.recv_multipart()
    answer = wire.make(memory.DmaDone(data=bytes(1 << 20)), 7).SerializeToString()
    router.setsockopt(zmq.SNDTIMEO, 1000)  # for the thread that moves them

    def flood() -> None:
        for _ in range(300):
            router.send_multipart([sender, answer])

    with pytest.raises(zmq.Again):
        flood()
    packet = peer.receive(SECONDS)
    assert packet is not None
    assert len(packet.dma_done.data) == 1 << 20
    context.destroy(0)


def test_a_place_that_cannot_be_bound(tmp_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with pytest.raises(errors.ConfigError, match="cannot listen"):
        wire.Server(context, tmp_path / "none" / "x.sock", "x", Log("x"), lambda client: Welcome(), lambda client: None)
    context.destroy(0)


def test_who_reads_each_answer_misses_none(tmp_path: Path) -> None:
    """However little room there is, and however fast it goes: a ROUTER looks for room only now and then by itself."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    path = tmp_path / "one.sock"
    server = wire.Server(context, path, "one", Log("one"), lambda client: Welcome(), lambda client: None, unread=2)
    peer = wire.Peer(context, wire.endpoint(path), wire.hello(common.ROLE_DEVICE, "fast"))
    try:
        peer.say_hello()
        assert server.socket.poll(int(SECONDS * 1000))
        assert server.receive() is None
        (client,) = server.clients.values()
        for number in range(3000):
            assert server.send(client, Health(), number), number
            while (answer := peer.receive(SECONDS)) is not None and answer.WhichOneof("body") != "health":
                pass
            assert answer is not None, number
    finally:
        peer.abandon()
        server.close()
        context.destroy(0)


def test_the_events_of_a_socket_are_never_taken_for_those_of_one_that_has_just_been_closed() -> None:
    """A descriptor's number is another's as soon as it is free, and ZeroMQ closes a socket a moment after us."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    for _ in range(100):
        followed = context.socket(zmq.DEALER)
        connection_events.follow(followed, zmq.EVENT_DISCONNECTED).close(0)
        followed.close(0)
    context.term()
