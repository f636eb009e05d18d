"""`python -P -m services.devices.virtio_console`: the command line of the console."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.devices.virtio_console.device import VirtioConsole
from vmesh import device, service
from vmesh.privileges import FILES, Capability


def main(argv: Sequence[str]) -> int:
    """Run the device; gives the exit status."""
    parser = service.parser("virtio-console", "A console with one port.")
    parser.add_argument("--base", type=service.number, default=0x1000_1000, metavar="ADDRESS")
    parser.add_argument("--irq", type=service.number, default=1, metavar="N")
    parser.add_argument("--packed", action="store_true", help="offer the packed ring")
    parser.add_argument(
        "--chardev",
        default="null",
        metavar="SPEC",
        help="socket:PATH, unix:, file:, pty, stdio, null, kept:PATH; `kept`: at its place in the machine directory",
    )
    options = parser.parse_args(argv)
    return device.run(
        options,
        lambda runtime: VirtioConsole(
            runtime,
            options.base,
            options.irq,
            f"kept:{runtime.machine.kept_console(runtime.name)}" if options.chardev == "kept" else options.chardev,
            packed=options.packed,
        ),
        capabilities=FILES | {Capability.NET_BIND_SERVICE},
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
