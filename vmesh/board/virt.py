"""QEMU's RISC-V `virt` board: where things are in guest physical memory and which interrupt line they raise.

Source: QEMU docs/system/riscv/virt.rst and the device tree of `qemu-system-riscv64 -machine virt,dumpdtb=`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Region:
    """A range of guest physical addresses, in bytes, and the PLIC source of the device there (0: it has none)."""

    base: int
    size: int
    irq: int = 0

    @property
    def end(self) -> int:
        """The first address behind the region."""
        return self.base + self.size


MROM = Region(0x1000, 0xF000)
TEST = Region(0x10_0000, 0x1000)
RTC = Region(0x10_1000, 0x1000, irq=11)
CLINT = Region(0x200_0000, 0x1_0000)
PLIC = Region(0xC00_0000, 0x60_0000)
UART0 = Region(0x1000_0000, 0x100, irq=10)
DRAM_BASE = 0x8000_0000
# By the name of the service, where it is one.
PARTS = {"mrom": MROM, "test": TEST, "rtc": RTC, "clint": CLINT, "plic": PLIC, "uart0": UART0}

VIRTIO_SLOTS = 8
PLIC_SOURCES = 96
PLIC_CONTEXTS_PER_HART = 2  # M-mode, then S-mode
MAX_HARTS = 512
TIMEBASE_HZ = 10_000_000
UART_CLOCK_HZ = 3_686_400

# What the guest writes to the test device (`sifive,test1`) to end the machine or to start it anew.
TEST_POWER_OFF = 0x5555
TEST_RESET = 0x7777


def virtio(slot: int) -> Region:
    """The virtio-mmio transport `slot`, 0 to VIRTIO_SLOTS - 1."""
    if not 0 <= slot < VIRTIO_SLOTS:
        raise ValueError(f"virtio-mmio slot {slot}: expected 0 to {VIRTIO_SLOTS - 1}")
    return Region(0x1000_1000 + slot * 0x1000, 0x1000, irq=1 + slot)
