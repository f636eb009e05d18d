"""Streams and snapshots that were changed at random: a typed error or a good load, in bounded memory, and no hang."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models.hostile_streams import Campaign

STREAMS = 150  # `python -P -m bench.fuzz_migration` gives it as many as time allows


@pytest.fixture
def campaign(tmp_path: Path) -> Iterator[Campaign]:
    made = Campaign(tmp_path)
    yield made
    made.close()


def test_streams_that_are_as_they_were_are_loaded(campaign: Campaign) -> None:
    assert campaign.unchanged() == ["loaded", "loaded", "loaded", "snapshot loaded"]


def test_streams_that_were_changed_are_refused_or_loaded(campaign: Campaign) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    for number in range(STREAMS):
        campaign.one(seed + number)
    assert sum(count for outcome, count in campaign.outcomes.items() if "refused" in outcome) > STREAMS // 4
