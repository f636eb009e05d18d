"""Programs that are put in the place of the copier of docs/examples and are not quite what they should be.

`python -P -m tests.system.rival HOW ...`; the rest are a device's arguments.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

from docs.examples.copier.__main__ import Copier
from vmesh import device, service
from vmesh.v1 import common_pb2
from vmesh.v1.packet_pb2 import Packet


class Later(Copier):
    """As a later release may be: its state has version 2, and it takes version 1 too."""

    state_version = 2


class Forgetful(Copier):
    """Keeps no slot that another program could read, and reads none."""

    def __init__(self, runtime: service.Runtime, base: int, irq: int) -> None:
        super().__init__(runtime, base, irq)
        (runtime.machine.path / f"{runtime.name}.slot").write_bytes(b"")


class Toaster(Copier):
    kind = "toaster"


class Smaller(Copier):
    def __init__(self, runtime: service.Runtime, base: int, irq: int) -> None:
        super().__init__(runtime, base, irq)
        self.regions[0].size = 32
        del self.regions[0].registers[1]


class Freezing(Copier):
    """Is there, and then hangs."""

    def attached(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)


class Faulting(Copier):
    """Says that the machine cannot go on."""

    def attached(self) -> None:
        fault = common_pb2.Fault(service=self.runtime.name, reason="no paper")
        self.runtime.notify(common_pb2.SEVERITY_ERROR, "no paper", fault)


def _strange(runtime: service.Runtime, base: int, irq: int) -> Copier:
    """Speaks another major version of the protocol."""
    router = runtime.server.socket  # which the monitor may have met already
    refused = common_pb2.Refused(expected="protocol 9.x", got="protocol 1.0")
    while True:
        sender, frame = router.recv_multipart()
        router.send_multipart([sender, Packet(id=Packet.FromString(frame).id, refused=refused).SerializeToString()])


def _silent(runtime: service.Runtime, base: int, irq: int) -> Copier:
    """Is never there."""
    while True:
        time.sleep(3600)


RIVALS: dict[str, Callable[[service.Runtime, int, int], Copier]] = {
    "later": Later,
    "forgetful": Forgetful,
    "toaster": Toaster,
    "smaller": Smaller,
    "freezing": Freezing,
    "faulting": Faulting,
    "strange": _strange,
    "silent": _silent,
}

if __name__ == "__main__":
    device.main("copier", RIVALS[sys.argv.pop(1)])
