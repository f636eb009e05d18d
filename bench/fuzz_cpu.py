"""Random programs against QEMU and Unicorn for as long as asked: ``python -m bench.fuzz_cpu --minutes 10``.

Prints how many programs and instructions were compared, and for each program that differs the first instruction after
which it does. ``--seed N --programs 1`` runs one program again. The exit status is 1 if any differs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time

from tests.models.oracle import Ours, Qemu
from tests.models.programs import ON_QEMU, ON_UNICORN, Oracle, compare, qemu, unicorn, write

#: Programs in one start of QEMU.
BATCH = 60


def oracles() -> dict[str, tuple[list[str], Oracle]]:
    """The oracles that are here, by name: the instructions that each can judge, and how to ask it."""
    found = {"unicorn": (ON_UNICORN, unicorn())}
    if shutil.which(Qemu.PROGRAM):
        found["qemu"] = (ON_QEMU, qemu())
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.fuzz_cpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--programs", type=int, help="stop after this many instead")
    parser.add_argument("--seed", type=int, default=time.time_ns() // 1_000_000)
    parser.add_argument("--length", type=int, default=300, help="items (about as many instructions) in a program")
    options = parser.parse_args(argv)
    ours = Ours()
    here = oracles()
    print(f"from seed {options.seed}, against {', '.join(here)}", flush=True)
    end = time.monotonic() + 60 * options.minutes
    programs = instructions = different = 0
    seed = options.seed
    while programs < options.programs if options.programs else time.monotonic() < end:
        count = min(BATCH, options.programs - programs) if options.programs else BATCH
        for name, (names, ask) in here.items():
            batch = [write(number, names, options.length) for number in range(seed, seed + count)]
            for message in compare(batch, ours, ask):
                different += 1
                print(f"{name}: {message}", flush=True)
            instructions += sum(ours.retired)
        seed += count
        programs += count
        if sys.stderr.isatty():
            print(f"\r{programs} programs, {different} differ", end="", file=sys.stderr)
    print(f"{programs} programs, {instructions} instructions compared with {len(here)} oracles, {different} differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
