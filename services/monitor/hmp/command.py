"""How HMP's commands are described: names, parameters, help; parsing and help texts are made from it.

Parameters are in QEMU's notation (hmp-commands.hx, args_type), `name:kind`, a `?` behind it where it may be missing:
    s  a word, or "text in quotes"      S  the rest of the line
    l  an integer expression            -x a flag
    /  a format such as /4xw
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmesh_services.monitor.control import Awaited, Control, Parts, Work
from vmesh_services.monitor.guest import registers
from vmesh_services.monitor.hmp.expression import ExpressionError, evaluate
from vmesh_services.monitor.qmp.check import Json
from vmesh_services.monitor.qmp.errors import QmpError
from vmesh_services.monitor.qmp.handlers import execute

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from vmesh.v1.packet_pb2 import Packet
    from vmesh_services.monitor.operations import Batch

_FORMAT = re.compile(r"/(\d*)([a-zA-Z]*)\s*")
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_SIZES = {"b": 1, "h": 2, "w": 4, "g": 8}


def qmp_parts(control: Control, name: str, arguments: Json) -> Parts:
    """The result of one of QMP's commands that asks services."""
    work = execute(control, name, arguments)
    assert isinstance(work, Work)
    return (yield from work.parts)


@dataclass(frozen=True, slots=True)
class Format:
    """What stands behind the slash of x, xp and print; `size` is 0 where none was given."""

    count: int = 1
    letter: str = "x"
    size: int = 0


class LineError(Exception):
    """A line that is no call of its command; the message is for people."""


@dataclass(frozen=True, slots=True)
class Call:
    """A command with its arguments; those of kind `l` are texts until `expressions` has evaluated them."""

    control: Control
    hart: int
    values: Mapping[str, object]

    def text(self, name: str) -> str:
        return str(self.values.get(name, ""))

    def given(self, name: str) -> bool:
        return name in self.values

    def numbers(self) -> Generator[Batch, Sequence[Packet], dict[str, int]]:
        """The integers among the arguments. Raises QmpError."""
        texts = {name: value.text for name, value in self.values.items() if isinstance(value, Expression)}
        known = {}
        if any("$" in text for text in texts.values()):
            known = yield from registers(self.control, self.hart)
        try:
            return {name: evaluate(text, known) for name, text in texts.items()}
        except ExpressionError as error:
            raise QmpError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Expression:
    text: str


#: Gives the text to print, or the Work whose result it is. Raises QmpError.
Run = Callable[[Call], "str | Work | Awaited"]


@dataclass(frozen=True, slots=True)
class Command:
    """`names` are those that it has, the first is the one that help shows first."""

    names: tuple[str, ...]
    parameters: str
    help: str
    run: Run

    @property
    def usage(self) -> str:
        """`x /fmt addr`."""
        return " ".join(["|".join(self.names), *map(_shown, self._parameters)])

    def parse(self, text: str) -> dict[str, object]:
        """The arguments in what follows the name. Raises LineError."""
        values: dict[str, object] = {}
        rest = text.strip()
        parameters = self._parameters
        for place, (name, kind, optional) in enumerate(parameters):
            if kind.startswith("-"):
                if rest == kind or rest.startswith(f"{kind} "):
                    values[name], rest = True, rest[len(kind) :].lstrip()
            elif kind == "/":
                values[name], rest = _format(rest)
            elif not rest and optional:
                continue
            elif kind == "S":
                values[name], rest = rest, ""
            elif kind == "l":
                last = place == len(parameters) - 1
                piece, rest = (rest, "") if last else _cut_expression(rest)
                if not piece:
                    raise LineError("unexpected end of expression")
                values[name] = Expression(piece)
            else:
                if not rest:
                    raise LineError(f"{name} expected")
                word = _WORD.match(rest)
                assert word is not None
                values[name] = word[1] if word[1] is not None else word[2]
                rest = rest[word.end() :].lstrip()
        if rest:
            raise LineError("extraneous characters at the end of line")
        return values

    @property
    def _parameters(self) -> list[tuple[str, str, bool]]:
        parts = [part.partition(":") for part in self.parameters.split(",") if part]
        return [(name, kind.removesuffix("?"), kind.endswith("?")) for name, _, kind in parts]


def _shown(parameter: tuple[str, str, bool]) -> str:
    name, kind, optional = parameter
    if kind.startswith("-"):
        return f"[{kind}]"
    if kind == "/":
        return f"/{name}"
    return f"[{name}]" if optional else name


def _format(text: str) -> tuple[Format, str]:
    found = _FORMAT.match(text)
    if found is None:
        return Format(), text
    count, letters = found.groups()
    letter, size = "x", 0
    for each in letters:
        if each in _SIZES:
            size = _SIZES[each]
        elif each in "odxucis":
            letter = each
        else:
            raise LineError(f"invalid char in format: '{each}'")
    return Format(int(count or "1"), letter, size), text[found.end() :]


def _cut_expression(text: str) -> tuple[str, str]:
    """An expression ends at a blank outside of parentheses, unless an operator stands beside the blank."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == " " and depth <= 0:
            before, after = text[:place].rstrip(), text[place:].lstrip()
            if before[-1:] not in "+-*/%&|^~" and after[:1] not in "+*/%&|^":
                return before, after
    return text, ""


def silent(parts: Parts) -> Parts:
    """Prints nothing when it is done."""
    yield from parts
    return ""
