"""The network card: frames between a driver's queues and a netdev that keeps them."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.unit.device_harness import FakeRuntime
from tests.unit.test_virtio_mmio import Guest
from tests.unit.virtio_driver import BUFFERS, Driver, PackedDriver, SplitDriver, areas, guest_memory
from vmesh import errors
from vmesh.guest_memory import Fill, LocalGuestMemory, Piece
from vmesh.netdev.port import MAX_FRAME, Frame, Port, mac_address
from vmesh.v1.devices_pb2 import VirtioNetState
from vmesh.virtio.device import DRIVER_OK, F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1, FEATURES_OK, NEEDS_RESET
from vmesh.virtio.mmio import Mmio, Offset
from vmesh.virtio.queue import length_of
from vmesh_services.devices.virtio_net import device as net
from vmesh_services.devices.virtio_net.device import VirtioNet

MAC = bytes.fromhex("525400123456")
PLAIN = bytes(12)
FRAME = bytes(range(60))
SECOND = BUFFERS + 0x40000  # where the buffers to receive into are


@dataclass
class FakeNetdev:
    """Takes `room` frames, or all."""

    port: Port
    offload: bool = False
    room: int | None = None
    sent: list[bytes] = field(default_factory=list)
    refused: list[bytes] = field(default_factory=list)
    features: int = 0
    lost: str = ""

    def start(self) -> None:
        self.port.link(True)

    def send(self, frames: Sequence[Frame]) -> int:
        count = len(frames) if self.room is None else min(self.room, len(frames))
        self.sent += [b"".join(frame) for frame in frames[:count]]
        if self.room is not None:
            self.room -= count
        return count

    def come(self, *frames: bytes) -> None:
        assert not self.refused
        taken = self.port.receive([memoryview(frame) for frame in frames])
        self.refused = list(frames[taken:])

    def resume(self) -> None:
        if self.refused:
            frames, self.refused = self.refused, []
            self.come(*frames)

    def set_offload(self, features: int) -> None:
        self.features = features

    def close(self) -> None:
        pass


class Card(Guest):
    """The card with its driver's two queues, `receive` and `transmit`."""

    def __init__(self, memory: LocalGuestMemory, *, offload: bool = False, packed: bool = False, mtu: int = 0) -> None:
        self.runtime = FakeRuntime()
        self.made: list[FakeNetdev] = []
        self.card = VirtioNet(self.runtime, Mmio(0x1000_1000, 1), self.plug, mac=MAC, mtu=mtu, packed=packed)  # type: ignore[arg-type]
        self.netdev = self.made[0]
        self.netdev.offload = offload
        if offload:
            self.card.offered |= net.OFFLOADS
        self.card.start()
        super().__init__(self.card, memory)
        self.at = BUFFERS

    def plug(self, port: Port) -> FakeNetdev:
        self.made.append(FakeNetdev(port))
        return self.made[-1]

    def begin(self, features: int = F_VERSION_1, size: int = 16) -> None:
        assert self.negotiate(features) & FEATURES_OK
        kind = PackedDriver if features & F_RING_PACKED else SplitDriver
        drivers: list[Driver] = []
        for index in (net.RECEIVE, net.TRANSMIT):
            drivers.append(kind(self.memory, areas(size, index), False, bool(features & F_INDIRECT_DESC)))
            self.write(Offset.QUEUE_SEL, index)
            self.enable(drivers[index])
        self.receive, self.transmit = drivers
        self.write(Offset.STATUS, self.status | DRIVER_OK)
        self.settle()

    def ring(self, index: int) -> None:
        self.write(Offset.QUEUE_NOTIFY, index)
        self.settle()

    def send(self, *requests: bytes, pieces: int = 1) -> None:
        for request in requests:
            buffers = []
            step = -(-len(request) // pieces)
            for start in range(0, len(request), step):
                part = request[start : start + step]
                self.memory.write(self.at, part)
                buffers.append((self.at, len(part)))
                self.at += len(part) + 1  # not one after the other
            assert self.transmit.add(buffers, []) is not None
        self.ring(net.TRANSMIT)

    def offer(self, *sizes: int) -> list[int]:
        """Buffers to receive into; gives their addresses."""
        places = [SECOND + 0x2000 * number for number in range(len(sizes))]
        for place, size in zip(places, sizes, strict=True):
            assert self.receive.add([], [(place, size)]) is not None
        self.ring(net.RECEIVE)
        return places

    def got(self) -> list[bytes]:
        """The frames, each with its header, from what `offer` gave in its order."""
        used = self.receive.reap()
        found = []
        place = 0
        while used:
            first = self.memory.read(SECOND + 0x2000 * place, used[0][1])
            count = struct.unpack_from("<H", first, 10)[0]
            parts = [self.memory.read(SECOND + 0x2000 * (place + k), used[k][1]) for k in range(count)]
            found.append(b"".join(parts))
            used, place = used[count:], place + count
        return found

    @property
    def link_status(self) -> int:
        return self.device.read(0, 0x106, 2)


@pytest.fixture
def memory(tmp_path: Path) -> LocalGuestMemory:
    return guest_memory(tmp_path)


@pytest.fixture
def card(memory: LocalGuestMemory) -> Card:
    return Card(memory)


def header(flags: int = 0, gso: int = 0, size: int = 0, start: int = 0, offset: int = 0) -> bytes:
    return struct.pack("<BBHHHHH", flags, gso, 54, size, start, offset, 0)


def test_what_the_card_is(memory: LocalGuestMemory) -> None:
    card = Card(memory, mtu=9000)
    assert card.read(Offset.DEVICE_ID) == 1
    assert bytes(card.device.read(0, 0x100 + byte, 1) for byte in range(6)) == MAC
    assert card.link_status == 1
    assert card.device.read(0, 0x10A, 2) == 9000
    assert card.card.offered & (net.F_MAC | net.F_STATUS | net.F_MTU | net.F_MRG_RXBUF | net.OFFLOADS) == (
        net.F_MAC | net.F_STATUS | net.F_MTU | net.F_MRG_RXBUF
    )


@pytest.mark.parametrize("pieces", [1, 2, 5, 7])
@pytest.mark.parametrize("extra", [0, F_INDIRECT_DESC, F_RING_PACKED])
def test_frames_go_out_without_the_header(memory: LocalGuestMemory, pieces: int, extra: int) -> None:
    card = Card(memory, packed=bool(extra & F_RING_PACKED))
    card.begin(F_VERSION_1 | extra)
    card.send(PLAIN + FRAME, PLAIN + FRAME[:30], pieces=pieces)
    assert card.netdev.sent == [FRAME, FRAME[:30]]
    assert len(card.transmit.reap()) == 2
    assert card.line


@pytest.mark.parametrize("extra", [0, net.F_MRG_RXBUF, F_RING_PACKED])
def test_frames_come_in_with_a_header(memory: LocalGuestMemory, extra: int) -> None:
    card = Card(memory, packed=bool(extra & F_RING_PACKED))
    card.begin(F_VERSION_1 | extra)
    card.offer(200, 200)
    card.netdev.come(FRAME, FRAME[:20])
    card.settle()
    one = struct.pack("<10xH", 1)
    assert card.got() == [one + FRAME, one + FRAME[:20]]
    assert card.line


@pytest.mark.parametrize("offload", [False, True])
def test_a_driver_of_before_virtio_1_has_a_shorter_header(memory: LocalGuestMemory, offload: bool) -> None:
    card = Card(memory, offload=offload)
    card.begin(0)  # 5.1.6.1: without MRG_RXBUF it has no num_buffers
    card.send(PLAIN[:10] + FRAME, pieces=3)
    assert card.netdev.sent == [(PLAIN if offload else b"") + FRAME]
    (place,) = card.offer(10 + len(FRAME))
    card.netdev.come((PLAIN if offload else b"") + FRAME)
    card.settle()
    assert [length for _, length in card.receive.reap()] == [10 + len(FRAME)]
    assert memory.read(place, 10 + len(FRAME)) == PLAIN[:10] + FRAME


def test_many_frames_come_in_in_their_order(memory: LocalGuestMemory) -> None:
    card = Card(memory)
    card.begin(size=128)
    for number in range(100):
        assert card.receive.add([], [(SECOND + 0x100 * number, 0x100)]) is not None
    card.netdev.come(*(bytes([number]) * 20 for number in range(101)))
    card.settle()
    assert len(card.receive.reap()) == 100
    assert len(card.netdev.refused) == 1
    for number in range(100):
        assert memory.read(SECOND + 0x100 * number + 12, 20) == bytes([number]) * 20


def test_a_large_frame_is_spread_over_buffers_that_are_used_at_once(card: Card) -> None:
    card.begin(F_VERSION_1 | net.F_MRG_RXBUF)
    large = bytes(number % 251 for number in range(3000))
    card.offer(1000, 1000, 500)
    card.netdev.come(large)
    card.settle()
    assert not card.receive.reap()  # not even a part: the rest of the room is not there
    assert card.netdev.refused
    assert card.receive.add([], [(SECOND + 0x6000, 4000)]) is not None
    card.ring(net.RECEIVE)
    assert card.got() == [struct.pack("<10xH", 4) + large]


def test_no_more_of_a_buffer_is_touched_than_a_frame_needs(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where guest memory is not mapped all that is touched is copied, and a buffer may be as large as it."""
    touched: list[int] = []
    scatter = card.memory.scatter

    def watched(pieces: Sequence[Piece], fill: Fill) -> int:
        touched.append(length_of(list(pieces)))
        return scatter(pieces, fill)

    monkeypatch.setattr(card.memory, "scatter", watched)
    card.begin(F_VERSION_1 | net.F_MRG_RXBUF)
    card.offer(50, 0x8000)
    card.netdev.come(FRAME)
    card.settle()
    assert card.got() == [struct.pack("<10xH", 2) + FRAME]
    assert touched == [50, 22]


@pytest.mark.parametrize("features", [F_VERSION_1, F_VERSION_1 | F_RING_PACKED])
def test_without_merged_buffers_a_frame_that_does_not_fit_is_lost(memory: LocalGuestMemory, features: int) -> None:
    card = Card(memory, packed=True)
    card.begin(features)
    card.offer(60, 60)
    card.netdev.come(FRAME, FRAME[:48], FRAME[:49])
    card.settle()
    assert card.got() == [struct.pack("<10xH", 1) + FRAME[:48]]
    assert card.card.counters()["received_lost"] == 2


def test_a_guest_without_buffers_makes_the_netdev_wait_and_sends_on(card: Card) -> None:
    card.begin()
    card.offer(100)
    card.netdev.come(FRAME, FRAME[::-1])
    card.settle()
    assert card.netdev.refused == [FRAME[::-1]]
    card.send(PLAIN + FRAME)
    assert card.netdev.sent == [FRAME]
    card.receive.reap()
    card.offer(100)
    assert not card.netdev.refused
    assert card.memory.read(SECOND + 12, 60) == FRAME[::-1]


def test_a_full_netdev_keeps_frames_in_the_queue_in_their_order(card: Card) -> None:
    card.begin()
    card.netdev.room = 2
    frames = [bytes([number]) * 20 for number in range(5)]
    card.send(*(PLAIN + frame for frame in frames))
    assert card.netdev.sent == frames[:2]
    assert len(card.transmit.reap()) == 2
    card.netdev.room = None
    card.ring(net.TRANSMIT)
    assert card.netdev.sent == frames[:2]  # it has not said that it is writable
    card.card.writable()
    card.settle()
    assert card.netdev.sent == frames
    assert len(card.transmit.reap()) == 3


def test_a_netdev_that_stays_full_does_not_hold_the_guest_up(card: Card) -> None:
    card.begin()
    card.netdev.room = 0
    card.send(PLAIN + FRAME)
    assert not card.transmit.reap()
    card.runtime.fire("stall")
    card.settle()
    assert len(card.transmit.reap()) == 1
    card.send(PLAIN + FRAME)
    assert len(card.transmit.reap()) == 1  # nor do those after it wait
    card.netdev.room = None
    card.card.writable()
    card.send(PLAIN + FRAME[:20])
    assert card.netdev.sent == [FRAME[:20]]
    assert card.card.counters()["sent_lost"] == 2


def test_the_link_is_shown_to_the_guest(card: Card) -> None:
    card.begin()
    generation = card.read(Offset.CONFIG_GENERATION)
    card.netdev.port.link(False)
    assert card.link_status == 0
    assert card.read(Offset.INTERRUPT_STATUS) & 2
    assert card.line
    assert card.read(Offset.CONFIG_GENERATION) != generation
    card.send(PLAIN + FRAME)
    assert not card.netdev.sent
    assert len(card.transmit.reap()) == 1
    card.netdev.port.link(True)
    assert card.link_status == 1


def test_what_waits_when_the_link_ends_is_lost(card: Card) -> None:
    card.begin()
    card.netdev.room = 0
    card.send(PLAIN + FRAME)
    card.netdev.port.link(False)
    card.settle()
    assert len(card.transmit.reap()) == 1


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        PLAIN,
        PLAIN[:7],
        PLAIN + bytes(13),
        PLAIN + bytes(MAX_FRAME + 1),
        header(flags=1, start=34, offset=16) + FRAME,  # none of these was negotiated
        header(gso=1, size=1000) + FRAME,
        header(gso=3) + FRAME,
        header(gso=0x81) + FRAME,
    ],
)
def test_a_bad_request_is_dropped_and_the_next_one_served(card: Card, request_: bytes) -> None:
    card.begin()
    if request_:
        card.send(request_)
    else:
        assert card.transmit.add([(BUFFERS, 0)], []) is not None
        card.ring(net.TRANSMIT)
    assert not card.netdev.sent
    assert len(card.transmit.reap()) == 1
    card.send(PLAIN + FRAME)
    assert card.netdev.sent == [FRAME]
    assert card.card.counters()["sent_lost"] == 1


def test_a_request_with_a_buffer_to_write_is_none(card: Card) -> None:
    card.begin()
    card.transmit.add([(BUFFERS, 80)], [(BUFFERS + 100, 10)])
    card.ring(net.TRANSMIT)
    assert not card.netdev.sent


def test_a_broken_ring_stops_the_card_until_reset(card: Card) -> None:
    card.begin()
    card.transmit.add([(0x10, 80)], [])
    card.ring(net.TRANSMIT)
    assert card.status & NEEDS_RESET
    card.netdev.come(FRAME)  # is lost, and not kept
    assert not card.netdev.refused
    card.begin()
    card.send(PLAIN + FRAME)
    assert card.netdev.sent == [FRAME]


@pytest.mark.parametrize(
    ("bad", "features"),
    [
        (header(flags=1, start=50, offset=9), net.F_CSUM),  # the checksum would lie behind the frame
        (header(flags=1, start=0xFFFF, offset=0xFFFF), net.F_CSUM),
        (header(flags=1, gso=1, size=10), net.F_CSUM | net.F_HOST_TSO6),  # another one was negotiated
        (header(flags=1, gso=1, size=0), net.F_CSUM | net.F_HOST_TSO4),
        (header(gso=1, size=10), net.F_CSUM | net.F_HOST_TSO4),  # 5.1.6.2: with a checksum to fill in
        (header(flags=1, gso=5, size=10), net.OFFLOADS),
    ],
)
def test_offloads_are_checked(memory: LocalGuestMemory, bad: bytes, features: int) -> None:
    card = Card(memory, offload=True)
    card.begin(F_VERSION_1 | features)
    good = header(flags=1, start=34, offset=16)
    card.send(bad + FRAME, good + FRAME)
    assert card.netdev.sent == [good + FRAME]


def test_offloads_go_through(memory: LocalGuestMemory) -> None:
    card = Card(memory, offload=True)
    features = net.F_GUEST_CSUM | net.F_GUEST_TSO4
    card.begin(F_VERSION_1 | features)
    assert card.netdev.features == features
    card.offer(100)
    card.netdev.come(header(flags=1, start=34, offset=16) + FRAME)
    card.settle()
    assert card.got() == [header(flags=1, start=34, offset=16)[:10] + b"\1\0" + FRAME]
    card.write(Offset.STATUS, 0)
    assert card.netdev.features == 0


@pytest.mark.parametrize("features", [net.F_GUEST_TSO4, net.F_GUEST_TSO4 | net.F_GUEST_TSO6 | 1 << 9 | 1 << 10])
def test_no_large_frames_for_a_driver_that_wants_checksums(memory: LocalGuestMemory, features: int) -> None:
    """5.1.3.1: GUEST_TSO4 and GUEST_TSO6 need GUEST_CSUM; a host's interface refuses them alone."""
    card = Card(memory, offload=True)
    card.begin(F_VERSION_1 | net.OFFLOADS)
    state = VirtioNetState.FromString(card.card.save().SerializeToString())
    state.virtio.driver_features = F_VERSION_1 | features & net.OFFLOADS
    card.card.check(state, 1)
    card.card.load(state)
    assert card.netdev.features == 0
    card.write(Offset.STATUS, 0)
    card.write(Offset.DRIVER_FEATURES, features)
    card.write(Offset.STATUS, DRIVER_OK)  # without asking whether they are taken
    assert card.card.live
    assert card.netdev.features == 0


def test_without_a_driver_what_comes_is_lost(card: Card) -> None:
    card.netdev.come(FRAME)
    assert not card.netdev.refused
    card.begin()
    card.offer(100)
    assert not card.got()


def test_paused_nothing_comes_in_and_it_goes_on_after(card: Card) -> None:
    card.begin()
    card.offer(100)
    card.card.pause()
    card.netdev.come(FRAME)
    assert card.netdev.refused == [FRAME]
    assert not card.receive.reap()
    card.card.resume()
    card.settle()
    assert len(card.got()) == 1


def test_a_driver_that_begins_anew_gets_nothing_old(card: Card) -> None:
    card.begin()
    card.netdev.come(FRAME)
    assert card.netdev.refused
    card.begin()
    card.offer(100)
    assert not card.got()


def test_a_successor_goes_on(card: Card, memory: LocalGuestMemory) -> None:
    """Killed after the frames were sent and before the guest was told: once more, and no buffer twice."""
    card.begin()
    card.offer(100, 100)
    card.netdev.come(FRAME)
    card.settle()
    queue = card.card.queues[net.TRANSMIT]
    assert queue is not None
    state = VirtioNetState.FromString(card.card.save().SerializeToString())
    queue.push_all = lambda done: None  # type: ignore[method-assign]
    card.send(PLAIN + FRAME)

    successor = Card(memory)
    successor.card.check(state, 1)
    successor.card.load(state)
    successor.card.recover()
    successor.settle()
    assert successor.netdev.sent == card.netdev.sent == [FRAME]
    assert len(card.transmit.reap()) == 1
    successor.netdev.come(FRAME[::-1])
    successor.settle()
    assert [written for _, written in card.receive.reap()] == [72, 72]
    assert memory.read(SECOND + 0x2000 + 12, 60) == FRAME[::-1]


def test_the_link_of_a_state_that_was_loaded_is_corrected(card: Card) -> None:
    card.begin()
    state = VirtioNetState.FromString(card.card.save().SerializeToString())
    assert state.link_up
    state.link_up = False
    card.card.load(state)
    assert card.link_status == 0
    card.runtime.fire("link")
    assert card.link_status == 1
    assert card.read(Offset.INTERRUPT_STATUS) & 2


def test_mac_address() -> None:
    assert mac_address("52:54:00:12:34:56") == MAC
    for bad in ("", "52:54:00:12:34", "52-54-00-12-34-56", "53:54:00:12:34:56", "52:54:00:12:34:5g", "ff" * 6):
        with pytest.raises(ValueError, match="expected mac="):
            mac_address(bad)


def test_an_mtu_that_no_frame_can_carry_is_refused(memory: LocalGuestMemory) -> None:
    for mtu in (67, 65536):
        with pytest.raises(errors.ConfigError, match="expected 68 to 65535"):
            Card(memory, mtu=mtu)


class Killed(BaseException):
    pass


class Mortal:
    """Guest memory through which a card writes: at the n-th store it dies, before it."""

    def __init__(self, memory: LocalGuestMemory, life: int) -> None:
        self._memory = memory
        self._life = life

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._memory, name)
        if name not in ("write", "write_u16", "scatter"):
            return method
        self._life -= 1
        if self._life < 0:
            raise Killed
        return method


@pytest.mark.parametrize("packed", [False, True])
def test_cards_that_die_at_any_store_mix_nothing_up(memory: LocalGuestMemory, packed: bool) -> None:
    """What the driver gets are whole frames in the order in which they came, some lost; what goes out is in its order
    too, some twice; every buffer comes back once, and nothing is stuck."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    guest = Card(memory, packed=packed)
    guest.begin(F_VERSION_1 | (F_RING_PACKED if packed else net.F_MRG_RXBUF))
    card, marks = guest.card, guest.card.marks
    state = VirtioNetState.FromString(card.save().SerializeToString())
    count = sent = received = 0
    places: dict[int, int] = {}  # where each buffer to receive into lies
    last_received = -1
    outgoing: list[bytes] = []
    for life in range(300):
        while chance.random() < 0.8:
            place = SECOND + 0x800 * chance.randrange(40)
            if place in places.values():
                continue
            identifier = guest.receive.add([], [(place, 0x800 if packed else 0x100)])
            if identifier is None:
                break
            places[identifier] = place
        while chance.random() < 0.6:
            data = struct.pack("<I", sent) * 10
            place = BUFFERS + 0x100 * (sent % 256)
            memory.write(place, PLAIN + data)
            if guest.transmit.add([(place, len(PLAIN + data))], []) is None:
                break
            sent += 1
        successor = Card(memory, packed=packed)
        successor.card.marks = marks
        successor.card.memory = Mortal(memory, chance.randrange(30) if life < 299 else 10_000)
        successor.card._attached = False  # as from the slot: the marks are kept
        successor.card.load(state)
        try:
            successor.card.attached()
            successor.card.recover()
            state = VirtioNetState.FromString(successor.card.save().SerializeToString())
            for _ in range(chance.randrange(4)):
                frame = struct.pack("<I", count) * chance.choice((4, 30, 200))
                count += 1
                successor.netdev.refused.clear()
                successor.netdev.come(frame)
                if chance.random() < 0.5:
                    successor.settle()
                    state = VirtioNetState.FromString(successor.card.save().SerializeToString())
            successor.settle()
        except Killed:
            pass
        assert not successor.runtime.notices
        outgoing += successor.netdev.sent
        guest.transmit.reap()
        parts = [memory.read(places.pop(identifier), written) for identifier, written in guest.receive.reap()]
        while parts:
            (merged,) = struct.unpack_from("<H", parts[0], 10)
            assert 1 <= merged <= len(parts)
            frame, parts = b"".join(parts[:merged])[12:], parts[merged:]
            (number,) = struct.unpack_from("<I", frame)
            assert frame == struct.pack("<I", number) * (len(frame) // 4)
            assert len(frame) // 4 in (4, 30, 200)
            assert number > last_received
            last_received = number
            received += 1
    assert received > 100
    assert not guest.transmit.chains
    numbers = [struct.unpack_from("<I", frame)[0] for frame in outgoing]
    assert set(numbers) == set(range(sent))
    firsts = [number for place, number in enumerate(numbers) if number not in numbers[:place]]
    assert firsts == sorted(firsts)
