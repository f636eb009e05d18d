"""A hart's link to a device that dies, forgets, talks nonsense or says nothing: the test plays the device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zmq

from vmesh import wire
from vmesh.limits import BROKEN
from vmesh.v1.bus_pb2 import (
    READ_SHADOW,
    Access,
    BatchDone,
    Description,
    DeviceUpdate,
    Line,
    Region,
    RegionPlace,
    Register,
    ShadowValue,
)
from vmesh.v1.common_pb2 import ROLE_HART, Refused, Welcome
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.cpu.bus.device import BusDevice, RegisterTable
from vmesh_services.cpu.bus.link import Counters, Ending, Link, NoAnswer

PATIENCE = 10_000  # ms


class Played:
    """The device: executes what it is sent, in order, and keeps `done` and `handled` over its lives."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: Path) -> None:
        self.context = context
        self.endpoint = f"ipc://{path}"
        self.epoch = 0
        self.done = 0
        self.handled: list[int] = []  # values written; -1 for a read
        self.value = 0  # of the last read
        self.window = 8
        self.born()

    def born(self) -> None:
        self.epoch += 1
        self.router = self.context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.RCVTIMEO, PATIENCE)
        self.router.setsockopt(zmq.LINGER, 0)
        self.router.bind(self.endpoint)

    def die(self) -> None:
        self.router.close(0)

    def receive(self) -> tuple[bytes, Packet]:
        sender, frame = self.router.recv_multipart()
        return sender, Packet.FromString(frame)

    def send(self, to: bytes, body: BatchDone | Welcome | Refused, packet_id: int) -> None:
        self.router.send_multipart([to, wire.make(body, packet_id).SerializeToString()])

    def welcome(self) -> None:
        """Answer the next Hello, which must be what comes."""
        sender, packet = self.receive()
        assert packet.WhichOneof("body") == "hello", packet
        self.send(sender, Welcome(major=1, epoch=self.epoch, window=self.window, done=self.done), packet.id)

    def execute(self) -> tuple[bytes, int]:
        """Take the next batch as the protocol says, without an answer yet."""
        sender, packet = self.receive()
        batch = packet.access_batch
        assert packet.WhichOneof("body") == "access_batch", packet
        assert batch.epoch == self.epoch
        assert batch.sequence <= self.done + 1
        for number, access in enumerate(batch.accesses, batch.sequence):
            if number > self.done:
                self.done = number
                self.handled.append(access.value if access.write else -1)
                self.value = len(self.handled)
        return sender, packet.id

    def answer(self) -> None:
        sender, packet_id = self.execute()
        self.acknowledge(sender, packet_id)

    def acknowledge(self, sender: bytes, packet_id: int) -> None:
        self.send(sender, BatchDone(epoch=self.epoch, done=self.done, value=self.value, credits=self.window), packet_id)


class NoBoard:
    """These devices drive nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


class Bench:
    """The link in a thread of its own, as in a hart, and the device in front of it."""

    def __init__(self, path: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.played = Played(self.context, path / "device.sock")
        self.counters = Counters()
        self.complaints: list[str] = []
        self.ending = threading.Event()
        register = Register(offset=0, size=4, read=READ_SHADOW)
        region = Region(name="registers", base=0, size=8, access_sizes=4, registers=[register])
        description = Description(
            name="device", epoch=1, endpoint=self.played.endpoint, regions=[region], lines=[Line(irq=1)]
        )
        self.device = BusDevice(0, description, NoBoard(), [RegisterTable(region)])
        self._pool = ThreadPoolExecutor(1)
        self.limit = 60.0
        self.still = threading.Event()  # the hart is to stand still

    def link(self) -> Link:
        def make() -> Link:
            made = Link(
                lambda: wire.Peer(self.context, self.played.endpoint, wire.hello(ROLE_HART, "cpu")),
                self.device, self.counters, self.ending, self.limit, lambda what, text: self.complaints.append(what),
                wanted_still=self.still.is_set,
            )  # fmt: skip
            made.connect()
            return made

        made = self._pool.submit(make)
        self.played.welcome()
        return made.result(PATIENCE)

    def do(self, action: Callable[[], object]) -> Future[object]:
        return self._pool.submit(action)

    def close(self) -> None:
        self.ending.set()
        self._pool.shutdown()
        self.played.die()
        self.context.destroy(0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def write(value: int) -> Access:
    return Access(size=4, write=True, value=value)


READ = Access(size=4, offset=4)


def test_what_was_not_acknowledged_is_sent_to_the_next_life(bench: Bench) -> None:
    link, played = bench.link(), bench.played
    bench.do(lambda: link.post([write(1), write(2)], 0)).result(PATIENCE)
    played.answer()
    bench.do(lambda: link.post([write(3), write(4)], 0)).result(PATIENCE)
    played.die()
    played.born()
    bench.device.begin(Welcome(epoch=2))
    settled = bench.do(link.settle)
    played.welcome()
    played.answer()
    settled.result(PATIENCE)
    assert played.handled == [1, 2, 3, 4]
    assert bench.counters.rejoins == 1


def test_what_was_done_but_not_acknowledged_is_not_done_again(bench: Bench) -> None:
    link, played = bench.link(), bench.played
    bench.do(lambda: link.post([write(1), write(2)], 0)).result(PATIENCE)
    played.execute()
    played.die()
    played.born()
    bench.device.begin(Welcome(epoch=2))
    settled = bench.do(link.settle)
    played.welcome()
    settled.result(PATIENCE)
    assert played.handled == [1, 2]


@pytest.mark.parametrize("executed", [False, True])
def test_an_access_that_waits_gets_its_answer_from_the_next_life(bench: Bench, executed: bool) -> None:
    link, played = bench.link(), bench.played
    access = bench.do(lambda: link.access([write(1)], READ, 0).value)
    if executed:
        played.execute()
    else:
        played.receive()
    played.die()
    played.born()
    bench.device.begin(Welcome(epoch=2))
    played.welcome()
    played.answer()
    assert access.result(PATIENCE) == 2
    assert played.handled == [1, -1]


def test_killed_again_while_the_rest_is_sent(bench: Bench) -> None:
    link, played = bench.link(), bench.played
    access = bench.do(lambda: link.access([write(1), write(2)], READ, 0).value)
    for epoch in (2, 3):
        played.receive()
        played.die()
        played.born()
        bench.device.begin(Welcome(epoch=epoch))
        played.welcome()
    played.answer()
    assert access.result(PATIENCE) == 3
    assert played.handled == [1, 2, -1]


def test_a_device_that_has_forgotten_the_connection(bench: Bench) -> None:
    """A restarted device refuses what comes before Hello; the hart may learn of its death by that alone."""
    link, played = bench.link(), bench.played
    access = bench.do(lambda: link.access([write(1)], READ, 0).value)
    sender, packet = played.receive()
    played.send(sender, Refused(expected="Hello first"), packet.id)
    played.welcome()
    played.answer()
    assert access.result(PATIENCE) == 2


def test_a_successor_that_counts_anew(bench: Bench) -> None:
    link, played = bench.link(), bench.played
    bench.do(lambda: link.post([write(1), write(2)], 0)).result(PATIENCE)
    played.answer()
    bench.do(link.settle).result(PATIENCE)
    bench.do(lambda: link.post([write(3)], 0)).result(PATIENCE)
    played.die()
    played.done = 0
    played.born()
    bench.device.begin(Welcome(epoch=2))
    settled = bench.do(link.settle)
    played.welcome()
    played.answer()
    settled.result(PATIENCE)
    assert played.handled == [1, 2, 3]
    assert played.done == 1


def test_the_window_holds_for_the_next_life_too(bench: Bench) -> None:
    link, played = bench.link(), bench.played
    posted = bench.do(lambda: link.post([write(value) for value in range(20)], 0))
    played.receive()
    played.die()
    played.window = 4
    played.born()
    bench.device.begin(Welcome(epoch=2))
    played.welcome()
    for _ in range(5):
        before = played.done
        played.answer()
        assert played.done - before <= 4
    posted.result(PATIENCE)
    assert played.handled == list(range(20))


def test_a_device_that_says_nothing_is_not_waited_for(bench: Bench) -> None:
    link, played = bench.link(), bench.played
    link._limit = 0.3
    with pytest.raises(NoAnswer):
        bench.do(lambda: link.access([write(1)], READ, 0)).result(PATIENCE)
    with pytest.raises(NoAnswer):  # at once: it has not been heard since
        bench.do(lambda: link.access([write(2)], READ, 0)).result(PATIENCE)
    assert (bench.counters.timeouts, bench.complaints) == (1, ["no answer"])
    link._limit = bench.limit
    played.answer()
    played.answer()

    def settle() -> None:
        while True:
            with suppress(NoAnswer):
                return link.settle()

    bench.do(settle).result(PATIENCE)
    access = bench.do(lambda: link.access([], READ, 0).value)
    played.answer()
    assert access.result(PATIENCE) == 4
    assert played.handled == [1, -1, 2, -1]


def test_an_answer_without_progress_is_a_sign_of_life(bench: Bench) -> None:
    link, played = bench.link(), bench.played
    link._limit = 2.0
    access = bench.do(lambda: link.access([], READ, 0).value)
    sender, packet = played.receive()
    for _ in range(8):
        threading.Event().wait(0.4)
        played.acknowledge(sender, 0)
    assert not access.done()
    played.done, played.value = 1, 77
    played.acknowledge(sender, packet.id)
    assert access.result(PATIENCE) == 77


def post_and_settle(link: Link) -> None:
    link.post([write(1)], 0)
    link.settle()


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("first", ["held", "still"])
def test_device_that_holds_accesses_back_is_told_to_take_them_when_the_hart_is_to_stand_still(
    bench: Bench, waits: bool, first: str
) -> None:
    link, played = bench.link(), bench.played
    done = bench.do((lambda: link.access([write(1)], READ, 0)) if waits else (lambda: post_and_settle(link)))
    sender, packet = played.receive()
    held = BatchDone(epoch=1, credits=8, held=True)
    if first == "held":
        played.send(sender, held, 0)
        bench.still.set()
    else:
        bench.still.set()
        played.send(sender, held, 0)

    _, told = played.receive()

    assert told.WhichOneof("body") == "take_accesses"
    assert not done.done()
    last = 2 if waits else 1
    played.send(sender, BatchDone(epoch=1, done=last, credits=8), packet.id)
    done.result(PATIENCE)


def test_device_that_does_not_say_that_it_holds_back_is_not_told_anything(bench: Bench) -> None:
    """It may be of a version that does not know the message."""
    link, played = bench.link(), bench.played
    bench.still.set()
    settled = bench.do(lambda: post_and_settle(link))
    sender, packet = played.receive()
    played.send(sender, BatchDone(epoch=1, credits=8), 0)
    played.router.setsockopt(zmq.RCVTIMEO, 300)
    with pytest.raises(zmq.Again):
        played.receive()
    played.send(sender, BatchDone(epoch=1, done=1, credits=8), packet.id)
    settled.result(PATIENCE)


@pytest.mark.parametrize(
    ("nonsense", "cause"),
    [
        (wire.make(BatchDone(epoch=1, done=2)).SerializeToString(), "nonsense"),
        (wire.make(BatchDone(epoch=9, done=1)).SerializeToString(), "nonsense"),
        (wire.make(BatchDone(epoch=1, done=1 << 63)).SerializeToString(), BROKEN),
        (wire.make(BatchDone(epoch=1, done=1, credits=1 << 31)).SerializeToString(), BROKEN),
        (wire.make(Welcome(major=1, epoch=(1 << 64) - 1, done=(1 << 64) - 1)).SerializeToString(), BROKEN),
        (b"\xff" * 40, "nonsense"),
    ],
)
def test_nonsense_is_counted_and_ignored(bench: Bench, nonsense: bytes, cause: str) -> None:
    link, played = bench.link(), bench.played
    access = bench.do(lambda: link.access([], READ, 0).value)
    sender, packet_id = played.execute()
    played.router.send_multipart([sender, nonsense])
    played.acknowledge(sender, packet_id)
    assert access.result(PATIENCE) == 1
    assert bench.complaints == [cause]


def test_the_end_of_the_machine_ends_a_wait(bench: Bench) -> None:
    link, played = bench.link(), bench.played
    access = bench.do(lambda: link.access([], READ, 0))
    played.die()
    bench.ending.set()
    with pytest.raises(Ending):
        access.result(PATIENCE)


def test_shadows_of_a_former_life_are_not_believed(bench: Bench) -> None:
    device = bench.device
    kinds = device.tables[0]._kinds
    device.apply(DeviceUpdate(epoch=1, sequence=5, shadows=[ShadowValue(size=4, value=7)]))
    assert kinds[0] == 4 << 4
    device.begin(Welcome(epoch=2))
    assert kinds[0] == 0
    device.apply(DeviceUpdate(epoch=1, sequence=6, shadows=[ShadowValue(size=4, value=7)]))
    assert kinds[0] == 0
    device.apply(DeviceUpdate(epoch=2, sequence=1, shadows=[ShadowValue(size=4, value=8)]))
    assert kinds[0] == 4 << 4


@pytest.mark.parametrize(
    ("region", "base"), [(0, 0x5000), (1, 0x4FFC), (1, 0x5F04), (1, 0x5002), (1, (1 << 64) - 4), (7, 0x5000)]
)
def test_a_place_where_a_region_cannot_be_breaks_the_protocol(region: int, base: int) -> None:
    """A device of this project's SDK says that it is nowhere then."""
    fixed = Region(name="fixed", base=0x1000, size=8, access_sizes=4)
    moving = Region(name="moving", size=0x100, access_sizes=4, absent=True, aperture_base=0x5000, aperture_size=0x1000)
    description = Description(name="device", epoch=1, endpoint="ipc:///nowhere", regions=[fixed, moving])
    device = BusDevice(0, description, NoBoard(), [RegisterTable(fixed), RegisterTable(moving)])
    said: list[tuple[str, str]] = []
    device.complain = lambda what, text: said.append((what, text))
    device.apply(DeviceUpdate(epoch=1, sequence=1, places=[RegionPlace(region=1, base=0x5F00)]))
    assert not said
    device.apply(DeviceUpdate(epoch=1, sequence=2, places=[RegionPlace(region=region, base=base)]))
    assert said == [(BROKEN, f"region {region} cannot be at {base:#x}")]


def test_the_number_of_a_life_is_what_the_irqchip_was_told(bench: Bench) -> None:
    """Not what an update says; and after a life that has lied, the next one is believed with a lower number."""
    device = bench.device
    device.apply(DeviceUpdate(epoch=(1 << 32) - 1, sequence=1, shadows=[ShadowValue(size=4, value=7)]))
    assert device.epoch == 1
    assert device.tables[0]._kinds[0] == 0
    device.begin(Welcome(epoch=1 << 31))
    device.begin(Welcome(epoch=2))
    device.apply(DeviceUpdate(epoch=2, sequence=1, shadows=[ShadowValue(size=4, value=8)]))
    assert device.tables[0].value(0, 4) == 8


def test_a_hart_waits_for_the_life_that_the_irqchip_has_met(bench: Bench) -> None:
    link, played = bench.link(), bench.played
    access = bench.do(lambda: link.access([], READ, 0).value)
    played.receive()
    played.die()
    played.born()
    bench.device.begin(Welcome(epoch=2))
    sender, packet = played.receive()
    played.send(sender, Welcome(major=1, epoch=1 << 31, window=8, done=1 << 40), packet.id)
    played.welcome()
    played.answer()
    assert access.result(PATIENCE) == 1
    assert bench.device.epoch == 2


def test_what_is_no_shadow_is_not_remembered(bench: Bench) -> None:
    device = bench.device
    for offset in range(0, 4000, 4):
        device.apply(
            DeviceUpdate(epoch=1, sequence=2, shadows=[ShadowValue(region=0, offset=1 << 40 | offset, size=4)])
        )
    assert not device._seen
