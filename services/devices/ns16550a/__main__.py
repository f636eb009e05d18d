"""`python -P -m services.devices.ns16550a`: the command line of the serial port."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.devices.ns16550a.device import Ns16550a
from vmesh import device, service
from vmesh.privileges import FILES, Capability


def main(argv: Sequence[str]) -> int:
    """Run the device; gives the exit status."""
    parser = service.parser("ns16550a", "A serial port.")
    parser.add_argument("--base", type=service.number, default=0x1000_0000, metavar="ADDRESS")
    parser.add_argument("--irq", type=service.number, default=10, metavar="N")
    parser.add_argument("--chardev", default="null", metavar="SPEC", help="socket:PATH, unix:, file:, pty, stdio, null")
    options = parser.parse_args(argv)
    return device.run(
        options,
        lambda runtime: Ns16550a(runtime, options.base, options.irq, options.chardev),
        capabilities=FILES | {Capability.NET_BIND_SERVICE},
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
