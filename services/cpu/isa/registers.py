"""Registers as data: each is declared once, with the field of the hart's record that holds it.

From the declaration come its value after a reset, what of it is saved and which saved values are legal, and how a
debugger, ``info registers`` and the gateway see it.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..native.lang import ArrayType, Described, Record, array


class Kind(Enum):
    """What a register is to a debugger: as in cpu.proto, RegisterKind. ``STATE`` is none: what software sees of it is
    in other registers."""

    STATE, GENERAL, FLOAT, CONTROL, PRIVILEGE = range(5)


#: What a reset gives a register: a value, or what is computed from the features that are on and the hart's number.
Reset = int | Callable[[frozenset[str], int], int]


@dataclass(frozen=True)
class Register(Described):
    """A register, or a file of them if its field is an array. ``number`` is the (first) number of its kind.

    ``legal`` are its saved values; None: those that a write of it leaves as they are (a control register's).
    ``writable`` are the bits of a control register that a write changes, with no effect besides; None: a function
    writes it. ``names`` are what it is called outside, if that is not the field's name; those of a file's registers,
    number 0 of which is ``zero`` if nothing can be written to it. ``seen`` gives the bits that a debugger sees, given
    the features that are on, 0 for none. ``shown`` gives the value that is seen, where that is not the field's.
    States of a version before ``since`` do not have it, and it is as after a reset then.
    """

    kind: Kind
    number: int = 0
    reset: Reset = 0
    saved: bool = True
    since: int = 1
    legal: Container[int] | None = None
    writable: int | None = None
    names: tuple[str, ...] = ()
    zero: bool = False
    seen: Callable[[frozenset[str]], int] | None = None
    shown: Callable[[Any], int] | None = None
    array: ArrayType | None = None

    def reset_value(self, features: frozenset[str], hart: int) -> int:
        return self.reset if isinstance(self.reset, int) else self.reset(features, hart)

    def bits(self, features: frozenset[str]) -> int:
        """Bits that a debugger sees."""
        return 64 if self.seen is None else self.seen(features)


def register(kind: Kind, number: int = 0, **known: Any) -> Any:
    """Declares a register: ``privilege: u32 = register(Kind.PRIVILEGE, reset=3)``."""
    return Register(kind, number, **known)


def register_file(kind: Kind, element: Any, count: int, number: int = 0, **known: Any) -> Any:
    """Declares a file of ``count`` registers: ``f: Ptr[u64] = register_file(Kind.FLOAT, u64, 32, names=...)``."""
    return Register(kind, number, array=array(element, count), **known)


def registers_of(record: type[Record]) -> dict[str, Register]:
    """The registers that a record declares, in their order."""
    declared: dict[str, Register] = {}
    for each in record.__mro__:
        declared.update({name: found for name, found in vars(each).items() if isinstance(found, Register)})
    return declared
