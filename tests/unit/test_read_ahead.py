"""How far the cache reads ahead: as far as pages are needed in their order."""

from __future__ import annotations

from services.memory.cache.read_ahead import FIRST, MOST, ReadAhead


def test_a_run_grows_as_it_goes_on() -> None:
    ahead, page, lengths = ReadAhead(), 100, []
    for _ in range(8):
        lengths.append(ahead.run(page))
        page += lengths[-1]
    assert lengths == [FIRST, *(min(FIRST << n, MOST) for n in range(1, 8))]


def test_a_page_elsewhere_begins_anew_and_the_run_goes_on() -> None:
    ahead = ReadAhead()
    assert ahead.run(0) == FIRST
    assert ahead.run(5000) == FIRST
    assert ahead.run(FIRST) == 2 * FIRST


def test_many_runs_are_forgotten_the_oldest_first() -> None:
    ahead = ReadAhead()
    for start in range(0, 100_000, 1000):
        ahead.run(start)
    assert ahead.run(FIRST) == FIRST
    assert ahead.run(99_000 + FIRST) == 2 * FIRST
