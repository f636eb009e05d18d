"""A machine directory for each test, ended and looked at afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.harness import Machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.close()
