"""CONTRIBUTING.md: its code is in the tree, and its paths exist.

Above each block of Python stands a line that ends with the file in which it is: a path in backticks and a colon.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()

_BLOCK = re.compile(r"^([^\n]*)\n+```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`([^`\s]+)`:$")
_SPAN = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"\w[\w./-]*(\.(py|md|proto|toml)|/)")
_LINK = re.compile(r"\]\(([^)#]+)")


def blocks(page: str) -> list[tuple[str, str]]:
    """The line above each block, and the block."""
    return [(found[1], found[2]) for found in re.finditer(_BLOCK, page)]


def stands_in(text: str, block: str) -> bool:
    """Whether it is there from the beginning of a line on, in one piece. How it is broken into lines is left to the
    formatter, which sees the block alone."""
    lines, wanted = text.splitlines(), _packed(block)
    begins = (place for place, line in enumerate(lines) if line.strip() and wanted.startswith(_packed(line)))
    return any(_packed("\n".join(lines[place:])).startswith(wanted) for place in begins)


def _packed(text: str) -> str:
    """Without white space, and without the last comma of what is in brackets or in the whole."""
    return re.sub(r",(?=[)\]}])", "", re.sub(r"\s", "", text)).removesuffix(",")


def test_every_block_is_looked_at() -> None:
    assert len(blocks(PAGE)) == PAGE.count("```python") > 0


@pytest.mark.parametrize(("above", "block"), blocks(PAGE), ids=lambda text: text[:40])
def test_code_stands_in_the_file_that_is_named_above_it(above: str, block: str) -> None:
    named = _FILE.search(above)
    assert named is not None, f"expected a line that ends with `PATH`: above the block, got {above!r}"
    assert stands_in((ROOT / named[1]).read_text(), block), f"{named[1]} has no such lines"


def test_every_path_exists() -> None:
    spans = [span for span in _SPAN.findall(re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)) if _PATH.fullmatch(span)]
    paths = [*spans, *_LINK.findall(PAGE)]
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_what_stands_in_a_text() -> None:
    text = "class A:\n    x = 1\n\n    def f(self) -> None:\n        pass\n"
    assert stands_in(text, "x = 1\n")
    assert stands_in(text, "x = 1\n\ndef f(self) -> None:\n    pass\n")
    assert not stands_in(text, "= 1\n")
    assert not stands_in(text, "x = 1\n    pass\n")
    assert not stands_in(text, "x = 1  # one\n")
