"""Each service in front of peers that say anything: it lives, answers and does not grow.

bench.fuzz_bus goes on for long.
"""

from __future__ import annotations

import time

import pytest

from tests.contract.hostile import SERVICES, Campaign

SECONDS = 2.0


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_bears_what_anybody_says(service: str) -> None:
    seed = time.time_ns() // 1_000_000
    print(f"seed {seed}: python -P -m bench.fuzz_bus --service {service} --seed {seed}")
    with Campaign(service, seed) as campaign:
        campaign.run(time.monotonic() + SECONDS)
    assert sum(campaign.sent.values()) > 100
