"""Locks, atomics and litmus tests on four harts, a million rounds each: ``python -P -m bench.litmus [--rounds N]``.

Prints the rounds a second, and for the litmus tests the outcomes that were seen. The last one has no fence: that both
read 0 is allowed, and says that the harts of this host do race. The exit status is 1 if a counter is wrong or a
forbidden outcome was seen.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.models.litmus import (
    COUNTERS,
    HARTS,
    LOCKS,
    RELAXED,
    REMOTE_FENCE_I,
    REMOTE_SFENCE,
    RING,
    SLOTS,
    TESTS,
    broadcast,
    count,
    locked,
    machine,
    outcomes,
    start,
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.litmus", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1_000_000)
    rounds: int = parser.parse_args(argv).rounds
    rounds -= rounds % HARTS
    cpu = machine()
    wrong = 0

    def report(name: str, begin: float, done: int, good: bool, note: str = "") -> None:
        nonlocal wrong
        wrong += not good
        speed = done / (time.monotonic() - begin)
        print(f"{name:55} {done:>9,} rounds {speed:>12,.0f}/s  {'ok' if good else 'WRONG'}  {note}", flush=True)

    counted = [(f"counter, {name}", body, HARTS) for name, body in COUNTERS.items()]
    counted += [(f"lock, {name}", locked(lock), lock.harts) for name, lock in LOCKS.items()]
    for name, body, harts in counted:
        begin = time.monotonic()
        report(name, begin, rounds, count(cpu, body, harts, rounds) == rounds)
    for name, test in [*TESTS.items(), ("store buffering without a fence", RELAXED)]:
        begin, done, seen = time.monotonic(), 0, Counter[tuple[int, ...]]()
        while done < rounds:
            seen.update(outcomes(cpu, test))
            done += SLOTS
        results = 4 if len(test.harts) == HARTS else 2
        note = ", ".join(f"{''.join(map(str, r[:results]))}: {n:,}" for r, n in sorted(seen.items()))
        report(name, begin, done, test is RELAXED or not any(map(test.forbidden, seen)), note)
    begin, turns = time.monotonic(), rounds // 20
    stops = start(cpu, RING.replace("HARTS", str(HARTS)), HARTS, turns // HARTS)
    report("interrupts in a ring", begin, turns, {stop.why for stop in stops} == {"end"})
    for name, text in (("remote FENCE.I", REMOTE_FENCE_I), ("remote SFENCE.VMA", REMOTE_SFENCE)):
        begin = time.monotonic()
        stops = broadcast(cpu, text, turns)
        report(name, begin, turns, {stop.why for stop in stops} == {"end"})
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
