"""The PLIC's registers and where they are (RISC-V Platform-Level Interrupt Controller specification 1.0)."""

from __future__ import annotations

from ...native.lang import Ptr, Record, array, u32, u64

SOURCES = 96
WORDS = SOURCES // 32
CONTEXTS = 1024
PRIORITY, PENDING, ENABLE, THRESHOLD, END = 0x0, 0x1000, 0x2000, 0x20_0000, 0x60_0000
MAX_PRIORITY = 7


class Plic(Record):
    """The interrupt controller's registers; bit s % 32 of word s // 32 belongs to source s."""

    lock: u64
    priority: Ptr[u32] = array(u32, SOURCES)
    level: Ptr[u32] = array(u32, WORDS)
    pending: Ptr[u32] = array(u32, WORDS)
    claimed: Ptr[u32] = array(u32, WORDS)
    enable: Ptr[u32] = array(u32, WORDS * CONTEXTS)
    threshold: Ptr[u32] = array(u32, CONTEXTS)
