"""Waiting in tests: always with a limit, and whoever waited in vain says for what."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

LIMIT = 120.0  # seconds; generous, as nothing here is about speed


def wait_for(condition: Callable[[], object], what: str | Callable[[], str], limit: float = LIMIT) -> None:
    """Poll until `condition` holds; fails with `what`, a text or what then gives one, if it does not within `limit`."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        if waited > limit:
            raise AssertionError(f"waited {limit:g} s for {what if isinstance(what, str) else what()}")
        # Who waits for long looks less often: what is asked needs the processor that it waits for.
        time.sleep(min(max(0.01, waited / 10), 0.25))


def kill_until(process: Callable[[], int | None], stands_still: Callable[[], object], what: str) -> None:
    """Kill each life of a service, `process` gives the present one if there is one, until its machine `stands_still`,
    as it does after five deaths within ten seconds: a busy host may need more lives for that."""
    killed = set[int]()

    def reached() -> bool:
        if (pid := process()) is not None and pid not in killed:
            killed.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(stands_still())

    wait_for(reached, lambda: f"{what} after {len(killed)} deaths")
    assert len(killed) >= 5


def read_some(fd: int, what: str, limit: float = LIMIT) -> bytes:
    """What comes next on a file that can be polled, b"" at its end."""
    poll = select.poll()  # select() has no room for descriptors from 1024 on
    poll.register(fd, select.POLLIN)
    assert poll.poll(limit * 1000), f"waited {limit:g} s for {what}"
    return os.read(fd, 65536)


class Process(subprocess.Popen[bytes]):
    """A process that a test started: whoever waits for it waits LIMIT at most, unless it says how long."""

    def wait(self, timeout: float | None = LIMIT) -> int:
        return super().wait(timeout)

    def communicate(self, input: bytes | None = None, timeout: float | None = LIMIT) -> tuple[bytes, bytes]:
        return super().communicate(input, timeout)


def kill_all(processes: Iterable[subprocess.Popen[bytes]], limit: float = LIMIT) -> None:
    """End processes that a test started, whatever state they are in."""
    for process in processes:
        process.kill()  # nothing, if it was waited for
        process.wait(limit)


def wait_life(service: str, epoch: int, status: Callable[[], str], limit: float = LIMIT) -> None:
    """Wait until `status`, which gives what `vmesh status` prints, has that life of a service run."""

    def there() -> bool:
        lines = [line.split() for line in status().splitlines()]
        return any(line[:1] == [service] and line[3:5] == [str(epoch), "running"] for line in lines)

    wait_for(there, f"life {epoch} of {service}", limit)
