"""What the cache fetches with a page that is needed: more, as long as pages are needed in their order."""

from __future__ import annotations

from vmesh_services.memory.cache.read_ahead import FIRST, MOST, ReadAhead


def test_a_run_grows_as_it_goes_on() -> None:
    ahead, page, sizes = ReadAhead(), 0, []
    for _ in range(12):
        block = ahead.block(page)
        assert page in block
        sizes.append(len(block))
        page = block.stop
    assert sizes[:2] == [FIRST, 2 * FIRST]
    assert sizes == sorted(sizes)
    assert sizes[-1] == MOST


def test_blocks_are_aligned() -> None:
    assert ReadAhead().block(5 * FIRST + 3) == range(5 * FIRST, 6 * FIRST)


def test_a_page_elsewhere_begins_anew_and_the_run_goes_on() -> None:
    ahead = ReadAhead()
    assert ahead.block(1) == range(FIRST)
    assert len(ahead.block(5000)) == FIRST
    assert len(ahead.block(FIRST)) == 2 * FIRST


def test_many_runs_are_forgotten_the_oldest_first() -> None:
    ahead = ReadAhead()
    for start in range(0, 100 * MOST, MOST):
        ahead.block(start)
    assert len(ahead.block(FIRST)) == FIRST
    assert len(ahead.block(99 * MOST + FIRST)) == 2 * FIRST
