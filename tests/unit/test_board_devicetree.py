"""The device tree: against the one that QEMU's virt writes, and what is added to it at boot."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import libfdt
import pytest

from vmesh.board import cpu_model, devicetree, virt
from vmesh.board.devicetree import Chosen
from vmesh.board.errors import ImageError
from vmesh.board.parts import Board

Tree = dict[str, dict[str, bytes]]

# How many cells of each entry name a node; phandle numbers may differ between trees that mean the same.
REFERENCES = {"interrupt-parent": 1, "regmap": 1, "cpu": 1, "interrupts-extended": 2}
# Ours alone (newer QEMUs have them too), or what a model of its own decides.
OURS = {"riscv,isa-base", "riscv,isa-extensions", "riscv,cbom-block-size", "riscv,cboz-block-size"}
MAY_DIFFER = {"riscv,isa", "rng-seed", "phandle", "riscv,ndev"}


def read(dtb: bytes) -> Tree:
    """All nodes by path, with each reference to a phandle replaced by the path of the node."""
    fdt = libfdt.Fdt(dtb)
    tree: Tree = {}
    paths: dict[int, str] = {}
    offset, depth = 0, 0
    while offset >= 0:
        path = fdt.get_path(offset)
        tree[path] = {}
        place = fdt.first_property_offset(offset, libfdt.QUIET_NOTFOUND)
        while place >= 0:
            entry = fdt.get_property_by_offset(place)
            tree[path][entry.name] = bytes(entry)
            place = fdt.next_property_offset(place, libfdt.QUIET_NOTFOUND)
        if "phandle" in tree[path]:
            paths[int.from_bytes(tree[path]["phandle"], "big")] = path
        offset, depth = fdt.next_node(offset, depth, libfdt.QUIET_NOTFOUND)
        if depth < 0:
            break
    for properties in tree.values():
        for name in REFERENCES.keys() & properties.keys():
            cells = [cell for (cell,) in struct.iter_unpack(">I", properties[name])]
            named = [paths[cell] if n % REFERENCES[name] == 0 else cell for n, cell in enumerate(cells)]
            properties[name] = repr(named).encode()
    return tree


def board(ram_size: int = 512 << 20, harts: int = 1) -> Board:
    return virt.board(ram_size, harts, cpu_model.parse("rv64"))


@pytest.mark.peer
@pytest.mark.parametrize(("ram", "harts"), [("512M", 1), ("3G", 4)])
def test_build_every_node_is_as_in_qemu(peer: Callable[[str], str], tmp_path: Path, ram: str, harts: int) -> None:
    dump = tmp_path / "qemu.dtb"
    command = [peer("qemu-system-riscv64"), "-machine", f"virt,dumpdtb={dump}", "-m", ram, "-smp", str(harts)]
    subprocess.run([*command, "-display", "none"], check=True, capture_output=True)
    theirs = read(dump.read_bytes())

    size = int(ram[:-1]) << (30 if ram[-1] == "G" else 20)
    ours = read(devicetree.build(board(size, harts)))

    assert ours.keys() - theirs.keys() <= {"/aliases"}
    for path in ours.keys() & theirs.keys():
        assert ours[path].keys() - OURS == theirs[path].keys() - {"rng-seed"} - OURS, path
        for name in ours[path].keys() & theirs[path].keys() - MAY_DIFFER:
            assert ours[path][name] == theirs[path][name], f"{path} {name}"


def test_build_describes_all_virtio_slots() -> None:
    tree = read(devicetree.build(board()))

    assert {path for path in tree if "virtio" in path} == {f"/soc/virtio_mmio@1000{slot}000" for slot in range(1, 9)}
    assert tree["/soc/virtio_mmio@10008000"]["interrupts"] == (8).to_bytes(4, "big")


@pytest.mark.peer
def test_build_fw_cfg_is_where_and_what_qemus_is(peer: Callable[[str], str], tmp_path: Path) -> None:
    dump = tmp_path / "qemu.dtb"
    command = [peer("qemu-system-riscv64"), "-machine", f"virt,dumpdtb={dump}", "-display", "none"]
    subprocess.run(command, check=True, capture_output=True)
    ours = read(devicetree.build(board().with_devices(virt.fw_cfg(1, ["opt/x"]))))
    assert ours["/fw-cfg@10100000"] == read(dump.read_bytes())["/fw-cfg@10100000"]


def test_build_fw_cfg_is_there_with_items_only() -> None:
    tree = read(devicetree.build(board().with_devices(virt.fw_cfg(1, ["opt/x"]))))

    assert tree["/fw-cfg@10100000"] == {
        "compatible": b"qemu,fw-cfg-mmio\0", "reg": struct.pack(">QQ", 0x1010_0000, 0x18), "dma-coherent": b""
    }  # fmt: skip
    assert read(devicetree.build(board())) == {path: tree[path] for path in tree if path != "/fw-cfg@10100000"}


def test_build_wires_every_hart_to_the_plic_and_the_clint() -> None:
    tree = read(devicetree.build(board(harts=9)))

    intc = [f"/cpus/cpu@{hart:x}/interrupt-controller" for hart in range(9)]
    assert tree["/soc/plic@c000000"]["interrupts-extended"] == repr([x for n in intc for x in (n, 11, n, 9)]).encode()
    assert tree["/soc/clint@2000000"]["interrupts-extended"] == repr([x for n in intc for x in (n, 3, n, 7)]).encode()


def test_with_chosen_adds_to_the_boards_own_tree() -> None:
    dtb = devicetree.with_chosen(
        devicetree.build(board()), Chosen("console=ttyS0 x=µ", (0x8820_0000, 0x8820_1234), b"r" * 32, b"k" * 8)
    )

    chosen = read(dtb)["/chosen"]
    assert chosen["bootargs"].decode() == "console=ttyS0 x=µ\0"
    assert chosen["linux,initrd-start"] == struct.pack(">Q", 0x8820_0000)
    assert chosen["linux,initrd-end"] == struct.pack(">Q", 0x8820_1234)
    assert (chosen["rng-seed"], chosen["kaslr-seed"]) == (b"r" * 32, b"k" * 8)
    assert chosen["stdout-path"] == b"/soc/serial@10000000\0"


def test_with_chosen_adds_the_node_where_a_users_tree_has_none() -> None:
    foreign = libfdt.Fdt.create_empty_tree(1024).as_bytearray()

    assert read(devicetree.with_chosen(bytes(foreign), Chosen("a")))["/chosen"] == {"bootargs": b"a\0"}


def test_with_chosen_long_bootargs_fit() -> None:
    assert read(devicetree.with_chosen(devicetree.build(board()), Chosen("x" * 4000)))["/chosen"]["bootargs"][:4000]


@pytest.mark.parametrize("dtb", [b"", b"\xd0\x0d\xfe\xed", b"x" * 100])
def test_with_chosen_no_device_tree_is_refused(dtb: bytes) -> None:
    with pytest.raises(ImageError, match="device tree"):
        devicetree.with_chosen(dtb, Chosen())


def test_with_chosen_truncated_tree_is_refused() -> None:
    with pytest.raises(ImageError, match="cut short: expected"):
        devicetree.with_chosen(devicetree.build(board())[:-8], Chosen())


def test_build_nodes_of_the_board_are_in_the_order_of_their_addresses() -> None:
    places = [int(path.partition("@")[2], 16) for path in read(devicetree.build(board())) if path.startswith("/soc/")]
    assert places == sorted(places)
