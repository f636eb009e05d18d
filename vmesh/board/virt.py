"""QEMU's RISC-V `virt` board: its parts, where they are in guest physical memory, and which wires they drive.

No other file has an address of the board, an interrupt number or a name of a part: they ask here.
Source: QEMU docs/system/riscv/virt.rst and the device tree of `qemu-system-riscv64 -machine virt,dumpdtb=`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vmesh.board.parts import Board, Carrier, EachHart, Node, Part, Range, Wire

if TYPE_CHECKING:
    from vmesh.board.cpu_model import CpuModel

MAX_HARTS = 512
TIMEBASE_HZ = 10_000_000
PLIC_SOURCES = 96

# What the guest writes to the test device (`sifive,test1`) to end the machine or to start it anew.
TEST_POWER_OFF = 0x5555
TEST_RESET = 0x7777

_UART_CLOCK_HZ = 3_686_400
# Interrupts of a hart's local interrupt controller (privileged manual, mcause).
_M_SOFTWARE, _M_TIMER, _S_EXTERNAL, _M_EXTERNAL = 3, 7, 9, 11


def wire(number: int) -> Wire:
    """An input of the PLIC."""
    return Wire("plic", number)


DRAM_BASE = 0x8000_0000
MROM = Part("mrom", "rom", Range(0x1000, 0xF000), carrier=Carrier.MEMORY)
TEST = Part(
    "test", "sifive-test", Range(0x10_0000, 0x1000),
    node=Node("test", ("sifive,test1", "sifive,test0", "syscon"), referred_to=True),
)  # fmt: skip
RTC = Part("rtc", "goldfish-rtc", Range(0x10_1000, 0x1000), wire(11), node=Node("rtc", ("google,goldfish-rtc",)))
CLINT = Part(
    "clint", "aclint", Range(0x200_0000, 0x1_0000), carrier=Carrier.CPU,
    node=Node(
        "clint", ("sifive,clint0", "riscv,clint0"), (("interrupts-extended", EachHart((_M_SOFTWARE, _M_TIMER))),)
    ),
)  # fmt: skip
PLIC = Part(
    "plic", "plic", Range(0xC00_0000, 0x60_0000), carrier=Carrier.CPU,
    node=Node(
        "plic", ("sifive,plic-1.0.0", "riscv,plic0"),
        (
            ("#address-cells", 0), ("#interrupt-cells", 1), ("interrupt-controller", b""),
            ("riscv,ndev", PLIC_SOURCES), ("interrupts-extended", EachHart((_M_EXTERNAL, _S_EXTERNAL))),
        ),
        referred_to=True,
    ),
)  # fmt: skip
UART0 = Part(
    "uart0", "ns16550a", Range(0x1000_0000, 0x100), wire(10),
    node=Node("serial", ("ns16550a",), (("clock-frequency", _UART_CLOCK_HZ),)), arguments=("--chardev", "kept"),
)  # fmt: skip
# Only in a machine that has items for it (-fw_cfg), unlike QEMU's: without them it says nothing that the device tree
# does not say, and a process more is memory and start-up time of every machine.
FW_CFG = Part(
    "fw_cfg", "fw-cfg", Range(0x1010_0000, 0x18),
    node=Node("fw-cfg", ("qemu,fw-cfg-mmio",), (("dma-coherent", b""),), in_soc=False),
)  # fmt: skip
# All are in the device tree, as QEMU's are: a device may be added while the machine runs. Named as QEMU's buses.
TRANSPORTS = tuple(
    Part(
        f"virtio-mmio-bus.{slot}", "virtio-mmio", Range(0x1000_1000 + 0x1000 * slot, 0x1000), wire(1 + slot),
        carrier=Carrier.NOBODY, node=Node("virtio_mmio", ("virtio,mmio",)),
    )
    for slot in range(8)
)  # fmt: skip
PARTS = (MROM, UART0, RTC, TEST, CLINT, PLIC, *TRANSPORTS)
#: The devices that every machine has.
DEVICES = tuple(part.name for part in PARTS if part.carrier is Carrier.SERVICE)
#: Those that belong to the board: nobody else has their names, and they stay.
OWN_DEVICES = (*DEVICES, FW_CFG.name)


def board(ram_size: int, harts: int, cpu: CpuModel) -> Board:
    """The board with so many bytes of RAM, and no device added."""
    ram = Part("ram", "ram", Range(DRAM_BASE, ram_size), carrier=Carrier.MEMORY)
    return Board((ram, *PARTS), harts, cpu, UART0.name, TEST.name, TIMEBASE_HZ, PLIC_SOURCES)


#: Files that QEMU's fw_cfg has by itself. They say nothing: no order of booting, no time after which to boot again.
FW_CFG_FILES = {"bios-geometry": b"", "bootorder": b"", "etc/boot-fail-wait": b"\xff\xff\xff\xff"}
FW_CFG_MOST = 32  # files, with those (QEMU's hw/nvram/fw_cfg.c)


def fw_cfg(harts: int, items: Sequence[str]) -> Part:
    """fw_cfg with items of these names, whose contents are files of the machine directory: see `fw_cfg_item`."""
    return replace(FW_CFG, arguments=("--hart-count", str(harts), *(f"--item={name}" for name in items)))


def fw_cfg_item(number: int) -> str:
    """The file with the content of an item; the first is number 0."""
    return f"{FW_CFG.name}.{number}"
