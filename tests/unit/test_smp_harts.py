"""Four harts in four threads: locks, litmus tests, interrupts between harts. ``python -P -m bench.litmus`` runs them
for longer."""

from __future__ import annotations

import pytest

from tests.cpu_harness import Cpu
from tests.models.guest import DATA
from tests.models.litmus import (
    COUNTERS,
    HARTS,
    LOCKS,
    REMOTE_FENCE_I,
    REMOTE_SFENCE,
    RING,
    SLOTS,
    TESTS,
    broadcast,
    count,
    locked,
    machine,
    outcomes,
    start,
)

ROUNDS = 200_000


@pytest.fixture(scope="module")
def cpu() -> Cpu:
    return machine()


@pytest.mark.parametrize("name", COUNTERS)
def test_atomic_counters(cpu: Cpu, name: str) -> None:
    assert count(cpu, COUNTERS[name], HARTS, ROUNDS) == ROUNDS


@pytest.mark.parametrize("name", LOCKS)
def test_locks(cpu: Cpu, name: str) -> None:
    lock = LOCKS[name]
    rounds = ROUNDS // 200 if lock.in_turn else ROUNDS
    assert count(cpu, locked(lock), lock.harts, rounds) == rounds


@pytest.mark.parametrize("name", TESTS)
def test_litmus(cpu: Cpu, name: str) -> None:
    test = TESTS[name]
    seen = {result for _ in range(ROUNDS // SLOTS) for result in outcomes(cpu, test)}
    assert not any(map(test.forbidden, seen))
    # somebody did run: results other than zeros
    assert len(seen) > 1


def test_a_token_goes_round_by_interrupts(cpu: Cpu) -> None:
    rounds = 500
    stops = start(cpu, RING.replace("HARTS", str(HARTS)), HARTS, rounds)
    assert {stop.why for stop in stops} == {"end"}, stops
    assert int.from_bytes(cpu.read(DATA, 8), "little") == HARTS * rounds


@pytest.mark.parametrize("text", [REMOTE_FENCE_I, REMOTE_SFENCE], ids=["fence.i", "sfence.vma"])
def test_what_is_changed_for_others(cpu: Cpu, text: str) -> None:
    """Rewritten code and remapped pages are seen by all who were told and fenced."""
    stops = broadcast(cpu, text, 500)
    assert {stop.why for stop in stops} == {"end"}, [(stop, cpu.x(n)[21:24]) for n, stop in enumerate(stops)]
