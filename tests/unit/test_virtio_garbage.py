"""Every virtio device, given rings of random descriptors: chains that loop, point nowhere, have no order or no end.

What is asked of each is the same (virtio 1.2, 2.7.5, 2.8.5): it goes on or says that it needs a reset, its state is one
that it can load, and it can be reset.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.unit.device_harness import FakeRuntime
from tests.unit.test_virtio_blk import Recorder
from tests.unit.test_virtio_console import Kept
from tests.unit.test_virtio_mmio import Guest
from tests.unit.test_virtio_net import MAC, FakeNetdev
from tests.unit.virtio_driver import BASE, BUFFERS, RAM, areas, guest_memory
from vmesh.device import BusError
from vmesh.virtio.device import DRIVER_OK, F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1, NEEDS_RESET
from vmesh.virtio.device import VirtioDevice as Device
from vmesh.virtio.mmio import Mmio, Offset
from vmesh_services.devices.virtio_9p.device import Virtio9p
from vmesh_services.devices.virtio_9p.folder import Folder
from vmesh_services.devices.virtio_balloon.device import VirtioBalloon
from vmesh_services.devices.virtio_blk.device import Options, VirtioBlk
from vmesh_services.devices.virtio_console.device import VirtioConsole
from vmesh_services.devices.virtio_net.device import VirtioNet
from vmesh_services.devices.virtio_rng.device import VirtioRng

SIZE = 16  # of each queue


def console(runtime: Any, folder: Path) -> Device:
    made = VirtioConsole(runtime, Mmio(0x1000_8000, 8), "null", packed=True)
    made.console = Kept()  # type: ignore[assignment]
    return made


def shared_folder(runtime: Any, folder: Path) -> Device:
    runtime.machine, runtime.name, runtime.epoch = SimpleNamespace(path=folder), "share0", 1
    (folder / "share").mkdir()
    return Virtio9p(runtime, Mmio(0x1000_8000, 8), Folder(folder / "share", mapped=False), "host", packed=True)


DEVICES: dict[str, Callable[[Any, Path], Device]] = {
    "balloon": lambda runtime, folder: VirtioBalloon(runtime, Mmio(0x1000_8000, 8), packed=True),
    "blk": lambda runtime, folder: VirtioBlk(runtime, Mmio(0x1000_8000, 8), Recorder(), Options(queues=2, packed=True)),
    "net": lambda runtime, folder: VirtioNet(runtime, Mmio(0x1000_8000, 8), FakeNetdev, mac=MAC, packed=True),
    "rng": lambda runtime, folder: VirtioRng(runtime, Mmio(0x1000_8000, 8), packed=True),
    "console": console,
    "9p": shared_folder,
}

ADDRESS = some.sampled_from((0, 1, BASE - 1, BASE, BUFFERS, BUFFERS + 7, BASE + RAM - 1, BASE + RAM, (1 << 64) - 1))
LENGTH = some.sampled_from((0, 1, 3, 12, 16, 17, 512, 4096, RAM, (1 << 32) - 1))
DESCRIPTOR = some.tuples(ADDRESS, LENGTH, some.integers(0, 0xFFFF), some.sampled_from((*range(SIZE + 1), 0xFFFF)))
RING = some.lists(DESCRIPTOR, min_size=SIZE, max_size=SIZE)
REGISTER = some.tuples(some.integers(0, 0x1FF), some.sampled_from((1, 2, 4)), some.integers(0, (1 << 32) - 1))


def write_rings(guest: Guest, packed: bool, ring: list[tuple[int, int, int, int]], heads: list[int]) -> None:
    """Make both queues with that ring, and ring their doorbells."""
    for index in (0, 1):
        places = areas(SIZE, index)
        form, order = ("<QIHH", (0, 1, 3, 2)) if packed else ("<QIHH", (0, 1, 2, 3))
        table = b"".join(struct.pack(form, *(each[place] for place in order)) for each in ring)
        guest.memory.write(places.descriptors, table)
        available = struct.pack(f"<HH{len(heads)}H", 0, len(heads), *heads)
        guest.memory.write(places.driver, available)
        guest.write(Offset.QUEUE_NOTIFY, index)
    guest.settle()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", DEVICES)
def test_rings_of_garbage(name: str, packed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        memory = guest_memory(place)
        guest = Guest(DEVICES[name](FakeRuntime(), place), memory)
        features = F_VERSION_1 | F_INDIRECT_DESC | (F_RING_PACKED if packed else 0)

        @settings(max_examples=150, deadline=None)
        @given(RING, some.lists(some.sampled_from((*range(SIZE), 0xFFFF)), min_size=1, max_size=SIZE))
        def given_garbage(ring: list[tuple[int, int, int, int]], heads: list[int]) -> None:
            first = guest.set_up(0, SIZE, features)
            if name not in ("rng", "9p"):
                guest.write(Offset.QUEUE_SEL, 1)
                guest.enable(first.__class__(memory, areas(SIZE, 1)))
            write_rings(guest, packed, ring, heads)
            assert guest.status & (DRIVER_OK | NEEDS_RESET)
            saved = guest.device.save()
            guest.device.check(saved, guest.device.state_version)
            guest.write(Offset.STATUS, 0)
            assert guest.status == 0

        given_garbage()


@pytest.mark.parametrize("name", DEVICES)
def test_registers_of_garbage(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        guest = Guest(DEVICES[name](FakeRuntime(), place), guest_memory(place))

        @settings(max_examples=100, deadline=None)
        @given(some.lists(REGISTER, max_size=40))
        def given_garbage(accesses: list[tuple[int, int, int]]) -> None:
            for offset, size, value in accesses:
                at = offset // size * size
                with suppress(BusError):
                    guest.device.write(0, at, size, value & ((1 << 8 * size) - 1))
                with suppress(BusError):
                    guest.device.read(0, at, size)
            guest.settle()
            guest.device.check(guest.device.save(), guest.device.state_version)
            guest.device.reset()
            assert guest.status == 0

        given_garbage()
