"""How large the package gets: with harts, with devices, with RAM; and that the largest machine of the board fits.

QEMU's limit was 16 MiB at first and had to be raised to the largest 32-bit length (see vmesh/migration/package.py).
"""

from __future__ import annotations

import pytest

from vmesh.board.virt import MAX_HARTS
from vmesh.migration import package
from vmesh.migration.records import BytesSink, Writer
from vmesh.v1 import cpu_pb2, devices_pb2, memory_pb2
from vmesh.v1 import migration_pb2 as messages
from vmesh.v1.lifecycle_pb2 import ServiceState

TERABYTE = 1 << 40
FIRST_LIMIT = 16 << 20  # QEMU's
WIDEST = (1 << 64) - 1
VALUES = 32  # scalars of a hart, at least


def cpu(harts: int) -> ServiceState:
    """The state of so many harts, every register as long as it can be."""
    made = cpu_pb2.CpuState(time=WIDEST, features=["zicsr"] * 40)
    for _ in range(harts):
        record = made.harts.add(x=[WIDEST] * 32, f=[WIDEST] * 32, pmpaddr=[WIDEST] * 16, pmpcfg=bytes(16))
        for number in range(VALUES):
            record.values[f"register_{number:02}"] = WIDEST
    made.plic.priority.extend([7] * 96)
    made.plic.enable.extend([0xFFFFFFFF] * (2 * harts * 3))
    made.plic.threshold.extend([7] * (2 * harts))
    return ServiceState(type="vmesh.v1.CpuState", version=1, bytes=made.SerializeToString())


def memory(ram: int) -> ServiceState:
    made = memory_pb2.MemoryState(segments=[memory_pb2.Segment(name="ram", base=1 << 31, size=ram, writable=True)])
    return ServiceState(type="vmesh.v1.MemoryState", version=1, bytes=made.SerializeToString())


def disks(count: int) -> dict[str, ServiceState]:
    made = devices_pb2.VirtioBlkState(capacity=WIDEST)
    for _ in range(16):
        made.virtio.queues.add(size=256, ready=True, descriptors=WIDEST, driver=WIDEST, device=WIDEST, position=255)
    state = ServiceState(type="vmesh.v1.VirtioBlkState", version=1, bytes=made.SerializeToString())
    return {f"disk{number}": state for number in range(count)}


def size(harts: int, ram: int, devices: int = 8) -> int:
    return package.build({"cpu": cpu(harts), "memory": memory(ram), **disks(devices)}).size


def test_package_grows_with_harts_and_with_devices_and_hardly_with_ram() -> None:
    small = size(1, TERABYTE)
    per_hart = (size(101, TERABYTE) - small) / 100
    assert 1000 < per_hart < 4000
    per_device = (size(1, TERABYTE, 108) - small) / 100
    assert 300 < per_device < 2000
    assert size(1, TERABYTE) - size(1, 128 << 20) < 16


def test_list_of_pages_to_come_grows_with_ram_and_stays_outside_of_the_package() -> None:
    """It is what made QEMU's machines large too: 256 Mi pages in a terabyte, half of them to come, every other one."""

    def discard(pages: int) -> int:
        sink = BytesSink()
        writer = Writer(sink)
        for start in range(0, pages, 16384):
            first = range(2 * start, 2 * min(start + 16384, pages), 2)
            made = messages.PostcopyDiscard(first=first, count=[1] * len(first))
            writer.command(postcopy_discard=made)
        return sink.size

    some = discard(1 << 17)
    assert discard(1 << 18) == pytest.approx(2 * some, rel=0.2)
    assert some / (1 << 17) < 6  # bytes a page
    of_a_terabyte = some / (1 << 17) * (TERABYTE // 4096 // 2)
    assert of_a_terabyte > FIRST_LIMIT  # in one piece QEMU's first limit could not have held it


def test_largest_machine_fits_the_default() -> None:
    largest = size(MAX_HARTS, TERABYTE)
    assert largest < package.MAX_PACKAGED_BYTES
    assert largest < FIRST_LIMIT  # and would have fitted QEMU's first one: RAM is not in it
