"""How an instruction is described: its encoding, its operands and its semantics, once.

The decoder, the interpreter, the assembler and the tests are all derived from these records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from ..native.lang import NativeFunction, inline

F = TypeVar("F", bound=Callable[..., Any])


class DescriptionError(Exception):
    """An encoding or a parameter of a semantics function is not one the ISA knows."""


@dataclass(frozen=True)
class Field:
    """Bits of an encoding: at ``low``, ``width`` bits."""

    name: str
    low: int
    width: int


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    ``semantics`` is an inlined native function. Its parameters name its operands (``rs1``, ``imm``, ``pc`` ...; see
    the ISA's
    ``operands``); what it returns is written to ``result`` (``rd``, ``frd``, ``branch`` for taken or not, or None).
    ``extension`` is the ISA extension that must be on. ``system`` instructions may change what later instructions
    mean: state is
    brought up to date before and read again after them. ``length`` is in bytes.
    """

    name: str
    encoding: str
    mask: int
    match: int
    fields: tuple[Field, ...]
    operands: tuple[str, ...]
    result: str | None
    semantics: NativeFunction
    extension: str
    system: bool = False

    def has(self, field: str) -> bool:
        return any(f.name == field for f in self.fields)


def parse_encoding(encoding: str, widths: dict[str, int], size: int) -> tuple[int, int, tuple[Field, ...]]:
    """Mask, match and fields of an encoding written from the highest bit down: bits, and names of known width.

    >>> parse_encoding("imm12 rs1 000 rd 0010011", {"imm12": 12, "rs1": 5, "rd": 5}, 32)[0]
    28799
    """
    position, mask, match, fields = size, 0, 0, []
    for token in encoding.split():
        if set(token) <= {"0", "1"}:
            position -= len(token)
            mask |= ((1 << len(token)) - 1) << position
            match |= int(token, 2) << position
        elif token in widths:
            position -= widths[token]
            fields.append(Field(token, position, widths[token]))
        else:
            raise DescriptionError(f"{encoding!r}: expected bits or one of {sorted(widths)}, got {token!r}")
    if position != 0:
        raise DescriptionError(f"{encoding!r}: expected {size} bits, got {size - position}")
    return mask, match, tuple(fields)


class InstructionSet:
    """The instructions of an ISA, in the order of their description."""

    def __init__(self, widths: dict[str, int]) -> None:
        self.widths = widths
        self.instructions: list[Instruction] = []

    def __call__(
        self, name: str, encoding: str, extension: str, *, result: str | None = None, system: bool = False
    ) -> Callable[[F], F]:
        """Decorator: describes an instruction; the function is its semantics."""
        mask, match, fields = parse_encoding(encoding, self.widths, 32)

        def add(function: F) -> F:
            semantics = inline(function)
            operands = tuple(name for name in function.__annotations__ if name != "return")
            native = cast(NativeFunction, semantics)
            self.instructions.append(
                Instruction(name, encoding, mask, match, fields, operands, result, native, extension, system)
            )
            return semantics

        return add
