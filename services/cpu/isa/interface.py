"""What an instruction set is to the core: a value, with no more of it than the core asks for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from .description import Instruction

if TYPE_CHECKING:
    from ..core import state


class Way(Enum):
    """How a handler of an instruction goes on: behind it, or by a jump of its semantics; a relative jump to another
    page, or forward or backward within the page; to where no instruction can be, which traps; by a jump that looks for
    that."""

    NEXT, FAR, FORWARD, BACKWARD, MISALIGNED, CHECKED = range(6)


@dataclass(frozen=True, slots=True)
class Variant:
    """A handler of the interpreter: of an instruction in an encoding of so many bytes. ``number`` is what ``decode``
    calls it by."""

    instruction: Instruction
    number: int
    name: str
    length: int
    way: Way


@dataclass(frozen=True, slots=True)
class RegisterOperand:
    """A register of a file, whose number is in a field of the encoding, and of the slot under the same name. ``zero``:
    number 0 reads 0, and what is written to it is dropped."""

    file: str
    field: str
    zero: bool = False


@dataclass(frozen=True, slots=True)
class BitsOperand:
    """``width`` of the instruction's own bits from bit ``low``."""

    low: int
    width: int


class Operand(Enum):
    """Operands that every ISA has: the immediate, the instruction's own bits, its address and the one behind it, the
    hart's record, and the instructions retired before this one (of system instructions only)."""

    IMMEDIATE, BITS, PC, NEXT_PC, HART, RETIRED = range(6)


AnyOperand = Operand | RegisterOperand | BitsOperand


@dataclass(frozen=True, slots=True)
class Step:
    """An instruction at ``offset`` of its page: ``length`` bytes, its own ``bits``, the ``word`` that it stands for,
    and the number of the interpreter's handler for it."""

    offset: int
    length: int
    instruction: Instruction
    bits: int
    word: int
    handler: int

    @property
    def imm(self) -> int:
        immediate = self.instruction.immediate
        return 0 if immediate is None else immediate.of(self.word)

    def field(self, name: str) -> int:
        """The bits of a field of the word."""
        return self.instruction.by_name[name].of(self.word)

    @property
    def target(self) -> int:
        """Where a relative jump goes, as an offset that may be outside of the page."""
        return self.offset + self.imm

    @property
    def next(self) -> int:
        return self.offset + self.length

    @property
    def calls(self) -> bool:
        return self.instruction.calls(self.word)


@dataclass(frozen=True, slots=True)
class Lines:
    """The bits of ``Hart.lines`` and ``Hart.timers`` that interrupt controllers drive: software interrupts, the board's
    timer, and external interrupts, one for each context of a hart."""

    software: int
    timer: int
    external: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Control:
    """A control register by the number in instructions, and the feature that it is there with ("": always)."""

    number: int
    name: str
    needs: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Code:
    """What of an instruction set only those need who compile: a core, or regions.

    ``operands`` are those of semantics by name, registers that are results too. ``bindings`` has who does what
    ``core.provided`` declares, ``exports`` what Python calls besides: ``read_control(hart, number)`` and
    ``write_control(hart, number, value)``.
    """

    instructions: tuple[Instruction, ...]
    variants: tuple[Variant, ...]
    operands: Mapping[str, AnyOperand]
    bindings: Mapping[Any, Any]
    exports: tuple[Any, ...]
    #: cause of the trap of a jump to where no instruction can be, which is at no multiple of ``jump_alignment``
    jump_cause: int
    jump_alignment: int
    #: the instruction at an offset of a page; None if it is not whole in the page
    step_at: Callable[[bytes, int], Step | None]
    #: whether a region can have an instruction, given the features that are on; else the interpreter looks
    fits_region: Callable[[Step, frozenset[str]], bool]
    #: an instruction that a region can have, of 2 or 4 bytes: to compile it loads what LLVM needs
    warming: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Isa:
    """An instruction set, as a machine that runs it needs it.

    ``hart`` and ``slot`` extend the core's records; the fields of ``hart`` that are ``registers.Register`` are its
    registers, and ``controls`` what is numbered among them.
    """

    name: str
    features: tuple[str, ...]
    hart: type[state.Hart]
    slot: type[state.Slot]
    controls: tuple[Control, ...]
    lines: Lines
    #: the least alignment of an instruction, given the features that are on
    alignment: Callable[[frozenset[str]], int]
    #: bytes of the instruction that begins with this byte
    length: Callable[[int], int]
    #: the physical address of a virtual one for the loads of a hart (its record), or None; reads words by the function
    look_up: Callable[[Any, int, Callable[[int], int | None]], int | None]
    #: numbers and values of control registers, in an order in which they can be written, to come to saved values
    writes: Callable[[Mapping[str, int], Mapping[str, Sequence[int]]], Iterable[tuple[int, int]]]
    #: the module that has the rest as ``CODE``: to import all instructions takes longer than a machine's start may
    code_module: str

    @property
    def code(self) -> Code:
        found: Code = importlib.import_module(self.code_module).CODE
        return found


def load(name: str) -> Isa:
    """The instruction set in the folder of that name. Raises ModuleNotFoundError."""
    isa: Isa = importlib.import_module(".".join((__package__, name, "definition"))).ISA
    return isa
