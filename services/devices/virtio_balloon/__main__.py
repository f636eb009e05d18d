"""`python -P -m vmesh_services.devices.virtio_balloon`: the command line of the balloon."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vmesh import device
from vmesh.privileges import REACH
from vmesh.virtio import mmio
from vmesh_services.devices.virtio_balloon.device import VirtioBalloon


def main(argv: Sequence[str]) -> int:
    """Run the device; gives the exit status."""
    parser = mmio.parser("virtio-balloon", "Takes memory from the guest, and gives it back, as the monitor says.")
    options = parser.parse_args(argv)
    return device.run(
        options,
        lambda runtime: VirtioBalloon(runtime, mmio.Mmio(options.base, options.irq), packed=options.packed),
        capabilities=REACH,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
