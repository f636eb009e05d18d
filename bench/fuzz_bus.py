"""Hostile peers in front of each service, for as long as asked: ``python -P -m bench.fuzz_bus --minutes 30``.

Each service gets messages of every type, at their limits and beyond, from peers of every role; from a device, if it is
the cpu; and, in machines of their own, from the memory that it uses. None may end, hang or grow, but end in order
because of its memory: tests/contract/hostile.py says what has to hold. Prints the seed and how many messages each got,
of how many kinds, and with --verbose which. Exit status 1: one did not bear it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.contract.hostile import CASES, SERVICES, Campaign
from vmesh.errors import VmeshError
from vmesh.spawn import python

_MACHINE_SECONDS = 20.0  # then another one, with the next seed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -P -m bench.fuzz_bus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="for each service and peer (default: %(default)s)")
    parser.add_argument("--service", choices=SERVICES, action="append", help="only this one; may be repeated")
    parser.add_argument("--peer", choices=("anybody", "memory"), help="only what dials a service, or only its memory")
    parser.add_argument("--seed", type=int, default=time.time_ns() // 1_000_000, help="of the first machine")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at once (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="how many messages of each kind, too")
    options = parser.parse_args(argv)
    cases = [
        (name, peer) for name, peer in CASES if name in (options.service or SERVICES) and options.peer in (None, peer)
    ]
    print(f"from seed {options.seed}", flush=True)
    if options.jobs > 1:
        return _at_once(cases, options)
    failed = 0
    for name, peer in cases:
        failed += _one(name, peer, options)
    return 1 if failed else 0


def _one(name: str, peer: str, options: argparse.Namespace) -> bool:
    """Whether it failed."""
    began = time.monotonic()
    end, sent, ends = began + 60 * options.minutes, Counter[str](), Counter[str]()
    seed, lives, slowest, failed = options.seed, 0, 0.0, False
    while not failed and time.monotonic() < end:
        campaign = None
        try:
            with Campaign(name, peer, seed) as campaign:
                campaign.run(min(end, time.monotonic() + _MACHINE_SECONDS))
        except (AssertionError, VmeshError) as error:
            failed = True
            print(f"{name} and {peer}: seed {seed}: {error}", flush=True)
        if campaign is not None:
            sent, ends, lives = sent + campaign.sent, ends + campaign.ends, lives + campaign.lives
            slowest = max(slowest, campaign.slowest)
        seed += 1
    of = f"{sum(sent.values())} messages of {len(sent)} kinds, {seed - options.seed} machines, {lives} lives"
    took = f"slowest answer {slowest:.1f} s, {time.monotonic() - began:.0f} s"
    print(f"{name} and {peer}: {of}, {sum(ends.values())} ended by memory, {took}", flush=True)
    for what, count in (*sent.most_common(), *ends.most_common()) if options.verbose else ():
        print(f"{count:>10}  {what}")
    return failed


def _at_once(cases: Sequence[tuple[str, str]], options: argparse.Namespace) -> int:
    """Each in a process of its own."""

    def run(case: tuple[str, str]) -> int:
        name, peer = case
        chosen = ["--service", name, "--peer", peer, "--minutes", str(options.minutes), "--seed", str(options.seed)]
        command = [*python("bench.fuzz_bus"), *chosen, *["--verbose"] * options.verbose]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        print(done.stdout.partition("\n")[2], end="", flush=True)
        return done.returncode

    with ThreadPoolExecutor(options.jobs) as pool:
        return 1 if any([*pool.map(run, cases)]) else 0


if __name__ == "__main__":
    sys.exit(main())
