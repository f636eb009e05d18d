"""The PLIC's registers and where they are (RISC-V Platform-Level Interrupt Controller specification 1.0)."""

from __future__ import annotations

from ..core.state import MOST_HARTS
from ..native.lang import Ptr, Record, array, u32, u64

NUMBER = 1
SIZE = 0x60_0000
SOURCES = 96
WORDS = SOURCES // 32
#: Contexts of a hart, on the `virt` board one for each privilege that takes external interrupts: machine, supervisor.
HART_CONTEXTS = 2
CONTEXTS = HART_CONTEXTS * MOST_HARTS
PRIORITY, PENDING, ENABLE, THRESHOLD = 0x0, 0x1000, 0x2000, 0x20_0000
MAX_PRIORITY = 7


class Plic(Record):
    """The interrupt controller's registers; bit s % 32 of word s // 32 belongs to source s. ``lines`` are those of a
    hart that its contexts drive."""

    lock: u64
    lines: Ptr[u64] = array(u64, HART_CONTEXTS)
    priority: Ptr[u32] = array(u32, SOURCES)
    level: Ptr[u32] = array(u32, WORDS)
    pending: Ptr[u32] = array(u32, WORDS)
    claimed: Ptr[u32] = array(u32, WORDS)
    enable: Ptr[u32] = array(u32, WORDS * CONTEXTS)
    threshold: Ptr[u32] = array(u32, CONTEXTS)
