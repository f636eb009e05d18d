"""How many open files a machine needs, and what is left for those who connect."""

from __future__ import annotations

import resource

import pytest

from vmesh import descriptors
from vmesh.errors import HostLimit


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The limits, soft and hard, as this process would have them."""
    limits = [1024, 4096]

    def set_limit(_which: int, given: tuple[int, int]) -> None:
        limits[:] = given

    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[0], limits[1]))
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    return limits


def test_the_soft_limit_becomes_the_hard_one(limit: list[int]) -> None:
    assert descriptors.raise_limit() == 4096
    assert limit == [4096, 4096]


def test_too_few_are_refused_in_one_line(limit: list[int]) -> None:
    limit[:] = [64, 64]
    with pytest.raises(HostLimit, match=r"^open files \(ulimit -n\): expected a limit of at least 256, got 64$"):
        descriptors.raise_limit()


def test_many_harts_need_many(limit: list[int]) -> None:
    descriptors.check(services=8, harts=4)
    with pytest.raises(HostLimit, match=r"expected a limit of at least [0-9]{5}, got 1024"):
        descriptors.check(services=8, harts=512)


@pytest.mark.parametrize("soft", [256, 512, 1024, 20000])
@pytest.mark.parametrize("services", [5, 12])
def test_what_connects_leaves_the_machine_its_own(limit: list[int], soft: int, services: int) -> None:
    limit[:] = [soft, soft]
    most = descriptors.for_clients(services, 32)
    assert 1 <= most <= 32
    assert 6 * most + 64 + 8 * services <= soft
