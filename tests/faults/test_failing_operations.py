"""Operations that fail because the host has run out of something: each is said in one line, and the guest goes on.

`python -P -m bench failing_operations` does more of it, by the command line too.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bench.failing_operations import INJECTIONS, Campaign, Place, machine, place, qmp_operations

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    with ExitStack() as stack:
        yield place(stack)


@pytest.fixture(scope="module")
def campaign(here: Place) -> Iterator[Campaign]:
    with machine(here) as made:
        yield made


@pytest.mark.parametrize("injection", INJECTIONS)
def test_every_qmp_command_while_the_host_has_no(here: Place, campaign: Campaign, injection: str) -> None:
    if injection not in here.injections:
        pytest.skip(f"{injection} cannot be injected here")
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    operations = list(qmp_operations(here.scratch).items())
    random.Random(seed).shuffle(operations)
    campaign.qmp(injection, operations)
    result = campaign.results[injection]
    assert result.operations == len(operations)
    assert result.failed > 10
    assert not result.unclear
    assert not campaign.guest.wrong
