"""`python -P -m vmesh_services.cpu`: the command line of the cpu service."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

from vmesh import scheduling, service
from vmesh.privileges import REACH

from .bus.spaces import NAMES, Spaces
from .controllers.plic_layout import SOURCES
from .controllers.virt import NATIVE, VirtControllers
from .core.emulator import Emulator, Options
from .core.image import ISA
from .core.state import MOST_HARTS
from .core.timers import TICK
from .isa import interface
from .service import CpuService, Settings
from .vacant import TRANSPORT

#: At a look every 20,000 instructions: code that has run for about half a million.
HOT_SAMPLES = 24


def _isa(text: str) -> interface.Isa:
    try:
        return interface.load(text)
    except ModuleNotFoundError:
        raise argparse.ArgumentTypeError(f"'{text}': this cpu has no such instruction set") from None


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split(","))


def _harts(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_HARTS:
        raise argparse.ArgumentTypeError(f"'{text}': expected 1 to {MOST_HARTS} harts")
    return int(text)


def _transports(text: str) -> tuple[range, ...]:
    return tuple(range(base, base + TRANSPORT) for base in map(service.number, text.split(",")))


def _window(text: str) -> tuple[int, range]:
    name, _, place = text.partition("=")
    base, _, size = place.partition(":")
    if name not in NAMES or not size:
        raise argparse.ArgumentTypeError(f"'{text}': expected SPACE=BASE:SIZE, SPACE one of {', '.join(NAMES)}")
    start = service.number(base)
    return NAMES[name], range(start, start + service.number(size))


def _built_in(built: int) -> Callable[[str], int]:
    """A number that native code has, so that the board can have no other."""

    def parse(text: str) -> int:
        if text != str(built):
            raise argparse.ArgumentTypeError(f"'{text}': this cpu's is {built}")
        return built

    return parse


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"'{text}': expected a time in seconds above 0")
    return value


def main(argv: Sequence[str]) -> int:
    """Run the cpu service; gives the exit status."""
    parser = service.parser("cpu", "Runs the machine's harts; holds its clock, ACLINT and PLIC.")
    parser.add_argument(
        "--isa", type=_isa, default=ISA, metavar="NAME", help="the instruction set (default: %(default)s)"
    )
    parser.add_argument("--harts", type=_harts, default=1, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument(
        "--features",
        type=_names,
        required=True,
        metavar="NAME,NAME,...",
        help="ISA extensions and translation modes",
    )
    parser.add_argument(
        "--reset-pc", type=service.number, required=True, metavar="ADDRESS", help="where all harts start"
    )
    parser.add_argument("--aclint", type=service.number, required=True, metavar="ADDRESS")
    parser.add_argument("--plic", type=service.number, required=True, metavar="ADDRESS")
    parser.add_argument(
        "--timebase",
        type=_built_in(10**9 // TICK),
        metavar="HZ",
        help="ticks of guest time in a second, as the board has them",
    )
    parser.add_argument(
        "--sources", type=_built_in(SOURCES), metavar="N", help="inputs of the PLIC, as the board has them"
    )
    parser.add_argument(
        "--transports",
        type=_transports,
        default=(),
        metavar="ADDRESS,...",
        help="virtio-mmio transports, of 4 KiB each: those without a device answer that they have none",
    )
    parser.add_argument(
        "--window",
        type=_window,
        action="append",
        default=[],
        metavar="SPACE=BASE:SIZE",
        help="addresses behind which another space is: io or pci-config; once for each",
    )
    parser.add_argument(
        "--memory", default="memory", metavar="NAME", help="what has RAM on this host (default: %(default)s)"
    )
    parser.add_argument("--paused", action="store_true", help="wait for the monitor to resume (-S)")
    parser.add_argument(
        "--hot-samples",
        type=int,
        default=HOT_SAMPLES,
        metavar="N",
        help="how often the clock must find code before it is translated; 0: interpret only (default: %(default)s)",
    )
    parser.add_argument("--no-cache", action="store_true", help="neither use nor keep compiled code on disk")
    parser.add_argument("--perf-map", action="store_true", help="name the code for perf, in /tmp/perf-PID.map")
    parser.add_argument(
        "--bus-limit",
        type=_seconds,
        default=20.0,
        metavar="SECONDS",
        help="a device that gives no sign of life for so long is not waited for: access fault (default: %(default)g)",
    )
    options = parser.parse_args(argv)
    if unknown := sorted(options.features - set(options.isa.features)):
        known = ",".join(options.isa.features)
        parser.error(f"argument --features: unknown feature '{unknown[0]}': expected some of {known}")
    emulated = Options(
        isa=options.isa,
        controllers=VirtControllers(options.aclint, options.plic),
        native=NATIVE,
        harts=options.harts,
        features=options.features,
        reset_pc=options.reset_pc,
        hot_samples=options.hot_samples,
        cache=not options.no_cache,
        perf_map=options.perf_map,
        bus_limit=options.bus_limit,
    )
    settings = Settings(
        paused=options.paused,
        memory=options.memory,
        spaces=Spaces(dict(options.window)),
        transports=options.transports,
    )
    scheduling.short_slices()
    return service.run(
        options, lambda runtime: CpuService(runtime, settings, partial(Emulator, emulated)), capabilities=REACH
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
