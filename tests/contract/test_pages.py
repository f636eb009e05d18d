"""Absent pages: who needs one waits, a pager brings it, and nobody sees what was there before."""

from __future__ import annotations

import random
import time

import pytest

from tests.contract.harness import PATIENCE, RAM_BASE, Machine
from tests.models.pager import PAGE, RUBBISH, Pager, Ram
from tests.waiting import wait_for
from vmesh import errors, wire
from vmesh.guest_memory import GuestMemory, LocalGuestMemory, RemoteGuestMemory
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import cpu_pb2 as cpu
from vmesh.v1 import lifecycle_pb2 as lifecycle
from vmesh.v1.bus_pb2 import Description
from vmesh.v1.memory_pb2 import (
    Attach,
    Attached,
    DmaRead,
    DmaWrite,
    MarkPages,
    NeedPages,
    PagesPresent,
    ServePages,
)
from vmesh.v1.packet_pb2 import Packet


def page(number: int) -> int:
    return RAM_BASE + number * PAGE


def counter(machine: Machine, name: str, service: str = "memory") -> int:
    return machine.monitor(service).health().counters[name]


@pytest.fixture
def pager(machine: Machine) -> wire.Peer:
    """Of a machine whose RAM is absent."""
    machine.start_memory("--absent")
    return machine.dial("memory", common.ROLE_MIGRATION, name="migration")


@pytest.fixture
def ram(pager: wire.Peer) -> Ram:
    made = Ram(pager)
    made.content[:] = RUBBISH * made.pages
    return made


def device(machine: Machine, name: str = "dma0", epoch: int = 1) -> tuple[wire.Peer, Attached]:
    peer = machine.dial("memory", common.ROLE_DEVICE, name=name)
    description = Description(name=name, kind="test", epoch=epoch, endpoint="ipc:///nowhere", dma=True)
    attached = peer.request(Attach(description=description), PATIENCE)
    assert isinstance(attached, Attached)
    return peer, attached


def wanted(peer: wire.Peer) -> list[int]:
    """The pages of the next PagesWanted."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        packet = peer.unasked.popleft() if peer.unasked else peer.receive(1.0)
        if packet is not None and packet.WhichOneof("body") == "pages_wanted":
            return [(address - RAM_BASE) // PAGE for address in packet.pages_wanted.addresses]
    raise AssertionError("no page is wanted")


def answers(peer: wire.Peer, seconds: float, count: int = 0) -> list[Packet]:
    """So many, and what else comes before so many seconds of silence."""
    found = []
    for _ in range(count):
        while (packet := peer.receive(PATIENCE)) is None:
            pass
        found.append(packet)
    while (packet := peer.receive(seconds)) is not None:
        found.append(packet)
    return found


def test_the_last_of_its_pages_answers_a_request(machine: Machine, pager: wire.Peer, ram: Ram) -> None:
    pager.request(ServePages(), PATIENCE)
    hart = machine.dial("memory", common.ROLE_CPU, name="cpu")
    number = hart.send(NeedPages(addresses=[page(3), page(5) + 17, page(3) + 8]))
    assert wanted(pager) == [3, 5]
    pager.request(PagesPresent(addresses=[ram.bring(5)]), PATIENCE)
    assert not answers(hart, 0.3)
    pager.request(PagesPresent(addresses=[ram.bring(3)]), PATIENCE)
    (packet,) = answers(hart, 0.3, 1)
    assert (packet.id, packet.WhichOneof("body")) == (number, "done")
    assert isinstance(hart.request(NeedPages(addresses=[page(3), page(5)]), PATIENCE), common.Done)
    assert counter(machine, "page_waits") == 2


def test_a_page_is_wanted_once_and_one_who_waits_blocks_nobody(machine: Machine, pager: wire.Peer, ram: Ram) -> None:
    pager.request(ServePages(), PATIENCE)
    first, second = (machine.dial("memory", common.ROLE_CPU, name="cpu", hart=n) for n in (0, 1))
    first.send(NeedPages(addresses=[page(1)]))
    assert wanted(pager) == [1]
    second.send(NeedPages(addresses=[page(1)]))
    third = second.send(NeedPages(addresses=[page(2)]))
    assert wanted(pager) == [2]
    pager.request(PagesPresent(addresses=[ram.bring(2)]), PATIENCE)
    assert [packet.id for packet in answers(second, 0.3, 1)] == [third]
    pager.request(PagesPresent(addresses=[ram.bring(1)]), PATIENCE)
    assert len(answers(first, 0.3, 1)) == len(answers(second, 0.3, 1)) == 1


def test_without_a_pager_they_wait_and_another_one_is_told_all(machine: Machine, pager: wire.Peer, ram: Ram) -> None:
    hart = machine.dial("memory", common.ROLE_CPU, name="cpu")
    hart.send(NeedPages(addresses=[page(7)]))
    wait_for(lambda: counter(machine, "pages_wanted_ms") > 300, "a page to be waited for")
    assert counter(machine, "pages_wanted") == 1
    assert counter(machine, "pager") == 0
    pager.request(ServePages(), PATIENCE)
    assert wanted(pager) == [7]
    hart.send(NeedPages(addresses=[page(8)]))
    assert wanted(pager) == [8]
    pager.close()
    wait_for(lambda: counter(machine, "pager") == 0, "memory to notice that the pager is gone")
    ram.bring(8)  # it died before it could say so
    next_ = machine.dial("memory", common.ROLE_MIGRATION, name="migration")
    next_.request(ServePages(), PATIENCE)
    assert wanted(next_) == [7]
    next_.request(PagesPresent(addresses=[ram.bring(7)]), PATIENCE)
    assert len(answers(hart, 0.3, 2)) == 2


def test_hostile_requests_are_refused(machine: Machine, pager: wire.Peer, ram: Ram) -> None:
    hart = machine.dial("memory", common.ROLE_CPU, name="cpu")
    peer, _ = device(machine)
    bad = (RAM_BASE - 1, RAM_BASE + ram.pages * PAGE, 0, (1 << 64) - 1)
    for address in bad:
        with pytest.raises(errors.BadRequest):
            hart.request(NeedPages(addresses=[page(0), address]), PATIENCE)
        with pytest.raises(errors.OutsideGrant):
            peer.request(NeedPages(addresses=[address]), PATIENCE)
    with pytest.raises(errors.BadRequest, match="at most 256"):
        hart.request(NeedPages(addresses=[page(0)] * 257), PATIENCE)
    for start in range(0, 1024, 256):
        hart.send(NeedPages(addresses=[page(n) for n in range(start, start + 256)]))
    with pytest.raises(errors.TooMany):
        hart.request(NeedPages(addresses=[page(2000)]), PATIENCE)
    with pytest.raises(errors.TooMany):  # however many connections it has
        machine.dial("memory", common.ROLE_CPU, name="cpu").request(NeedPages(addresses=[page(2000)]), PATIENCE)
    with pytest.raises(errors.NotAllowed):
        hart.request(ServePages(), PATIENCE)
    with pytest.raises(errors.NotAllowed):
        pager.request(NeedPages(addresses=[page(0)]), PATIENCE)
    with pytest.raises(errors.NotAllowed):
        pager.request(PagesPresent(), PATIENCE)


def test_what_a_pager_cannot_mean_is_refused_and_the_rest_taken(machine: Machine, pager: wire.Peer, ram: Ram) -> None:
    hart = machine.dial("memory", common.ROLE_CPU, name="cpu")
    hart.send(NeedPages(addresses=[page(1)]))
    hart.send(NeedPages(addresses=[page(2)]))
    pager.request(ServePages(), PATIENCE)
    for nonsense in ([page(2)], [0], [(1 << 64) - 1], [page(ram.pages)]):
        with pytest.raises(errors.BadRequest, match="whose flag is set"):
            pager.request(PagesPresent(addresses=nonsense), PATIENCE)
    with pytest.raises(errors.BadRequest):
        pager.request(PagesPresent(addresses=[page(2), ram.bring(1), 5]), PATIENCE)
    assert len(answers(hart, 0.3, 1)) == 1
    assert counter(machine, "pages_wanted") == 1
    assert counter(machine, "pager_nonsense") == 6


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_guest_memory_waits_for_the_pages_of_a_buffer(machine: Machine, pager: wire.Peer, ram: Ram, kind: str) -> None:
    peer, attached = device(machine)
    memory: GuestMemory

    def fetch(addresses: list[int]) -> None:
        assert isinstance(peer.request(NeedPages(addresses=addresses), PATIENCE), common.Done)

    if kind == "local":
        memory = LocalGuestMemory(attached.segments, attached.grants, fetch)
    else:
        memory = RemoteGuestMemory(peer, attached.grants)
    ram.kept = {n: bytes([n]) * PAGE for n in range(256)}
    serving = Pager(lambda: machine.dial("memory", common.ROLE_MIGRATION, name="m"), ram, random.Random(1), 0.02)
    serving.start()
    assert memory.read(page(2) - 2, 4) == b"\1\1\2\2"
    memory.write(page(4) + 1, b"xy")
    assert memory.read(page(4), 4) == b"\4xy\4"
    assert memory.read_u16(page(9)) == 0x0909
    memory.write_u16(page(10), 0x1234)
    assert memory.read(page(10), 3) == b"\x34\x12\x0a"
    assert [bytes(each) for each in memory.gather([(page(20), 2), (page(22) - 1, 2)])] == [b"\x14\x14", b"\x15\x16"]

    def fill(views: list) -> int:  # type: ignore[type-arg]
        views[0][:] = b"filled"
        return 6

    assert memory.scatter([(page(30) - 3, 6)], fill) == 6
    assert memory.read(page(30) - 4, 8) == b"\x1dfilled\x1e"
    assert sorted(set(serving.asked)) == sorted(serving.asked)
    assert memory.read(page(40), 0) == b""
    assert 40 not in serving.asked
    big = memory.read(page(300), 400 * PAGE)
    assert RUBBISH not in big
    serving.end()


def test_what_a_dead_device_wrote_late_is_not_written(machine: Machine, pager: wire.Peer, ram: Ram) -> None:
    peer, _ = device(machine)
    peer.send(DmaWrite(address=page(1), data=b"late"))
    wait_for(lambda: counter(machine, "pages_wanted") == 1, "the write to wait")
    peer.close()
    second, _ = device(machine, epoch=2)
    pager.request(ServePages(), PATIENCE)
    pager.request(PagesPresent(addresses=[ram.bring(1)]), PATIENCE)
    answer = second.request(DmaRead(address=page(1), size=4), PATIENCE)
    assert answer.data == bytes(4)  # type: ignore[attr-defined]


def test_marks(machine: Machine) -> None:
    machine.start_memory()
    monitor = machine.monitor("memory")
    peer = machine.dial("memory", common.ROLE_MIGRATION, name="migration")
    assert counter(machine, "pages_absent") == 0
    peer.request(MarkPages(), PATIENCE)
    assert counter(machine, "pages_absent") == (16 << 20) // PAGE
    hart = machine.dial("memory", common.ROLE_CPU, name="cpu")
    hart.send(NeedPages(addresses=[page(1)]))
    with pytest.raises(errors.BadRequest, match="4096 that are still to come"):
        monitor.ask(lifecycle.Reset())
    peer.request(MarkPages(present=True), PATIENCE)
    assert len(answers(hart, 0.3, 1)) == 1
    monitor.ask(lifecycle.Reset())


def test_harts_that_wait_for_pages_can_be_paused_asked_and_ended(machine: Machine) -> None:
    """They are between two instructions: all that is done to a hart can be done to one that waits."""
    machine.start_cpu("--paused")
    monitor = machine.monitor("cpu")
    peer = machine.dial("memory", common.ROLE_MIGRATION, name="migration")
    ram = Ram(peer)
    ram.keep()
    peer.request(MarkPages(), PATIENCE)

    def states() -> set[int]:
        status = monitor.ask(cpu.CpuStatusRequest())
        assert isinstance(status, cpu.CpuStatus)
        return {hart.state for hart in status.harts}

    monitor.ask(lifecycle.Resume())
    wait_for(lambda: states() == {cpu.HART_PAGE}, "both harts to wait for their code")
    began = time.monotonic()
    saved = monitor.save()
    assert time.monotonic() - began < PATIENCE / 2
    assert cpu.CpuState.FromString(saved.bytes).harts[0].values["retired"] == 0
    monitor.ask(lifecycle.Resume())
    migration = machine.dial("cpu", common.ROLE_MIGRATION)
    migration.request(cpu.ShootDown(), PATIENCE)
    wait_for(lambda: states() == {cpu.HART_PAGE}, "both harts to wait again")
    serving = Pager(lambda: machine.dial("memory", common.ROLE_MIGRATION, name="m"), ram, random.Random(1))
    serving.start()
    wait_for(lambda: states() == {cpu.HART_WAITING}, "both harts to run to their WFI")
    serving.end()
    assert serving.asked == [0]
    assert counter(machine, "page_faults", "cpu") >= 2
