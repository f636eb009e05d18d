"""Hostile peers in front of each service, for as long as asked: ``python -P -m bench.fuzz_bus --minutes 30``.

Each service gets random messages of every type from peers of every role; the cpu, from a device, too. None may end,
hang or grow: tests/models/hostile_bus.py. Prints the seed and how many messages each got. Exit status 1: one did.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.contract.hostile import SERVICES, Campaign


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.fuzz_bus", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for each service")
    parser.add_argument("--service", choices=SERVICES, action="append", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=time.time_ns() // 1_000_000)
    options = parser.parse_args(argv)
    print(f"from seed {options.seed}", flush=True)
    failed = 0
    for name in options.service or SERVICES:
        end, total, seed = time.monotonic() + 60 * options.minutes, Counter[str](), options.seed
        try:
            while time.monotonic() < end:
                with Campaign(name, seed) as campaign:
                    campaign.run(min(end, time.monotonic() + 30.0))
                total += campaign.sent
                seed += 1
        except AssertionError as error:
            failed += 1
            print(f"{name}: seed {seed}: {error}", flush=True)
        machines = seed - options.seed
        print(f"{name}: {sum(total.values())} messages of {len(total)} kinds, {machines} machines", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
