"""The model of the goldfish clock: the wall clock (vmesh.time) plus an offset that the guest sets."""

from __future__ import annotations

from google.protobuf.message import Message

from vmesh.device import Device
from vmesh.service import Runtime
from vmesh.time import NEVER_NS
from vmesh.v1.bus_pb2 import Line, Region
from vmesh.v1.devices_pb2 import GoldfishRtcState

SIZE = 0x1000


class Offset:
    """The registers, all of 32 bits."""

    TIME_LOW = 0x00
    TIME_HIGH = 0x04
    ALARM_LOW = 0x08
    ALARM_HIGH = 0x0C
    IRQ_ENABLED = 0x10
    CLEAR_ALARM = 0x14
    ALARM_STATUS = 0x18
    CLEAR_INTERRUPT = 0x1C


_MASK32 = (1 << 32) - 1
_MASK64 = (1 << 64) - 1
_ALARM = "alarm"
# The alarm is of wall time, which may be set while guest time passes: look at it at least so often.
_LONGEST_NS = 60 * 10**9


class GoldfishRtc(Device):
    """The clock."""

    kind = "goldfish-rtc"
    state = GoldfishRtcState

    def __init__(self, runtime: Runtime, base: int, irq: int) -> None:
        super().__init__(runtime)
        self.regions = [Region(name="registers", base=base, size=SIZE, access_sizes=4)]
        self.lines = [Line(name="alarm", irq=irq)]
        self._state = GoldfishRtcState()
        self._look_ns = NEVER_NS  # guest time at which the alarm is looked at again

    def read(self, region: int, offset: int, size: int) -> int:
        state = self._state
        match offset:
            case Offset.TIME_LOW:  # latches the high half, so that the two belong together
                now = self._now()
                state.time_high = now >> 32
                return now & _MASK32
            case Offset.TIME_HIGH:
                return state.time_high
            case Offset.ALARM_LOW:
                return state.alarm_ns & _MASK32
            case Offset.ALARM_HIGH:
                return state.alarm_ns >> 32
            case Offset.IRQ_ENABLED:
                return int(state.irq_enabled)
            case Offset.ALARM_STATUS:
                return int(state.alarm_armed)
            case _:  # CLEAR_ALARM, CLEAR_INTERRUPT, and where no register is
                return 0

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        state = self._state
        match offset:
            case Offset.TIME_LOW:
                now = self._now()
                self._set_time(now & ~_MASK32 | value, now)
            case Offset.TIME_HIGH:
                now = self._now()
                self._set_time(value << 32 | now & _MASK32, now)
            case Offset.ALARM_LOW:  # arms it, so guests write ALARM_HIGH first
                state.alarm_ns = state.alarm_ns & ~_MASK32 | value
                state.alarm_armed = True
                self._look()
            case Offset.ALARM_HIGH:
                state.alarm_ns = value << 32 | state.alarm_ns & _MASK32
            case Offset.IRQ_ENABLED:
                state.irq_enabled = bool(value & 1)
            case Offset.CLEAR_ALARM:
                state.alarm_armed = False
                self._look()
            case Offset.CLEAR_INTERRUPT:
                state.irq_pending = False
            case _:  # ALARM_STATUS is read-only; the others are no registers
                pass
        self._drive()

    def reset(self) -> None:
        # The time goes on, as that of a clock with a battery does.
        self._state = GoldfishRtcState(offset_ns=self._state.offset_ns)
        self._alarm()

    def resume(self) -> None:
        self._alarm()  # the wall clock has gone on

    def time_told(self) -> None:
        self._alarm()

    def quiet_until_ns(self) -> int:
        return self._look_ns

    def save(self) -> Message:
        return self._state

    def check(self, state: Message, version: int) -> None:
        """Every combination of values is one that a guest can bring about."""
        assert isinstance(state, GoldfishRtcState)

    def load(self, state: Message) -> None:
        assert isinstance(state, GoldfishRtcState)
        self._state = state
        self._look()
        self._drive()

    def _now(self) -> int:
        """What the guest reads: nanoseconds since 1970, modulo 2**64."""
        return (self.runtime.clock.wall_ns() + self._state.offset_ns) & _MASK64

    def _set_time(self, wanted: int, now: int) -> None:
        offset = (self._state.offset_ns + wanted - now) & _MASK64
        self._state.offset_ns = offset - (1 << 64) if offset >> 63 else offset
        self._look()

    def _look(self) -> None:
        """Fire the alarm if it is due, else look again when it is."""
        state, runtime = self._state, self.runtime
        runtime.loop.cancel(_ALARM)
        self._look_ns = NEVER_NS
        if not state.alarm_armed:
            return
        remaining = state.alarm_ns - self._now()
        if remaining <= 0:
            state.alarm_armed = False
            state.irq_pending = True
        else:
            self._look_ns = runtime.clock.now_ns() + min(remaining, _LONGEST_NS)
            runtime.loop.call_at(_ALARM, self._look_ns, self._alarm)

    def _alarm(self) -> None:
        self._look()
        self._drive()

    def _drive(self) -> None:
        self.wires.set_line(0, self._state.irq_pending and self._state.irq_enabled)
