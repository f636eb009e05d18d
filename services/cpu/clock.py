"""The owner of guest time (vmesh.time), which all others follow. Native code reads the same record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vmesh import errors
from vmesh.time import MASK, Clock, host_ns


class CpuClock(Clock):
    """Passes as the host's CLOCK_MONOTONIC does. `changed` is called when guest time begins to pass, stands still, or
    is another one."""

    def __init__(self, *, passes: bool) -> None:
        self.changed: Callable[[], object] = lambda: None
        self._machine: Any = None  # the record: `time_base` is the host's time at which guest time was 0, modulo 2**64
        # That, and the host's time since when guest time stands still, 0 while it passes: harts read both at once.
        self._state = (0, 0 if passes else host_ns())
        self._from_ns: int | None = None  # what guest time goes on from instead of the moment of `go`

    def drive(self, machine: Any) -> None:
        """This is the record; guest time begins now."""
        self._machine = machine
        self.restart()

    def now_ns(self) -> int:
        base, stopped = self._state
        return ((stopped or host_ns()) - base) & MASK if self._machine is not None else 0

    @property
    def stopped_ns(self) -> int:
        """The host's time since when guest time stands still; 0 while it passes."""
        return self._state[1]

    @property
    def passes(self) -> bool:
        return not self.stopped_ns

    def hear(self, now_ns: int, *, passes: bool | None = None) -> None:
        """Nobody knows better."""

    def stop(self) -> None:
        if not self.stopped_ns:
            self._state = (self._state[0], host_ns())
            self.changed()

    def catch_up(self, since_ns: int | None) -> None:
        """Goes on, when it does, as if it had stood still only until `since_ns` of the host's time; None: not at all.
        Raises BadRequest for a time that is to come."""
        if since_ns is not None and since_ns > (now := host_ns()):
            raise errors.BadRequest("CatchUp", expected=f"a time up to now, {now}", got=str(since_ns))
        self._from_ns = self.stopped_ns if since_ns is None else since_ns

    def go(self) -> None:
        """From where it stands, or what `catch_up` has said."""
        if self.stopped_ns:
            since = host_ns() if self._from_ns is None else self._from_ns
            self._set(self._state[0] + since - self.stopped_ns, 0)
            self._from_ns = None

    def stay(self) -> None:
        """What `catch_up` has said is over: the machine does not go on."""
        self._from_ns = None

    def restart(self) -> None:
        """It is 0."""
        self.load(0)

    def load(self, now_ns: int) -> None:
        """It is this."""
        now = host_ns()
        self._set(now - now_ns, now if self.stopped_ns else 0)

    def _set(self, base: int, stopped_ns: int) -> None:
        self._machine.time_base = base & MASK
        self._state = (base & MASK, stopped_ns)
        self.changed()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Guest time stands still for native code, too, which reads the record while harts stand still."""
        base, stopped = self._state
        self._machine.time_base = (base + host_ns() - stopped) & MASK
        try:
            yield
        finally:
            self._machine.time_base = base
