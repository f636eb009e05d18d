"""`python -P -m vmesh_services.devices.virtio_blk`: the command line of the block device."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vmesh import device, elsewhere
from vmesh.privileges import FILES
from vmesh.service import Runtime
from vmesh.virtio import mmio
from vmesh_services.devices.virtio_blk import nbd
from vmesh_services.devices.virtio_blk.blocks import Blocks
from vmesh_services.devices.virtio_blk.device import Options, VirtioBlk
from vmesh_services.devices.virtio_blk.image import SECTOR, Image, RawImage
from vmesh_services.devices.virtio_blk.nbd import NbdImage
from vmesh_services.devices.virtio_blk.overlay import Overlay
from vmesh_services.devices.virtio_blk.qemu_nbd import ServedImage


def main(argv: Sequence[str]) -> int:
    """Run the device; gives the exit status."""
    parser = mmio.parser("virtio-blk", "A disk.")
    parser.add_argument("--file", required=True, metavar="PATH", help="an image, a block device, or nbd:... (QEMU's)")
    parser.add_argument("--format", choices=("raw", "qcow2"), default="raw")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--snapshot", type=Path, metavar="FOLDER", help="write to a temporary file in FOLDER instead")
    parser.add_argument("--cache", choices=("writeback", "writethrough", "unsafe"), default="writeback")
    parser.add_argument("--discard", choices=("ignore", "unmap"), default="ignore")
    parser.add_argument("--serial", default="", metavar="TEXT", help="at most 20 bytes")
    parser.add_argument("--num-queues", type=int, default=1, metavar="N")
    options = parser.parse_args(argv)
    return device.run(options, lambda runtime: _build(runtime, options), capabilities=FILES)


def _build(runtime: Runtime, options: argparse.Namespace) -> VirtioBlk:
    image = _open(runtime, options)
    if options.snapshot is not None:
        fresh = runtime.epoch == 1
        folder, _lock = elsewhere.folder(runtime.machine.elsewhere(runtime.name), options.snapshot, fresh=fresh)
        image = Overlay(image, folder / "disk", fresh=fresh)
    chosen = Options(
        read_only=options.read_only,
        serial=options.serial,
        queues=options.num_queues,
        discard=options.discard == "unmap" or options.snapshot is not None,
        write_cache=options.cache != "writethrough",
        flushes=options.cache != "unsafe" and options.snapshot is None,
        packed=options.packed,
    )
    return VirtioBlk(runtime, mmio.Mmio(options.base, options.irq), image, chosen)


def _open(runtime: Runtime, options: argparse.Namespace) -> Image:
    read_only = options.read_only or options.snapshot is not None
    server = nbd.parse(options.file)
    if server is not None:
        return _of_server(runtime, NbdImage(server, read_only=read_only, kept=_kept(runtime)))
    if options.format == "raw":
        return RawImage(Path(options.file), read_only=read_only, later=runtime.away)
    socket = runtime.machine.path / f"{runtime.name}.nbd"
    discard = options.discard == "unmap"
    return ServedImage(Path(options.file), options.format, socket, read_only=read_only, discard=discard)


def _kept(runtime: Runtime) -> Path:
    """Where the first life leaves for the next ones what the server says of its disk."""
    kept = runtime.machine.path / f"{runtime.name}.export"
    if runtime.epoch == 1:
        kept.unlink(missing_ok=True)
    return kept


def _of_server(runtime: Runtime, image: NbdImage) -> Image:
    if image.odd:
        runtime.log.warning("the server's disk ends inside of a block", bytes=image.odd, size=image.size)
    return Blocks(image, image.block) if image.block > SECTOR else image


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
