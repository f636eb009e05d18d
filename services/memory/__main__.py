"""`python -P -m vmesh_services.memory`: the command line of the memory service."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vmesh import service
from vmesh.privileges import FILES
from vmesh_services.memory.layout import image_argument, place_argument, range_argument, reservation_argument
from vmesh_services.memory.service import UNREAD, Memory, Settings


def main(argv: Sequence[str]) -> int:
    """Run the memory service; gives the exit status."""
    parser = service.parser("memory", "Owns guest memory and the address map.")
    parser.add_argument("--ram", type=service.size, required=True, metavar="SIZE", help="bytes, or with K, M, G, T")
    parser.add_argument("--ram-base", type=service.number, default=0x8000_0000, metavar="ADDRESS")
    parser.add_argument("--rom", type=range_argument, metavar="BASE:SIZE", help="read-only memory")
    parser.add_argument(
        "--image",
        type=image_argument,
        action="append",
        default=[],
        metavar="ADDRESS=PATH[@OFFSET:SIZE]",
        help="raw bytes to put into memory at every reset; may be given several times",
    )
    parser.add_argument(
        "--reserve",
        type=reservation_argument,
        action="append",
        default=[],
        metavar="NAME=BASE:SIZE",
        help="addresses that the cpu service answers itself; may be given several times",
    )
    parser.add_argument(
        "--expect",
        default="",
        metavar="NAME,NAME,...",
        help="the devices that must have attached before the cpu is given the map",
    )
    parser.add_argument(
        "--place",
        type=place_argument,
        action="append",
        default=[],
        metavar="NAME=[KIND]@BASE:SIZE/IRQ",
        help="what the device of that name has to be, or it is refused; may be given several times",
    )
    parser.add_argument("--absent", action="store_true", help="RAM has no content yet: a pager brings it")
    parser.add_argument("--cached", action="store_true", help="the cpu is on another host, with a cache of RAM")
    parser.add_argument(
        "--adopt", type=Path, metavar="DIR", help="RAM is that of another machine, which is to hand itself over"
    )
    options = parser.parse_args(argv)
    settings = Settings(
        ram_base=options.ram_base,
        ram_size=options.ram,
        rom=options.rom,
        images=tuple(options.image),
        reserved=tuple(options.reserve),
        expected=frozenset(name for name in options.expect.split(",") if name),
        places={place.range.name: place for place in options.place},
        absent=options.absent,
        cached=options.cached,
        adopt=options.adopt,
    )
    return service.run(options, lambda runtime: Memory(runtime, settings), unread=UNREAD, capabilities=FILES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
