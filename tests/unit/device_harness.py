"""A device model without a process: what it drives, and a clock and timers that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.models.clock import FakeClock
from vmesh.device import Device
from vmesh.log import Log
from vmesh.v1.bus_pb2 import READ_LATCH, WRITE_CLEARS, DeviceUpdate


@dataclass
class FakeRuntime:
    """Stands for vmesh.service.Runtime: keeps notices and timers."""

    log: Log = field(default_factory=lambda: Log("device", Path("/dev/null")))
    lifeline: int = -1
    clock: FakeClock = field(default_factory=FakeClock)
    notices: list[tuple[str, object]] = field(default_factory=list)
    timers: dict[str, tuple[int, Callable[[], None]]] = field(default_factory=dict)  # 0: of the host's time

    @property
    def loop(self) -> Any:
        return self

    def notify(self, severity: int, text: str, event: object = None) -> None:
        self.notices.append((text, event))

    def watch(self, *_arguments: object, **_callbacks: object) -> None:
        raise AssertionError("no files here")

    def call_at(self, name: str, when_ns: int, callback: Callable[[], None]) -> None:
        self.timers[name] = (when_ns, callback)

    def call_in(self, name: str, seconds: float, callback: Callable[[], None]) -> None:
        self.timers[name] = (0, callback)

    def cancel(self, name: str) -> None:
        self.timers.pop(name, None)

    def fire(self, name: str) -> None:
        self.timers.pop(name)[1]()

    def advance(self, ns: int) -> None:
        """Time passes, and what is due of guest time is done; not what is set meanwhile."""
        self.clock.advance(ns)
        for name, (when_ns, callback) in list(self.timers.items()):
            if when_ns and self.clock.due_ns(when_ns) is not None:
                del self.timers[name]
                callback()


class Bench:
    """A device after reset, with its lines and shadows."""

    def __init__(self, device: Device, size: int) -> None:
        self.device = device
        self.size = size
        self._latches: dict[int, int] = {}
        self._clearing = {each.offset: each.latch for each in device.regions[0].registers if each.write == WRITE_CLEARS}
        device.reset()

    def read(self, offset: int) -> int:
        self._take_latches()
        if offset in self._latches:
            return self._latches[offset]
        return self.device.read(0, offset, self.size)

    def write(self, offset: int, value: int) -> None:
        if offset in self._clearing:
            self._take_latches()
            self._latches[self._clearing[offset]] &= ~value
            return
        self.device.write(0, offset, self.size, value)
        self.device.flush()

    def _take_latches(self) -> None:
        """What the cpu does with them."""
        update = DeviceUpdate()
        self.device.wires.fill(update)
        for register in self.device.regions[0].registers:
            for each in update.shadows:
                if register.read == READ_LATCH and each.offset == register.offset:
                    self._latches[each.offset] = each.value | (self._latches[each.offset] if each.raised else 0)

    def wires(self) -> DeviceUpdate:
        self._take_latches()
        update = DeviceUpdate()
        self.device.wires.fill(update, everything=True)
        return update

    @property
    def line(self) -> bool:
        self._take_latches()
        if self._latches:
            return any(self._latches.values())
        return next(each.level for each in self.wires().lines if each.line == 0)

    def shadow(self, offset: int) -> int | None:
        """What the cpu answers by itself; None: it asks the device."""
        self._take_latches()
        if offset in self._latches:
            return self._latches[offset]
        for each in self.wires().shadows:
            if each.offset == offset:
                return None if each.withdrawn else each.value
        return None
