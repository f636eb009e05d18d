"""How an instruction is described: its encoding, its operands and its semantics, once.

The decoder, the interpreter, the translator, the assembler and the tests are all derived from these records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, TypeVar, cast

from ..native.lang import NativeFunction, i32, inline, u32

F = TypeVar("F", bound=Callable[..., Any])


class DescriptionError(Exception):
    """An encoding or a parameter of a semantics function is not one the ISA knows."""


class OperandError(Exception):
    """An operand does not fit its field; says which, and what would."""


@dataclass(frozen=True, slots=True)
class Token:
    """What a name in an encoding stands for: ``width`` bits, which assemblers call ``operand`` (else as the name).

    If they are bits of an immediate, ``immediate`` is its format, and ``bits`` says which, the highest first, as the
    manuals write it: ``12|10:5``.
    """

    width: int
    operand: str = ""
    immediate: str = ""
    bits: str = ""


def token(width: int, operand: str = "") -> Token:
    """A register's number, or other bits that assemblers name."""
    return Token(width, operand)


def part(immediate: str, bits: str) -> Token:
    """Some bits of an immediate."""
    return Token(sum(width for _, width in _pieces(bits)), "imm", immediate, bits)


def _pieces(bits: str) -> list[tuple[int, int]]:
    """Lowest bit and width of each piece of ``12|10:5``."""
    pieces = []
    for piece in bits.split("|"):
        high, _, low = piece.partition(":")
        pieces.append((int(low or high), int(high) - int(low or high) + 1))
    return pieces


@dataclass(frozen=True)
class Field:
    """Bits of an encoding: at ``low``, ``width`` bits."""

    name: str
    low: int
    width: int

    def of(self, word: int) -> int:
        """Their value in an instruction's word."""
        return word >> self.low & ((1 << self.width) - 1)


@dataclass(frozen=True)
class Immediate:
    """An immediate's format: ``width`` bits from bit ``at`` of the word are those from bit ``to`` of its value, for
    each of ``pieces`` (at, width, to). The value has 32 bits; if it is ``signed``, its highest bit is the sign."""

    name: str
    signed: bool
    pieces: tuple[tuple[int, int, int], ...]

    @property
    def top(self) -> int:
        """Bits up to the highest."""
        return max(to + width for _, width, to in self.pieces)

    @property
    def range(self) -> range:
        """Its values."""
        least = -(1 << self.top - 1) if self.signed else 0
        most = (1 << self.top - 1) if self.signed else 1 << self.top
        return range(least, most, 1 << min(to for _, _, to in self.pieces))

    def of(self, word: int) -> int:
        """Its value in an instruction's word."""
        value = sum((word >> at & ((1 << width) - 1)) << to for at, width, to in self.pieces)
        return value - (1 << self.top) if self.signed and value >> self.top - 1 else value

    def encode(self, name: str, value: int) -> int:
        """The bits of the word for a value. Raises OperandError for the instruction ``name``."""
        if value not in self.range:
            legal = self.range
            raise OperandError(
                f"{name}: expected an immediate from {legal[0]} to {legal[-1]} in steps of {legal.step}, got {value}"
            )
        return sum((value >> to & ((1 << width) - 1)) << at for at, width, to in self.pieces)

    @cached_property
    def native(self) -> NativeFunction:
        """``of`` in native code: ``u32 -> i32``."""
        pieces = sorted(self.pieces, key=lambda piece: -piece[2])
        extract = _extract(*pieces[0], signed=self.signed)
        for piece in pieces[1:]:
            extract = _join(extract, _extract(*piece, signed=False))
        return cast(NativeFunction, extract)


def _extract(at: int, width: int, to: int, *, signed: bool) -> Any:
    left, right = 32 - at - width, 32 - width
    if signed:

        @inline
        def highest(word: u32) -> i32:
            return ((i32(word) << left) >> right) << to

        return highest

    @inline
    def piece(word: u32) -> i32:
        return i32(((word << left) >> right) << to)

    return piece


def _join(first: Any, second: Any) -> Any:
    @inline
    def joined(word: u32) -> i32:
        return first(word) | second(word)  # type: ignore[no-any-return]

    return joined


class Flow(Enum):
    """Where control goes behind an instruction: to the next one; there or to pc + imm, as its result says; to pc + imm;
    to an address of a register."""

    NEXT, BRANCH, JUMP, INDIRECT = range(4)


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    ``semantics`` is an inlined native function. Its parameters name its operands (``rs1``, ``imm``, ``pc`` ...; see
    the ISA's ``operands``); what it returns is written to ``result`` (a register operand, ``branch`` for taken or not,
    or None). ``extension`` is the ISA extension that must be on. ``system`` instructions may change what later
    instructions mean: state is brought up to date before and read again after them. One that ``traps`` always does.
    ``links`` is the field that is not 0 if a jump is a call.
    """

    name: str
    encoding: str
    mask: int
    match: int
    fields: tuple[Field, ...]
    immediate: Immediate | None
    operands: tuple[str, ...]
    result: str | None
    semantics: NativeFunction
    extension: str
    system: bool = False
    traps: bool = False
    flow: Flow = Flow.NEXT
    links: str = ""

    def has(self, name: str) -> bool:
        return any(each.name == name for each in self.fields)

    @cached_property
    def by_name(self) -> dict[str, Field]:
        return {each.name: each for each in self.fields}

    @property
    def is_relative(self) -> bool:
        """Whether it goes to pc + imm."""
        return self.flow in (Flow.BRANCH, Flow.JUMP)

    def calls(self, word: int) -> bool:
        """Whether a jump is a call: there is a way back behind it."""
        return self.links in self.by_name and self.by_name[self.links].of(word) != 0


def parse_encoding(encoding: str, tokens: Mapping[str, Token], size: int) -> tuple[int, int, tuple[Field, ...]]:
    """Mask, match and fields of an encoding written from the highest bit down: bits, and names of tokens.

    >>> parse_encoding("imm12 rs1 000 rd 0010011", {"imm12": Token(12), "rs1": Token(5), "rd": Token(5)}, 32)[0]
    28799
    """
    position, mask, match, fields = size, 0, 0, []
    for each in encoding.split():
        if set(each) <= {"0", "1"}:
            position -= len(each)
            mask |= ((1 << len(each)) - 1) << position
            match |= int(each, 2) << position
        elif each in tokens:
            position -= tokens[each].width
            fields.append(Field(each, position, tokens[each].width))
        else:
            raise DescriptionError(f"{encoding!r}: expected bits or one of {sorted(tokens)}, got {each!r}")
    if position != 0:
        raise DescriptionError(f"{encoding!r}: expected {size} bits, got {size - position}")
    return mask, match, tuple(fields)


@dataclass
class InstructionSet:
    """The instructions of an ISA, in the order of their description.

    ``tokens`` are the names in encodings, ``signed`` says of each format of immediates whether it has a sign.
    """

    tokens: Mapping[str, Token]
    signed: Mapping[str, bool]
    size: int = 32
    instructions: list[Instruction] = field(default_factory=list)
    immediates: dict[str, Immediate] = field(default_factory=dict)

    def __call__(
        self,
        name: str,
        encoding: str,
        extension: str,
        *,
        result: str | None = None,
        system: bool = False,
        traps: bool = False,
        flow: Flow = Flow.NEXT,
        links: str = "",
    ) -> Callable[[F], F]:
        """Decorator: describes an instruction; the function is its semantics."""
        mask, match, fields = parse_encoding(encoding, self.tokens, self.size)
        immediate = self._immediate(encoding, fields)

        def add(function: F) -> F:
            semantics = inline(function)
            operands = tuple(name for name in function.__annotations__ if name != "return")
            native = cast(NativeFunction, semantics)
            self.instructions.append(
                Instruction(
                    name,
                    encoding,
                    mask,
                    match,
                    fields,
                    immediate,
                    operands,
                    result,
                    native,
                    extension,
                    system,
                    traps,
                    flow,
                    links,
                )
            )
            return semantics

        return add

    def place(self, name: str) -> Field:
        """Where a field is that is at the same place in every encoding that has it. Raises DescriptionError."""
        found = {each.by_name[name] for each in self.instructions if each.has(name)}
        if len(found) != 1:
            raise DescriptionError(f"{name}: expected one place in all encodings, got {len(found)}")
        return found.pop()

    def _immediate(self, encoding: str, fields: tuple[Field, ...]) -> Immediate | None:
        """The format of an encoding's immediate, which has the same bits in every encoding."""
        pieces = []
        formats = set()
        for each in fields:
            known = self.tokens[each.name]
            if not known.immediate:
                continue
            formats.add(known.immediate)
            high = each.low + each.width
            for to, width in _pieces(known.bits):
                high -= width
                pieces.append((high, width, to))
        if not formats:
            return None
        if len(formats) > 1:
            raise DescriptionError(f"{encoding!r}: expected one immediate, got {', '.join(sorted(formats))}")
        (name,) = formats
        found = Immediate(name, self.signed[name], tuple(pieces))
        known_format = self.immediates.setdefault(name, found)
        if known_format != found:
            raise DescriptionError(f"{encoding!r}: expected immediate {name} as elsewhere, got {found.pieces}")
        return known_format


def encode(instruction: Instruction, tokens: Mapping[str, Token], operands: Mapping[str, int]) -> int:
    """The word of an instruction; register operands are numbers, ``imm`` is the value that the semantics see; what is
    not given is 0. Raises OperandError."""
    word = instruction.match
    if instruction.immediate is not None:
        word |= instruction.immediate.encode(instruction.name, operands.get("imm", 0))
    for each in instruction.fields:
        known = tokens[each.name]
        if not known.immediate:
            value = operands.get(known.operand or each.name, 0)
            if not 0 <= value < 1 << each.width:
                raise OperandError(
                    f"{instruction.name}: expected {each.name} from 0 to {(1 << each.width) - 1}, got {value}"
                )
            word |= value << each.low
    return word
