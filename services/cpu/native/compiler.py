"""Compiles native functions (see ``lang``) to LLVM IR text.

``Module`` collects functions and tables; ``Builder`` emits one IR function; ``Frame`` is one Python function being
compiled into
it (an inlined one has a frame of its own). Variables are allocas, which LLVM's sroa turns into registers.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from . import lang
from .lang import ArrayType, Dispatch, Hook, Intrinsic, IntType, NativeFunction, PtrType, Record, Table, Type, size_of

BOOLEAN: IntType = lang.boolean  # type: ignore[assignment]
U8: IntType = lang.u8  # type: ignore[assignment]
U32: IntType = lang.u32  # type: ignore[assignment]
U64: IntType = lang.u64  # type: ignore[assignment]
I64: IntType = lang.i64  # type: ignore[assignment]
LIKELY, UNLIKELY = "!0", "!1"


class NativeError(Exception):
    """A native function uses something that the language does not have; names file and line."""


@dataclass(slots=True)
class Value:
    """An SSA value: its name (or constant) in the IR text and its type. ``hint`` is branch weight metadata."""

    ref: str
    type: Any
    hint: str = ""


@dataclass(slots=True)
class Variable:
    """A Python variable: the alloca that holds it."""

    ref: str
    type: Any


@dataclass(frozen=True)
class Lazy:
    """An argument of an inlined function that is computed where it is used."""

    emit: Callable[[], Value]


class Environment(Protocol):
    """Gives hooks and ``raise`` their meaning."""

    def emit(self, builder: Builder, name: str, args: list[Any]) -> Value | None:
        """Emits the hook ``name``; ``trap`` stands for ``raise`` and must end the block."""


@dataclass(slots=True)
class Module:
    """IR text under construction."""

    functions: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    exports: list[str] = field(default_factory=list)
    _symbols: dict[int, str] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)
    _exported: set[int] = field(default_factory=set)
    _keep: list[Any] = field(default_factory=list)
    _queue: list[NativeFunction] = field(default_factory=list)

    def symbol(self, item: Any, prefix: str) -> str:
        """The IR name of a function or table, made on first use."""
        if (known := self._symbols.get(id(item))) is not None:
            return known
        count = self._names.get(prefix, 0)
        self._names[prefix] = count + 1
        name = f"@{prefix}" if count == 0 else f"@{prefix}.{count}"
        self._symbols[id(item)] = name
        self._keep.append(item)
        return name

    def function(self, item: Any) -> str:
        """The IR name of a native function, which is compiled if it has not been yet."""
        known = id(item) in self._symbols
        name = self.symbol(item, item.name)
        if not known:
            self._queue.append(item)
        return name

    def callee(self, builder: Builder, item: Any) -> str:
        """What a call of a native function names."""
        return self.function(item)

    def export(self, item: Any) -> str:
        """Makes a native function a symbol of the blob; gives the symbol."""
        self._exported.add(id(item))
        return self.function(item)[1:]

    def table(self, item: Table) -> str:
        """The IR name of a constant table."""
        known = id(item) in self._symbols
        name = self.symbol(item, "table")
        if not known:
            values = ", ".join(f"{item.element.ir} {value}" for value in item.values)
            shape = f"[{len(item.values)} x {item.element.ir}]"
            self.constants.append(f"{name} = internal constant {shape} [{values}], align {size_of(item.element)}")
        return name

    def compile(self) -> None:
        """Compiles everything that has been asked for so far."""
        while self._queue:
            item = self._queue.pop()
            source = parse(item)
            parameters, result = signature(item)
            builder = Builder(self)
            arguments = [Value(f"%{name}", type_) for name, type_ in parameters]
            Frame(builder, item, source, dict(zip((n for n, _ in parameters), arguments, strict=True)), result).run()
            head = ", ".join(f"{value.type.ir} {value.ref}" for value in arguments)
            linkage = "dso_local" if item.export or id(item) in self._exported else "internal"
            if item.export:
                self.exports.append(item.name)
            result_ir = result.ir if result is not None else "void"
            attributes = "noinline cold #0" if item.cold else "#0"
            name = self._symbols[id(item)]
            self.functions.append(
                f"define {linkage} {result_ir} {name}({head}) {attributes} {{\n{builder.text()}\n}}\n"
            )

    def text(self) -> str:
        """The whole module."""
        self.compile()
        tail = [
            'attributes #0 = { nounwind "no-builtins" "frame-pointer"="none" }',
            '!0 = !{!"branch_weights", i32 2000, i32 1}',
            '!1 = !{!"branch_weights", i32 1, i32 2000}',
        ]
        body = "\n".join([*self.constants, *self.functions])
        declared = [line for name, line in INTRINSIC_DECLARATIONS.items() if name in body]
        return "\n".join([body, *declared, *tail, ""])


_DECLARATIONS = (
    *(
        f"declare i{bits} @llvm.{name}.i{bits}(i{bits}, i1)"
        for name in ("ctlz", "cttz")
        for bits in (8, 16, 32, 64, 128)
    ),
    *(f"declare i{bits} @llvm.ctpop.i{bits}(i{bits})" for bits in (8, 16, 32, 64, 128)),
    *(f"declare {t} @llvm.sqrt.f{b}({t})" for t, b in (("float", 32), ("double", 64))),
    *(f"declare {t} @llvm.fma.f{b}({t}, {t}, {t})" for t, b in (("float", 32), ("double", 64))),
    *(f"declare i{bits} @llvm.bswap.i{bits}(i{bits})" for bits in (16, 32, 64)),
)
#: By what a call of it looks like.
INTRINSIC_DECLARATIONS = {line[line.index("@") : line.index("(") + 1]: line for line in _DECLARATIONS}


class Builder:
    """Emits the body of one IR function."""

    def __init__(self, module: Module, environment: Environment | None = None) -> None:
        self.module = module
        self.environment = environment
        self.terminated = False
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
        limit = 1 << type_.bits
        if not -limit <= number < limit:
            raise NativeError(f"{number:#x} does not fit {type_}")
        if type_.bits == 1:
            return Value("true" if number else "false", type_)
        return Value(str(number & (limit - 1)), type_)

    def coerce(self, item: Any, type_: Any) -> Value:
        """``item`` as a value that must already be of ``type_``, or a literal."""
        if isinstance(item, bool | int) and isinstance(type_, IntType):
            return self.constant(int(item), type_)
        if isinstance(item, Value):
            if item.type == type_:
                return item
            raise NativeError(f"expected {type_}, got {item.type}")
        raise NativeError(f"expected {type_}, got {item!r}")

    def convert(self, item: Any, type_: IntType) -> Value:
        """``type_(item)``."""
        if isinstance(item, bool | int):
            return self.constant(int(item) & ((1 << type_.bits) - 1), type_)
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
        if isinstance(item, bool | int):
            return self.constant(int(bool(item)), BOOLEAN)
        if not isinstance(item, Value):
            raise NativeError(f"{item!r} is not a condition")
        if item.type == BOOLEAN:
            return item
        if isinstance(item.type, PtrType):
            return self.value(BOOLEAN, f"icmp ne ptr {item.ref}, null")
        return self.value(BOOLEAN, f"icmp ne {item.type.ir} {item.ref}, 0")

    def pair(self, left: Any, right: Any) -> tuple[Value, Value]:
        """Two operands of one type."""
        if isinstance(left, Value):
            return left, self.coerce(right, left.type)
        if isinstance(right, Value):
            return self.coerce(left, right.type), right
        raise NativeError("two constants")

    def binary(self, operation: str, left: Any, right: Any) -> Value:
        """An arithmetic operation named by its Python symbol."""
        if operation in ("<<", ">>"):
            if not isinstance(left, Value):
                left = self.constant(left, right.type if right.type.bits == 64 else U64)
            right = self.convert(right, left.type)
            name = "shl" if operation == "<<" else ("ashr" if left.type.signed else "lshr")
            return self.value(left.type, f"{name} {left.type.ir} {left.ref}, {right.ref}")
        a, b = self.pair(left, right)
        if not isinstance(a.type, IntType):
            raise NativeError(f"{operation} of {a.type}")
        name = BINARY[operation]
        if name in ("div", "rem"):
            name = ("s" if a.type.signed else "u") + name
        return self.value(a.type, f"{name} {a.type.ir} {a.ref}, {b.ref}")

    def compare(self, operation: str, left: Any, right: Any) -> Value:
        a, b = self.pair(left, right)
        name = COMPARE[operation]
        if name not in ("eq", "ne"):
            name = ("s" if a.type.signed else "u") + name
        return self.value(BOOLEAN, f"icmp {name} {a.type.ir} {a.ref}, {b.ref}")

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

    def element(self, base: Value, index: Any) -> Value:
        """A pointer to an element of an array."""
        target = base.type.target
        number = (
            self.convert(index, U64) if isinstance(index, int) else self.convert(index, IntType(64, index.type.signed))
        )
        if isinstance(target, IntType):
            return self.value(base.type, f"getelementptr {target.ir}, ptr {base.ref}, i64 {number.ref}")
        scaled = self.value(U64, f"mul i64 {number.ref}, {size_of(target)}")
        return self.value(base.type, f"getelementptr i8, ptr {base.ref}, i64 {scaled.ref}")

    def load(self, pointer: Value) -> Value:
        type_ = pointer.type.target
        return self.value(type_, f"load {type_.ir}, ptr {pointer.ref}")

    def store(self, pointer: Value, item: Any) -> None:
        value = self.coerce(item, pointer.type.target)
        self.line(f"store {value.type.ir} {value.ref}, ptr {pointer.ref}")

    def field(self, base: Value, name: str) -> Value:
        """A pointer to a record's field (to the first element of an array)."""
        record = base.type.target
        if name not in record.fields:
            raise NativeError(f"{record.__name__} has no field {name}")
        offset, type_ = record.fields[name]
        return self.offset(base, offset, type_.element if isinstance(type_, ArrayType) else type_)

    def call(self, function: Any, args: Sequence[Any]) -> Value | None:
        """A call of a native function; inlined if it says so."""
        parameters, result = signature(function)
        if len(args) != len(parameters):
            raise NativeError(f"{function.name} takes {len(parameters)} arguments, got {len(args)}")
        if function.inline:
            bound = {
                name: self.coerce(arg, type_) if isinstance(arg, Value) else arg
                for (name, type_), arg in zip(parameters, args, strict=True)
            }
            return Frame(self, function, parse(function), bound, result, inlined=True).run()
        values = [self.coerce(arg, type_) for (_, type_), arg in zip(parameters, args, strict=True)]
        text = f"{self.module.callee(self, function)}({', '.join(f'{v.type.ir} {v.ref}' for v in values)})"
        if result is None:
            self.line(f"call void {text}")
            return None
        return self.value(result, f"call {result.ir} {text}")

    def dispatch(self, table: Dispatch, number: Any, args: Sequence[Any]) -> Value | None:
        """A switch over the cases of a :class:`Dispatch`."""
        key = self.coerce(number, U64)
        result = signature(table.default)[1]
        variable = self.variable(result) if result is not None else None
        after, default = self.fresh("dispatched"), self.fresh("default")
        labels = {case: self.fresh("case") for case in table.cases}
        cases = " ".join(f"i64 {case}, label %{label}" for case, label in labels.items())
        self.end(f"switch i64 {key.ref}, label %{default} [ {cases} ]")
        for label, function in [(default, table.default), *((labels[c], f) for c, f in table.cases.items())]:
            self.block(label)
            value = self.call(function, args)
            if variable is not None and value is not None:
                self.write(variable, value)
            self.jump(after)
        self.block(after)
        return self.read(variable) if variable is not None else None


BINARY = {"+": "add", "-": "sub", "*": "mul", "/": "div", "//": "div", "%": "rem", "&": "and", "|": "or", "^": "xor"}
COMPARE = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
SYMBOLS: dict[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^", ast.LShift: "<<", ast.RShift: ">>", ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}  # fmt: skip
CONSTANT: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a // b, "//": lambda
    a, b: a // b,
    "%": lambda a, b: a % b, "&": lambda a, b: a & b, "|": lambda a, b: a | b, "^": lambda a, b: a ^ b, "<<": lambda
    a, b: a << b,
    ">>": lambda a, b: a >> b, "==": lambda a, b: a == b, "!=": lambda a, b: a != b, "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
}  # fmt: skip

UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: lambda item: -item,
    ast.Invert: lambda item: ~item,
    ast.Not: lambda item: not item,
}


def symbol_of(op: ast.AST) -> str:
    """The Python symbol of an operator."""
    if type(op) not in SYMBOLS:
        raise NativeError(f"operator {type(op).__name__} is not in the language")
    return SYMBOLS[type(op)]


@cache
def parse(function: NativeFunction) -> ast.FunctionDef:
    """The syntax tree of a native function, with the line numbers of its file."""
    lines, first = inspect.getsourcelines(function.python)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    ast.increment_lineno(tree, first - 1)
    node = tree.body[0]
    assert isinstance(node, ast.FunctionDef)
    return node


@cache
def shape(function: NativeFunction) -> tuple[frozenset[str], bool]:
    """The names that a function assigns to, and whether its only way out is its end: then an inlined call needs no
    variable for the result and no label."""
    source = parse(function)
    nodes = list(ast.walk(source))
    assigned = frozenset(n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    returns = [n for n in nodes if isinstance(n, ast.Return)]
    gives = signature(function)[1] is not None
    return assigned, returns == [source.body[-1]] if gives else not returns


@cache
def scope(function: NativeFunction) -> dict[str, Any]:
    """The names a native function sees from outside: of its module and its closure."""
    python = function.python
    cells = python.__closure__ or ()
    names = dict(vars(builtins))
    names.update(python.__globals__)
    for name, cell in zip(python.__code__.co_freevars, cells, strict=True):
        try:
            names[name] = cell.cell_contents
        except ValueError:
            continue
    return names


@cache
def signature(function: NativeFunction) -> tuple[list[tuple[str, Any]], Any]:
    """The parameters (name, type) and the result's type (None for no result)."""
    names = scope(function)

    def resolve(annotation: Any) -> Any:
        type_ = eval(annotation, names) if isinstance(annotation, str) else annotation
        if type_ is bool:
            return BOOLEAN
        return PtrType(type_) if isinstance(type_, type) and issubclass(type_, Record) else type_

    annotations = dict(function.python.__annotations__)
    result = resolve(annotations.pop("return", None))
    return [(name, resolve(annotation)) for name, annotation in annotations.items()], result


@dataclass(slots=True)
class _Loop:
    after: str
    again: str


class Frame:
    """One Python function being compiled into a builder."""

    def __init__(
        self,
        builder: Builder,
        function: NativeFunction,
        source: ast.FunctionDef,
        arguments: dict[str, Any],
        result: Any,
        inlined: bool = False,
    ) -> None:
        self.builder = builder
        self.function = function
        self.source = source
        self.outer = scope(function)
        self.names: dict[str, Any] = {}
        self.result = result
        self.inlined = inlined
        self.loops: list[_Loop] = []
        self.result_variable: Variable | None = None
        self.end_label = ""
        assigned, self.straight = shape(function)
        self.value: Value | None = None
        for name, argument in arguments.items():
            if name in assigned:
                if not isinstance(argument, Value):
                    argument = builder.coerce(argument, dict(signature(function)[0])[name])
                variable = builder.variable(argument.type)
                builder.write(variable, argument)
                self.names[name] = variable
            else:
                self.names[name] = argument

    def run(self) -> Value | None:
        """Compiles the body; for an inlined function gives its result."""
        if self.inlined and self.straight:
            self.body(self.source.body)
            return self.value
        if self.inlined:
            self.end_label = self.builder.fresh("inlined")
            if self.result is not None:
                self.result_variable = self.builder.variable(self.result)
        self.body(self.source.body)
        if self.inlined:
            if not self.builder.terminated and self.result is not None:
                raise self.error(self.source, f"{self.function.name} may end without a result")
            self.builder.block(self.end_label)
            return self.builder.read(self.result_variable) if self.result_variable is not None else None
        if not self.builder.terminated:
            if self.result is not None:
                raise self.error(self.source, f"{self.function.name} may end without a result")
            self.builder.end("ret void")
        return None

    def error(self, node: ast.AST, message: str) -> NativeError:
        code = self.function.python.__code__
        return NativeError(f"{code.co_filename}:{getattr(node, 'lineno', 0)}: {message}")

    # statements

    def body(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            if self.builder.terminated:
                return
            try:
                self.statement(statement)
            except NativeError as problem:
                if ".py:" in str(problem):
                    raise
                raise self.error(statement, str(problem)) from None

    def statement(self, node: ast.stmt) -> None:
        builder = self.builder
        match node:
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                return
            case ast.Expr(value=value):
                self.expression(value)
            case ast.Assign(targets=[target], value=value):
                self.assign(target, self.expression(value))
            case ast.AnnAssign(target=target, annotation=annotation, value=value) if value is not None:
                type_ = eval(compile(ast.Expression(annotation), "annotation", "eval"), self.outer)
                type_ = PtrType(type_) if isinstance(type_, type) and issubclass(type_, Record) else type_
                self.assign(target, builder.coerce(self.expression(value), type_))
            case ast.AugAssign(target=target, op=op, value=value):
                read = ast.copy_location(self.reading(target), target)
                result = self.operate(symbol_of(op), self.expression(read), self.expression(value))
                self.assign(target, result)
            case ast.Return(value=value):
                self.give(value)
            case ast.If(test=test, body=then, orelse=otherwise):
                self.choose(test, then, otherwise)
            case ast.While(test=test, body=inner):
                again, inside, after = builder.fresh("while"), builder.fresh("do"), builder.fresh("done")
                builder.block(again)
                self.condition(test, inside, after)
                builder.block(inside)
                self.loops.append(_Loop(after, again))
                self.body(inner)
                self.loops.pop()
                if not builder.terminated:
                    builder.jump(again)
                builder.block(after)
                if self.known(test) and not any(isinstance(n, ast.Break) for part in inner for n in ast.walk(part)):
                    builder.end("unreachable")
            case ast.For(target=ast.Name(id=name), iter=ast.Call(func=ast.Name(id="range"), args=args), body=inner):
                self.count(name, [self.expression(arg) for arg in args], inner)
            case ast.Break():
                builder.jump(self.loops[-1].after)
            case ast.Continue():
                builder.jump(self.loops[-1].again)
            case ast.Raise(exc=ast.Call(args=args)):
                self.hook("trap", [self.expression(arg) for arg in args])
                if not builder.terminated:
                    raise NativeError("the environment did not end the block at raise")
            case _:
                raise NativeError(f"statement {type(node).__name__} is not in the language")

    def count(self, name: str, bounds: list[Any], inner: list[ast.stmt]) -> None:
        """``for name in range(...)`` with step 1."""
        builder = self.builder
        start, stop = (0, bounds[0]) if len(bounds) == 1 else (bounds[0], bounds[1])
        if len(bounds) > 2:
            raise NativeError("range takes one or two arguments")
        type_ = next((b.type for b in (start, stop) if isinstance(b, Value)), U64)
        self.assign_name(name, builder.coerce(start, type_))
        variable = self.names[name]
        limit = builder.coerce(stop, type_)
        test, inside, again, after = (builder.fresh(p) for p in ("for", "do", "next", "done"))
        builder.block(test)
        builder.branch(builder.compare("<", builder.read(variable), limit), inside, after)
        builder.block(inside)
        self.loops.append(_Loop(after, again))
        self.body(inner)
        self.loops.pop()
        builder.block(again)
        builder.write(variable, builder.binary("+", builder.read(variable), 1))
        builder.jump(test)
        builder.block(after)

    def choose(self, test: ast.expr, then: list[ast.stmt], otherwise: list[ast.stmt]) -> None:
        builder = self.builder
        known = self.known(test)
        if known is not None:
            self.body(then if known else otherwise)
            return
        yes, after = builder.fresh("then"), builder.fresh("end")
        no = builder.fresh("else") if otherwise else after
        self.condition(test, yes, no)
        builder.block(yes)
        self.body(then)
        ended = builder.terminated
        if otherwise:
            if not ended:
                builder.jump(after)
            builder.terminated = True
            builder.block(no)
            self.body(otherwise)
            ended = ended and builder.terminated
            if ended:
                return
        builder.block(after)

    def known(self, test: ast.expr) -> bool | None:
        """The truth of a test that depends on nothing but constants."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.known(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.BoolOp):
            parts = [self.known(value) for value in test.values]
            decisive = isinstance(test.op, ast.Or)
            if any(part is decisive for part in parts[:1]):
                return decisive
            return None if None in parts else parts[-1]
        names = [n for n in ast.walk(test) if isinstance(n, ast.Name)]
        if any(isinstance(n, ast.Call | ast.Subscript | ast.Attribute) for n in ast.walk(test)):
            return None
        if any(isinstance(self.names.get(n.id), Value | Variable | Lazy) for n in names):
            return None
        item = self.expression(test)
        return None if isinstance(item, Value) else bool(item)

    def condition(self, test: ast.expr, yes: str, no: str) -> None:
        """Branches on a test, short-circuiting."""
        builder = self.builder
        match test:
            case ast.BoolOp(op=ast.And(), values=values):
                for value in values[:-1]:
                    following = builder.fresh("and")
                    self.condition(value, following, no)
                    builder.block(following)
                self.condition(values[-1], yes, no)
            case ast.BoolOp(op=ast.Or(), values=values):
                for value in values[:-1]:
                    following = builder.fresh("or")
                    self.condition(value, yes, following)
                    builder.block(following)
                self.condition(values[-1], yes, no)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self.condition(operand, no, yes)
            case _:
                item = self.expression(test)
                truth = builder.truth(item)
                if isinstance(item, Value):
                    truth.hint = item.hint
                builder.branch(truth, yes, no)

    def give(self, node: ast.expr | None) -> None:
        builder = self.builder
        if (node is None) != (self.result is None):
            raise NativeError("return does not fit the function's annotation")
        if node is None:
            if self.inlined:
                builder.jump(self.end_label)
            else:
                builder.end("ret void")
            return
        value = builder.coerce(self.expression(node), self.result)
        if self.inlined and self.straight:
            self.value = value
            return
        if self.result_variable is not None:
            builder.write(self.result_variable, value)
            builder.jump(self.end_label)
        else:
            builder.end(f"ret {value.type.ir} {value.ref}")

    def assign(self, target: ast.expr, item: Any) -> None:
        builder = self.builder
        match target:
            case ast.Name(id=name):
                self.assign_name(name, item)
            case ast.Attribute(value=base, attr=name):
                builder.store(builder.field(self.expression(base), name), item)
            case ast.Subscript(value=base, slice=index):
                builder.store(builder.element(self.expression(base), self.expression(index)), item)
            case _:
                raise NativeError(f"cannot assign to {type(target).__name__}")

    def assign_name(self, name: str, item: Any) -> None:
        variable = self.names.get(name)
        if variable is None:
            value = (
                item
                if isinstance(item, Value)
                else self.builder.coerce(item, BOOLEAN if isinstance(item, bool) else U64)
            )
            variable = self.names[name] = self.builder.variable(value.type)
        self.builder.write(variable, self.builder.coerce(item, variable.type))

    def reading(self, target: ast.expr) -> ast.expr:
        match target:
            case ast.Name(id=name):
                return ast.Name(id=name, ctx=ast.Load())
            case ast.Attribute(value=value, attr=attr):
                return ast.Attribute(value=value, attr=attr, ctx=ast.Load())
            case ast.Subscript(value=value, slice=index):
                return ast.Subscript(value=value, slice=index, ctx=ast.Load())
        raise NativeError(f"cannot assign to {type(target).__name__}")

    # expressions

    def expression(self, node: ast.expr) -> Any:
        """A Value, or a Python object for what is known when compiling."""
        builder = self.builder
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                item = self.names[name] if name in self.names else self.global_(name)
                if isinstance(item, Lazy):
                    return item.emit()
                return builder.read(item) if isinstance(item, Variable) else item
            case ast.Attribute(value=base, attr=name):
                item = self.expression(base)
                if not isinstance(item, Value):
                    return getattr(item, name)
                record = item.type.target if isinstance(item.type, PtrType) else None
                if not (isinstance(record, type) and issubclass(record, Record)):
                    raise NativeError(f"{item.type} has no fields")
                return self.fetch(builder.field(item, name), record.fields[name][1])
            case ast.Subscript(value=base, slice=index):
                return self.subscript(self.expression(base), self.expression(index))
            case ast.BinOp(left=left, op=op, right=right):
                return self.operate(symbol_of(op), self.expression(left), self.expression(right))
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                a, b = self.expression(left), self.expression(right)
                if not isinstance(a, Value) and not isinstance(b, Value):
                    return CONSTANT[symbol_of(op)](a, b)
                return builder.compare(symbol_of(op), a, b)
            case ast.UnaryOp(op=op, operand=operand):
                return self.unary(op, self.expression(operand))
            case ast.BoolOp() | ast.IfExp():
                return self.conditional(node)
            case ast.Call(func=callee, args=args):
                return self.call(self.expression(callee), args)
        raise NativeError(f"expression {type(node).__name__} is not in the language")

    def global_(self, name: str) -> Any:
        if name not in self.outer:
            raise NativeError(f"unknown name {name}")
        return self.outer[name]

    def fetch(self, pointer: Value, type_: Any) -> Value:
        """Reads a field: records and arrays give their address."""
        if isinstance(type_, ArrayType) or not isinstance(type_, Type):
            return pointer
        return self.builder.load(pointer)

    def subscript(self, base: Any, index: Any) -> Any:
        builder = self.builder
        if isinstance(base, Table):
            if not isinstance(index, Value):
                return base.values[index]
            pointer = Value(builder.module.table(base), PtrType(base.element))
            return builder.load(builder.element(pointer, index))
        if not isinstance(base, Value):
            return base[index]
        return self.fetch(builder.element(base, index), base.type.target)

    def operate(self, operation: str, left: Any, right: Any) -> Any:
        if not isinstance(left, Value) and not isinstance(right, Value):
            return CONSTANT[operation](left, right)
        return self.builder.binary(operation, left, right)

    def unary(self, op: ast.unaryop, item: Any) -> Any:
        builder = self.builder
        if not isinstance(item, Value):
            return UNARY[type(op)](item)
        match op:
            case ast.USub():
                return builder.value(item.type, f"sub {item.type.ir} 0, {item.ref}")
            case ast.Invert():
                return builder.value(item.type, f"xor {item.type.ir} {item.ref}, -1")
            case ast.Not():
                return builder.value(BOOLEAN, f"xor i1 {builder.truth(item).ref}, true")
        raise NativeError(f"operator {type(op).__name__} is not in the language")

    def conditional(self, node: ast.expr) -> Any:
        """``a if c else b``, ``and`` and ``or`` as values."""
        builder = self.builder
        yes, no, after = builder.fresh("yes"), builder.fresh("no"), builder.fresh("join")
        test = node.test if isinstance(node, ast.IfExp) else node
        known = self.known(test)
        if known is not None:
            return known if not isinstance(node, ast.IfExp) else self.expression(node.body if known else node.orelse)
        then = node.body if isinstance(node, ast.IfExp) else ast.Constant(value=True)
        otherwise = node.orelse if isinstance(node, ast.IfExp) else ast.Constant(value=False)
        self.condition(test, yes, no)
        builder.block(yes)
        first = self.expression(then)
        from_yes = builder.fresh("from")
        builder.block(from_yes)
        builder.terminated = True
        builder.block(no)
        second = self.expression(otherwise)
        from_no = builder.fresh("from")
        builder.block(from_no)
        type_ = next((v.type for v in (first, second) if isinstance(v, Value)), None)
        if type_ is None:
            type_ = BOOLEAN if isinstance(first, bool) and isinstance(second, bool) else U64
        a, b = builder.coerce(first, type_), builder.coerce(second, type_)
        builder.jump(after)
        # the first branch was left open: its jump goes where its block began
        index = next(i for i, text in enumerate(builder._lines) if text == f"{from_yes}:")
        builder._lines.insert(index + 1, f"  br label %{after}")
        builder.block(after)
        return builder.value(type_, f"phi {type_.ir} [ {a.ref}, %{from_yes} ], [ {b.ref}, %{from_no} ]")

    def call(self, callee: Any, nodes: list[ast.expr]) -> Any:
        builder = self.builder
        if isinstance(callee, Intrinsic):
            if callee.name == "ref":
                return self.reference(nodes[0])
            return INTRINSICS[callee.name](builder, [self.expression(node) for node in nodes])
        if isinstance(callee, NativeFunction) and callee.inline:
            return builder.call(callee, [self.argument(node) for node in nodes])
        args = [self.expression(node) for node in nodes]
        if isinstance(callee, IntType):
            return builder.convert(args[0], callee)
        if isinstance(callee, Hook):
            return self.hook(callee.name, args)
        if isinstance(callee, NativeFunction):
            return builder.call(callee, args)
        if isinstance(callee, Dispatch):
            return builder.dispatch(callee, args[0], args[1:])
        if callee is getattr:
            return builder.load(builder.field(args[0], args[1]))
        if callee is setattr:
            return builder.store(builder.field(args[0], args[1]), args[2])
        if not any(isinstance(arg, Value) for arg in args) and callable(callee):
            return callee(*args)
        raise NativeError(f"cannot call {callee!r} with values")

    def argument(self, node: ast.expr) -> Any:
        """An argument of an inlined function: what is lazy stays so."""
        item = self.names.get(node.id) if isinstance(node, ast.Name) else None
        return item if isinstance(item, Lazy) else self.expression(node)

    def hook(self, name: str, args: list[Any]) -> Value | None:
        if self.builder.environment is None:
            raise NativeError(f"{name} has no meaning here")
        return self.builder.environment.emit(self.builder, name, args)

    def reference(self, node: ast.expr) -> Value:
        """``ref(...)``: the address of a field or element, or a pointer's value."""
        builder = self.builder
        pointer: Any
        match node:
            case ast.Attribute(value=base, attr=name):
                pointer = builder.field(self.expression(base), name)
            case ast.Subscript(value=base, slice=index):
                pointer = builder.element(self.expression(base), self.expression(index))
            case _:
                pointer = self.expression(node)
        if isinstance(pointer, Table):
            pointer = Value(builder.module.table(pointer), PtrType(pointer.element))
        return builder.convert(pointer, U64)


def _pointer(builder: Builder, address: Any) -> str:
    return builder.pointer(address, U64).ref


def _peek(builder: Builder, args: list[Any], order: str = "") -> Value:
    type_, address = args
    mode = f" {order}, align {type_.size}" if order else ", align 1"
    return builder.value(type_, f"load{' atomic' if order else ''} {type_.ir}, ptr {_pointer(builder, address)}{mode}")


def _poke(builder: Builder, args: list[Any], order: str = "") -> None:
    type_, address, item = args
    value = builder.coerce(item, type_)
    mode = f" {order}, align {type_.size}" if order else ", align 1"
    atomic = " atomic" if order else ""
    builder.line(f"store{atomic} {type_.ir} {value.ref}, ptr {_pointer(builder, address)}{mode}")


def _rmw(builder: Builder, args: list[Any]) -> Value:
    operation, type_, address, item = args
    value = builder.coerce(item, type_)
    return builder.value(
        type_, f"atomicrmw {operation} ptr {_pointer(builder, address)}, {type_.ir} {value.ref} seq_cst"
    )


def _compare_exchange(builder: Builder, args: list[Any]) -> Value:
    type_, address, expected, new = args
    old, value = builder.coerce(expected, type_), builder.coerce(new, type_)
    pair = builder.value(
        type_, f"cmpxchg ptr {_pointer(builder, address)}, {type_.ir} {old.ref}, {type_.ir} {value.ref} seq_cst seq_cst"
    )
    return builder.value(type_, f"extractvalue {{ {type_.ir}, i1 }} {pair.ref}, 0")


def _bits(name: str, flag: str = "") -> Callable[[Builder, list[Any]], Value]:
    def emit(builder: Builder, args: list[Any]) -> Value:
        ir = args[0].type.ir
        return builder.value(args[0].type, f"call {ir} @llvm.{name}.{ir}({ir} {args[0].ref}{flag})")

    return emit


def _hint(weights: str) -> Callable[[Builder, list[Any]], Value]:
    def emit(builder: Builder, args: list[Any]) -> Value:
        return Value(builder.truth(args[0]).ref, BOOLEAN, weights)

    return emit


def _call_host(builder: Builder, args: list[Any]) -> Value:
    function, *rest = args
    values = ", ".join(f"i64 {builder.convert(arg, U64).ref}" for arg in rest)
    return builder.value(U64, f"call i64 {_pointer(builder, function)}({values})")


def _float_operation(builder: Builder, args: list[Any]) -> Value:
    name, width, *operands = args
    type_ = {32: "float", 64: "double"}[width]
    bits: IntType = {32: U32, 64: U64}[width]
    values = []
    for operand in operands:
        raw = builder.convert(builder.coerce(operand, U64), bits)
        values.append(builder.value(bits, f"bitcast {bits.ir} {raw.ref} to {type_}").ref)
    if name in ("sqrt", "fma"):
        given = ", ".join(f"{type_} {value}" for value in values)
        result = builder.value(bits, f"call {type_} @llvm.{name}.f{width}({given})")
    else:
        result = builder.value(bits, f"{name} {type_} {', '.join(values)}")
    return builder.convert(builder.value(bits, f"bitcast {type_} {result.ref} to {bits.ir}"), U64)


INTRINSICS: dict[str, Callable[[Builder, list[Any]], Any]] = {
    "float_operation": _float_operation,
    "peek": _peek,
    "poke": _poke,
    "peek_aligned": lambda b, args: _peek(b, args, "monotonic"),
    "poke_aligned": lambda b, args: _poke(b, args, "monotonic"),
    "at": lambda b, args: b.pointer(args[1], args[0].target if isinstance(args[0], PtrType) else args[0]),
    "atomic_load": lambda b, args: _peek(b, args, "seq_cst"),
    "atomic_store": lambda b, args: _poke(b, args, "seq_cst"),
    "atomic_rmw": _rmw,
    "compare_exchange": _compare_exchange,
    "fence": lambda b, args: b.line("fence seq_cst"),
    "clz": _bits("ctlz", ", i1 false"),
    "ctz": _bits("cttz", ", i1 false"),
    "popcount": _bits("ctpop"),
    "byte_swap": _bits("bswap"),
    "likely": _hint(LIKELY),
    "unlikely": _hint(UNLIKELY),
    "call_host": _call_host,
    "cpu_relax": lambda b, args: b.line('call void asm sideeffect "pause", ""()'),
}
