"""`python -P -m services.devices.virtio_blk`: the command line of the block device."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from services.devices.virtio_blk import nbd
from services.devices.virtio_blk.device import Options, VirtioBlk
from services.devices.virtio_blk.image import Image, RawImage
from services.devices.virtio_blk.nbd import NbdImage
from services.devices.virtio_blk.overlay import Overlay
from services.devices.virtio_blk.qemu_nbd import ServedImage
from vmesh import device, service
from vmesh.service import Runtime


def main(argv: Sequence[str]) -> int:
    """Run the device; gives the exit status."""
    parser = service.parser("virtio-blk", "A disk.")
    parser.add_argument("--base", type=service.number, default=0x1000_1000, metavar="ADDRESS")
    parser.add_argument("--irq", type=service.number, default=1, metavar="N")
    parser.add_argument("--file", required=True, metavar="PATH", help="an image, a block device, or nbd:... (QEMU's)")
    parser.add_argument("--format", choices=("raw", "qcow2"), default="raw")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--snapshot", action="store_true", help="write to a temporary file instead")
    parser.add_argument("--cache", choices=("writeback", "writethrough", "unsafe"), default="writeback")
    parser.add_argument("--discard", choices=("ignore", "unmap"), default="ignore")
    parser.add_argument("--serial", default="", metavar="TEXT", help="at most 20 bytes")
    parser.add_argument("--num-queues", type=int, default=1, metavar="N")
    parser.add_argument("--packed", action="store_true", help="offer the packed ring")
    options = parser.parse_args(argv)
    return device.run(options, lambda runtime: _build(runtime, options))


def _build(runtime: Runtime, options: argparse.Namespace) -> VirtioBlk:
    image = _open(runtime, options)
    if options.snapshot:
        image = Overlay(image, runtime.machine.path / f"{runtime.name}.overlay", fresh=runtime.epoch == 1)
    chosen = Options(
        read_only=options.read_only,
        serial=options.serial,
        queues=options.num_queues,
        discard=options.discard == "unmap",
        write_cache=options.cache != "writethrough",
        flushes=options.cache != "unsafe" and not options.snapshot,
        packed=options.packed,
    )
    return VirtioBlk(runtime, options.base, options.irq, image, chosen)


def _open(runtime: Runtime, options: argparse.Namespace) -> Image:
    read_only = options.read_only or options.snapshot
    server = nbd.parse(options.file)
    if server is not None:
        return NbdImage(server, read_only=read_only)
    if options.format == "raw":
        return RawImage(Path(options.file), read_only=read_only, later=runtime.incoming)
    socket = runtime.machine.path / f"{runtime.name}.nbd"
    discard = options.discard == "unmap"
    return ServedImage(Path(options.file), options.format, socket, read_only=read_only, discard=discard)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
