"""What page flags cost: a shoot-down, a guest that is shot down 100 times a second, and a fault on an absent page.

``python -P -m bench.pages``. The pager is in this process and answers at once, over the machine's own sockets.
"""

from __future__ import annotations

import random
import statistics
import sys
import threading
import time

from tests.cpu_harness import BASE, Cpu
from tests.models.guest import put

_PAGES, _RUNS = 512, 5
#: Stores over 2 MiB, a page after the other: what a dropped entry costs is in it.
_PROGRAM = """
again:
    mv t0, a2
    li t1, 512
    li t2, 4096
page:
    sd a1, 0(t0)
    sd a1, 512(t0)
    sd a1, 1024(t0)
    sd a1, 1536(t0)
    add t0, t0, t2
    addi t1, t1, -1
    bnez t1, page
    addi a1, a1, -1
    bnez a1, again
    .word END
"""


def _run(rate: float, rounds: int) -> tuple[float, list[float]]:
    """Seconds of the program, with so many shoot-downs a second; and how long each took."""
    cpu = Cpu(0x100000 + _PAGES * 4096, flags=True)
    put(cpu, _PROGRAM)
    cpu.set(BASE + 0x1000, {11: rounds, 12: BASE + 0x100000})
    ended = threading.Event()
    took: list[float] = []

    def shoot() -> None:
        while rate and not ended.wait(1 / rate):
            began = time.perf_counter()
            number = cpu.harts.shoot_down()
            while not cpu.harts.await_shot(number):
                pass
            took.append(time.perf_counter() - began)

    thread = threading.Thread(target=shoot)
    thread.start()
    began = time.perf_counter()
    stop = cpu.run(seconds=100)
    seconds = time.perf_counter() - began
    ended.set()
    thread.join()
    assert stop.why == "end", stop
    return seconds, took


def main() -> int:
    rounds = 40_000
    _run(0, 100)
    plain, shot, took = list[float](), list[float](), list[float]()
    for _ in range(_RUNS):
        for rate, into in random.sample([(0, plain), (100, shot)], 2):
            seconds, each = _run(rate, rounds)
            into.append(seconds)
            took += each
    first, second = statistics.median(plain), statistics.median(shot)
    took.sort()
    print(f"shoot-down: median {took[len(took) // 2] * 1e6:.0f} us, 99 % {took[len(took) * 99 // 100] * 1e6:.0f} us")
    print(f"guest that writes 512 pages in turn: {first:.2f} s, 100 shoot-downs a second: {second:.2f} s", end="")
    print(f" ({(second / first - 1) * 100:+.1f} %)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
