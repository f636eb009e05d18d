"""docs/specification.md: what holds a promise is there, or it is marked as not held. And how all pages look."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_ROW = re.compile(r"^\| ([A-Z]\d+) \| (.*) \|$", re.MULTILINE)
_HOLDS = re.compile(r"`((?:tests|bench|\.ci)/[^`:]+)(?:::(\w+))?`")


def _promises(root: Path) -> dict[str, list[str]]:
    rows = _ROW.findall((root / "docs/specification.md").read_text())
    assert len({name for name, _ in rows}) == len(rows) > 40
    return {name: cells.split(" | ") for name, cells in rows}


def test_what_holds_a_promise_is_there(root: Path) -> None:
    for name, cells in _promises(root).items():
        found = _HOLDS.findall(cells[-1])
        assert bool(found) != cells[-1].startswith("not held yet"), f"{name}: what holds it?"
        for path, test in found:
            assert (root / path).is_file(), f"{name}: {path}"
            assert not test or f"def {test}(" in (root / path).read_text(), f"{name}: {path}::{test}"


@pytest.mark.parametrize("number", ["V2", "V3", "V7"])
def test_a_promise_of_speed_has_a_number(root: Path, number: str) -> None:
    *_, figure, _held = _promises(root)[number]
    assert re.match(r"[\d.,]+", figure)


def test_pages_are_wrapped(root: Path) -> None:
    """At 120 columns, but for tables and what is to be typed or was printed."""
    wide = []
    for page in (*root.glob("*.md"), *root.glob("docs/*.md")):
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        lines = [line for line in text.splitlines() if not line.startswith(("|", "    "))]
        wide += [(page.name, line) for line in lines if len(line) > 120]
    assert not wide
