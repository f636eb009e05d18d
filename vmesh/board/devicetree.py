"""The device tree that firmware and kernel find the machine by.

Node names, properties and order of strings are those that QEMU's `virt` writes, for the devices that are there. All
eight virtio-mmio transports are listed, as by QEMU: a device may be added while the machine runs.
Sources: Devicetree Specification 0.4; Linux Documentation/devicetree/bindings/riscv/{cpus,extensions}.yaml and
interrupt-controller/sifive,plic-1.0.0.yaml; `qemu-system-riscv64 -machine virt,dumpdtb=`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import libfdt

from vmesh.board import virt
from vmesh.board.cpu_model import CACHE_BLOCK_BYTES, CpuModel
from vmesh.board.errors import ImageError
from vmesh.board.parts import Board, EachHart, Node, Part

_CHOSEN_ROOM = 256  # bytes for the node, property names and padding that `with_chosen` may add


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the boot adds to /chosen; addresses are guest physical, the end is behind the last byte.

    The seeds feed the guest's random numbers: bytes of the host's, or fixed ones for a reproducible run.
    """

    bootargs: str = ""
    initrd: tuple[int, int] | None = None
    rng_seed: bytes = b""
    kaslr_seed: bytes = b""


def build(board: Board) -> bytes:
    """The flattened device tree of `board`; /chosen names the console and nothing else yet."""
    tree = libfdt.FdtSw()
    tree.finish_reservemap()
    console, ram, numbers = _path(board[board.console]), board.ram, _Phandles(board)
    with tree.add_node(""):
        tree.property_u32("#address-cells", 2)
        tree.property_u32("#size-cells", 2)
        tree.property_string("compatible", "riscv-virtio")
        tree.property_string("model", "riscv-virtio,qemu")
        with tree.add_node("aliases"):
            tree.property_string("serial0", console)
        with tree.add_node("chosen"):
            tree.property_string("stdout-path", console)
        with tree.add_node(f"memory@{ram.base:x}"):
            tree.property_string("device_type", "memory")
            tree.property("reg", _cells64(ram.base, ram.size))
        _cpus(tree, board, numbers)
        for part in board.parts:
            if part.node and not part.node.in_soc:
                _part(tree, part, part.node, board.harts, numbers)
        with tree.add_node("soc"):
            tree.property_u32("#address-cells", 2)
            tree.property_u32("#size-cells", 2)
            tree.property_string("compatible", "simple-bus")
            tree.property("ranges", b"")
            for part in sorted(board.parts, key=_order):
                if part.node and part.node.in_soc:
                    _part(tree, part, part.node, board.harts, numbers)
        for name, value in (("poweroff", virt.TEST_POWER_OFF), ("reboot", virt.TEST_RESET)):
            with tree.add_node(name):
                tree.property_string("compatible", f"syscon-{name}")
                tree.property_u32("regmap", numbers.part(board.power))
                tree.property_u32("offset", 0)
                tree.property_u32("value", value)
    fdt = tree.as_fdt()
    fdt.pack()
    return bytes(fdt.as_bytearray())


def with_chosen(dtb: bytes, chosen: Chosen, name: str = "the device tree") -> bytes:
    """`dtb`, the board's own or a user's, with what `chosen` says. Raises ImageError, with its `name`, if it is no
    device tree."""
    room = _CHOSEN_ROOM + len(chosen.bootargs.encode()) + len(chosen.rng_seed) + len(chosen.kaslr_seed)
    try:
        fdt = libfdt.Fdt(dtb)
        if fdt.totalsize() > len(dtb):
            raise ImageError(f"{name} is cut short: expected {fdt.totalsize()} bytes, got {len(dtb)}")
        fdt.resize(len(dtb) + room)
        node = fdt.path_offset("/chosen", quiet=(libfdt.NOTFOUND,))
        if node < 0:
            node = fdt.add_subnode(0, "chosen")
        if chosen.bootargs:
            fdt.setprop_str(node, "bootargs", chosen.bootargs)
        if chosen.initrd is not None:
            fdt.setprop_u64(node, "linux,initrd-start", chosen.initrd[0])
            fdt.setprop_u64(node, "linux,initrd-end", chosen.initrd[1])
        if chosen.rng_seed:
            fdt.setprop(node, "rng-seed", chosen.rng_seed)
        if chosen.kaslr_seed:
            fdt.setprop(node, "kaslr-seed", chosen.kaslr_seed)
        fdt.pack()
    except (libfdt.FdtException, ValueError) as error:
        raise ImageError(f"{name}: expected a device tree: {error}") from error
    return bytes(fdt.as_bytearray())


class _Phandles:
    """The numbers by which nodes refer to others: parts that are referred to, then two for each hart."""

    def __init__(self, board: Board) -> None:
        named = [part.name for part in board.parts if part.node and part.node.referred_to]
        self._parts = {name: number for number, name in enumerate(named, 1)}

    def part(self, name: str) -> int:
        return self._parts[name]

    def cpu(self, hart: int) -> int:
        return len(self._parts) + 1 + 2 * hart

    def local(self, hart: int) -> int:
        """Of the hart's local interrupt controller."""
        return self.cpu(hart) + 1


def _cpus(tree: libfdt.FdtSw, board: Board, numbers: _Phandles) -> None:
    with tree.add_node("cpus"):
        tree.property_u32("#address-cells", 1)
        tree.property_u32("#size-cells", 0)
        tree.property_u32("timebase-frequency", board.timebase_hz)
        for hart in range(board.harts):
            _cpu(tree, board.cpu, hart, numbers)
        with tree.add_node("cpu-map"), tree.add_node("cluster0"):
            for hart in range(board.harts):
                with tree.add_node(f"core{hart}"):
                    tree.property_u32("cpu", numbers.cpu(hart))


def _cpu(tree: libfdt.FdtSw, cpu: CpuModel, hart: int, numbers: _Phandles) -> None:
    with tree.add_node(f"cpu@{hart:x}"):
        tree.property_u32("phandle", numbers.cpu(hart))
        tree.property_string("device_type", "cpu")
        tree.property_u32("reg", hart)
        tree.property_string("status", "okay")
        tree.property_string("compatible", "riscv")
        tree.property_string("riscv,isa", cpu.isa)
        tree.property_string("riscv,isa-base", "rv64i")
        tree.property("riscv,isa-extensions", _strings(*cpu.extensions))
        if "zicbom" in cpu.features:
            tree.property_u32("riscv,cbom-block-size", CACHE_BLOCK_BYTES)
        if "zicboz" in cpu.features:
            tree.property_u32("riscv,cboz-block-size", CACHE_BLOCK_BYTES)
        tree.property_string("mmu-type", cpu.mmu_type)
        with tree.add_node("interrupt-controller"):
            tree.property_u32("#interrupt-cells", 1)
            tree.property("interrupt-controller", b"")
            tree.property_string("compatible", "riscv,cpu-intc")
            tree.property_u32("phandle", numbers.local(hart))


def _part(tree: libfdt.FdtSw, part: Part, node: Node, harts: int, numbers: _Phandles) -> None:
    """A part's node, below the one that is open."""
    with tree.add_node(_name(part, node)):
        tree.property("compatible", _strings(*node.compatible))
        tree.property("reg", _cells64(part.range.base, part.range.size))
        if part.interrupt:
            tree.property_u32("interrupts", part.interrupt.number)
            tree.property_u32("interrupt-parent", numbers.part(part.interrupt.controller))
        if node.referred_to:
            tree.property_u32("phandle", numbers.part(part.name))
        for name, value in node.properties:
            match value:
                case int():
                    tree.property_u32(name, value)
                case EachHart(interrupts):
                    pairs = [(numbers.local(hart), interrupt) for hart in range(harts) for interrupt in interrupts]
                    tree.property(name, b"".join(struct.pack(">II", *pair) for pair in pairs))
                case _:
                    tree.property(name, value)


def _order(part: Part) -> tuple[bool, int]:
    """The board's own by address, as QEMU's; then the user's as they were given, since guests number devices so."""
    return (True, 0) if part.module else (False, part.range.base)


def _name(part: Part, node: Node) -> str:
    return f"{node.name}@{part.range.base:x}"


def _path(part: Part) -> str:
    assert part.node is not None, f"{part.name} is not in the device tree"
    return f"/soc/{_name(part, part.node)}"


def _cells64(*values: int) -> bytes:
    return b"".join(struct.pack(">Q", value) for value in values)


def _strings(*values: str) -> bytes:
    return b"".join(value.encode() + b"\0" for value in values)
