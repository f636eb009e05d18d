"""QEMU's lists of properties, `value,key=value,...`, of flags and command lines: read and written here, nowhere else.

A comma of a value is written twice. Source: QEMU's util/qemu-option.c, "get_opt_value".
"""

from __future__ import annotations

import re
from collections.abc import Iterable


class HelpRequested(Exception):
    """Not an error: somebody asked what there is, and this is the text."""


_PART = re.compile(r"(?:[^,]|,,)*", re.DOTALL)


def split(text: str) -> list[str]:
    """The parts between single commas, in which two are one. At least one part."""
    parts = []
    begin = 0
    while (found := _PART.match(text, begin)) is not None:  # always: it may be empty
        parts.append(found[0].replace(",,", ","))
        if found.end() == len(text):
            break
        begin = found.end() + 1
    return parts


def join(parts: Iterable[str]) -> str:
    """The text that `split` takes apart. Parts behind the first have keys: none is empty, or begins with a comma."""
    return ",".join(part.replace(",", ",,") for part in parts)


def pairs(text: str, implied: str) -> list[tuple[str, str]]:
    """Keys and values in their order. A first part without `=` is the value of `implied`; others without mean `on`."""
    found = []
    for place, part in enumerate(split(text)):
        key, equals, value = part.partition("=")
        found.append((key, value) if equals else (implied, key) if place == 0 else (key, "on"))
    return found


def parse(text: str, implied: str) -> dict[str, str]:
    """As `pairs`, by key: of a key that comes twice the last value holds."""
    return dict(pairs(text, implied))
