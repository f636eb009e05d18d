"""Guest time that passes when a test says so."""

from __future__ import annotations

from vmesh.time import MASK, Clock


class FakeClock(Clock):
    """Begins at 0, and as if it passed."""

    def __init__(self, wall_ns: int = 0) -> None:
        self.wall = wall_ns
        self._now_ns = 0
        self._passes = True

    def advance(self, ns: int) -> None:
        """So much time passes, on the wall, too; guest time only if it does not stand still."""
        self.wall += ns
        if self._passes:
            self._now_ns = (self._now_ns + ns) & MASK

    def now_ns(self) -> int:
        return self._now_ns

    def wall_ns(self) -> int:
        return self.wall

    @property
    def passes(self) -> bool:
        return self._passes

    def due_ns(self, when_ns: int) -> int | None:
        """Of the host's time only whether it is past."""
        return 0 if self._passes and when_ns <= self._now_ns else None

    def hear(self, now_ns: int, *, passes: bool | None = None) -> None:
        if passes is not None or now_ns > self._now_ns:
            self._now_ns = now_ns & MASK
        self._passes = self._passes if passes is None else passes
