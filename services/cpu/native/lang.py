"""The language of native functions: a typed subset of Python.

A function under :func:`native` is ordinary Python to the reader, to ruff and to mypy, but its source is compiled to
LLVM IR and never run by Python. What is not listed here is refused, with file and line; what is accepted means what it
means in Python, but for what types add:

* Integers have a fixed width (``u8`` ... ``i128``), and arithmetic wraps. There are ``boolean``, pointers (``Ptr[T]``)
  and records (:class:`Record`). Operands of different types are refused; ``u32(x)`` converts, by the type of ``x``
  with zeros or the sign. A literal takes the type of what it meets, and must be a number of that type; where only the
  low bits count (sums, products, bitwise operations) a mask such as ``~7`` or ``-8`` will do. A variable has the type
  of its first assignment, ``u64`` for a literal.
* ``//`` and ``%`` are for unsigned types: signed ones would round down in Python, and do not in machines, which is
  :func:`quotient` and :func:`remainder`. Of what is shifted out nothing is left, but the sign.
* ``if``, ``while``, ``for i in range(stop)`` or ``range(start, stop)``, ``break``, ``continue``, ``return``, ``and``,
  ``or``, ``not``, ``a if c else b``, assignment, augmented and annotated assignment, ``raise`` of a
  :class:`NativeException` where the environment defines it (in instruction semantics), calls without keywords.
* Names that the module under compilation binds to others: a :func:`provided` function to the one that does it, a
  record to the one that extends it.
* Names of the enclosing function or module: constants, types, other native functions, intrinsics, and functions of
  Python whose arguments are known when compiling. A test that is known when compiling (``if DOUBLE:``) keeps only the
  branch that is taken. A local name must have a value whichever way leads to it.

What Python would end with an exception has no meaning: a division by 0, an index beyond a table's end, a negative
shift count. So has a pointer to where nothing is.

To mypy all integer types are ``int``: the compiler checks widths itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeAlias, TypeVar, cast

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class NativeOnly(RuntimeError):
    """A native function or intrinsic was called from Python."""


class Type:
    """Base of the types a native value can have."""

    size: int
    ir: str


@dataclass(frozen=True)
class IntType(Type):
    """An integer of ``bits`` bits; ``boolean`` is the one of one bit."""

    bits: int
    signed: bool

    @property
    def size(self) -> int:  # type: ignore[override]
        return (self.bits + 7) // 8

    @property
    def least(self) -> int:
        """The smallest number it has."""
        return -(1 << self.bits - 1) if self.signed else 0

    @property
    def most(self) -> int:
        """The largest."""
        return (1 << self.bits - self.signed) - 1

    def wrap(self, number: int) -> int:
        """The number it has with the same low bits."""
        return (number - self.least & (1 << self.bits) - 1) + self.least

    @property
    def ir(self) -> str:  # type: ignore[override]
        return f"i{self.bits}"

    def __str__(self) -> str:
        return "boolean" if self.bits == 1 else f"{'i' if self.signed else 'u'}{self.bits}"


@dataclass(frozen=True)
class PtrType(Type):
    """A pointer to ``target``: an element type or a :class:`Record` class."""

    target: Any
    size = 8
    ir = "ptr"

    def __str__(self) -> str:
        return f"Ptr[{getattr(self.target, '__name__', self.target)}]"


@dataclass(frozen=True)
class ArrayType(Type):
    """``count`` elements in a row, inside a record; reading the attribute gives a pointer to the first."""

    element: Any
    count: int
    ir = "array"

    @property
    def size(self) -> int:  # type: ignore[override]
        return size_of(self.element) * self.count


def size_of(type_: Any) -> int:
    """Size in bytes of a type or a record class."""
    return cast(int, type_.size)


if TYPE_CHECKING:
    u8: TypeAlias = int
    u16: TypeAlias = int
    u32: TypeAlias = int
    u64: TypeAlias = int
    u128: TypeAlias = int
    i8: TypeAlias = int
    i16: TypeAlias = int
    i32: TypeAlias = int
    i64: TypeAlias = int
    i128: TypeAlias = int
    boolean: TypeAlias = bool

    class Ptr(Generic[T]):
        """A typed address. ``p[i]`` is element i: its value, or, for records, a pointer to it."""

        def __init__(self, address: int) -> None: ...

        def __getitem__(self, index: int) -> T: ...

        def __setitem__(self, index: int, value: T) -> None: ...
else:
    u8, u16, u32, u64, u128 = (IntType(bits, False) for bits in (8, 16, 32, 64, 128))
    i8, i16, i32, i64, i128 = (IntType(bits, True) for bits in (8, 16, 32, 64, 128))
    boolean = IntType(1, False)

    class Ptr:
        def __class_getitem__(cls, target: Any) -> PtrType:
            return PtrType(target)


def array(element: Any, count: int) -> Any:
    """Declares an array field: ``x: Ptr[u64] = array(u64, 33)``."""
    return ArrayType(element, count)


class Described:
    """What a field's declaration may say of it beyond its type: of a subclass, in the place of the default. ``array``
    is what :func:`array` gives, for fields that are one."""

    array: ArrayType | None


class Record:
    """A fixed-layout structure: fields in order, naturally aligned, little-endian.

    Subclass with annotations; ``offset_of`` and ``fields`` serve those who read the same bytes from Python. A record
    that extends another one has its own fields first, and then those of the other; or it has them ``instead_of`` one of
    the other's, in as many bytes. What is compiled for it (see ``compiler.Module``) has it wherever the other one is
    named.
    """

    fields: dict[str, tuple[int, Any]]
    size: int

    def __init__(self, address: int) -> None:
        raise NativeOnly(f"{type(self).__name__} exists in native code only")

    def __init_subclass__(cls, *, instead_of: str = "") -> None:
        import sys

        scope = vars(sys.modules[cls.__module__])
        types: dict[str, Any] = {}
        for name, annotation in inspect.get_annotations(cls).items():
            declared = cls.__dict__.get(name)
            known = declared.array if isinstance(declared, Described) else declared
            types[name] = known or (eval(annotation, scope) if isinstance(annotation, str) else annotation)
        inherited = {n: t for base in cls.__bases__ for n, (_, t) in getattr(base, "fields", {}).items()}
        if instead_of:
            before = list(inherited).index(instead_of)
            items = list(inherited.items())
            types = {**dict(items[:before]), **types, **dict(items[before + 1 :])}
        else:
            types.update(inherited)
        cls.fields = {}
        offset = alignment = 0
        for name, type_ in types.items():
            element = type_.element if isinstance(type_, ArrayType) else type_
            align = 8 if not isinstance(element, IntType) else min(element.size, 16)
            alignment = max(alignment, align)
            offset = -(-offset // align) * align
            cls.fields[name] = (offset, type_)
            offset += size_of(type_)
        cls.size = -(-offset // max(alignment, 8)) * max(alignment, 8)
        if instead_of and cls.size != cls.__bases__[0].size:  # type: ignore[attr-defined]
            raise TypeError(f"{cls.__name__}: {cls.size} bytes, expected {cls.__bases__[0].size}")  # type: ignore[attr-defined]

    @classmethod
    def offset_of(cls, name: str) -> int:
        """Offset in bytes of a field."""
        return cls.fields[name][0]


@dataclass(frozen=True, eq=False)
class NativeFunction:
    """A Python function whose source is to be compiled."""

    python: Callable[..., Any]
    inline: bool = False
    export: bool = False
    cold: bool = False
    provided: bool = False

    @property
    def name(self) -> str:
        return self.python.__name__

    def __call__(self, *args: Any) -> NoReturn:
        raise NativeOnly(f"{self.name} runs in native code only")


def native(function: F) -> F:
    """Marks a function for compilation."""
    return cast(F, NativeFunction(function))


def inline(function: F) -> F:
    """Marks a function that is compiled into each of its callers."""
    return cast(F, NativeFunction(function, inline=True))


def cold(function: F) -> F:
    """Marks a function that is rarely called."""
    return cast(F, NativeFunction(function, cold=True))


def export(function: F) -> F:
    """Marks a function that Python calls, by the C calling convention."""
    return cast(F, NativeFunction(function, export=True))


def provided(function: F) -> F:
    """Declares a function by its signature: who compiles says which one that is (``compiler.Module.bindings``)."""
    return cast(F, NativeFunction(function, provided=True))


class NativeException(Exception):
    """Base of what native code may raise: of exceptions that the environment of a compilation gives a meaning."""


@dataclass(frozen=True)
class Intrinsic:
    """A name the compiler translates itself, by its table of emitters; takes so many arguments at least, and at
    most."""

    name: str
    least: int
    most: int | None

    def __call__(self, *args: Any) -> NoReturn:
        raise NativeOnly(f"{self.name} exists in native code only")


def _intrinsic(function: F) -> F:
    code = function.__code__
    count = code.co_argcount
    return cast(F, Intrinsic(function.__name__, count, None if code.co_flags & inspect.CO_VARARGS else count))


@_intrinsic
def peek(type_: type[int], address: int) -> int:
    """The value of ``type_`` at a host address."""
    raise NativeOnly


@_intrinsic
def poke(type_: type[int], address: int, value: int) -> None:
    """Stores ``value`` as ``type_`` at a host address."""
    raise NativeOnly


@_intrinsic
def peek_aligned(type_: type[int], address: int) -> int:
    """Like peek of a naturally aligned address, and never torn (a relaxed atomic load)."""
    raise NativeOnly


@_intrinsic
def poke_aligned(type_: type[int], address: int, value: int) -> None:
    """Like poke to a naturally aligned address, and never torn (a relaxed atomic store)."""
    raise NativeOnly


@_intrinsic
def ref(field: Any) -> int:
    """The host address of a record's field, of an array element, or the value of a pointer."""
    raise NativeOnly


@_intrinsic
def at(record: Callable[[int], T], address: int) -> T:
    """A pointer to a record (or ``Ptr[T]``) at a host address."""
    raise NativeOnly


@_intrinsic
def atomic_load(type_: type[int], address: int) -> int:
    """Sequentially consistent load."""
    raise NativeOnly


@_intrinsic
def atomic_store(type_: type[int], address: int, value: int) -> None:
    """Sequentially consistent store."""
    raise NativeOnly


@_intrinsic
def atomic_rmw(operation: str, type_: type[int], address: int, value: int) -> int:
    """LLVM's atomicrmw (xchg, add, and, or, xor, max, min, umax, umin), sequentially consistent; gives the old
    value."""
    raise NativeOnly


@_intrinsic
def compare_exchange(type_: type[int], address: int, expected: int, new: int) -> int:
    """Sequentially consistent compare and exchange; gives the old value, ``expected`` when it stored."""
    raise NativeOnly


@_intrinsic
def fence() -> None:
    """A sequentially consistent fence."""
    raise NativeOnly


@_intrinsic
def clz(value: int) -> int:
    """Leading zero bits; the width for zero."""
    raise NativeOnly


@_intrinsic
def ctz(value: int) -> int:
    """Trailing zero bits; the width for zero."""
    raise NativeOnly


@_intrinsic
def popcount(value: int) -> int:
    """Number of one bits."""
    raise NativeOnly


@_intrinsic
def byte_swap(value: int) -> int:
    """The value with its bytes in reverse order."""
    raise NativeOnly


@_intrinsic
def quotient(dividend: int, divisor: int) -> int:
    """The quotient, rounded towards zero, as machines have it. It must have a value: not by 0, nor the least number by
    -1."""
    raise NativeOnly


@_intrinsic
def remainder(dividend: int, divisor: int) -> int:
    """What that quotient leaves, of the dividend's sign. It must have a value, as the quotient."""
    raise NativeOnly


@_intrinsic
def likely(condition: bool) -> bool:
    """Says that the condition nearly always holds."""
    raise NativeOnly


@_intrinsic
def unlikely(condition: bool) -> bool:
    """Says that the condition hardly ever holds."""
    raise NativeOnly


@_intrinsic
def call_host(function: int, *args: int) -> int:
    """Calls the C function at a host address with 64-bit arguments; gives its 64-bit result."""
    raise NativeOnly


@_intrinsic
def float_operation(name: str, width: int, *operands: int) -> int:
    """fadd, fsub, fmul, fdiv, sqrt or fma of the host on the raw bits of binary32 or binary64, rounded to nearest
    even."""
    raise NativeOnly


@_intrinsic
def cpu_relax() -> None:
    """Tells the host that this is a spin loop."""
    raise NativeOnly


@dataclass(frozen=True, eq=False)
class Table:
    """Constant data inside the blob: ``TABLE[i]`` loads element i; no bounds are checked."""

    element: Any
    values: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.element == boolean:
            raise ValueError("a table of boolean: use u8")
        for value in self.values:
            if not self.element.least <= value <= self.element.most:
                raise ValueError(f"a table of {self.element} with {value:#x}")

    def __getitem__(self, index: int) -> int:
        return self.values[index]


@dataclass(frozen=True, eq=False)
class Dispatch:
    """Native functions by number: ``DISPATCH(number, *args)`` calls the one of that number, or ``default``, with
    ``args``."""

    cases: dict[int, Any]
    default: Any

    def __call__(self, number: int, *args: Any) -> Any:
        raise NativeOnly


@dataclass(frozen=True)
class Hook:
    """A name whose meaning the environment of the compilation gives (an interpreter or a translator)."""

    name: str

    def __call__(self, *args: Any) -> NoReturn:
        raise NativeOnly(f"{self.name} has a meaning inside instruction semantics only")


def hook(function: F) -> F:
    """Declares a hook by its Python signature."""
    return cast(F, Hook(function.__name__))
