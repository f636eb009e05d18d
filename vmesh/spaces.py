"""The spaces of proto/vmesh/v1/bus.proto, as command lines and people say them."""

from __future__ import annotations

from collections.abc import Mapping

from vmesh.v1.bus_pb2 import Space

NAMES: Mapping[int, str] = {
    number: name.removeprefix("SPACE_").lower().replace("_", "-") for name, number in Space.items()
}
