"""The clock: its time, its alarm, its state."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.models.clock import FakeClock
from tests.unit.device_harness import Bench, FakeRuntime
from vmesh.time import NEVER_NS
from vmesh.v1.devices_pb2 import GoldfishRtcState
from vmesh_services.devices.goldfish_rtc.device import GoldfishRtc, Offset

START = 0x17_1234_5678_9ABC_DEF0 & (1 << 62) - 1


class Clock(Bench):
    def __init__(self) -> None:
        self.runtime = FakeRuntime(clock=FakeClock(wall_ns=START))
        self.rtc = GoldfishRtc(cast(Any, self.runtime), 0x10_1000, 11)
        super().__init__(self.rtc, 4)

    def time(self) -> int:
        low = self.read(Offset.TIME_LOW)
        return self.read(Offset.TIME_HIGH) << 32 | low

    def set_alarm(self, when: int) -> None:
        self.write(Offset.ALARM_HIGH, when >> 32)
        self.write(Offset.ALARM_LOW, when & 0xFFFF_FFFF)

    def pass_time(self, ns: int) -> None:
        self.runtime.advance(ns)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_time_is_that_on_the_wall(clock: Clock) -> None:
    assert clock.time() == START
    clock.pass_time(10**9)
    assert clock.time() == START + 10**9


def test_the_high_half_belongs_to_the_last_low_half(clock: Clock) -> None:
    low = clock.read(Offset.TIME_LOW)
    clock.pass_time(1 << 33)
    assert clock.read(Offset.TIME_HIGH) << 32 | low == START


def test_setting_the_time(clock: Clock) -> None:
    for wanted in (0x1234_5678_9ABC_DEF0, 5, START):
        clock.write(Offset.TIME_HIGH, wanted >> 32)
        clock.write(Offset.TIME_LOW, wanted & 0xFFFF_FFFF)
        assert clock.time() == wanted
        clock.pass_time(1000)
        assert clock.time() == wanted + 1000


def test_reset_keeps_the_time_and_nothing_else(clock: Clock) -> None:
    clock.write(Offset.TIME_HIGH, 1)
    clock.write(Offset.IRQ_ENABLED, 1)
    clock.set_alarm(1 << 40)
    clock.rtc.reset()
    assert clock.read(Offset.IRQ_ENABLED) == clock.read(Offset.ALARM_STATUS) == clock.read(Offset.ALARM_HIGH) == 0
    assert clock.time() >> 32 == 1
    assert not clock.runtime.timers


def test_the_alarm_fires_when_it_is_time(clock: Clock) -> None:
    clock.write(Offset.IRQ_ENABLED, 1)
    clock.set_alarm(START + 10**9)
    assert clock.read(Offset.ALARM_STATUS) == 1
    assert not clock.line
    clock.pass_time(10**9)
    assert clock.line
    assert clock.read(Offset.ALARM_STATUS) == 0
    clock.write(Offset.CLEAR_INTERRUPT, 1)
    assert not clock.line


def test_an_alarm_looked_at_early_waits_on(clock: Clock) -> None:
    clock.write(Offset.IRQ_ENABLED, 1)
    clock.set_alarm(START + 10**9)
    clock.runtime.clock.wall -= 3600 * 10**9  # somebody set the host's clock back
    clock.pass_time(10**9)
    assert not clock.line
    clock.pass_time(60 * 10**9)
    assert not clock.line
    for _ in range(60):  # it looks once a minute
        clock.pass_time(60 * 10**9)
    assert clock.line


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


def test_nothing_fires_while_guest_time_stands_still(clock: Clock) -> None:
    """The wall clock goes on meanwhile, as one with a battery does."""
    clock.write(Offset.IRQ_ENABLED, 1)
    clock.set_alarm(START + 10**9)
    clock.runtime.clock.hear(5, passes=False)
    clock.rtc.pause()
    clock.pass_time(10**10)
    assert not clock.line
    clock.rtc.resume()
    assert clock.line


def test_guest_time_that_is_set_back_leaves_no_alarm_far_ahead(clock: Clock) -> None:
    clock.write(Offset.IRQ_ENABLED, 1)
    clock.runtime.clock.hear(10**15, passes=True)
    clock.set_alarm(START + 10**9)
    clock.runtime.clock.hear(0, passes=True)
    clock.rtc.time_told()
    clock.pass_time(10**9)
    assert clock.line


def test_it_promises_to_be_quiet_until_the_alarm(clock: Clock) -> None:
    assert clock.rtc.quiet_until_ns() == NEVER_NS
    clock.pass_time(1000)
    clock.set_alarm(START + 1000 + 10**9)
    assert clock.rtc.quiet_until_ns() == 1000 + 10**9
    clock.pass_time(10**9 - 1)
    assert clock.read(Offset.ALARM_STATUS) == 1
    clock.pass_time(1)
    assert clock.read(Offset.ALARM_STATUS) == 0
    assert clock.rtc.quiet_until_ns() == NEVER_NS
    clock.set_alarm(START + 10**12)
    clock.write(Offset.CLEAR_ALARM, 1)
    assert clock.rtc.quiet_until_ns() == NEVER_NS


def test_state_travels_whole(clock: Clock) -> None:
    clock.write(Offset.TIME_HIGH, 77)
    clock.write(Offset.IRQ_ENABLED, 1)
    clock.set_alarm((78 << 32) + 5)
    state = GoldfishRtcState.FromString(clock.rtc.save().SerializeToString())
    other = Clock()
    other.rtc.check(state, 1)
    other.rtc.load(state)
    assert other.time() == clock.time()
    assert other.read(Offset.ALARM_STATUS) == 1
    assert other.runtime.timers.keys() == {"alarm"}
    for _ in range(2):
        other.pass_time(60 * 10**9)
    assert other.line
