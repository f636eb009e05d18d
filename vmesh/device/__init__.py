"""The device SDK: an author writes a `Device`, and `run` makes a service of it.

The SDK does the rest of proto/vmesh/v1/bus.proto: attaching, batches and their order, replays, credits, updates of
lines and shadows, lifecycle, and the slot. services/devices/ has examples; docs/protocol.md explains what goes over the
wire.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Set
from typing import NoReturn

from vmesh import scheduling, service
from vmesh.device.model import BusError, Device
from vmesh.device.serving import DeviceService
from vmesh.device.wires import Wires
from vmesh.privileges import Capability
from vmesh.service import Runtime

__all__ = ["BusError", "Device", "DeviceService", "Wires", "main", "parser", "run"]


def parser(kind: str, description: str | None, *, interrupt: bool = True) -> service.Parser:
    """The options of a device with one place and, unless it has no `interrupt`, one wire; it may add its own."""
    made = service.parser(kind, description)
    made.add_argument("--base", type=service.number, required=True, metavar="ADDRESS", help="where the guest finds it")
    if interrupt:
        made.add_argument("--irq", type=service.number, required=True, metavar="N", help="the wire that it drives")
    return made


def run(
    options: argparse.Namespace, build: Callable[[Runtime], Device], *, capabilities: Set[Capability] | None = None
) -> int:
    """Serve the device that `build` makes, to its end; gives the exit status. For `capabilities` see `service.run`."""
    scheduling.short_slices()
    return service.run(options, lambda runtime: DeviceService(runtime, build(runtime)), capabilities=capabilities)


def main(kind: str, build: Callable[[Runtime, int, int], Device]) -> NoReturn:
    """The command line of a device with one place and one interrupt: serve `build(runtime, base, irq)`, to its end."""
    options = parser(kind, None).parse_args()
    sys.exit(run(options, lambda runtime: build(runtime, options.base, options.irq)))
