"""`python -P -m vmesh_services.devices.sifive_test`: the command line of the power-off register."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vmesh import device
from vmesh.privileges import REACH
from vmesh_services.devices.sifive_test.device import SifiveTest


def main(argv: Sequence[str]) -> int:
    """Run the device; gives the exit status."""
    parser = device.parser("sifive-test", "Switches the machine off, or resets it.", interrupt=False)
    options = parser.parse_args(argv)
    return device.run(options, lambda runtime: SifiveTest(runtime, options.base), capabilities=REACH)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
