"""Which process of this host is which service of a machine, as its monitor has told.

A process stands for the name of its service, as a key does over TCP, and so do those that it has started: whoever is
below it, or in its session, which nobody can enter from outside. The kernel says who has connected (SO_PEERCRED).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

MONITOR = "monitor"
_MOST_ABOVE = 64  # processes between one that connects and the one that the monitor has started


class Processes:
    """What is known: at first only which process, `monitor`, is the monitor."""

    def __init__(self, monitor: int) -> None:
        self._monitor = monitor
        self._names: dict[int, str] = {}
        self._by_hand: frozenset[str] = frozenset()

    def tell(self, processes: Mapping[str, int]) -> None:
        """All services by name; 0: one that is started by hand, by a process that nobody knows."""
        self._names = {process: name for name, process in processes.items() if process}
        self._by_hand = frozenset(name for name, process in processes.items() if not process)

    def name_of(self, process: int) -> str:
        """The service that this process is, or that has started it; empty if it is none that is known.

        What the monitor has started is not the monitor.
        """
        if process == self._monitor:
            return MONITOR
        return next((name for each in _lineage(process) if (name := self._names.get(each))), "")

    def by_hand(self, name: str) -> bool:
        """Whether a process that is no service may be the device `name`."""
        return name in self._by_hand


def _lineage(process: int) -> Iterator[int]:
    """A process and the first of its session, then the same of the one that has started it, and so on."""
    for _ in range(_MOST_ABOVE):
        if process <= 1:
            return
        yield process
        try:
            stat = Path(f"/proc/{process}/stat").read_bytes()  # proc_pid_stat(5)
        except OSError:  # it has ended
            return
        _state, above, _group, session, *_ = stat.rpartition(b")")[2].split()
        yield int(session)
        process = int(above)
