"""The clock: its time, its alarm, its state."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import pytest
from device_harness import Bench, FakeRuntime

from services.devices.goldfish_rtc.device import GoldfishRtc, Offset
from vmesh.v1.devices_pb2 import GoldfishRtcState

START = 0x17_1234_5678_9ABC_DEF0 & (1 << 62) - 1


class Clock(Bench):
    def __init__(self, now: Callable[[], int]) -> None:
        self.runtime = FakeRuntime()
        self.rtc = GoldfishRtc(cast(Any, self.runtime), 0x10_1000, 11)
        self.now = now
        super().__init__(self.rtc, 4)

    def time(self) -> int:
        low = self.read(Offset.TIME_LOW)
        return self.read(Offset.TIME_HIGH) << 32 | low

    def set_alarm(self, when: int) -> None:
        self.write(Offset.ALARM_HIGH, when >> 32)
        self.write(Offset.ALARM_LOW, when & 0xFFFF_FFFF)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The host's wall clock: the test moves it."""
    clock = {"ns": START}
    monkeypatch.setattr(time, "time_ns", lambda: clock["ns"])
    return clock


@pytest.fixture
def clock(host: dict[str, int]) -> Clock:
    return Clock(lambda: host["ns"])


def test_time_is_the_hosts(clock: Clock, host: dict[str, int]) -> None:
    assert clock.time() == START
    host["ns"] += 10**9
    assert clock.time() == START + 10**9


def test_the_high_half_belongs_to_the_last_low_half(clock: Clock, host: dict[str, int]) -> None:
    low = clock.read(Offset.TIME_LOW)
    host["ns"] += 1 << 33
    assert clock.read(Offset.TIME_HIGH) << 32 | low == START


def test_setting_the_time(clock: Clock, host: dict[str, int]) -> None:
    for wanted in (0x1234_5678_9ABC_DEF0, 5, START):
        clock.write(Offset.TIME_HIGH, wanted >> 32)
        clock.write(Offset.TIME_LOW, wanted & 0xFFFF_FFFF)
        assert clock.time() == wanted
        host["ns"] += 1000
        assert clock.time() == wanted + 1000


def test_reset_keeps_the_time_and_nothing_else(clock: Clock) -> None:
    clock.write(Offset.TIME_HIGH, 1)
    clock.write(Offset.IRQ_ENABLED, 1)
    clock.set_alarm(1 << 40)
    clock.rtc.reset()
    assert clock.read(Offset.IRQ_ENABLED) == clock.read(Offset.ALARM_STATUS) == clock.read(Offset.ALARM_HIGH) == 0
    assert clock.time() >> 32 == 1
    assert not clock.runtime.timers


def test_the_alarm_fires_when_it_is_time(clock: Clock, host: dict[str, int]) -> None:
    clock.write(Offset.IRQ_ENABLED, 1)
    clock.set_alarm(START + 10**9)
    assert clock.read(Offset.ALARM_STATUS) == 1
    assert not clock.line
    host["ns"] += 10**9
    clock.runtime.fire("alarm")
    assert clock.line
    assert clock.read(Offset.ALARM_STATUS) == 0
    clock.write(Offset.CLEAR_INTERRUPT, 1)
    assert not clock.line


def test_an_alarm_looked_at_early_waits_on(clock: Clock, host: dict[str, int]) -> None:
    clock.write(Offset.IRQ_ENABLED, 1)
    clock.set_alarm(START + 10**9)
    host["ns"] -= 3600 * 10**9  # somebody set the host's clock back
    clock.runtime.fire("alarm")
    assert not clock.line
    assert "alarm" in clock.runtime.timers


def test_an_alarm_in_the_past_fires_at_once(clock: Clock) -> None:
    clock.set_alarm(START - 1)
    assert clock.read(Offset.ALARM_STATUS) == 0
    assert not clock.line
    clock.write(Offset.IRQ_ENABLED, 1)
    assert clock.line
    clock.write(Offset.IRQ_ENABLED, 0)
    assert not clock.line


def test_setting_the_time_past_the_alarm_fires_it(clock: Clock) -> None:
    clock.write(Offset.IRQ_ENABLED, 1)
    clock.set_alarm(START + (1 << 40))
    clock.write(Offset.TIME_HIGH, (START >> 32) + 1000)
    assert clock.line


def test_clear_alarm(clock: Clock) -> None:
    clock.set_alarm(START + 10**9)
    clock.write(Offset.CLEAR_ALARM, 1)
    assert clock.read(Offset.ALARM_STATUS) == 0
    assert not clock.runtime.timers


def test_nothing_fires_while_paused(clock: Clock, host: dict[str, int]) -> None:
    clock.write(Offset.IRQ_ENABLED, 1)
    clock.set_alarm(START + 10**9)
    clock.rtc.pause()
    assert not clock.runtime.timers
    host["ns"] += 10**10
    assert not clock.line
    clock.rtc.resume()
    assert clock.line


def test_state_travels_whole(clock: Clock, host: dict[str, int]) -> None:
    clock.write(Offset.TIME_HIGH, 77)
    clock.write(Offset.IRQ_ENABLED, 1)
    clock.set_alarm((78 << 32) + 5)
    state = GoldfishRtcState.FromString(clock.rtc.save().SerializeToString())
    other = Clock(lambda: host["ns"])
    other.rtc.check(state, 1)
    other.rtc.load(state)
    assert other.time() == clock.time()
    assert other.read(Offset.ALARM_STATUS) == 1
    assert other.runtime.timers.keys() == {"alarm"}
    host["ns"] += 2 << 32
    other.runtime.fire("alarm")
    assert other.line
