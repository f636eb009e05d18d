"""`python -P -m vmesh_services.devices.goldfish_rtc`: the command line of the clock."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vmesh import device
from vmesh.privileges import REACH
from vmesh_services.devices.goldfish_rtc.device import GoldfishRtc


def main(argv: Sequence[str]) -> int:
    """Run the device; gives the exit status."""
    parser = device.parser("goldfish-rtc", "A real-time clock.")
    options = parser.parse_args(argv)
    return device.run(options, lambda runtime: GoldfishRtc(runtime, options.base, options.irq), capabilities=REACH)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
