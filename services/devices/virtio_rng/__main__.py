"""`python -P -m services.devices.virtio_rng`: the command line of the entropy device."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.devices.virtio_rng.device import VirtioRng
from vmesh import device, service
from vmesh.privileges import REACH


def main(argv: Sequence[str]) -> int:
    """Run the device; gives the exit status."""
    parser = service.parser("virtio-rng", "Random bytes of the host for the guest.")
    parser.add_argument("--base", type=service.number, default=0x1000_1000, metavar="ADDRESS")
    parser.add_argument("--irq", type=service.number, default=1, metavar="N")
    parser.add_argument("--packed", action="store_true", help="offer the packed ring")
    options = parser.parse_args(argv)
    return device.run(
        options,
        lambda runtime: VirtioRng(runtime, options.base, options.irq, packed=options.packed),
        capabilities=REACH,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
