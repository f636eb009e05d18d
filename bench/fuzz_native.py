"""Programs of the native language as Python and compiled, for as long as asked:
``python -P -m bench.fuzz_native --minutes 10``.

Every one must mean the same both ways, or be refused with file and line: tests/models/native_programs.py. Prints what
became of how many; a failure is made small and printed. Exit status 1: something else happened.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from hypothesis import HealthCheck, given, seed, settings

from tests.models.native_programs import Program, check, programs

_BATCH = 500


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.fuzz_native", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() // 1_000_000)
    options = parser.parse_args(argv)
    print(f"from seed {options.seed}", flush=True)
    end = time.monotonic() + 60 * options.minutes
    outcomes: Counter[str] = Counter()
    failed = 0
    number = options.seed
    quiet = settings(max_examples=_BATCH, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    while time.monotonic() < end:
        for foreign in (False, True):

            @seed(number)
            @quiet
            @given(programs(foreign))
            def run(program: Program) -> None:
                outcomes[f"{'with other Python' if program.foreign else 'in the language'}: {check(program)}"] += 1

            try:
                run()
            except AssertionError as error:
                failed += 1
                print(f"seed {number}: {error}", flush=True)
        number += 1
    for outcome, count in outcomes.most_common():
        print(f"{count:>8}  {outcome}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
