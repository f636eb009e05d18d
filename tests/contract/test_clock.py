"""What every `vmesh.time.Clock` does, whatever makes time pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from tests.models.clock import FakeClock
from vmesh import errors
from vmesh.time import MASK, Clock, HostClock, host_ns
from vmesh_services.cpu.clock import CpuClock

LITTLE_NS = 2_000_000


@dataclass
class Case:
    """A clock whose guest time passes; how some time passes, LITTLE_NS at least; how it stands still and goes on."""

    clock: Clock
    wait: Callable[[], None]
    stop: Callable[[], None]
    go: Callable[[], None]


def _wait() -> None:
    until = host_ns() + LITTLE_NS
    while host_ns() < until:
        time.sleep(0.001)


def _told(clock: Clock, wait: Callable[[], None]) -> Case:
    """One that follows."""
    return Case(
        clock,
        wait,
        lambda: clock.hear(clock.now_ns(), passes=False),
        lambda: clock.hear(clock.now_ns(), passes=True),
    )


def _host() -> Case:
    return _told(HostClock(), _wait)


def _fake() -> Case:
    clock = FakeClock()
    return _told(clock, lambda: clock.advance(LITTLE_NS))


def _cpu() -> Case:
    clock = CpuClock(passes=True)
    clock.drive(SimpleNamespace(time_base=0))
    return Case(clock, _wait, clock.stop, clock.go)


@pytest.fixture(params=[_host, _fake, _cpu], ids=["host", "fake", "cpu"])
def case(request: pytest.FixtureRequest) -> Case:
    made: Case = request.param()
    return made


def test_it_passes_from_0_on(case: Case) -> None:
    first = case.clock.now_ns()
    assert first < 10**11
    assert case.clock.passes
    case.wait()
    assert case.clock.now_ns() >= first + LITTLE_NS


def test_it_stands_still_and_goes_on_from_there(case: Case) -> None:
    case.wait()
    case.stop()
    stood = case.clock.now_ns()
    case.wait()
    assert not case.clock.passes
    assert case.clock.now_ns() == stood
    before = host_ns()
    case.go()
    now = case.clock.now_ns()
    assert stood <= now <= stood + host_ns() - before
    case.wait()
    assert case.clock.now_ns() >= stood + LITTLE_NS


def test_the_wall_clock_goes_on_meanwhile(case: Case) -> None:
    case.stop()
    before = case.clock.wall_ns()
    case.wait()
    assert case.clock.wall_ns() > before


def test_when_a_time_is_due(case: Case) -> None:
    """In the host's time; never, while it stands still."""
    when = case.clock.now_ns() + LITTLE_NS
    case.wait()
    due = case.clock.due_ns(when)
    assert due is not None
    assert due <= host_ns()
    case.stop()
    assert case.clock.due_ns(when) is None
    assert case.clock.due_ns(when + 10**12) is None
    case.go()
    assert (again := case.clock.due_ns(when)) is not None
    assert again <= host_ns()


@pytest.mark.parametrize("make", [_host, _fake], ids=["host", "fake"])
def test_who_follows_is_told(make: Callable[[], Case]) -> None:
    """A mention takes it forward only; what is said of it as such holds."""
    clock = make().clock
    clock.hear(10**12)
    assert 10**12 <= clock.now_ns() < 10**12 + 10**11
    clock.hear(5 * 10**11)
    assert clock.now_ns() >= 10**12
    clock.hear(7, passes=False)
    assert clock.now_ns() == 7
    clock.hear(5)
    assert clock.now_ns() == 7
    clock.hear(9)
    assert clock.now_ns() == 9
    assert not clock.passes
    clock.hear(3, passes=True)
    assert 3 <= clock.now_ns() < 10**11
    clock.hear(MASK, passes=False)
    assert clock.now_ns() == MASK


def test_its_owner_sets_it() -> None:
    record = SimpleNamespace(time_base=0)
    clock, changes = CpuClock(passes=False), []
    clock.changed = lambda: changes.append(clock.now_ns())
    clock.drive(record)
    assert clock.now_ns() == 0
    clock.load(MASK - 5)
    assert clock.now_ns() == MASK - 5
    _wait()
    with clock.held():
        assert (host_ns() - record.time_base & MASK) < MASK - 5 + 10**11
    clock.go()
    assert clock.passes
    _wait()
    clock.stop()
    clock.stop()
    assert clock.now_ns() < 10**11, "it is modulo 2**64"
    clock.restart()
    assert changes[0:2] == [0, MASK - 5]
    assert len(changes) == 5
    assert changes[-1] == clock.now_ns() == 0


def test_it_catches_up_as_if_it_had_stood_still_only_until_then() -> None:
    clock = CpuClock(passes=False)
    clock.drive(SimpleNamespace(time_base=0))
    since = clock.stopped_ns + LITTLE_NS // 2
    _wait()
    clock.catch_up(since)
    clock.go()
    assert clock.now_ns() >= LITTLE_NS // 2
    clock.stop()
    with pytest.raises(errors.BadRequest, match="expected a time up to now"):
        clock.catch_up(host_ns() + 10**12)
    stood = clock.now_ns()
    _wait()
    clock.catch_up(None)
    clock.stay()
    clock.go()
    assert clock.now_ns() < stood + 10**11
