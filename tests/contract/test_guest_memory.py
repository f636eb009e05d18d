"""Guest memory behaves the same whether it is mapped or asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.harness import PATIENCE, RAM_BASE, Machine
from vmesh import errors, segment
from vmesh.guest_memory import MAX_TRANSFER, GuestMemory, LocalGuestMemory, RemoteGuestMemory
from vmesh.v1 import common_pb2 as common
from vmesh.v1.bus_pb2 import Description
from vmesh.v1.memory_pb2 import Attach, Attached, Detach

RAM = 16 << 20


@pytest.fixture(params=["local", "remote"])
def memory(request: pytest.FixtureRequest, machine: Machine) -> GuestMemory:
    machine.start_memory("--rom", "0x1000:0x1000")
    peer = machine.dial("memory", common.ROLE_DEVICE, name="dma0")
    description = Description(name="dma0", kind="test", epoch=1, endpoint="ipc:///nowhere", dma=True)
    attached = peer.request(Attach(description=description), PATIENCE)
    assert isinstance(attached, Attached)
    if request.param == "local":
        return LocalGuestMemory(attached.segments, attached.grants)
    return RemoteGuestMemory(peer, attached.grants)


@pytest.fixture
def flags(machine: Machine) -> Callable[[int], list[int]]:
    """The numbers of the pages for which the flag of an array is set."""

    def pages(array: int) -> list[int]:
        stride = segment.flags_stride(RAM)
        content = Path(machine.path / "ram.flags").read_bytes()[array * stride : array * stride + RAM // segment.PAGE]
        return [number for number, value in enumerate(content) if value]

    return pages


def test_reads_what_was_written(machine: Machine, memory: GuestMemory) -> None:
    data = bytes(range(256)) * 40
    memory.write(RAM_BASE + 4000, data)
    assert memory.read(RAM_BASE + 4000, len(data)) == data
    assert memory.read(RAM_BASE + 3999, 3) == b"\0" + data[:2]
    assert (machine.path / "ram.seg").read_bytes()[4000 : 4000 + len(data)] == data


def test_a_transfer_longer_than_one_message(memory: GuestMemory) -> None:
    data = bytes(MAX_TRANSFER) + b"end of it" + bytes(MAX_TRANSFER)
    memory.write(RAM_BASE + 5, memoryview(data))
    assert memory.read(RAM_BASE + 5, len(data)) == data


def test_the_whole_of_ram_and_not_a_byte_more(memory: GuestMemory) -> None:
    memory.write(RAM_BASE + RAM - 1, b"x")
    assert memory.read(RAM_BASE + RAM - 1, 1) == b"x"
    for address, size in ((RAM_BASE + RAM - 1, 2), (RAM_BASE + RAM, 1), (RAM_BASE - 1, 1), (0, 1), ((1 << 64) - 1, 1)):
        with pytest.raises(errors.OutsideGrant):
            memory.read(address, size)
        with pytest.raises(errors.OutsideGrant):
            memory.write(address, bytes(size))


def test_nothing_is_written_where_not_all_may_be(memory: GuestMemory) -> None:
    with pytest.raises(errors.OutsideGrant):
        memory.write(RAM_BASE + RAM - 4, b"12345678")
    assert memory.read(RAM_BASE + RAM - 4, 4) == bytes(4)


def test_rom_is_not_granted(memory: GuestMemory) -> None:
    for action in (lambda: memory.read(0x1000, 4), lambda: memory.write(0x1000, b"1234")):
        with pytest.raises(errors.OutsideGrant):
            action()


def test_sizes_that_are_none(memory: GuestMemory) -> None:
    assert memory.read(RAM_BASE, 0) == b""
    memory.write(RAM_BASE, b"")
    with pytest.raises(errors.OutsideGrant):
        memory.read(RAM_BASE, -1)
    with pytest.raises(errors.OutsideGrant):
        memory.read(-1, 1)


def test_a_write_marks_its_pages_and_no_others(memory: GuestMemory, flags: Callable[[int], list[int]]) -> None:
    memory.read(RAM_BASE, 3 * segment.PAGE)
    memory.write(RAM_BASE + 2 * segment.PAGE, b"")
    assert flags(segment.FLAG_DIRTY) == []
    memory.write(RAM_BASE + 5 * segment.PAGE - 1, b"ab")
    memory.write(RAM_BASE + 9 * segment.PAGE, bytes(segment.PAGE))
    assert flags(segment.FLAG_DIRTY) == [4, 5, 9]
    assert flags(segment.FLAG_HOLDS_CODE) == []
    assert len(flags(segment.FLAG_PRESENT)) == RAM // segment.PAGE


def test_two_bytes_in_one_access(memory: GuestMemory) -> None:
    memory.write_u16(RAM_BASE + 6, 0x1234)
    assert memory.read(RAM_BASE + 4, 6) == b"\0\0\x34\x12\0\0"
    assert memory.read_u16(RAM_BASE + 6) == 0x1234
    for address in (RAM_BASE + RAM, RAM_BASE - 2):
        with pytest.raises(errors.OutsideGrant):
            memory.read_u16(address)
        with pytest.raises(errors.OutsideGrant):
            memory.write_u16(address, 1)


def test_what_is_covered(memory: GuestMemory) -> None:
    assert memory.covers(RAM_BASE, RAM, write=True)
    assert memory.covers(RAM_BASE + RAM - 1, 1, write=False)
    for address, size in ((RAM_BASE, RAM + 1), (RAM_BASE - 1, 1), (RAM_BASE + RAM, 1), ((1 << 64) - 1, 1), (0x1000, 4)):
        assert not memory.covers(address, size, write=False)


def test_pieces_of_memory_are_read_and_filled_in_order(memory: GuestMemory, flags: Callable[[int], list[int]]) -> None:
    def fill(buffers: list[memoryview]) -> int:
        assert [len(buffer) for buffer in buffers] == [3, 5]
        buffers[0][:] = b"abc"
        buffers[1][:2] = b"de"
        return 5

    pieces = [(RAM_BASE + 4 * segment.PAGE - 1, 3), (RAM_BASE, 5)]
    assert memory.scatter(pieces, fill) == 5
    assert b"".join(memory.gather(pieces)) == b"abcde\0\0\0"
    assert memory.read(RAM_BASE + 4 * segment.PAGE - 1, 3) == b"abc"
    assert flags(segment.FLAG_DIRTY) == [0, 3, 4]
    outside = [(RAM_BASE, 1), (RAM_BASE + RAM, 1)]
    with pytest.raises(errors.OutsideGrant):
        memory.scatter(outside, fill)
    with pytest.raises(errors.OutsideGrant):
        memory.gather(outside)


def test_what_is_discarded_reads_as_zero_or_as_before(
    machine: Machine, memory: GuestMemory, flags: Callable[[int], list[int]]
) -> None:
    page, content = segment.PAGE, bytes(range(1, 129)) * (8 * segment.PAGE // 128)
    memory.write(RAM_BASE, content)
    marked = flags(segment.FLAG_DIRTY)
    with (machine.path / "ram.flags").open("r+b") as file:
        os.pwrite(file.fileno(), bytes(RAM // page), segment.flags_stride(RAM))
    pieces = [(RAM_BASE + page, 2 * page), (RAM_BASE + 5 * page - 1, page + 1), (RAM_BASE + 7 * page, page - 1)]
    given = memory.discard(pieces)
    assert marked == list(range(8))
    if isinstance(memory, LocalGuestMemory):
        assert given == 3 * page  # whole pages only
        assert flags(segment.FLAG_DIRTY) == [1, 2, 5]
        content = content[:page] + bytes(2 * page) + content[3 * page : 5 * page] + bytes(page) + content[6 * page :]
    else:
        assert given == 0
        assert flags(segment.FLAG_DIRTY) == []
    assert memory.read(RAM_BASE, 8 * page) == content
    for outside in ((RAM_BASE + RAM, page), (RAM_BASE - page, 2 * page)):
        with pytest.raises(errors.OutsideGrant):
            memory.discard([(RAM_BASE + 6 * page, page), outside])
    assert memory.read(RAM_BASE, 8 * page) == content


def test_a_page_that_is_absent_comes_before_it_is_discarded(machine: Machine) -> None:
    """Whoever brings it would write it again."""
    machine.start_memory()
    peer = machine.dial("memory", common.ROLE_DEVICE, name="dma0")
    description = Description(name="dma0", kind="test", epoch=1, endpoint="ipc:///nowhere", dma=True)
    attached = peer.request(Attach(description=description), PATIENCE)
    assert isinstance(attached, Attached)
    asked: list[list[int]] = []

    def fetch(addresses: list[int]) -> None:
        asked.append(addresses)
        with (machine.path / "ram.seg").open("r+b") as file:
            os.pwrite(file.fileno(), b"old", 3 * segment.PAGE)
        with (machine.path / "ram.flags").open("r+b") as file:
            os.pwrite(file.fileno(), b"\x01", 3)

    memory = LocalGuestMemory(attached.segments, attached.grants, fetch)
    with (machine.path / "ram.flags").open("r+b") as file:
        os.pwrite(file.fileno(), b"\0", 3)
    assert memory.discard([(RAM_BASE + 2 * segment.PAGE, 3 * segment.PAGE)]) == 3 * segment.PAGE
    assert asked == [[RAM_BASE + 3 * segment.PAGE]]
    assert memory.read(RAM_BASE + 3 * segment.PAGE, 3) == bytes(3)


def test_without_a_grant_nothing_is_given(machine: Machine) -> None:
    machine.start_memory()
    peer = machine.dial("memory", common.ROLE_DEVICE, name="plain0")
    memory = RemoteGuestMemory(peer, ())
    with pytest.raises(errors.OutsideGrant):
        memory.read(RAM_BASE, 1)
    description = Description(name="plain0", kind="test", epoch=1, endpoint="ipc:///nowhere")
    attached = peer.request(Attach(description=description), PATIENCE)
    assert attached == Attached()
    with pytest.raises(errors.OutsideGrant):
        memory.write(RAM_BASE, b"x")


def test_a_detached_device_has_lost_its_grant(machine: Machine) -> None:
    machine.start_memory()
    peer = machine.dial("memory", common.ROLE_DEVICE, name="dma0")
    description = Description(name="dma0", kind="test", epoch=1, endpoint="ipc:///nowhere", dma=True)
    peer.request(Attach(description=description), PATIENCE)
    memory = RemoteGuestMemory(peer, ())
    memory.write(RAM_BASE, b"x")
    peer.request(Detach(), PATIENCE)
    with pytest.raises(errors.OutsideGrant):
        memory.read(RAM_BASE, 1)
