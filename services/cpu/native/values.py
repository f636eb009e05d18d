"""What expressions of native code are while they are compiled, and how what is wrong with them is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import lang
from .lang import IntType

BOOLEAN: IntType = lang.boolean  # type: ignore[assignment]
U8: IntType = lang.u8  # type: ignore[assignment]
U32: IntType = lang.u32  # type: ignore[assignment]
U64: IntType = lang.u64  # type: ignore[assignment]
I64: IntType = lang.i64  # type: ignore[assignment]
LIKELY, UNLIKELY = "!0", "!1"


class NativeError(Exception):
    """A native function uses something that the language does not have; names file and line once they are known."""

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(f"{place}: {message}" if place else message)
        self.placed = bool(place)


@dataclass(slots=True)
class Value:
    """An SSA value: its name (or constant) in the IR text and its type. ``hint`` is branch weight metadata, ``number``
    the value where it is known when compiling."""

    ref: str
    type: Any
    hint: str = ""
    number: int | None = None


@dataclass(slots=True)
class Variable:
    """A Python variable: the alloca that holds it."""

    ref: str
    type: Any


@dataclass(frozen=True)
class Lazy:
    """An argument of an inlined function that is computed where it is used, and has no side effects."""

    emit: Callable[[], Value]


def number_of(item: Any) -> int | None:
    """The number that a literal or a value is, if it is known when compiling."""
    if isinstance(item, Value):
        return item.number
    return int(item) if isinstance(item, int) else None


def is_known(item: Any) -> bool:
    """Whether it is known when compiling: a Python object, or a value with a number."""
    return not isinstance(item, Value) or item.number is not None


def plain(item: Any) -> Any:
    """What is known when compiling as Python has it."""
    if not isinstance(item, Value):
        return item
    assert item.number is not None
    return bool(item.number) if item.type == BOOLEAN else item.number
