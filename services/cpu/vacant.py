"""virtio-mmio transports without a device, as QEMU's board has them: a driver that looks finds nothing and goes on."""

from __future__ import annotations

from collections.abc import Sequence

TRANSPORT = 0x1000  # bytes of each
_MAGIC, _VERSION, _VENDOR = 0x7472_6976, 2, 0x554D_4551
# Virtio 1.2, 4.2.2: a device id of 0 is a placeholder, "and the driver must ignore it". All other registers read zero.
_REGISTERS = {0x0: _MAGIC, 0x4: _VERSION, 0xC: _VENDOR}


def read(transports: Sequence[range], address: int, size: int) -> int | None:
    """What a read of `size` bytes gives, 0 for a write, which does nothing; None outside of `transports`, or if it is
    not an aligned access of 1, 2 or 4 bytes."""
    if not any(address in transport for transport in transports) or size > 4 or address % size:
        return None
    return _REGISTERS.get(address % TRANSPORT, 0) if size == 4 else 0
