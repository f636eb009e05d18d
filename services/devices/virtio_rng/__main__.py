"""`python -P -m vmesh_services.devices.virtio_rng`: the command line of the entropy device."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vmesh import device
from vmesh.privileges import REACH
from vmesh.virtio import mmio
from vmesh_services.devices.virtio_rng.device import VirtioRng


def main(argv: Sequence[str]) -> int:
    """Run the device; gives the exit status."""
    parser = mmio.parser("virtio-rng", "Random bytes of the host for the guest.")
    options = parser.parse_args(argv)
    return device.run(
        options,
        lambda runtime: VirtioRng(runtime, mmio.Mmio(options.base, options.irq), packed=options.packed),
        capabilities=REACH,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
