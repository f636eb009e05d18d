"""Expressions of HMP: integers, registers as $pc, C's operators; 64 bits (QEMU manual, "Integer expressions")."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_TOKEN = re.compile(r"\s*(?:(0[xX][0-9a-fA-F]+|\d+)|\$(\w+)|'(.)'|([-+*/%&|^~()]))")
_MASK = (1 << 64) - 1
# QEMU's precedence: sums below logic below products.
_LEVELS: tuple[Mapping[str, Callable[[int, int], int]], ...] = (
    {"+": lambda a, b: a + b, "-": lambda a, b: a - b},
    {"&": lambda a, b: a & b, "|": lambda a, b: a | b, "^": lambda a, b: a ^ b},
    {"*": lambda a, b: a * b, "/": lambda a, b: a // b, "%": lambda a, b: a % b},
)
_MAX_DEPTH = 64


class ExpressionError(Exception):
    """The message is QEMU's."""


def evaluate(text: str, registers: Mapping[str, int]) -> int:
    """The value of an expression, 0 to 2^64 - 1. Raises ExpressionError."""
    tokens: list[str | int] = []
    place = 0
    while text[place:].strip():
        found = _TOKEN.match(text, place)
        if found is None:
            raise ExpressionError(f"invalid char '{text[place:].strip()[0]}' in expression")
        number, register, character, operator = found.groups()
        if register is not None and register.lower() not in registers:
            raise ExpressionError("unknown register")
        if number is not None:
            tokens.append(int(number, 0) if number[:1] != "0" or number[1:2] in "xX" else int(number, 8))
        elif register is not None:
            tokens.append(registers[register.lower()])
        else:
            tokens.append(ord(character) if character is not None else operator)
        place = found.end()
    parser = _Parser(tokens)
    value = parser.binary(0)
    if parser.tokens:
        raise ExpressionError(f"invalid char '{parser.tokens[0]}' in expression")
    return value


class _Parser:
    def __init__(self, tokens: list[str | int]) -> None:
        self.tokens = tokens
        self._depth = 0

    def binary(self, level: int) -> int:
        if level == len(_LEVELS):
            return self._unary()
        value = self.binary(level + 1)
        while (
            self.tokens and (operation := _LEVELS[level].get(str(self.tokens[0]))) and isinstance(self.tokens[0], str)
        ):
            self.tokens.pop(0)
            try:
                value = operation(value, self.binary(level + 1)) & _MASK
            except ZeroDivisionError:
                raise ExpressionError("division by zero") from None
        return value

    def _unary(self) -> int:
        if not self.tokens:
            raise ExpressionError("unexpected end of expression")
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ExpressionError("expression too deep")
        token = self.tokens.pop(0)
        match token:
            case int():
                value = token
            case "(":
                value = self.binary(0)
                if not self.tokens or self.tokens.pop(0) != ")":
                    raise ExpressionError("')' expected")
            case "-":
                value = -self._unary()
            case "~":
                value = ~self._unary()
            case "+":
                value = self._unary()
            case _:
                raise ExpressionError(f"invalid char '{token}' in expression")
        self._depth -= 1
        return value & _MASK
