"""Guest time: what "now" means to the parts of a machine.

Guest time is counted in nanoseconds since power-on, modulo 2**64. It is part of the machine's state and stands still
while the machine is paused. The cpu service owns it; devices are told when it passes (bus.proto: GuestTime) and hear it
in every batch of accesses. All of them ask a `Clock`; its kind says what makes time pass. There is one kind so far,
`host`: guest time passes as the host's CLOCK_MONOTONIC does.

What is about the host itself asks the host: patience with a peer, health, rates, times of files. There is a list of
who does, with the reasons, in tests/unit/test_host_clocks.py.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

MASK = (1 << 64) - 1
#: Of `quiet_until_ns` in messages: nothing comes by itself, ever.
NEVER_NS = MASK

#: The host's CLOCK_MONOTONIC in nanoseconds.
host_ns = time.monotonic_ns


class Clock(ABC):
    """Guest time as one process of the machine knows it."""

    @abstractmethod
    def now_ns(self) -> int:
        """Guest time. It never goes back, but for a reset or a state that is loaded."""

    def wall_ns(self) -> int:
        """What a clock on the guest's wall shows that nobody has set: nanoseconds since 1970, UTC. It goes on while the
        machine is paused, as a clock with a battery does. The host's, where guest time passes as the host's does."""
        return time.time_ns()

    @property
    @abstractmethod
    def passes(self) -> bool:
        """Whether guest time passes now."""

    def due_ns(self, when_ns: int) -> int | None:
        """When the host's CLOCK_MONOTONIC will show that it is `when_ns` here; None while guest time stands still."""
        return host_ns() + when_ns - self.now_ns() if self.passes else None

    @abstractmethod
    def hear(self, now_ns: int, *, passes: bool | None = None) -> None:
        """The owner of guest time has said, a moment ago, what it is; and, unless None, whether it passes from there.
        Then it is so; a mere mention only takes the clock forward: the message may have been long on its way."""


class HostClock(Clock):
    """Guest time that passes as the host's CLOCK_MONOTONIC does. Who is told of it on another host is behind its owner
    by the way of the fastest message."""

    def __init__(self, *, passes: bool = True) -> None:
        self._passes = passes
        self._then_ns, self._host_ns = 0, host_ns()  # what it was, when the host's was this

    def now_ns(self) -> int:
        if not self._passes:
            return self._then_ns
        return (self._then_ns + host_ns() - self._host_ns) & MASK

    @property
    def passes(self) -> bool:
        return self._passes

    def hear(self, now_ns: int, *, passes: bool | None = None) -> None:
        if passes is None and now_ns <= self.now_ns():
            return
        self._then_ns, self._host_ns = now_ns & MASK, host_ns()
        self._passes = self._passes if passes is None else passes
