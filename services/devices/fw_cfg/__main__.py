"""`python -P -m vmesh_services.devices.fw_cfg`: the command line of the firmware configuration device."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vmesh import device, errors
from vmesh.board import virt
from vmesh.privileges import REACH
from vmesh.service import Runtime
from vmesh_services.devices.fw_cfg.device import FwCfg
from vmesh_services.devices.fw_cfg.items import digest, items


def main(argv: Sequence[str]) -> int:
    """Run the device; gives the exit status."""
    parser = device.parser("fw-cfg", "Items for the guest's firmware.", interrupt=False)
    parser.add_argument("--hart-count", type=int, default=1, metavar="N", help="how many the machine has")
    parser.add_argument(
        "--item", action="append", default=[], metavar="NAME",
        help="an item whose content is in the machine directory: of the first in fw_cfg.0, of the second in fw_cfg.1",
    )  # fmt: skip
    options = parser.parse_args(argv)
    return device.run(options, lambda runtime: _build(runtime, options), capabilities=REACH)


def _build(runtime: Runtime, options: argparse.Namespace) -> FwCfg:
    files: dict[str, bytes] = {}
    for number, name in enumerate(options.item):
        path = runtime.machine.path / virt.fw_cfg_item(number)
        try:
            files[name] = path.read_bytes()
        except OSError as error:
            raise errors.ConfigError(f"item {name}: cannot read {path}: {error.strerror}") from error
    harts = options.hart_count
    return FwCfg(runtime, options.base, items(harts, files), digest(harts, files))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
