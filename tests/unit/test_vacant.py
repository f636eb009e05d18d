"""virtio-mmio transports without a device."""

from __future__ import annotations

import pytest

from vmesh_services.cpu import vacant

TRANSPORTS = (range(0x1000_1000, 0x1000_2000), range(0x1000_2000, 0x1000_3000))


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [(0, 4, 0x7472_6976), (4, 4, 2), (8, 4, 0), (0xC, 4, 0x554D_4551), (0x70, 4, 0), (0x100, 1, 0), (0x102, 2, 0)],
)
@pytest.mark.parametrize("transport", [0x1000_1000, 0x1000_2000])
def test_read_gives_the_registers_of_no_device(transport: int, offset: int, size: int, value: int) -> None:
    assert vacant.read(TRANSPORTS, transport + offset, size) == value


@pytest.mark.parametrize(("address", "size"), [(0x1000_0FFC, 4), (0x1000_3000, 4), (0x1000_1002, 4), (0x1000_1000, 8)])
def test_read_elsewhere_or_of_an_odd_size_is_a_fault(address: int, size: int) -> None:
    assert vacant.read(TRANSPORTS, address, size) is None


def test_read_without_transports_is_a_fault() -> None:
    assert vacant.read((), 0, 4) is None
