"""`-device vmesh-external`: what it takes, where it may be, the processes and the node that come of it."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import libfdt
import pytest

from vmesh.board import commands, cpu_model, devicetree, virt
from vmesh.board.errors import BoardError
from vmesh.board.external import External
from vmesh.board.parts import Board, Carrier, Part, Range, Space
from vmesh.cli.flags.options import OptionError
from vmesh.cli.flags.parsing import parse
from vmesh.cli.plan import plan
from vmesh.machine import MachineDirectory
from vmesh.qdev import external
from vmesh.spawn import python
from vmesh_services.memory import layout

RAM = 128 << 20
COPIER = External("copier0", Range(0x400_0000, 0x1000), 20)


def board(*devices: External) -> Board:
    return virt.board(RAM, 1, cpu_model.parse("rv64")).with_devices(*(device.part for device in devices))


def test_all_properties() -> None:
    text = "vmesh-external,id=c,base=0x5000000,irq=7,size=64,kind=copier,compatible=acme,,copier acme,,mover,wait=3"
    (device,) = parse(["-device", text + ",command=./copier  -v 'a b'"]).external
    place = Range(0x500_0000, 64)
    assert device == External("c", place, 7, "copier", ("acme,copier", "acme,mover"), "./copier -v 'a b'", 3.0)


def test_several_devices() -> None:
    flags = ["-device", "vmesh-external,id=a,base=0x4000000", "-device", "vmesh-external,id=b,base=0x4001000"]
    assert [device.name for device in parse(flags).external] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base=0x4000000", "expected id=NAME"),
        ("id=../x,base=0x4000000", "expected id=NAME"),
        ("id=cpu,base=0x4000000", "none of monitor, gateway, memory, cache, cpu"),
        ("id=handover,base=0x4000000", "none of monitor"),
        ("id=a", "expected base=ADDRESS"),
        ("id=a,base=here", "expected base to be a number"),
        ("id=a,base=0x4000002", "multiple of 4"),
        ("id=a,base=-4", "expected base to be a number"),
        ("id=a,base=0x4000000,size=0", "and a size"),
        ("id=a,base=0x4000000,irq=0", "an irq of 1 to 95, got 0"),
        ("id=a,base=0x4000000,irq=96", "an irq of 1 to 95, got 96"),
        ("id=a,base=0x4000000,kind=memory", "expected kind=KIND"),
        ("id=a,base=0x4000000,addr=1", "no property 'addr'"),
        ("id=a,base=0x4000000,command='", "No closing quotation"),
        ("id=a,base=0x4000000,wait=0", "expected wait=SECONDS"),
        ("id=a,base=0x4000000,wait=nan", "expected wait=SECONDS"),
    ],
)
def test_what_cannot_be_followed(text: str, expected: str) -> None:
    with pytest.raises(OptionError, match=expected) as raised:
        parse(["-device", f"vmesh-external,{text}"])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (External("a", Range(0x8000_0000 + RAM - 4, 8)), "overlaps ram"),
        (External("a", Range(0x1000_0000, 4)), "overlaps uart0 at 0x10000000"),
        (External("a", Range(0xC00_0000 - 4, 8)), "overlaps plic"),
        (External("a", Range(0x1000_1000, 4)), "overlaps virtio-mmio-bus.0"),
        (External("a", Range(0x400_0800, 4)), "overlaps copier0 at 0x4000000"),
        (External("a", Range(0x500_0000, 4), 10), "interrupt 10 is uart0's"),
        (External("a", Range(0x500_0000, 4), 1), "interrupt 1 is virtio-mmio-bus.0's"),
        (External("a", Range(0x500_0000, 4), 20), "interrupt 20 is copier0's"),
    ],
)
def test_places_that_are_taken(device: External, reason: str) -> None:
    with pytest.raises(BoardError, match=reason):
        board(COPIER, device)


@pytest.mark.parametrize("kind", ["ram", "rom", "plic", "aclint", "virtio-mmio"])
def test_a_kind_that_the_board_has_too(kind: str) -> None:
    """What a program says it is takes no part of the board's place."""
    found = board(External("a", Range(0x400_0000, 8), kind=kind))
    assert found.ram.size == RAM
    assert commands.memory(found) == commands.memory(board())
    assert commands.cpu(found) == commands.cpu(board())


def test_nodes_of_the_users_come_last_and_in_their_order() -> None:
    devices = [
        External(name, Range(base, 8), compatible=("a,b",)) for name, base in (("y", 0x500_0000), ("x", 0x400_0000))
    ]
    tree = libfdt.Fdt(devicetree.build(board(*devices)))
    node, names = tree.first_subnode(tree.path_offset("/soc")), []
    while node >= 0:
        names.append(tree.get_name(node))
        node = tree.next_subnode(node, libfdt.QUIET_NOTFOUND)
    assert names[-3:] == ["virtio_mmio@10008000", "y@5000000", "x@4000000"]


def test_places_that_are_free() -> None:
    above, below = Range(0x400_1000, 8), Range(0x3FF_FFFC, 4)
    board(COPIER, External("a", above), External("b", below))


@pytest.mark.parametrize("name", ["rtc", "copier0", "rng0"])
def test_names_that_are_taken(tmp_path: Path, name: str) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bytes(4))
    flags = ["-bios", "none", "-kernel", str(kernel), "-device", "virtio-rng-device"]
    flags += ["-device", "vmesh-external,id=copier0,base=0x4000000"]
    with pytest.raises(BoardError, match=f"id={name}: expected each id once"):
        plan(parse([*flags, "-device", f"vmesh-external,id={name},base=0x5000000"]), MachineDirectory(tmp_path))


def test_the_process() -> None:
    by_hand = commands.device(COPIER.part, Path("/m"))
    started = commands.device(External("c", Range(0, 4), kind="copier", command="a 'b c'").part, Path("/m"))
    assert (by_hand.name, by_hand.kind) == ("copier0", "external")
    assert by_hand.arguments[-2:] == ("--wait", "60")
    assert (started.name, started.kind) == ("c", "copier")
    assert shlex.split(started.arguments[started.arguments.index("--command") + 1]) == ["a", "b c"]
    assert "--irq" not in started.arguments


def test_memory_reads_the_place() -> None:
    place = layout.place_argument(external.place(External("c", Range(0x400_0000, 0x28), 20, "copier")))
    assert (place.kind, place.range, place.irq) == ("copier", layout.Range("c", 0x400_0000, 0x28), 20)


def test_node_in_the_device_tree() -> None:
    named = External("copier0", Range(0x400_0000, 0x1000), 20, "copier", ("acme,copier", "acme,mover"))
    nameless = External("other", Range(0x500_0000, 0x1000))
    tree = libfdt.Fdt(devicetree.build(board(named, nameless)))
    node = tree.path_offset("/soc/copier@4000000")
    assert bytes(tree.getprop(node, "compatible")) == b"acme,copier\0acme,mover\0"
    assert bytes(tree.getprop(node, "reg")) == (0x400_0000).to_bytes(8, "big") + (0x1000).to_bytes(8, "big")
    assert tree.getprop(node, "interrupts").as_uint32() == 20
    with pytest.raises(libfdt.FdtException):
        tree.path_offset("/soc/other@5000000")


def test_the_program_is_told_of_other_hosts(tmp_path: Path) -> None:
    elsewhere = ["--listen", "tcp://127.0.0.1:7001", "--peer", "memory=tcp://10.0.0.1:7000", "--keys", str(tmp_path)]
    command = python("vmesh_services.external", "--machine", str(tmp_path), "--name", "c", "--epoch", "1")
    done = subprocess.run(
        [*command, "--base", "0x4000000", *elsewhere, "--command", "echo"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    said = done.stdout.split()
    for flag, value in zip(elsewhere[::2], elsewhere[1::2], strict=True):
        assert said[said.index(flag) + 1] == value


def test_the_cpu_is_told_of_windows_and_memory_keeps_them_free() -> None:
    window = Part("pio", "window", Range(0x300_0000, 0x1_0000), carrier=Carrier.CPU, window=Space.IO)
    made = replace(board(), parts=(*board().parts, window))
    assert "io=0x3000000:0x10000" in commands.cpu(made)
    assert "--window" not in commands.cpu(board())
    assert "pio=0x3000000:0x10000" in commands.memory(made)
    port = Part("kbd", "i8042", Range(0x300_0000, 4, Space.IO))
    assert made.with_devices(port)["kbd"] is port, "another space has addresses of its own"
