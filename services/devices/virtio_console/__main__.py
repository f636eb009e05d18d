"""`python -P -m vmesh_services.devices.virtio_console`: the command line of the console."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vmesh import chardev, device
from vmesh.privileges import FILES, Capability
from vmesh.virtio import mmio
from vmesh_services.devices.virtio_console.device import VirtioConsole


def main(argv: Sequence[str]) -> int:
    """Run the device; gives the exit status."""
    parser = mmio.parser("virtio-console", "A console with one port.")
    parser.add_argument("--chardev", default="null", metavar="SPEC", help=chardev.USAGE)
    options = parser.parse_args(argv)
    return device.run(
        options,
        lambda runtime: VirtioConsole(
            runtime,
            mmio.Mmio(options.base, options.irq),
            chardev.found(options.chardev, runtime.machine.kept_console(runtime.name)),
            packed=options.packed,
        ),
        capabilities=FILES | {Capability.NET_BIND_SERVICE},
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
