"""Random programs on QEMU, Unicorn, our interpreter and translated code, for as long as asked:
``python -P -m bench.fuzz_cpu --minutes 10``.

QEMU and Unicorn judge the interpreter; the interpreter judges translated code (of all instructions, and of how many
retired), all of it (``translate``) or every second region (``both``). Prints how many programs and instructions were
compared, and for each program that differs the first instruction after which it does. ``--seed N --programs 1`` runs
one program again. The exit status is 1 if any differs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import dataclass

from tests.models.oracle import Ours, Qemu
from tests.models.programs import (
    ON_INTERPRETER,
    ON_QEMU,
    ON_UNICORN,
    Oracle,
    compare,
    interpreter,
    qemu,
    unicorn,
    write,
)
from tests.models.tiers import BOTH, INTERPRET, LIMITS, TRANSLATE

#: Programs in one start of QEMU; programs that are translated at a time: compiling takes a hundred times as long.
BATCH, TRANSLATED = 60, 10


@dataclass
class Party:
    """A machine of ours, what judges it, the instructions that this can judge, and what was compared."""

    name: str
    ours: Ours
    judge: Oracle
    instructions: list[str]
    batch: int
    stops: int
    programs: int = 0
    retired: int = 0
    different: int = 0

    def run(self, seed: int, count: int, length: int) -> None:
        """Compares programs ``seed`` and following."""
        self.ours.cpu.harts.limit = LIMITS[seed % len(LIMITS)]
        batch = [write(number, self.instructions, length) for number in range(seed, seed + count)]
        for message in compare(batch, self.ours, self.judge, self.stops):
            self.different += 1
            print(f"{self.name}: {message}", flush=True)
        self.programs += count
        self.retired += sum(self.ours.retired)


def parties() -> list[Party]:
    """All that are here."""
    ours, judge = Ours(INTERPRET), interpreter()
    found = [Party("unicorn", ours, unicorn(), ON_UNICORN, BATCH, 3)]
    if shutil.which(Qemu.PROGRAM):
        found.append(Party("qemu", ours, qemu(), ON_QEMU, BATCH, 3))
    return found + [Party(mode, Ours(mode), judge, ON_INTERPRETER, TRANSLATED, 0) for mode in (TRANSLATE, BOTH)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.fuzz_cpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--programs", type=int, help="stop after this many with each instead")
    parser.add_argument("--seed", type=int, default=time.time_ns() // 1_000_000)
    parser.add_argument("--length", type=int, default=300, help="items (about as many instructions) in a program")
    parser.add_argument("--only", help="names of the parties, separated by commas (default: all that are here)")
    options = parser.parse_args(argv)
    here = [party for party in parties() if not options.only or party.name in options.only.split(",")]
    print(f"from seed {options.seed}, with {', '.join(party.name for party in here)}", flush=True)
    end = time.monotonic() + 60 * options.minutes
    while any(p.programs < options.programs for p in here) if options.programs else time.monotonic() < end:
        for party in here:
            count = min(party.batch, options.programs - party.programs) if options.programs else party.batch
            if count > 0:
                party.run(options.seed + party.programs, count, options.length)
        if sys.stderr.isatty():
            print("\r" + ", ".join(f"{p.name} {p.programs}" for p in here), end="", file=sys.stderr)
    for party in here:
        print(f"{party.name}: {party.programs} programs, {party.retired} instructions, {party.different} differ")
    return 1 if any(party.different for party in here) else 0


if __name__ == "__main__":
    sys.exit(main())
