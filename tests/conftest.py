"""What all tests share: where the checkout is, and peers that skip by name where they are not installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import vmesh

ROOT = Path(__file__).resolve().parents[1]
assert vmesh.__version__  # imported before any test imports gRPC, which reads what it sets

os.umask(0o022)  # whatever the user's is: what others may write is not trusted
# No test depends on speed: hypothesis allows an example 0.2 s, and the making of one a second, unless it is told.
settings.register_profile("any host", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any host")
_FOLDERS = ("system", "faults", "peers", "contract", "unit")  # those first whose tests take longest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that the last ones are short and no worker waits for another; no test needs an order."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in long, _FOLDERS.index(item.path.relative_to(ROOT / "tests").parts[0])))


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def peer() -> Callable[[str], str]:
    """Path of a peer program; where it is not installed (`make test-peers` does that) the test skips, naming it."""

    def find(program: str) -> str:
        path = shutil.which(program)
        if path is None:
            pytest.skip(f"{program} is not installed (make test-peers)")
        return path

    return find
