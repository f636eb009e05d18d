"""The spaces of proto/vmesh/v1/bus.proto: as people say them, and where a region that moves can be."""

from __future__ import annotations

from collections.abc import Mapping

from vmesh.v1.bus_pb2 import Region, Space

NAMES: Mapping[int, str] = {
    number: name.removeprefix("SPACE_").lower().replace("_", "-") for name, number in Space.items()
}


def can_be_at(region: Region, base: int) -> bool:
    """Whether a region that moves can be there: whole in its aperture, at a multiple of 4."""
    last = region.aperture_base + region.aperture_size - region.size
    return region.aperture_base <= base <= last and base % 4 == 0
