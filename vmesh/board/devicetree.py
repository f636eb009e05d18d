"""The device tree that firmware and kernel find the machine by.

Node names, properties and order of strings are those that QEMU's `virt` writes, for the devices that are there. All
eight virtio-mmio transports are listed, as by QEMU: a device may be added while the machine runs.
Sources: Devicetree Specification 0.4; Linux Documentation/devicetree/bindings/riscv/{cpus,extensions}.yaml and
interrupt-controller/sifive,plic-1.0.0.yaml; `qemu-system-riscv64 -machine virt,dumpdtb=`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import libfdt

from vmesh.board import virt
from vmesh.board.cpu_model import CACHE_BLOCK_BYTES, CpuModel
from vmesh.board.errors import ImageError
from vmesh.board.external import External

# Interrupt numbers of a hart's local interrupt controller (privileged manual, mcause).
_S_EXTERNAL, _M_EXTERNAL, _M_SOFTWARE, _M_TIMER = 9, 11, 3, 7
# Phandles: the PLIC, the test device, then two for each hart.
_PLIC, _TEST, _FIRST_HART = 1, 2, 3

_SERIAL_PATH = f"/soc/serial@{virt.UART0.base:x}"
_CHOSEN_ROOM = 256  # bytes for the node, property names and padding that `with_chosen` may add


@dataclass(frozen=True, slots=True)
class Board:
    """A machine as the device tree describes it: RAM in bytes, harts, ISA, added devices."""

    ram_size: int
    harts: int
    cpu: CpuModel
    external: tuple[External, ...] = ()


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
    with tree.add_node(""):
        tree.property_u32("#address-cells", 2)
        tree.property_u32("#size-cells", 2)
        tree.property_string("compatible", "riscv-virtio")
        tree.property_string("model", "riscv-virtio,qemu")
        with tree.add_node("aliases"):
            tree.property_string("serial0", _SERIAL_PATH)
        with tree.add_node("chosen"):
            tree.property_string("stdout-path", _SERIAL_PATH)
        with tree.add_node(f"memory@{virt.DRAM_BASE:x}"):
            tree.property_string("device_type", "memory")
            tree.property("reg", _cells64(virt.DRAM_BASE, board.ram_size))
        _cpus(tree, board)
        _soc(tree, board)
        for name, value in (("poweroff", virt.TEST_POWER_OFF), ("reboot", virt.TEST_RESET)):
            with tree.add_node(name):
                tree.property_string("compatible", f"syscon-{name}")
                tree.property_u32("regmap", _TEST)
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


def _cpus(tree: libfdt.FdtSw, board: Board) -> None:
    with tree.add_node("cpus"):
        tree.property_u32("#address-cells", 1)
        tree.property_u32("#size-cells", 0)
        tree.property_u32("timebase-frequency", virt.TIMEBASE_HZ)
        for hart in range(board.harts):
            _cpu(tree, board.cpu, hart)
        with tree.add_node("cpu-map"), tree.add_node("cluster0"):
            for hart in range(board.harts):
                with tree.add_node(f"core{hart}"):
                    tree.property_u32("cpu", _cpu_phandle(hart))


def _cpu(tree: libfdt.FdtSw, cpu: CpuModel, hart: int) -> None:
    with tree.add_node(f"cpu@{hart:x}"):
        tree.property_u32("phandle", _cpu_phandle(hart))
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
            tree.property_u32("phandle", _intc_phandle(hart))


def _soc(tree: libfdt.FdtSw, board: Board) -> None:
    with tree.add_node("soc"):
        tree.property_u32("#address-cells", 2)
        tree.property_u32("#size-cells", 2)
        tree.property_string("compatible", "simple-bus")
        tree.property("ranges", b"")
        with _device(tree, "test", virt.TEST, "sifive,test1", "sifive,test0", "syscon"):
            tree.property_u32("phandle", _TEST)
        with _device(tree, "rtc", virt.RTC, "google,goldfish-rtc"):
            pass
        with _device(tree, "clint", virt.CLINT, "sifive,clint0", "riscv,clint0"):
            tree.property("interrupts-extended", _wires(board.harts, _M_SOFTWARE, _M_TIMER))
        with _device(tree, "plic", virt.PLIC, "sifive,plic-1.0.0", "riscv,plic0"):
            tree.property_u32("phandle", _PLIC)
            tree.property_u32("#address-cells", 0)
            tree.property_u32("#interrupt-cells", 1)
            tree.property("interrupt-controller", b"")
            tree.property_u32("riscv,ndev", virt.PLIC_SOURCES)
            tree.property("interrupts-extended", _wires(board.harts, _M_EXTERNAL, _S_EXTERNAL))
        with _device(tree, "serial", virt.UART0, "ns16550a"):
            tree.property_u32("clock-frequency", virt.UART_CLOCK_HZ)
        for slot in range(virt.VIRTIO_SLOTS):
            with _device(tree, "virtio_mmio", virt.virtio(slot), "virtio,mmio"):
                pass
        for device in board.external:
            if device.compatible:
                with _device(tree, device.kind or device.name, device.region, *device.compatible):
                    pass


@contextmanager
def _device(tree: libfdt.FdtSw, name: str, region: virt.Region, *compatible: str) -> Iterator[None]:
    """The node of a device on /soc; the caller adds what is particular to it inside."""
    with tree.add_node(f"{name}@{region.base:x}"):
        tree.property("compatible", _strings(*compatible))
        tree.property("reg", _cells64(region.base, region.size))
        if region.irq:
            tree.property_u32("interrupts", region.irq)
            tree.property_u32("interrupt-parent", _PLIC)
        yield


def _cpu_phandle(hart: int) -> int:
    return _FIRST_HART + 2 * hart


def _intc_phandle(hart: int) -> int:
    return _FIRST_HART + 2 * hart + 1


def _wires(harts: int, *interrupts: int) -> bytes:
    """interrupts-extended: each of `interrupts` at each hart's local interrupt controller."""
    pairs = [(_intc_phandle(hart), interrupt) for hart in range(harts) for interrupt in interrupts]
    return b"".join(struct.pack(">II", *pair) for pair in pairs)


def _cells64(*values: int) -> bytes:
    return b"".join(struct.pack(">Q", value) for value in values)


def _strings(*values: str) -> bytes:
    return b"".join(value.encode() + b"\0" for value in values)
