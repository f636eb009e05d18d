"""What all tests share: where the checkout is, and peers that skip by name where they are not installed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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
