"""`python -P -m vmesh_services.devices.virtio_9p`: the command line of a shared folder."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from vmesh import device
from vmesh.privileges import FILES, Capability
from vmesh.virtio import mmio
from vmesh_services.devices.virtio_9p.device import Virtio9p
from vmesh_services.devices.virtio_9p.folder import Folder

_FILES = 4096  # that the process may have open, if the host allows it
_OWN_FILES = 96  # of these are not the guest's


def main(argv: Sequence[str]) -> int:
    """Run the device; gives the exit status."""
    parser = mmio.parser("virtio-9p", "A folder of the host for the guest.")
    parser.add_argument("--path", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--tag", required=True, help="what the guest mounts it by")
    parser.add_argument("--security", choices=("none", "mapped-xattr"), default="none")
    parser.add_argument("--read-only", action="store_true")
    options = parser.parse_args(argv)
    most_open = _raise_limit() - _OWN_FILES
    return device.run(
        options,
        lambda runtime: Virtio9p(
            runtime,
            mmio.Mmio(options.base, options.irq),
            Folder(options.path, mapped=options.security == "mapped-xattr"),
            options.tag,
            read_only=options.read_only,
            most_open=most_open,
            packed=options.packed,
        ),
        capabilities=FILES | {Capability.FSETID},
    )


def _raise_limit() -> int:
    """Allow this process more open files; gives how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        return limit
    return min(soft, _FILES) if soft != resource.RLIM_INFINITY else _FILES


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
