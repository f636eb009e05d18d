"""The model of the entropy device (virtio 1.2, 5.4): one queue, no configuration, no state of its own."""

from __future__ import annotations

import os

from vmesh.service import Runtime
from vmesh.v1.devices_pb2 import VirtioRngState
from vmesh.virtio.device import Transport, VirtioDevice
from vmesh.virtio.queue import Chain, Queue, cut

QUEUE_SIZE = 64
MOST = 4096  # bytes for one request: the device may give fewer than there is room for (5.4.6.2)


class VirtioRng(VirtioDevice):
    """The entropy device."""

    kind = "virtio-rng"
    state = VirtioRngState
    device_id = 4

    def __init__(self, runtime: Runtime, transport: Transport, *, packed: bool = False) -> None:
        super().__init__(runtime, transport, queue_sizes=(QUEUE_SIZE,), packed=packed)

    def request(self, queue: Queue, chain: Chain) -> int:
        return self.memory.scatter(cut(chain.writable, MOST)[0], _fill)


def _fill(buffers: list[memoryview]) -> int:
    for buffer in buffers:
        buffer[:] = os.urandom(len(buffer))
    return sum(len(buffer) for buffer in buffers)
