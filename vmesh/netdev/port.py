"""The interface between a network card and a netdev, the host's side of it.

Frames are Ethernet frames without a checksum sequence, of MIN_FRAME to MAX_FRAME bytes. Where `Netdev.offload` holds,
each has a virtio-net header (virtio 1.2, 5.1.6) in front of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

MIN_FRAME = 14  # an Ethernet header
MAX_FRAME = 18 + 65535  # an Ethernet header with a VLAN tag, and the largest packet of IP
HEADER_BYTES = 12  # of a virtio-net header
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")

Frame = Sequence[memoryview]
"""A frame in pieces, as it lies in guest memory."""


class Port(Protocol):
    """The card, as the netdev sees it."""

    def receive(self, frames: Sequence[memoryview]) -> int:
        """Frames came in; gives how many were taken. The rest is offered again when the card has said `resume`."""
        ...

    def writable(self) -> None:
        """The netdev can take frames again."""
        ...

    def link(self, up: bool) -> None:
        """Somebody is at the other end of the wire, or nobody."""
        ...


class Netdev(Protocol):
    """The host's side. All is called in the one thread of the loop, and nothing waits."""

    offload: bool

    def start(self) -> None:
        """Begin. Raises ConfigError if that cannot be."""
        ...

    def send(self, frames: Sequence[Frame]) -> int:
        """Send the first of `frames`; gives how many. If not all, `Port.writable` follows. What lies in the frames may
        change afterwards."""
        ...

    def resume(self) -> None:
        """The card can take frames again."""
        ...

    def set_offload(self, features: int) -> None:
        """What the driver may be given, of virtio-net's features (virtio 1.2, 5.1.3). Where `offload` holds."""
        ...

    def close(self) -> None:
        """The end."""
        ...


def mac_address(text: str) -> bytes:
    """Six bytes from 52:54:00:12:34:56. Raises ValueError."""
    address = bytes.fromhex(text.replace(":", "")) if _MAC.fullmatch(text) else b""
    if not address or address[0] & 1:
        raise ValueError(f"expected mac=XX:XX:XX:XX:XX:XX, the address of one card, got '{text}'")
    return address
