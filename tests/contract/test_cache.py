"""The cache beside a cpu on another host than RAM: every page is in one place, and all accesses are made there."""

from __future__ import annotations

import random
import secrets

import pytest

from tests.contract.harness import PATIENCE, RAM_BASE, RAM_SIZE, Machine
from vmesh import errors, wire
from vmesh.guest_memory import LocalGuestMemory, RemoteGuestMemory
from vmesh.segment import PAGE
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import lifecycle_pb2 as lifecycle
from vmesh.v1.bus_pb2 import Description
from vmesh.v1.memory_pb2 import (
    AddressMap,
    Attach,
    Attached,
    CachedDma,
    CachedDmaDone,
    DmaDone,
    DmaRead,
    DmaWrite,
    Grant,
    MapRequest,
    NeedPages,
    PagesTaken,
    ServePages,
    TakePages,
)
from vmesh.v1.packet_pb2 import Packet


def page(number: int) -> int:
    return RAM_BASE + number * PAGE


@pytest.fixture
def device(machine: Machine) -> wire.Peer:
    """That has attached to memory with a cache, and fills pages 0 to 7, each with its number and one."""
    machine.start_memory("--cached", "--rom", "0x1000:0x2000")
    made = attach(machine)
    for number in range(8):
        made.request(DmaWrite(address=page(number), data=bytes([number + 1]) * PAGE), PATIENCE)
    return made


@pytest.fixture
def cache(machine: Machine, device: wire.Peer) -> wire.Peer:
    return machine.dial("memory", common.ROLE_CACHE, name="cache")


def attach(machine: Machine) -> wire.Peer:
    peer = machine.dial("memory", common.ROLE_DEVICE, name="dma0")
    description = Description(name="dma0", kind="test", epoch=1, endpoint="ipc:///nowhere", dma=True)
    attached = peer.request(Attach(description=description), PATIENCE)
    assert isinstance(attached, Attached)
    assert not attached.segments, "it must not map what may be elsewhere"
    return peer


def take(cache: wire.Peer, *numbers: int, empty: bool = False) -> PagesTaken:
    answer = cache.request(TakePages(addresses=[page(number) for number in numbers], empty=empty), PATIENCE)
    assert isinstance(answer, PagesTaken)
    return answer


def handed_on(cache: wire.Peer) -> CachedDma:
    """The next access that the cache is to make."""
    packet = cache.unasked.popleft() if cache.unasked else cache.receive(PATIENCE)
    while packet is not None and packet.WhichOneof("body") is None:
        packet = cache.receive(PATIENCE)
    assert packet is not None
    assert packet.WhichOneof("body") == "cached_dma", packet
    return packet.cached_dma


def made(cache: wire.Peer, number: int, data: bytes = b"") -> None:
    cache.send_packet(wire.make(CachedDmaDone(number=number, data=data)))


def answer_to(peer: wire.Peer, packet_id: int) -> Packet:
    packet = peer.receive(PATIENCE)
    assert packet is not None
    assert packet.id == packet_id
    return packet


def test_a_page_that_was_taken_is_used_at_the_cache(device: wire.Peer, cache: wire.Peer) -> None:
    taken = take(cache, 2, 9)
    assert [(each.address, each.content) for each in taken.pages] == [(page(2), b"\x03" * PAGE), (page(9), b"")]
    read = device.send(DmaRead(address=page(2) + 8, size=16))
    access = handed_on(cache)
    assert (access.read.address, access.read.size) == (page(2) + 8, 16)
    assert device.receive(0.2) is None
    made(cache, access.number, b"from the cache!!")
    assert answer_to(device, read).dma_done.data == b"from the cache!!"
    assert take(cache, 2).pages[0].content == b"\x03" * PAGE, "once more, if the answer was lost"


def test_a_range_over_pages_here_and_there(device: wire.Peer, cache: wire.Peer) -> None:
    take(cache, 2)
    read = device.send(DmaRead(address=page(1) + PAGE - 2, size=PAGE + 4))
    access = handed_on(cache)
    assert (access.read.address, access.read.size) == (page(2), PAGE)
    made(cache, access.number, b"x" * PAGE)
    assert answer_to(device, read).dma_done.data == b"\2\2" + b"x" * PAGE + b"\4\4"
    write = device.send(DmaWrite(address=page(1) + PAGE - 2, data=b"ab" + b"y" * PAGE + b"cd"))
    access = handed_on(cache)
    assert (access.write.address, access.write.data) == (page(2), b"y" * PAGE)
    made(cache, access.number)
    answer_to(device, write)
    around = device.request(DmaRead(address=page(1) + PAGE - 3, size=3), PATIENCE)
    assert isinstance(around, DmaDone)
    assert around.data == b"\2ab"


def test_what_was_not_answered_is_asked_of_the_next_connection(
    machine: Machine, device: wire.Peer, cache: wire.Peer
) -> None:
    take(cache, 0, 1)
    writes = [device.send(DmaWrite(address=page(number), data=b"w")) for number in (0, 1)]
    numbers = [handed_on(cache).number for _ in range(2)]
    made(cache, numbers[0])
    answer_to(device, writes[0])
    cache.abandon()
    again = machine.dial("memory", common.ROLE_CACHE, name="cache")
    access = handed_on(again)
    assert (access.number, access.write.address) == (numbers[1], page(1))
    made(again, numbers[0])  # it has been answered
    made(again, numbers[1])
    answer_to(device, writes[1])


def test_dma_waits_for_a_cache_that_is_not_there(machine: Machine, device: wire.Peer, cache: wire.Peer) -> None:
    take(cache, 3)
    cache.abandon()
    read = device.send(DmaRead(address=page(3), size=1))
    assert device.receive(0.3) is None
    again = machine.dial("memory", common.ROLE_CACHE, name="cache")
    made(again, handed_on(again).number, b"!")
    assert answer_to(device, read).dma_done.data == b"!"


def test_nonsense_of_a_cache_is_refused(machine: Machine, device: wire.Peer, cache: wire.Peer) -> None:
    for request in (
        TakePages(addresses=[RAM_BASE + 1]),
        TakePages(addresses=[RAM_BASE + RAM_SIZE]),
        TakePages(addresses=[0]),
        TakePages(addresses=[page(0)] * 257),
    ):
        with pytest.raises(errors.BadRequest):
            cache.request(request, PATIENCE)
    assert machine.monitor("memory").health().counters["pages_away"] == 0
    take(cache, 0)
    read = device.send(DmaRead(address=page(0), size=4))
    number = handed_on(cache).number
    made(cache, number, b"12345")
    made(cache, number + 1, b"1234")
    assert device.receive(0.2) is None
    made(cache, number, b"1234")
    assert answer_to(device, read).dma_done.data == b"1234"


def test_empty_pages_go_without_content(device: wire.Peer, cache: wire.Peer) -> None:
    empty = take(cache, empty=True).empty
    assert [(each.base, each.size) for each in empty] == [(page(8), RAM_SIZE - 8 * PAGE)]
    assert take(cache, empty=True).empty == empty


def test_who_may_be_a_cache(machine: Machine, device: wire.Peer) -> None:
    with pytest.raises(errors.NotAllowed):
        device.request(TakePages(empty=True), PATIENCE)
    migration = machine.dial("memory", common.ROLE_MIGRATION, name="migration")
    with pytest.raises(errors.BadRequest, match="cache"):
        migration.request(ServePages(), PATIENCE)


def test_memory_without_a_cache_takes_none(machine: Machine) -> None:
    machine.start_memory()
    cache = machine.dial("memory", common.ROLE_CACHE, name="cache")
    with pytest.raises(errors.BadRequest, match="--cached"):
        take(cache, 0)


class Cpu:
    """What a hart does with its memory service: it maps the segments, and asks for pages."""

    def __init__(self, machine: Machine) -> None:
        self._peer = machine.dial("cache", common.ROLE_CPU, name="cpu")
        answer = self._peer.request(MapRequest(), PATIENCE)
        assert isinstance(answer, AddressMap)
        self.map = answer
        ram = [each for each in answer.segments if each.writable]
        grant = Grant(base=ram[0].base, size=ram[0].size, writable=True)
        self.memory = LocalGuestMemory(ram, [grant], self._fetch)

    def _fetch(self, addresses: list[int]) -> None:
        self._peer.request(NeedPages(addresses=addresses), PATIENCE)


@pytest.fixture
def cpu(machine: Machine, device: wire.Peer) -> Cpu:
    machine.start("vmesh_services.memory.cache", "cache")
    return Cpu(machine)


def test_cpu_and_device_see_one_memory(machine: Machine, device: wire.Peer, cpu: Cpu) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    span = 24 * PAGE
    model = bytearray(span)
    for number in range(8):
        model[number * PAGE : (number + 1) * PAGE] = bytes([number + 1]) * PAGE
    dma = RemoteGuestMemory(device, [Grant(base=RAM_BASE, size=RAM_SIZE, writable=True)])
    for step in range(600):
        who = chance.choice((cpu.memory, dma))
        start = chance.randrange(span)
        size = chance.randint(0, min(span - start, chance.choice((1, 8, 3 * PAGE))))
        if chance.random() < 0.5:
            data = chance.randbytes(size)
            who.write(RAM_BASE + start, data)
            model[start : start + size] = data
        else:
            assert who.read(RAM_BASE + start, size) == model[start : start + size], (step, start, size)
    counters = machine.monitor("cache").health().counters
    assert counters["pages_empty"] > 0
    assert counters["dma_made"] > 0
    assert machine.monitor("memory").health().counters["dma_unanswered"] == 0


def test_a_reset_brings_the_images_back(machine: Machine, device: wire.Peer, cpu: Cpu) -> None:
    cpu.memory.write(page(1), b"of the guest")
    cpu.memory.write(page(100), b"of the guest")
    for service in ("memory", "cache"):
        monitor = machine.monitor(service)
        monitor.ask(lifecycle.Pause())
        monitor.ask(lifecycle.Drain())
        monitor.ask(lifecycle.Reset())
    assert cpu.memory.read(page(0), 2 * PAGE) == bytes(2 * PAGE)
    assert cpu.memory.read(page(100), 12) == bytes(12)
    device.request(DmaWrite(address=page(1), data=b"new"), PATIENCE)
    assert cpu.memory.read(page(1), 3) == b"new"


def test_a_device_does_not_ask_a_cache(machine: Machine, cpu: Cpu) -> None:
    other = machine.dial("cache", common.ROLE_DEVICE, name="dma1")
    with pytest.raises(errors.BadRequest):
        other.request(Attach(description=Description(name="dma1", kind="test", epoch=1)), PATIENCE)
    with pytest.raises(errors.BadRequest, match="RAM"):
        machine.dial("cache", common.ROLE_CPU, name="cpu").request(NeedPages(addresses=[0]), PATIENCE)
