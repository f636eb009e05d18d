"""Interrupts that are messages (proto/vmesh/v1/bus.proto: InterruptMessage): stores to interrupt controllers."""

from __future__ import annotations

from ...native.lang import at, export, u64
from .attention import set_line
from .clint import MSIP_BASE
from .csr_bits import MSIP
from .state import DEVICE_ACLINT, Hart, Machine


@export
def take_message(machine: Machine, address: u64, data: u64) -> u64:
    """A store of 32 bits; whether a controller takes messages there: the ACLINT's MSWI does (ACLINT 1.0, 3)."""
    for i in range(machine.region_count):
        region = machine.regions[i]
        offset = address - region.base
        if region.device == DEVICE_ACLINT and offset & 3 == 0 and offset < MSIP_BASE + 4 * machine.hart_count:
            if data & 1 != 0:  # to take an interrupt back is the hart's: a message may come twice
                set_line(at(Hart, machine.harts[offset >> 2]), MSIP, True)
            return 1
    return 0


EXPORTS = (take_message,)
