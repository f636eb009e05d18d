"""Changed migration streams and snapshots for the real destination, for as long as asked:
``python -P -m bench.fuzz_migration --minutes 10``.

Every one must end in a typed error or a good load, within a bounded time and memory: tests/models/hostile_streams.py.
Prints what became of how many; ``--seed N --streams 1`` gives one again. Exit status 1: something else happened.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.models.hostile_streams import Campaign


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.fuzz_migration", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--streams", type=int, help="stop after this many instead")
    parser.add_argument("--seed", type=int, default=time.time_ns() // 1_000_000)
    options = parser.parse_args(argv)
    print(f"from seed {options.seed}", flush=True)
    failed = number = 0
    with tempfile.TemporaryDirectory(prefix="vmesh-fuzz-") as folder:
        campaign = Campaign(Path(folder))
        end = time.monotonic() + 60 * options.minutes
        while number < options.streams if options.streams else time.monotonic() < end:
            try:
                campaign.one(options.seed + number)
            except AssertionError as error:
                failed += 1
                print(f"seed {options.seed + number}: {error}", flush=True)
            number += 1
        campaign.close()
    for outcome, count in campaign.outcomes.most_common():
        print(f"{count:>8}  {outcome}")
    print(f"{number} streams, {failed} failed; at most {campaign.growth / 1e6:.1f} MB of memory for one")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
