"""Bytes that wait for somebody to read them, as reports tell of them: on their way, or not read."""

from __future__ import annotations

from dataclasses import dataclass

UNREAD_SECONDS = 2.0  # for which none of them goes


@dataclass(slots=True)
class Backlog:
    waiting: int = 0
    since: float = 0.0  # when some of them were read last, or they began to wait

    def see(self, waiting: int, now: float) -> None:
        """A report says how many wait at `now`, in seconds of any clock."""
        if not self.waiting or waiting < self.waiting:
            self.since = now
        self.waiting = waiting

    def unread(self, now: float) -> int:
        """How many wait though there was time to read them."""
        return self.waiting if now - self.since >= UNREAD_SECONDS else 0
