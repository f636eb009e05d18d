"""Emits the body of one function in LLVM's IR: values, blocks, memory.

What is known when compiling is computed here, with the meaning of its type: sums of ``u8`` wrap at 256. A literal has
no type of its own. It must be a value of the type that it meets, but where only the low bits count (sums, products,
bitwise operations) it may be any number of as many bits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from .lang import ArrayType, IntType, NativeFunction, PtrType, Table, size_of
from .values import BOOLEAN, U64, NativeError, Value, Variable, number_of

if TYPE_CHECKING:
    from .compiler import Module

_BINARY = {"+": "add", "-": "sub", "*": "mul", "//": "udiv", "%": "urem", "&": "and", "|": "or", "^": "xor"}
_LOW_BITS = "+-*&|^"  # the low bits of their results depend on nothing but the low bits of their operands
_COMPARE = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
PYTHON: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
    "<<": operator.lshift,
    ">>": operator.rshift,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
"""The operators of the language by their symbols, as Python computes them."""


class Environment(Protocol):
    """Gives hooks and ``raise`` their meaning."""

    def emit(self, builder: Builder, name: str, args: list[Any]) -> Value | None:
        """Emits the hook ``name``; ``trap`` stands for ``raise`` and must end the block."""


class Builder:
    """The body of one IR function. Variables are allocas, which LLVM's sroa turns into registers."""

    def __init__(self, module: Module, environment: Environment | None = None) -> None:
        self.module = module
        self.environment = environment
        self.terminated = False
        self.inlining: list[NativeFunction] = []
        self.branches = 0  # within which what is emitted stands: it may not run, or more than once
        self._allocas: list[str] = []
        self._lines: list[str] = []
        self._counter = 0

    def text(self) -> str:
        return "\n".join(["entry:", *self._allocas, "  br label %body", "body:", *self._lines])

    def fresh(self, prefix: str = "v") -> str:
        self._counter += 1
        return f"{prefix}{self._counter}"

    def line(self, text: str) -> None:
        self._lines.append("  " + text)

    def value(self, type_: Any, text: str) -> Value:
        """Emits an instruction with a result."""
        ref = f"%{self.fresh()}"
        self._lines.append(f"  {ref} = {text}")
        return Value(ref, type_)

    def block(self, label: str) -> None:
        """Begins a block, falling into it from the one before."""
        if not self.terminated:
            self.line(f"br label %{label}")
        self._lines.append(f"{label}:")
        self.terminated = False

    def end(self, text: str) -> None:
        """Emits a terminator."""
        self.line(text)
        self.terminated = True

    def jump(self, label: str) -> None:
        self.end(f"br label %{label}")

    def insert_jump(self, block: str, label: str) -> None:
        """Ends a block with nothing in it that was left open."""
        self._lines.insert(self._lines.index(f"{block}:") + 1, f"  br label %{label}")

    def branch(self, condition: Value, then: str, otherwise: str) -> None:
        weights = f", !prof {condition.hint}" if condition.hint else ""
        self.end(f"br i1 {condition.ref}, label %{then}, label %{otherwise}{weights}")

    def variable(self, type_: Any) -> Variable:
        ref = f"%{self.fresh('a')}"
        self._allocas.append(f"  {ref} = alloca {type_.ir}")
        return Variable(ref, type_)

    def read(self, variable: Variable) -> Value:
        return self.value(variable.type, f"load {variable.type.ir}, ptr {variable.ref}")

    def write(self, variable: Variable, value: Value) -> None:
        self.line(f"store {value.type.ir} {value.ref}, ptr {variable.ref}")

    # values

    def constant(self, number: int, type_: IntType) -> Value:
        """A number that must be a value of ``type_``."""
        if not type_.least <= number <= type_.most:
            raise NativeError(f"{number:#x} does not fit {type_}")
        return self.wrapped(number, type_)

    def wrapped(self, number: int, type_: IntType) -> Value:
        """The value of ``type_`` with the low bits of ``number``."""
        number = type_.wrap(number)
        if type_ == BOOLEAN:
            return Value("true" if number else "false", type_, number=number)
        return Value(str(number & ((1 << type_.bits) - 1)), type_, number=number)

    def coerce(self, item: Any, type_: Any) -> Value:
        """``item`` as a value that must already be of ``type_``, or a literal."""
        if isinstance(item, int) and isinstance(type_, IntType):
            return self.constant(int(item), type_)
        if isinstance(item, Value):
            if item.type == type_:
                return item
            raise NativeError(f"expected {type_}, got {item.type}")
        raise NativeError(f"expected {type_}, got {item!r}")

    def convert(self, item: Any, type_: IntType) -> Value:
        """``type_(item)``."""
        if (number := number_of(item)) is not None:
            return self.constant(number, type_) if type_ == BOOLEAN else self.wrapped(number, type_)
        if not isinstance(item, Value):
            raise NativeError(f"cannot convert {item!r} to {type_}")
        if isinstance(item.type, PtrType):
            if type_.bits != 64:
                raise NativeError(f"a pointer has 64 bits, not {type_}")
            return self.value(type_, f"ptrtoint ptr {item.ref} to i64")
        source: IntType = item.type
        if source.bits == type_.bits:
            return Value(item.ref, type_)
        if source.bits > type_.bits:
            if type_.bits == 1:
                raise NativeError("compare with 0 instead of converting to boolean")
            return self.value(type_, f"trunc {source.ir} {item.ref} to {type_.ir}")
        operation = "sext" if source.signed else "zext"
        return self.value(type_, f"{operation} {source.ir} {item.ref} to {type_.ir}")

    def truth(self, item: Any) -> Value:
        if isinstance(item, int):
            return self.constant(int(bool(item)), BOOLEAN)
        if not isinstance(item, Value):
            raise NativeError(f"{item!r} is not a condition")
        if item.type == BOOLEAN:
            return item
        if item.number is not None:
            return self.constant(int(item.number != 0), BOOLEAN)
        if isinstance(item.type, PtrType):
            return self.value(BOOLEAN, f"icmp ne ptr {item.ref}, null")
        return self.value(BOOLEAN, f"icmp ne {item.type.ir} {item.ref}, 0")

    def binary(self, operation: str, left: Any, right: Any) -> Value:
        """An arithmetic or bitwise operation named by its Python symbol; one operand at least is a value."""
        if operation in ("<<", ">>"):
            return self._shift(operation, left, right)
        a, b = self._pair(operation, left, right)
        if not isinstance(a.type, IntType) or (a.type == BOOLEAN and operation not in "&|^"):
            raise NativeError(f"{operation} of {a.type}")
        if operation in ("//", "%"):
            if a.type.signed:
                raise NativeError(f"{operation} of {a.type}: Python's rounds down; use quotient or remainder")
            self._check_division(operation, b)
        if a.number is not None and b.number is not None:
            return self.wrapped(PYTHON[operation](a.number, b.number), a.type)
        return self.value(a.type, f"{_BINARY[operation]} {a.type.ir} {a.ref}, {b.ref}")

    def divide(self, name: str, left: Any, right: Any) -> Value:
        """``div`` or ``rem`` as machines do it: the quotient is truncated."""
        a, b = self._pair(name, left, right)
        if not isinstance(a.type, IntType) or a.type == BOOLEAN:
            raise NativeError(f"{name} of {a.type}")
        self._check_division(name, b)
        return self.value(a.type, f"{'s' if a.type.signed else 'u'}{name} {a.type.ir} {a.ref}, {b.ref}")

    @staticmethod
    def _check_division(operation: str, divisor: Value) -> None:
        if divisor.number == 0:
            raise NativeError(f"{operation} by 0")
        if divisor.type.bits > 64:
            raise NativeError(f"{operation} of {divisor.type}: the host has none")

    def compare(self, operation: str, left: Any, right: Any) -> Value:
        a, b = self._pair(operation, left, right)
        name = _COMPARE[operation]
        if name not in ("eq", "ne"):
            if not isinstance(a.type, IntType):
                raise NativeError(f"{operation} of {a.type}")
            name = ("s" if a.type.signed else "u") + name
        if a.number is not None and b.number is not None:
            return self.constant(int(PYTHON[operation](a.number, b.number)), BOOLEAN)
        return self.value(BOOLEAN, f"icmp {name} {a.type.ir} {a.ref}, {b.ref}")

    def negative(self, item: Value) -> Value:
        return self.binary("-", 0, item)

    def inverted(self, item: Value) -> Value:
        if item.type == BOOLEAN:
            raise NativeError("~ of boolean: Python's is no boolean; use not")
        return self.binary("^", item, -1)

    def opposite(self, item: Any) -> Value:
        """``not item``."""
        truth = self.truth(item)
        if truth.number is not None:
            return self.constant(1 - truth.number, BOOLEAN)
        return self.value(BOOLEAN, f"xor i1 {truth.ref}, true")

    def _pair(self, operation: str, left: Any, right: Any) -> tuple[Value, Value]:
        """Two operands of one type."""
        if isinstance(left, Value):
            return left, self._beside(operation, right, left.type)
        if isinstance(right, Value):
            return self._beside(operation, left, right.type), right
        raise NativeError("two constants")

    def _beside(self, operation: str, item: Any, type_: Any) -> Value:
        low_bits = operation in _LOW_BITS and isinstance(type_, IntType) and type_ != BOOLEAN
        if low_bits and isinstance(item, int) and -(1 << type_.bits) <= item < 1 << type_.bits:
            return self.wrapped(int(item), type_)
        return self.coerce(item, type_)

    def _shift(self, operation: str, left: Any, right: Any) -> Value:
        """The count may be of any type. As in Python, nothing is left of what is shifted out by a large one, but the
        sign. LLVM sees where a count cannot be large, and has no more than the shift then."""
        if not isinstance(left, Value):
            left = self.coerce(left, right.type if right.type.bits == 64 else U64)
        type_ = left.type
        if not isinstance(type_, IntType) or type_ == BOOLEAN:
            raise NativeError(f"{operation} of {type_}")
        name = "shl" if operation == "<<" else ("ashr" if type_.signed else "lshr")
        if (known := number_of(right)) is not None:
            if not 0 <= known < type_.bits:
                raise NativeError(f"{operation} by {known} of {type_}")
            if left.number is not None:
                return self.wrapped(PYTHON[operation](left.number, known), type_)
            return self.value(type_, f"{name} {type_.ir} {left.ref}, {known}")
        if not isinstance(right, Value) or not isinstance(right.type, IntType):
            raise NativeError(f"{operation} by {right!r}")
        count = right.type
        if (1 << count.bits) <= type_.bits:  # it has no number that is too large
            return self.value(type_, f"{name} {type_.ir} {left.ref}, {self.convert(right, type_).ref}")
        fits = self.value(BOOLEAN, f"icmp ult {count.ir} {right.ref}, {type_.bits}")
        amount = self.convert(right, IntType(type_.bits, False))
        if name == "ashr":
            last = f"select i1 {fits.ref}, {type_.ir} {amount.ref}, {type_.ir} {type_.bits - 1}"
            return self.value(type_, f"ashr {type_.ir} {left.ref}, {self.value(type_, last).ref}")
        shifted = self.value(type_, f"{name} {type_.ir} {left.ref}, {amount.ref}")
        return self.value(type_, f"select i1 {fits.ref}, {type_.ir} {shifted.ref}, {type_.ir} 0")

    # memory

    def pointer(self, address: Any, target: Any) -> Value:
        """A typed pointer from an address or another pointer."""
        if isinstance(address, Value) and isinstance(address.type, PtrType):
            return Value(address.ref, PtrType(target))
        number = self.coerce(address, U64)
        return self.value(PtrType(target), f"inttoptr i64 {number.ref} to ptr")

    def offset(self, base: Value, offset: int, target: Any) -> Value:
        """A pointer ``offset`` bytes behind ``base``."""
        if offset == 0:
            return Value(base.ref, PtrType(target))
        return self.value(PtrType(target), f"getelementptr i8, ptr {base.ref}, i64 {offset}")

    def element(self, base: Any, index: Any) -> Value:
        """A pointer to an element of an array."""
        if not isinstance(base, Value) or not isinstance(base.type, PtrType):
            raise NativeError(f"{getattr(base, 'type', base)!s:.80} has no elements that can be reached here")
        target = base.type.target
        if (number_of(index) or 0) < 0:
            raise NativeError("a negative index: Python counts from the end")
        signed = isinstance(index, Value) and isinstance(index.type, IntType) and index.type.signed
        number = self.convert(index, IntType(64, signed))
        if isinstance(target, IntType):
            return self.value(base.type, f"getelementptr {target.ir}, ptr {base.ref}, i64 {number.ref}")
        scaled = self.value(U64, f"mul i64 {number.ref}, {size_of(target)}")
        return self.value(base.type, f"getelementptr i8, ptr {base.ref}, i64 {scaled.ref}")

    def table(self, item: Table, index: Value) -> Value:
        """An element of a table."""
        if index.type.signed:
            raise NativeError("a negative index: Python counts from the end; convert it to an unsigned type")
        return self.load(self.element(Value(self.module.table(item), PtrType(item.element)), index))

    def load(self, pointer: Value) -> Value:
        type_ = pointer.type.target
        return self.value(type_, f"load {type_.ir}, ptr {pointer.ref}")

    def store(self, pointer: Value, item: Any) -> None:
        value = self.coerce(item, pointer.type.target)
        self.line(f"store {value.type.ir} {value.ref}, ptr {pointer.ref}")

    def field(self, base: Value, name: str) -> Value:
        """A pointer to a record's field (to the first element of an array)."""
        offset, type_ = self.field_of(base, name)
        target = self.module.bound(type_.element) if isinstance(type_, ArrayType) else type_
        return self.offset(base, offset, target)

    def field_of(self, base: Any, name: str) -> tuple[int, Any]:
        """Offset in bytes and type of a record's field."""
        record = base.type.target if isinstance(base, Value) and isinstance(base.type, PtrType) else None
        fields = getattr(record, "fields", None)
        if fields is None:
            raise NativeError(f"{getattr(base, 'type', base)!s:.80} has no fields")
        if name not in fields:
            raise NativeError(f"{record.__name__} has no field {name}")  # type: ignore[union-attr]
        offset, type_ = fields[name]
        return offset, self.module.bound(type_)
