"""`python -P -m vmesh_services.devices.ns16550a`: the command line of the serial port."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vmesh import chardev, device
from vmesh.privileges import FILES, Capability
from vmesh_services.devices.ns16550a.device import Ns16550a


def main(argv: Sequence[str]) -> int:
    """Run the device; gives the exit status."""
    parser = device.parser("ns16550a", "A serial port.")
    parser.add_argument("--chardev", default="null", metavar="SPEC", help=chardev.USAGE)
    options = parser.parse_args(argv)
    return device.run(
        options,
        lambda runtime: Ns16550a(
            runtime,
            options.base,
            options.irq,
            chardev.found(options.chardev, runtime.machine.kept_console(runtime.name)),
        ),
        capabilities=FILES | {Capability.NET_BIND_SERVICE},
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
