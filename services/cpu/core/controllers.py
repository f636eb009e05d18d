"""What interrupt controllers are to the core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from vmesh.v1.cpu_pb2 import CpuState

from ..isa.interface import Lines


@dataclass(frozen=True, slots=True)
class Native:
    """Their native code: who does what ``provided`` declares of controllers, and what Python calls besides."""

    bindings: Mapping[Any, Any]
    exports: tuple[Any, ...] = ()


class Controllers(Protocol):
    """The controllers of one machine, by number; their records are shared with native code."""

    def ranges(self) -> list[tuple[int, int]]:
        """Base and size of the registers of each."""
        ...

    def records(self) -> list[int]:
        """The host address of the record of each."""
        ...

    def reset(self, harts: int, lines: Lines) -> None:
        """All as at power-on, for so many harts whose lines these are."""
        ...

    def save(self, state: CpuState, lines: Callable[[int], int]) -> None:
        """Adds what they are; ``lines`` gives what is driven of a hart."""
        ...

    def saved_values(self) -> tuple[str, ...]:
        """The names of what they save with each hart."""
        ...

    def check(self, state: CpuState) -> None:
        """Raises BadState for what they could never come to by themselves."""
        ...

    def load(self, state: CpuState) -> list[int]:
        """Takes a state that passed ``check``; gives what they drive of each hart but for the levels of sources."""
        ...
