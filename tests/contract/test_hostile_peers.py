"""Each service in front of peers that say anything: it lives, answers and does not grow.

bench.fuzz_bus goes on for long.
"""

from __future__ import annotations

import time

import pytest

from tests.contract.hostile import CASES, Campaign

SECONDS = 0.5


@pytest.mark.parametrize(("service", "peer"), CASES)
def test_a_service_bears_what_its_peers_say(service: str, peer: str) -> None:
    seed = time.time_ns() // 1_000_000
    print(f"seed {seed}: python -P -m bench.fuzz_bus --service {service} --peer {peer} --seed {seed}")
    with Campaign(service, peer, seed) as campaign:
        campaign.run(time.monotonic() + SECONDS)
    assert campaign.sent
