"""`python -P -m services.devices.goldfish_rtc`: the command line of the clock."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.devices.goldfish_rtc.device import GoldfishRtc
from vmesh import device, service
from vmesh.privileges import REACH


def main(argv: Sequence[str]) -> int:
    """Run the device; gives the exit status."""
    parser = service.parser("goldfish-rtc", "A real-time clock.")
    parser.add_argument("--base", type=service.number, default=0x10_1000, metavar="ADDRESS")
    parser.add_argument("--irq", type=service.number, default=11, metavar="N")
    options = parser.parse_args(argv)
    return device.run(options, lambda runtime: GoldfishRtc(runtime, options.base, options.irq), capabilities=REACH)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
