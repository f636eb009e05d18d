"""The debugger's side of the harts (cpu.proto): where they stop, which of them make a step, why one has stopped.

Called while all harts are at the gate, unless said otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from vmesh import errors
from vmesh.v1 import common_pb2, cpu_pb2

from .debug import WATCH_READ, WATCH_WRITE
from .harts import Harts
from .state import (
    BREAKPOINTS,
    DEBUG_BREAKPOINT,
    DEBUG_NONE,
    DEBUG_STEP,
    DEBUG_WATCH,
    NOWHERE,
    STEP_NONE,
    STEP_WANTED,
    WATCHPOINTS,
)

_KINDS = {
    cpu_pb2.WATCH_WRITE: WATCH_WRITE,
    cpu_pb2.WATCH_READ: WATCH_READ,
    cpu_pb2.WATCH_ACCESS: WATCH_READ | WATCH_WRITE,
}
_REASONS = {
    DEBUG_BREAKPOINT: common_pb2.STOP_BREAKPOINT,
    DEBUG_STEP: common_pb2.STOP_STEP,
    DEBUG_WATCH + WATCH_WRITE: common_pb2.STOP_WRITE,
    DEBUG_WATCH + WATCH_READ: common_pb2.STOP_READ,
    DEBUG_WATCH + WATCH_READ + WATCH_WRITE: common_pb2.STOP_ACCESS,
}
_SPACE = 1 << 64


class Debugger:
    """What the debugger has set, and the stops that it is still to be told of."""

    def __init__(self, harts: Harts) -> None:
        self._harts = harts
        self._later: deque[common_pb2.HartStop] = deque()

    def set(self, request: cpu_pb2.SetBreakpoints) -> None:
        """These breakpoints and watchpoints take the place of all before. Raises BadRequest, and then changes
        nothing."""
        addresses = sorted(set(request.addresses))
        _check(request.watchpoints, addresses)
        machine = self._harts.machine
        for number, address in enumerate(addresses):
            machine.breakpoints[number] = address
        machine.breakpoint_count = len(addresses)
        for number, watchpoint in enumerate(request.watchpoints):
            record = machine.watchpoints[number]
            record.first, record.last = watchpoint.address, watchpoint.address + watchpoint.size - 1
            record.kinds = _KINDS[watchpoint.kind]
        machine.watchpoint_count = len(request.watchpoints)
        self._harts.debug_changed()

    def order(self, request: cpu_pb2.RunHarts) -> None:
        """When the harts run next, one may have a step to make. Raises BadRequest."""
        for number in request.held:
            self._harts.record(number)
        hart = self._harts.record(request.step.hart)
        if request.HasField("step"):
            hart.step, hart.stepping = 1, STEP_WANTED
            hart.step_low, hart.step_high = request.step.low, request.step.high
            hart.step_interrupts = int(request.step.interrupts)

    def pass_breakpoints(self) -> None:
        """Harts that stand at a breakpoint go on from it: somebody else than the debugger resumes the machine."""
        machine = self._harts.machine
        set_ = set(machine.breakpoints[: machine.breakpoint_count])
        for hart in self._harts.hart:
            hart.passing = hart.pc if hart.pc in set_ else NOWHERE

    def cancel(self) -> None:
        """The harts have stopped: no step goes on when they run again, unless it is ordered again."""
        for hart in self._harts.hart:
            hart.step = hart.watch_hit = 0
            hart.stepping = STEP_NONE
            hart.passing = NOWHERE

    def take(self, number: int) -> common_pb2.HartStop | None:
        """Why a hart stopped, which nobody was told yet. Called when that hart is at the gate or on its way to it."""
        hart = self._harts.hart[number]
        reason, hart.debug_reason = hart.debug_reason, DEBUG_NONE
        if reason == DEBUG_NONE:
            return None
        address = hart.watch_address if reason > DEBUG_WATCH else hart.pc
        return common_pb2.HartStop(hart=number, reason=_REASONS[reason], address=address)

    def keep(self, stop: common_pb2.HartStop) -> None:
        """A stop beside another one, to be told when the machine is to go on. A breakpoint is just met again."""
        if stop.reason in (common_pb2.STOP_WRITE, common_pb2.STOP_READ, common_pb2.STOP_ACCESS):
            self._later.append(stop)

    def due(self) -> common_pb2.HartStop | None:
        """A stop that was kept, and is for a watchpoint that is still there."""
        while self._later:
            stop = self._later.popleft()
            if any(each.first <= stop.address <= each.last for each in self._watchpoints()):
                return stop
        return None

    def forget(self) -> None:
        """The machine was reset: nothing is to be told of what was before."""
        self._later.clear()
        self.cancel()

    def _watchpoints(self) -> Iterator[Any]:
        machine = self._harts.machine
        return (machine.watchpoints[number] for number in range(machine.watchpoint_count))


def _check(watchpoints: Sequence[cpu_pb2.Watchpoint], addresses: Sequence[int]) -> None:
    for what, count, limit in (
        ("breakpoints", len(addresses), BREAKPOINTS),
        ("watchpoints", len(watchpoints), WATCHPOINTS),
    ):
        if count > limit:
            raise errors.BadRequest(what, expected=f"at most {limit}", got=str(count))
    for address in addresses:
        if address % 2:
            raise errors.BadRequest("breakpoint", expected="an even address", got=f"{address:#x}")
    for each in watchpoints:
        if each.kind not in _KINDS or not each.size or each.address + each.size > _SPACE:
            raise errors.BadRequest("watchpoint", expected="a kind, and a range below 2^64", got=f"{each}"[:100])
