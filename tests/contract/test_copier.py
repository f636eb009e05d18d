"""The copier of docs/examples, in every language it is written in: DMA, its line, and what a guest may ask in vain."""

from __future__ import annotations

import os
import shutil
import zlib
from dataclasses import replace

import pytest

from tests.contract.cases import COPIER, COPIERS, Case
from tests.contract.harness import PATIENCE, RAM_BASE, Hart, Irqchip, Machine
from vmesh import errors, files, segment
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import lifecycle_pb2 as lifecycle
from vmesh.v1.bus_pb2 import Access, AccessBatch, Description
from vmesh.v1.devices_pb2 import CopierState
from vmesh.v1.files_pb2 import FilesOffered, TakeFiles
from vmesh.v1.memory_pb2 import Attach
from vmesh.v1.packet_pb2 import Packet

SOURCE, TARGET, LENGTH, STATUS, CRC = range(0, 40, 8)
IDLE, DONE, FAILED = range(3)
RAM_SIZE = 16 << 20
FILES = ("ram.seg", "ram.flags")

every_copier = pytest.mark.parametrize("case", COPIERS, ids=lambda case: case.name)


def write(offset: int, value: int) -> Access:
    return Access(offset=offset, size=8, write=True, value=value)


def begin(machine: Machine, case: Case) -> Hart:
    machine.start_memory()
    case.start(machine)
    return machine.hart(case.name)


def copy(hart: Hart, source: int, target: int, length: int) -> int:
    """The status after one batch with all four writes."""
    hart.batch(write(SOURCE, source), write(TARGET, target), write(LENGTH, length), write(STATUS, 1))
    return hart.read(STATUS, 8)


@every_copier
def test_who_is_which_process_is_no_refusal(machine: Machine, case: Case) -> None:
    """The monitor says it behind its Hello; a device may ignore it (docs/protocol.md)."""
    begin(machine, case)
    monitor = machine.monitor(case.name)
    monitor.peer.send_packet(Packet(processes=lifecycle.Processes(processes={"monitor": os.getpid()})))
    assert monitor.health().counters["refused"] == 0
    assert "processes" not in (machine.path / "log").read_text()


def ram(machine: Machine) -> memoryview:
    data = (machine.path / "ram.seg").read_bytes()
    return memoryview(data)


def fill(machine: Machine, offset: int, data: bytes) -> None:
    with open(machine.path / "ram.seg", "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
def test_what_it_cannot_open_it_is_given(machine: Machine) -> None:
    """In a mount namespace of its own, in which sockets lie where the files of guest memory are."""
    machine.start_memory()
    machine.monitor("memory").health()
    hide = "".join(f"mount --bind {machine.path}/memory.sock {machine.path}/{name} && " for name in FILES)
    confined = ["unshare", "--mount", "sh", "-c", f'{hide} exec "$@"', "sh", *COPIER.program()]
    replace(COPIER, program=lambda: confined).start(machine)
    hart = machine.hart(COPIER.name)
    fill(machine, 0, b"vmesh")
    assert copy(hart, RAM_BASE, RAM_BASE + 0x1000, 5) == DONE
    assert bytes(ram(machine)[0x1000:0x1005]) == b"vmesh"
    assert (machine.path / "ram.flags").read_bytes()[segment.flags_stride(RAM_SIZE) + 1], "the page is dirty"


def test_files_are_for_devices_that_may_map_them(machine: Machine) -> None:
    machine.start_memory()
    told = Description(name="d", kind="test", state_type="t", epoch=1, endpoint="ipc:///x", dma=True)
    device = machine.dial("memory", common.ROLE_DEVICE, name="d")
    with pytest.raises(errors.NotAllowed, match="after Attached"):
        device.request(TakeFiles(names=["ram.seg"]), PATIENCE)
    device.request(Attach(description=told), PATIENCE)
    for name in ("rom.seg", "../ram.seg", "machine.json", ""):
        with pytest.raises(errors.BadRequest, match=r"expected some of ram\.seg, ram\.flags"):
            device.request(TakeFiles(names=[name]), PATIENCE)
    offered = device.request(TakeFiles(names=["ram.flags", "ram.seg"]), PATIENCE)
    assert isinstance(offered, FilesOffered)
    flags, content = files.take(machine.path / offered.socket, offered.token, 2)
    for fd, name in ((flags, "ram.flags"), (content, "ram.seg")):
        assert os.path.samestat(os.fstat(fd), (machine.path / name).stat())
        os.close(fd)
    told.name, told.dma = "e", False
    other_device = machine.dial("memory", common.ROLE_DEVICE, name="e")
    other_device.request(Attach(description=told), PATIENCE)
    with pytest.raises(errors.NotAllowed, match="with dma"):
        other_device.request(TakeFiles(names=["ram.seg"]), PATIENCE)


@every_copier
@pytest.mark.parametrize("length", [0, 1, 4095, 4097, 1 << 20])
def test_copies_and_says_the_crc(machine: Machine, case: Case, length: int) -> None:
    hart = begin(machine, case)
    data = bytes(index * 7 % 251 for index in range(length))
    fill(machine, 3, data)
    assert copy(hart, RAM_BASE + 3, RAM_BASE + (4 << 20) + 1, length) == DONE
    assert ram(machine)[(4 << 20) + 1 : (4 << 20) + 1 + length] == data
    assert hart.read(CRC, 8) == zlib.crc32(data)


@every_copier
def test_pages_it_wrote_are_dirty(machine: Machine, case: Case) -> None:
    hart = begin(machine, case)
    assert copy(hart, RAM_BASE, RAM_BASE + 0x3FFF, 2) == DONE
    flags = (machine.path / "ram.flags").read_bytes()
    stride = len(flags) // 4
    assert [page for page in range(8) if flags[stride + page]] == [3, 4]  # dirty: memory.proto


@every_copier
@pytest.mark.parametrize(
    ("source", "target", "length"),
    [
        (RAM_BASE - 1, RAM_BASE, 8),
        (RAM_BASE, RAM_BASE - 8, 8),
        (RAM_BASE + RAM_SIZE - 4, RAM_BASE, 8),
        (RAM_BASE, RAM_BASE + RAM_SIZE - 4, 8),
        ((1 << 64) - 4, RAM_BASE, 8),
        (RAM_BASE, (1 << 64) - 4, 8),
        (RAM_BASE, RAM_BASE, (1 << 20) + 1),
        (RAM_BASE, RAM_BASE, (1 << 64) - 1),
    ],
)
def test_memory_that_is_not_there(machine: Machine, case: Case, source: int, target: int, length: int) -> None:
    hart = begin(machine, case)
    fill(machine, 0, bytes(range(1, 17)))
    before = bytes(ram(machine))
    assert copy(hart, source, target, length) == FAILED
    assert ram(machine) == before
    assert copy(hart, RAM_BASE, RAM_BASE + 64, 16) == DONE


@every_copier
def test_line_is_up_until_acknowledged(machine: Machine, case: Case) -> None:
    hart = begin(machine, case)
    irqchip = Irqchip(machine, case.name)
    irqchip.until(lambda: irqchip.levels == {0: False}, "the line low")
    hart.batch(write(LENGTH, 4), write(SOURCE, RAM_BASE), write(TARGET, RAM_BASE))
    irqchip.apply(hart.write(STATUS, 1, 8).update)
    assert (irqchip.levels, irqchip.shadows[0, STATUS, 8]) == ({0: True}, DONE)
    assert irqchip.shadows[0, CRC, 8] == zlib.crc32(bytes(4))
    irqchip.apply(hart.write(STATUS, 0, 8).update)
    assert (irqchip.levels, irqchip.shadows[0, STATUS, 8]) == ({0: False}, IDLE)


@every_copier
def test_a_state_that_it_cannot_be_in(machine: Machine, case: Case) -> None:
    begin(machine, case)
    monitor = machine.monitor(case.name)
    state = monitor.save()
    bad = lifecycle.ServiceState(
        type=state.type, version=state.version, bytes=CopierState(status=FAILED + 1).SerializeToString()
    )
    with pytest.raises(errors.BadState, match="status"):
        monitor.ask(lifecycle.Load(state=bad))
    assert monitor.ask(lifecycle.Save()) == state


@every_copier
def test_of_a_batch_that_overlaps_only_the_new_part_is_executed(machine: Machine, case: Case) -> None:
    hart = begin(machine, case)
    hart.batch(write(SOURCE, 1), write(TARGET, 2))
    done = hart.send(AccessBatch(epoch=1, sequence=2, accesses=[write(TARGET, 9), write(LENGTH, 3)]))
    hart.sequence = done.done + 1
    assert [hart.read(offset, 8) for offset in (SOURCE, TARGET, LENGTH)] == [1, 2, 3]


@every_copier
def test_either_language_takes_over_from_the_other(machine: Machine, case: Case) -> None:
    hart = begin(machine, case)
    hart.batch(write(SOURCE, RAM_BASE), write(TARGET, RAM_BASE + 8), write(LENGTH, 8), write(STATUS, 1))
    (other,) = (each for each in COPIERS if each != case)
    machine.kill(case.name)
    replace(other, name=case.name).start(machine, epoch=2)
    again = machine.hart(case.name)
    assert (again.epoch, again.sequence) == (2, 5)
    irqchip = Irqchip(machine, case.name)
    irqchip.until(lambda: irqchip.levels == {0: True}, "the line as it was")
    assert [again.read(offset, 8) for offset in (SOURCE, TARGET, LENGTH)] == [RAM_BASE, RAM_BASE + 8, 8]
    assert copy(again, RAM_BASE, RAM_BASE + 16, 8) == DONE
