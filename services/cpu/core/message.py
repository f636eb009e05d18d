"""Interrupts that are messages (proto/vmesh/v1/bus.proto: InterruptMessage): stores to interrupt controllers."""

from __future__ import annotations

from ..native.lang import export, u64
from .provided import controller_message, drive_source, lock_sources, unlock_sources
from .state import DEVICE_CONTROLLER, DEVICE_UNMAPPED, Machine


@export
def take_message(machine: Machine, address: u64, data: u64) -> u64:
    """A store of 32 bits; whether a controller takes messages there."""
    for i in range(machine.region_count):
        region = machine.regions[i]
        offset = address - region.base
        if region.device >= DEVICE_CONTROLLER and region.device < DEVICE_UNMAPPED and offset < region.size:
            return u64(controller_message(machine, u64(region.device - DEVICE_CONTROLLER), offset, data))
    return 0


@export
def set_level(machine: Machine, source: u64, level: u64) -> None:
    """A device drives an interrupt source."""
    lock_sources(machine)
    drive_source(machine, source, level)
    unlock_sources(machine)


EXPORTS = (set_level, take_message)
