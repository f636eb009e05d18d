"""What programs of the native language mean in Python: the same source, run by Python with integers that have types.

Only what types add is put in: a value takes the type of the variable, parameter or result that it becomes. All else
(control flow, order, names, operators) is Python's own. Where types do not fit, `Mismatch` is raised: a compiler must
have refused the program.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vmesh_services.cpu.native import lang
from vmesh_services.cpu.native.lang import IntType

STEPS = 100_000  # of loops, after which a program is given up


class Mismatch(Exception):
    """Types that do not fit."""


class NoMeaning(Exception):
    """Something without a meaning in native code, such as a division by 0."""


TYPES: dict[str, IntType] = {
    name: getattr(lang, name) for name in ("u8", "u16", "u32", "u64", "u128", "i8", "i16", "i32", "i64", "i128")
}
U64 = TYPES["u64"]
BOOLEAN: IntType = lang.boolean  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Int:
    """An integer of a type. One that is `soft` came from two literals, and takes the type of what it meets."""

    value: int
    type: IntType
    soft: bool = False

    def _of(self, value: int) -> Int:
        return Int(self.type.wrap(value), self.type)

    def _pair(self, other: Any, wraps: bool) -> tuple[IntType, int, int]:
        if isinstance(other, Int):
            if other.type == self.type:
                return self.type, self.value, other.value
            if self.soft:
                return other.type, self.value, other.value
            if other.soft:
                return self.type, self.value, other.value
            raise Mismatch(f"{self.type} and {other.type}")
        if not isinstance(other, int):
            raise Mismatch(f"{self.type} and {other!r}")
        if not wraps and not self.type.least <= other <= self.type.most:
            raise Mismatch(f"{other} is no {self.type}")
        return self.type, self.value, int(other)

    def _wrapping(self, other: Any, operate: Callable[[int, int], int]) -> Int:
        type_, mine, others = self._pair(other, True)
        return Int(type_.wrap(operate(mine, others)), type_)

    def _exact(self, other: Any, operate: Callable[[int, int], int]) -> Int:
        type_, mine, others = self._pair(other, False)
        return Int(type_.wrap(operate(mine, others)), type_)

    def _compare(self, other: Any, operate: Callable[[int, int], bool]) -> bool:
        _, mine, others = self._pair(other, False)
        return operate(mine, others)

    def __add__(self, other: Any) -> Int:
        return self._wrapping(other, lambda a, b: a + b)

    def __radd__(self, other: Any) -> Int:
        return self._wrapping(other, lambda a, b: b + a)

    def __sub__(self, other: Any) -> Int:
        return self._wrapping(other, lambda a, b: a - b)

    def __rsub__(self, other: Any) -> Int:
        return self._wrapping(other, lambda a, b: b - a)

    def __mul__(self, other: Any) -> Int:
        return self._wrapping(other, lambda a, b: a * b)

    __rmul__ = __mul__

    def __and__(self, other: Any) -> Int:
        return self._wrapping(other, lambda a, b: a & b)

    __rand__ = __and__

    def __or__(self, other: Any) -> Int:
        return self._wrapping(other, lambda a, b: a | b)

    __ror__ = __or__

    def __xor__(self, other: Any) -> Int:
        return self._wrapping(other, lambda a, b: a ^ b)

    __rxor__ = __xor__

    def __floordiv__(self, other: Any) -> Int:
        return self._exact(other, lambda a, b: a // b)

    def __rfloordiv__(self, other: Any) -> Int:
        return self._exact(other, lambda a, b: b // a)

    def __mod__(self, other: Any) -> Int:
        return self._exact(other, lambda a, b: a % b)

    def __rmod__(self, other: Any) -> Int:
        return self._exact(other, lambda a, b: b % a)

    def __lshift__(self, count: Any) -> Int:
        return self._of(0 if int(count) >= self.type.bits else self.value << int(count))

    def __rlshift__(self, left: Any) -> Int:
        return Int(left, self.type if self.type.bits == 64 else U64) << self

    def __rshift__(self, count: Any) -> Int:
        return self._of(self.value >> int(count))

    def __rrshift__(self, left: Any) -> Int:
        return Int(left, self.type if self.type.bits == 64 else U64) >> self

    def __eq__(self, other: object) -> bool:
        return self._compare(other, lambda a, b: a == b)

    def __ne__(self, other: object) -> bool:
        return self._compare(other, lambda a, b: a != b)

    def __lt__(self, other: Any) -> bool:
        return self._compare(other, lambda a, b: a < b)

    def __le__(self, other: Any) -> bool:
        return self._compare(other, lambda a, b: a <= b)

    def __gt__(self, other: Any) -> bool:
        return self._compare(other, lambda a, b: a > b)

    def __ge__(self, other: Any) -> bool:
        return self._compare(other, lambda a, b: a >= b)

    def __neg__(self) -> Int:
        return self._of(-self.value)

    def __pos__(self) -> Int:
        return self

    def __invert__(self) -> Int:
        return self._of(~self.value)

    def __bool__(self) -> bool:
        return self.value != 0

    def __int__(self) -> int:
        return self.value

    __index__ = __int__

    def __hash__(self) -> int:
        return hash(self.value)


def typed(type_: IntType, item: Any) -> Any:
    """A value that becomes something of that type."""
    if type_ == BOOLEAN:
        if item is True or item is False or (type(item) is int and item in (0, 1)):
            return bool(item)
        raise Mismatch(f"boolean and {item!r}")
    if isinstance(item, bool) and item:
        return Int(1, type_)
    if isinstance(item, Int) and item.soft:
        item = item.value
    if isinstance(item, Int):
        if item.type != type_:
            raise Mismatch(f"{type_} and {item.type}")
        return item
    if isinstance(item, int) and type_.least <= item <= type_.most:
        return Int(item, type_)
    raise Mismatch(f"{type_} and {item!r}")


class Conversion:
    """`u32(x)`."""

    def __init__(self, type_: IntType) -> None:
        self.type = type_

    def __call__(self, item: Any) -> Any:
        if self.type == BOOLEAN:
            return typed(BOOLEAN, item)
        return Int(self.type.wrap(int(item)), self.type)


class Table:
    """Elements have the table's type."""

    def __init__(self, element: Conversion, values: tuple[int, ...]) -> None:
        self.element, self.values = element, values

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= int(index) < len(self.values):
            raise NoMeaning("an index beyond the end")
        return typed(self.element.type, self.values[int(index)])


def _division(a: Any, b: Any) -> tuple[IntType, int, int]:
    """Type, dividend and divisor; one of them may be a literal."""
    if isinstance(a, Int):
        type_, dividend, divisor = a._pair(b, False)
    elif isinstance(b, Int):
        type_, divisor, dividend = b._pair(a, False)
    else:
        raise Mismatch(f"{a!r} and {b!r}")
    if divisor == 0:
        raise NoMeaning("a division by 0")
    return type_, dividend, divisor


def _quotient(a: Any, b: Any) -> Int:
    type_, dividend, divisor = _division(a, b)
    result = abs(dividend) // abs(divisor) * (1 if (dividend < 0) == (divisor < 0) else -1)
    if result > type_.most:
        raise NoMeaning("a quotient that does not fit")
    return Int(result, type_)


def _remainder(a: Any, b: Any) -> Int:
    type_, dividend, divisor = _division(a, b)
    return Int(dividend - _quotient(a, b).value * divisor, type_)


def _either(test: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    """`then if test else otherwise`: a literal takes the type of the other one."""
    chosen, other = (then, otherwise) if test else (otherwise, then)
    item = chosen()
    if type(item) is not int or item < 0:
        return item
    with suppress(Exception):
        if isinstance(beside := other(), Int):
            return typed(beside.type, item)
    return Int(item, U64, soft=True)


class Machine:
    """Runs programs, counting the steps of their loops."""

    def __init__(self) -> None:
        self._left = STEPS
        self._dispatches: dict[str, Any] = {}

    def range(self, *bounds: Any) -> Iterator[Any]:
        start, stop = (0, bounds[0]) if len(bounds) == 1 else bounds[:2]
        step = bounds[2] if len(bounds) == 3 else 1
        type_ = next((b.type for b in (start, stop) if isinstance(b, Int)), U64)
        for each in builtins.range(int(start), int(stop), int(step)):
            self.tick()
            yield typed(type_, each)

    def tick(self) -> bool:
        self._left -= 1
        if not self._left:
            raise NoMeaning("too many steps")
        return True

    def scope(self) -> dict[str, Any]:
        """The names of the language."""
        decorator = self.function
        return {
            **{name: Conversion(type_) for name, type_ in TYPES.items()},
            "boolean": Conversion(BOOLEAN),
            "native": decorator,
            "inline": decorator,
            "export": decorator,
            "cold": decorator,
            "Table": Table,
            "quotient": _quotient,
            "remainder": _remainder,
            "likely": bool,
            "unlikely": bool,
            "range": self.range,
            "_typed": lambda kind, item: typed(kind.type, item),
            "_either": _either,
            "_tick": self.tick,
        }

    def function(self, python: Callable[..., Any]) -> Callable[..., Any]:
        """A native function: parameters and result have its types."""
        signature = inspect.signature(python)

        def run(*args: Any, **keywords: Any) -> Any:
            bound = signature.bind(*args, **keywords)
            for name, item in bound.arguments.items():
                bound.arguments[name] = typed(signature.parameters[name].annotation.type, item)
            result = python(*bound.args, **bound.kwargs)
            return typed(signature.return_annotation.type, result)

        return run


class Typing(ast.NodeTransformer):
    """Puts types where a value becomes something: `types` are those of variables, by name."""

    def __init__(self, types: dict[str, str]) -> None:
        self._types = types

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        if names and names[0] in self._types:
            node.value = _call("_typed", ast.Name(self._types[names[0]], ast.Load()), node.value)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.target, ast.Name) or node.target.id not in self._types:
            return node
        value = ast.BinOp(ast.Name(node.target.id, ast.Load()), node.op, node.value)
        kind = ast.Name(self._types[node.target.id], ast.Load())
        return ast.Assign([node.target], _call("_typed", kind, value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        if node.value is not None:
            node.value = _call("_typed", node.annotation, node.value)
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        return _call("_either", node.test, ast.Lambda(nothing, node.body), ast.Lambda(nothing, node.orelse))

    def visit_While(self, node: ast.While) -> ast.AST:
        self.generic_visit(node)
        node.test = ast.BoolOp(ast.And(), [_call("_tick"), node.test])
        return node


def _call(name: str, *args: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(args), [])


def reference(source: str, types: dict[str, str], name: str, inputs: tuple[int, ...]) -> int:
    """What `name` of a program gives for 64-bit inputs. Raises NoMeaning; whatever else is raised, a compiler must have
    refused the program."""
    tree = ast.fix_missing_locations(Typing(types).visit(ast.parse(source)))
    scope = Machine().scope()
    exec(compile(tree, "<reference>", "exec", dont_inherit=True), scope)
    try:
        result = scope[name](*(Int(value, U64) for value in inputs))
    except (ZeroDivisionError, RecursionError) as error:
        raise NoMeaning(str(error)) from None
    except ValueError as error:
        if "negative shift count" not in str(error):
            raise
        raise NoMeaning(str(error)) from None
    return int(result) & (1 << 64) - 1
