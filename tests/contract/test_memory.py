"""The memory service: the address map, images, reset, limits, and the end of the machine directory."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.contract.harness import PATIENCE, RAM_BASE, Machine
from tests.waiting import wait_for
from vmesh import errors, wire
from vmesh.limits import MOST_LIVES
from vmesh.machine import LOCK, MARK
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import lifecycle_pb2 as lifecycle
from vmesh.v1.bus_pb2 import Description, Line, Region, Register
from vmesh.v1.cpu_pb2 import MemoryContent, ReadMemory
from vmesh.v1.memory_pb2 import (
    AddressMap,
    Attach,
    Attached,
    Detach,
    DmaDone,
    DmaRead,
    ExpectLife,
    MapRequest,
    MemoryState,
)  # fmt: skip
from vmesh.v1.packet_pb2 import Packet

RAM = 16 << 20


def device(name: str, *, base: int = 0x1000_0000, size: int = 0x100, irq: int = 0, epoch: int = 1) -> Description:
    made = Description(name=name, kind="test", epoch=epoch, endpoint="ipc:///nowhere")
    made.regions.append(Region(name="registers", base=base, size=size, access_sizes=15))
    if irq:
        made.lines.append(Line(name="interrupt", irq=irq))
    return made


def attach(machine: Machine, description: Description) -> wire.Peer:
    peer = machine.dial("memory", common.ROLE_DEVICE, name=description.name)
    assert isinstance(peer.request(Attach(description=description), PATIENCE), Attached)
    return peer


def address_map(machine: Machine) -> AddressMap:
    answer = machine.dial("memory", common.ROLE_CPU, name="cpu").request(MapRequest(), PATIENCE)
    assert isinstance(answer, AddressMap)
    return answer


def ram(machine: Machine) -> bytes:
    return (machine.path / "ram.seg").read_bytes()


def test_the_map_waits_for_all_that_are_expected(machine: Machine) -> None:
    machine.start_memory("--expect", "a,b")
    cpu = machine.dial("memory", common.ROLE_CPU, name="cpu")
    number = cpu.send(MapRequest())
    attach(machine, device("b", base=0x2000_0000))
    attach(machine, device("c", base=0x3000_0000))
    assert cpu.receive() is None
    attach(machine, device("a"))
    packet = cpu.receive(PATIENCE)
    assert packet is not None
    assert packet.id == number
    assert {each.name for each in packet.address_map.devices} == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("promised", "reason"),
    [
        ("a=other@0x10000000:0x100/5", "a: kind: expected other, got 'test'"),
        ("a=@0x10000004:0x100/5", "region .*: expected memory inside 0x10000004.0x100, got memory 0x10000000.0x100"),
        ("a=@0x10000000:0xff/5", "inside"),
        ("a=@0x10000000:0x100/6", "a: irq of interrupt: expected 6, got 5"),
        ("a=@0x10000000:0x100/0", "expected no line, got 5"),
    ],
)
def test_a_device_that_is_not_as_announced_is_refused(machine: Machine, promised: str, reason: str) -> None:
    machine.start_memory("--place", promised, "--place", "b=test@0x20000000:0x1000/7")
    with pytest.raises(errors.BadRequest, match=reason):
        attach(machine, device("a", irq=5))
    attach(machine, device("b", base=0x2000_0800, irq=7))
    assert [each.name for each in address_map(machine).devices] == ["b"]


def test_segments(machine: Machine) -> None:
    machine.start_memory("--rom", "0x1000:0xf000")
    first, second = address_map(machine).segments
    assert (first.name, first.base, first.size, first.writable) == ("ram", RAM_BASE, RAM, True)
    assert (second.name, second.base, second.size, second.writable) == ("rom", 0x1000, 0xF000, False)
    assert Path(first.path).stat().st_size == RAM
    assert Path(first.flags_path).stat().st_size == 4 * first.flags_stride
    assert not second.flags_path
    assert first.flags_stride >= RAM // 4096


def test_nothing_is_taken_before_it_is_used(machine: Machine) -> None:
    machine.start_memory(ram="1G")
    monitor = machine.monitor("memory")
    pid = monitor.health().pid
    assert (machine.path / "ram.seg").stat().st_blocks == 0
    resident = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert resident is not None
    assert int(resident[1]) < 100_000


@pytest.mark.parametrize(
    ("added", "named"),
    [
        (device("new", base=RAM_BASE - 0x80), ("RAM", "new registers")),
        (device("new", base=RAM_BASE + 4096), ("RAM", "new registers")),
        (device("new", base=RAM_BASE + RAM - 4), ("RAM", "new registers")),
        (device("new", base=0x1000 + 0xEF00), ("ROM", "new registers")),
        (device("new", base=0x0BFF_FF80), ("plic", "new registers")),
        (device("new", base=0x1000_00FC), ("old registers", "new registers")),
        (device("new", base=0, size=1 << 63), ("new registers",)),
    ],
)
def test_overlaps_are_refused_and_both_named(machine: Machine, added: Description, named: tuple[str, ...]) -> None:
    machine.start_memory("--rom", "0x1000:0xf000", "--reserve", "plic=0xc000000:0x600000")
    attach(machine, device("old"))
    peer = machine.dial("memory", common.ROLE_DEVICE, name="new")
    with pytest.raises(errors.Overlap) as refusal:
        peer.request(Attach(description=added), PATIENCE)
    assert all(name in str(refusal.value) for name in named)
    assert [each.name for each in address_map(machine).devices] == ["old"]


def test_neighbours_do_not_overlap(machine: Machine) -> None:
    machine.start_memory()
    for name, base in (("a", RAM_BASE - 0x100), ("b", RAM_BASE + RAM), ("c", RAM_BASE - 0x200)):
        attach(machine, device(name, base=base))
    assert len(address_map(machine).devices) == 3


def test_taken_names_and_lines_are_refused(machine: Machine) -> None:
    machine.start_memory()
    attach(machine, device("old", irq=7))
    with pytest.raises(errors.Duplicate, match="interrupt 7 is taken by old interrupt"):
        attach(machine, device("new", base=0x2000_0000, irq=7))
    with pytest.raises(errors.Duplicate, match="old is attached"):
        attach(machine, device("old", base=0x2000_0000))


def test_the_next_life_takes_the_place_if_it_is_the_same_to_the_guest(machine: Machine) -> None:
    machine.start_memory()
    attach(machine, device("old", irq=7))
    others = [device("old", base=0x3000_0000, irq=7), device("old", size=0x200, irq=7), device("old"), device("old")]
    others += [device("old", irq=7), device("old", irq=7)]
    others[3].lines.append(Line(name="interrupt", irq=8))
    others[4].kind = "other"
    others[5].dma = True
    for each in others:
        each.epoch = 2
        with pytest.raises(errors.BadRequest, match=r"of its (next|former) life"):
            attach(machine, each)
    attach(machine, device("old", irq=7, epoch=2))
    (only,) = address_map(machine).devices
    assert (only.epoch, only.regions[0].base) == (2, 0x1000_0000)


def test_what_a_life_calls_itself_does_not_keep_its_next_ones_out(machine: Machine) -> None:
    """Whoever starts them says which is due; the one that is there is replaced by no other."""
    machine.start_memory()
    monitor = machine.dial("memory", common.ROLE_MONITOR, name="monitor")
    attach(machine, device("old", epoch=1 + MOST_LIVES))
    for due in (2, 3):
        with pytest.raises(errors.Duplicate, match="old is attached"):
            attach(machine, device("old", epoch=due))
        assert isinstance(monitor.request(ExpectLife(name="old", epoch=due), PATIENCE), common.Done)
        with pytest.raises(errors.Duplicate, match=f"from {due} on"):
            attach(machine, device("old", epoch=due - 1))
        with pytest.raises(errors.BadRequest, match="old: epoch"):
            attach(machine, device("old", epoch=due + MOST_LIVES + 1))
        attach(machine, device("old", epoch=due))
        assert [each.epoch for each in address_map(machine).devices] == [due]
        attach(machine, device("old", epoch=due + MOST_LIVES))
    with pytest.raises(errors.NotAllowed):
        machine.dial("memory", common.ROLE_DEVICE, name="old").request(ExpectLife(name="old", epoch=9), PATIENCE)


def test_detach_makes_room(machine: Machine) -> None:
    machine.start_memory()
    attach(machine, device("old", irq=7)).request(Detach(), PATIENCE)
    attach(machine, device("new", irq=7))
    assert [each.name for each in address_map(machine).devices] == ["new"]


def bad_descriptions() -> list[Description]:
    made = [device("bad", base=2), device("bad", size=0), device("bad", base=(1 << 64) - 4, size=8)]
    made += [device("bad", irq=1024), device("bad", epoch=0), device("other")]
    made += [
        device("bad", epoch=2 + MOST_LIVES),
        device("bad", epoch=(1 << 32) - 1),
        device("bad", epoch=(1 << 64) - 1),
    ]
    for field, value in (("kind", ""), ("kind", "x" * 65), ("endpoint", ""), ("endpoint", "tcp://*:1")):
        each = device("bad")
        setattr(each, field, value)
        made.append(each)
    for sizes in (0, 16):
        each = device("bad")
        each.regions[0].access_sizes = sizes
        made.append(each)
    for register in (
        Register(offset=0x100, size=1),
        Register(offset=0xFF, size=2),
        Register(offset=0, size=3),
        Register(offset=0, size=4, count=65),
    ):
        each = device("bad")
        each.regions[0].registers.append(register)
        made.append(each)
    each = device("bad", irq=3)
    each.lines.append(Line(name="second", irq=0))
    made.append(each)
    each = device("bad")
    each.regions.extend(Region(name=f"r{n}", base=0x4000_0000 + 16 * n, size=16, access_sizes=4) for n in range(64))
    made.append(each)
    return made


def test_descriptions_that_cannot_be_are_refused(machine: Machine) -> None:
    machine.start_memory()
    peer = machine.dial("memory", common.ROLE_DEVICE, name="bad")
    for description in bad_descriptions():
        with pytest.raises(errors.BadRequest):
            peer.request(Attach(description=description), PATIENCE)
    twice = device("bad")
    twice.lines.extend([Line(name="first", irq=3), Line(name="second", irq=3)])
    with pytest.raises(errors.Duplicate, match="interrupt 3 is taken by bad first"):
        peer.request(Attach(description=twice), PATIENCE)
    over_itself = device("bad")
    over_itself.regions.append(over_itself.regions[0])
    with pytest.raises(errors.Overlap):
        peer.request(Attach(description=over_itself), PATIENCE)
    assert not address_map(machine).devices


def test_images(machine: Machine, tmp_path: Path) -> None:
    one, two = tmp_path / "one@home", tmp_path / "two"
    one.write_bytes(b"first image")
    two.write_bytes(b"....second image....")
    machine.start_memory(
        "--rom",
        "0x1000:0x1000",
        f"--image=0x80000003={one}",
        f"--image=0x80200000={two}@4:0xc",
        f"--image=0x1ff0={two}@4:12",
    )
    address_map(machine)
    assert ram(machine)[:16] == b"\0\0\0first image\0\0"
    assert ram(machine)[0x20_0000:0x20_0010] == b"second image\0\0\0\0"
    assert (machine.path / "rom.seg").read_bytes()[0xFF0:] == b"second image\0\0\0\0"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--image=0x80000000={dir}/none"], "none: No such file"),
        (["--image=0x80fffff0={dir}/long"], "does not fit"),
        (["--image=0x7fffffff={dir}/long"], "does not fit"),
        (["--image=0={dir}/long"], "does not fit"),
        (["--image=0x80000000={dir}/long@60:8"], "has 64 bytes"),
        (["--image=0x80000000={dir}/long@65:0"], "has 64 bytes"),
        (["--image=0x80000000={dir}/long", "--image=0x8000003f={dir}/other"], "overlaps"),
        (["--ram", "4097"], "multiple of 4096"),
        (["--ram-base", "0x80000800"], "multiple of 4096"),
        (["--ram-base", "0xfffffffffffff000"], "multiple of 4096"),
        (["--rom", "0x80001000:0x1000"], "ROM at 0x80001000+0x1000 overlaps RAM"),
        (["--reserve", "plic=0x80fff000:0x2000"], "plic at 0x80fff000+0x2000 overlaps RAM"),
    ],
)
def test_plans_that_cannot_be_are_refused_by_name(
    machine: Machine, tmp_path: Path, arguments: list[str], named: str
) -> None:
    (tmp_path / "long").write_bytes(bytes(64))
    (tmp_path / "other").write_bytes(bytes(1))
    machine.start_memory(*(argument.format(dir=tmp_path) for argument in arguments))
    said = machine.failure("memory")
    assert named in said, said


def test_more_ram_than_the_host_has_is_refused_with_both_numbers(machine: Machine) -> None:
    machine.start_memory(ram="1024T")
    said = machine.failure("memory")
    assert re.search(r"ram\.seg: .*at most \d+ bytes .*got 1125899906842624 bytes", said), said
    assert not (machine.path / "ram.seg").exists()


def test_reset_clears_ram_and_loads_the_images_again(machine: Machine, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"image")
    machine.start_memory(f"--image=0x80001000={image}")
    monitor = machine.monitor("memory")
    with open(machine.path / "ram.seg", "r+b") as file:
        file.write(b"x" * (4 << 20))
    blocks = (machine.path / "ram.seg").stat().st_blocks
    monitor.ask(lifecycle.Reset())
    content = ram(machine)
    assert content[0x1000:0x1005] == b"image"
    assert content.count(0) == RAM - 5
    assert (machine.path / "ram.seg").stat().st_blocks < blocks


def test_reset_has_the_images_of_the_start_whatever_has_their_names(machine: Machine, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"image")
    machine.start_memory(f"--image=0x80001000={image}")
    monitor = machine.monitor("memory")
    image.unlink()
    monitor.ask(lifecycle.Reset())
    image.write_bytes(b"another one")
    monitor.ask(lifecycle.Reset())
    content = ram(machine)
    assert content[0x1000:0x1005] == b"image"
    assert content.count(0) == RAM - 5


@pytest.mark.parametrize("other", [b"", b"other", b"one that is longer"])
def test_reset_without_its_images_is_refused_and_ram_is_as_it_was(
    machine: Machine, tmp_path: Path, other: bytes
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"image")
    machine.start_memory(f"--image=0x80001000={image}")
    monitor = machine.monitor("memory")
    with open(machine.path / "ram.seg", "r+b") as file:
        file.write(b"x" * 0x1000)
    image.write_bytes(other)
    with pytest.raises(errors.VmeshError, match=f"image {image} was changed since the machine began"):
        monitor.ask(lifecycle.Reset())
    content = ram(machine)
    assert content[:0x1000] == b"x" * 0x1000
    assert content[0x1000:0x1005] == b"image"


def test_the_layout_is_the_state(machine: Machine) -> None:
    machine.start_memory()
    monitor = machine.monitor("memory")
    state = monitor.save()
    monitor.ask(lifecycle.Load(state=state))
    other = MemoryState.FromString(state.bytes)
    other.segments[0].size *= 2
    for bytes_ in (other.SerializeToString(), b"", b"\xff\xff"):
        wrong = lifecycle.ServiceState(type=state.type, version=state.version, bytes=bytes_)
        with pytest.raises(errors.BadState):
            monitor.ask(lifecycle.Load(state=wrong))


def test_the_directory_goes_with_the_lifeline(machine: Machine) -> None:
    (machine.path / LOCK).write_bytes(MARK)
    machine.start_memory()
    machine.monitor("memory").health()
    machine.cut_lifeline()
    assert machine.processes["memory"].wait(PATIENCE) == 0
    assert not machine.path.exists()


@pytest.mark.parametrize("service", ["memory", "cpu"])
def test_ram_that_is_cut_short_is_told_once_and_no_state_is_given(machine: Machine, service: str) -> None:
    if service == "cpu":
        machine.start_cpu("--paused")
    else:
        machine.start_memory()
    monitor = machine.monitor(service)
    monitor.save()  # and is Paused and drained
    os.truncate(machine.path / "ram.seg", 1 << 20)
    if service == "cpu":
        for _ in range(2):
            found = monitor.peer.request(ReadMemory(physical=True, address=RAM_BASE + (8 << 20), size=4096), PATIENCE)
            assert found == MemoryContent(data=bytes(4096))
    else:
        description = device("test")
        description.dma = True
        peer = attach(machine, description)
        for address in (RAM_BASE + (8 << 20), RAM_BASE + (4 << 20)):
            assert peer.request(DmaRead(address=address, size=4096), PATIENCE) == DmaDone(data=bytes(4096))
    notice = monitor.notice()
    cause = f"{machine.path}/ram.seg was cut short: {1 << 20} of {RAM} bytes are left"
    assert (notice.text, notice.fault) == (cause, common.Fault(service=service, reason=cause, lost=True))
    for request in (lifecycle.Save(), lifecycle.HandOver(), lifecycle.Load(), lifecycle.Resume(), lifecycle.Reset()):
        with pytest.raises(errors.BadState, match=r"ram\.seg was cut short"):
            monitor.ask(request)
    assert monitor.health().phase == lifecycle.SERVICE_PAUSED
    assert not monitor.peer.unasked


def test_notices_wait_for_the_monitor(machine: Machine) -> None:
    machine.start_memory("--expect", "test")
    machine.start("vmesh_services.devices.sifive_test", "test", "--base", "0x100000")
    address_map(machine)
    hart = machine.hart("test")
    for value in (0x5555, 0x7777, 0x002A_3333, 0x1234):
        hart.write(0, value, 4)
    monitor = machine.monitor("test")
    wait_for(lambda: monitor.health() is not None, "an answer")
    notices = [monitor.notice() for _ in range(3)]
    assert [notice.WhichOneof("event") for notice in notices] == ["power_off", "reset_request", "power_off"]
    assert [notice.power_off.exit_code for notice in notices] == [0, 0, 42]
    assert not monitor.peer.unasked


def test_a_request_without_an_id_gets_no_answer(machine: Machine) -> None:
    machine.start_memory()
    cpu = machine.dial("memory", common.ROLE_CPU, name="cpu")
    cpu.send_packet(Packet(map_request=MapRequest()))
    answer = cpu.request(MapRequest(), PATIENCE)
    assert isinstance(answer, AddressMap)
    assert not cpu.unasked
