"""Compiles the statements and expressions of native functions (see ``lang``) into a builder.

Only what has a case here is in the language: all else is refused, and so is what would mean another thing than in
Python. A test that is known when compiling keeps only the branch that is taken.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .builder import PYTHON, Builder
from .intrinsics import INTRINSICS
from .lang import ArrayType, Dispatch, Hook, Intrinsic, IntType, NativeException, NativeFunction, PtrType, Table, Type
from .source import parse, place_of, resolve, scope, shape
from .values import BOOLEAN, U64, Lazy, NativeError, Value, Variable, is_known, plain

_SYMBOLS: dict[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.LShift: "<<",
    ast.RShift: ">>",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}


def _symbol_of(op: ast.AST) -> str:
    """The Python symbol of an operator."""
    if type(op) not in _SYMBOLS:
        raise NativeError(f"operator {type(op).__name__} is not in the language")
    return _SYMBOLS[type(op)]


def call(builder: Builder, function: Any, args: Sequence[Any]) -> Value | None:
    """A call of a native function; compiled into the caller if it says so."""
    parameters, result = builder.module.signature(function)
    if len(args) != len(parameters):
        raise NativeError(f"{function.name} takes {len(parameters)} arguments, got {len(args)}")
    if function.inline:
        if function in builder.inlining:
            raise NativeError(f"{function.name} is compiled into itself")
        bound = {name: arg for (name, _), arg in zip(parameters, args, strict=True)}
        builder.inlining.append(function)
        try:
            return Frame(builder, function, bound, inlined=True).run()
        finally:
            builder.inlining.pop()
    values = [builder.coerce(arg, type_) for (_, type_), arg in zip(parameters, args, strict=True)]
    text = f"{builder.module.callee(builder, function)}({', '.join(f'{v.type.ir} {v.ref}' for v in values)})"
    if result is None:
        builder.line(f"call void {text}")
        return None
    return builder.value(result, f"call {result.ir} {text}")


def dispatch(builder: Builder, table: Dispatch, number: Any, args: Sequence[Any]) -> Value | None:
    """A switch over the cases of a :class:`Dispatch`."""
    key = builder.coerce(number, U64)
    result = builder.module.signature(table.default)[1]
    variable = builder.variable(result) if result is not None else None
    after, default = builder.fresh("dispatched"), builder.fresh("default")
    labels = {case: builder.fresh("case") for case in table.cases}
    cases = " ".join(f"i64 {case}, label %{label}" for case, label in labels.items())
    builder.end(f"switch i64 {key.ref}, label %{default} [ {cases} ]")
    for label, function in [(default, table.default), *((labels[c], f) for c, f in table.cases.items())]:
        builder.block(label)
        value = call(builder, function, args)
        if builder.module.signature(function)[1] != result:
            raise NativeError(f"{function.name} gives another type than {table.default.name}")
        if variable is not None and value is not None:
            builder.write(variable, value)
        builder.jump(after)
    builder.block(after)
    return builder.read(variable) if variable is not None else None


@dataclass(slots=True)
class _Loop:
    """Where ``break`` and ``continue`` go, and which names have a value at each ``break``."""

    after: str
    again: str
    at_breaks: list[frozenset[str]] = field(default_factory=list)


class Frame:
    """One Python function being compiled into a builder (an inlined one has a frame of its own)."""

    def __init__(
        self, builder: Builder, function: NativeFunction, arguments: dict[str, Any], inlined: bool = False
    ) -> None:
        self.builder = builder
        self.function = function
        self.source = parse(function)
        self.outer = scope(function)
        parameters, self.result = builder.module.signature(function)
        self.inlined = inlined
        self.loops: list[_Loop] = []
        self.result_variable: Variable | None = None
        self.end_label = ""
        self.local, self.straight = shape(function)
        self.value: Value | None = None
        types = dict(parameters)
        self.names: dict[str, Any] = {
            name: item
            if isinstance(item, Lazy) or (not isinstance(item, Value) and not isinstance(types[name], Type))
            else builder.coerce(item, types[name])
            for name, item in arguments.items()
        }
        self.assigned = frozenset(arguments)  # the local names that have a value here, whichever way led here
        for name in sorted(self.local & self.assigned):
            argument = builder.coerce(self.names[name], types[name])
            self.names[name] = builder.variable(argument.type)
            builder.write(self.names[name], argument)

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
        if not self.builder.terminated and self.result is not None:
            raise self.error(self.source, f"{self.function.name} may end without a result")
        if self.inlined:
            self.builder.block(self.end_label)
            return self.builder.read(self.result_variable) if self.result_variable is not None else None
        if not self.builder.terminated:
            self.builder.end("ret void")
        return None

    def error(self, node: ast.AST, message: str) -> NativeError:
        return NativeError(message, place_of(self.function, getattr(node, "lineno", 0)))

    # statements

    def body(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            if self.builder.terminated:
                return
            try:
                self.statement(statement)
            except NativeError as problem:
                if problem.placed:
                    raise
                raise self.error(statement, str(problem)) from None
            except Exception as problem:  # of what is computed when compiling
                raise self.error(statement, f"{type(problem).__name__}: {problem}") from problem

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
                type_ = builder.module.bound(resolve(ast.unparse(annotation), self.outer))
                if not isinstance(type_, Type):
                    raise NativeError(f"{ast.unparse(annotation)} is no native type")
                self.assign(target, builder.coerce(self.expression(value), type_))
            case ast.AugAssign(target=target, op=op, value=value):
                place = self.place(target)
                before = builder.read(place) if isinstance(place, Variable) else builder.load(place)
                self.put(place, self.operate(_symbol_of(op), before, self.expression(value)))
            case ast.Return(value=value):
                self.give(value)
            case ast.If(test=test, body=then, orelse=otherwise):
                self.choose(test, then, otherwise)
            case ast.While(test=test, body=inner, orelse=[]):
                self.repeat(test, inner)
            case ast.For(
                target=ast.Name(id=name),
                iter=ast.Call(func=ast.Name() as iterated, args=args, keywords=[]),
                body=inner,
                orelse=[],
            ) if self.expression(iterated) is range:
                self.count(name, [self.expression(arg) for arg in args], inner)
            case ast.While() | ast.For(orelse=[_, *_]):
                raise NativeError("else of a loop is not in the language")
            case ast.For():
                raise NativeError("for is in the language with one name and range(...) only")
            case ast.Break():
                self.loops[-1].at_breaks.append(self.assigned)
                builder.jump(self.loops[-1].after)
            case ast.Continue():
                builder.jump(self.loops[-1].again)
            case ast.Raise(exc=ast.Call(func=raised, args=args, keywords=[]), cause=None):
                kind = self.expression(raised)
                if not isinstance(kind, type) or not issubclass(kind, NativeException):
                    raise NativeError(f"raise of {ast.unparse(raised)} is not in the language")
                self.hook("trap", [self.expression(arg) for arg in args])
                if not builder.terminated:
                    raise NativeError("the environment did not end the block at raise")
            case _:
                raise NativeError(f"statement {type(node).__name__} is not in the language")

    def repeat(self, test: ast.expr, inner: list[ast.stmt]) -> None:
        """``while``."""
        builder = self.builder
        again, inside, after = builder.fresh("while"), builder.fresh("do"), builder.fresh("done")
        builder.block(again)
        endless = self.known(test)
        before = self.assigned
        self.condition(test, inside, after)
        builder.block(inside)
        loop = self.loop(inner, after, again)
        if not builder.terminated:
            builder.jump(again)
        builder.block(after)
        self.assigned = frozenset.intersection(*loop.at_breaks) if endless and loop.at_breaks else before
        if endless and not loop.at_breaks:
            builder.end("unreachable")

    def count(self, name: str, bounds: list[Any], inner: list[ast.stmt]) -> None:
        """``for name in range(...)`` with step 1. The name is a variable beside the counter: the body may assign to it,
        and it keeps its last value, as in Python."""
        builder = self.builder
        if not 1 <= len(bounds) <= 2:
            raise NativeError("range takes one or two arguments")
        start, stop = (0, bounds[0]) if len(bounds) == 1 else (bounds[0], bounds[1])
        type_ = next((b.type for b in (start, stop) if isinstance(b, Value)), U64)
        if not isinstance(type_, IntType) or type_ == BOOLEAN:
            raise NativeError(f"range of {type_}")
        counter = builder.variable(type_)
        builder.write(counter, builder.coerce(start, type_))
        limit = builder.coerce(stop, type_)
        test, inside, again, after = (builder.fresh(p) for p in ("for", "do", "next", "done"))
        builder.block(test)
        current = builder.read(counter)
        builder.branch(builder.compare("<", current, limit), inside, after)
        builder.block(inside)
        before = self.assigned
        self.put(self.variable(name, type_), current)
        self.loop(inner, after, again)
        builder.block(again)
        builder.write(counter, builder.binary("+", current, 1))
        builder.jump(test)
        builder.block(after)
        self.assigned = before  # it may not have run once

    def loop(self, inner: list[ast.stmt], after: str, again: str) -> _Loop:
        """The body of a loop."""
        loop = _Loop(after, again)
        self.loops.append(loop)
        self.builder.branches += 1
        self.body(inner)
        self.builder.branches -= 1
        self.loops.pop()
        return loop

    def choose(self, test: ast.expr, then: list[ast.stmt], otherwise: list[ast.stmt]) -> None:
        """``if``."""
        builder = self.builder
        known = self.known(test)
        if known is not None:
            self.body(then if known else otherwise)
            return
        yes, after = builder.fresh("then"), builder.fresh("end")
        no = builder.fresh("else") if otherwise else after
        self.condition(test, yes, no)
        before = self.assigned
        builder.branches += 1
        builder.block(yes)
        self.body(then)
        ended, first = builder.terminated, self.assigned
        self.assigned = before
        if otherwise:
            if not ended:
                builder.jump(after)
            builder.terminated = True
            builder.block(no)
            self.body(otherwise)
            if builder.terminated:
                self.assigned = first
            elif not ended:
                self.assigned &= first
        builder.branches -= 1
        if not (otherwise and ended and builder.terminated):
            builder.block(after)

    def known(self, test: ast.expr) -> bool | None:
        """The truth of a test that depends on nothing but what is known when compiling."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.known(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.BoolOp):
            decisive = isinstance(test.op, ast.Or)
            for value in test.values:
                part = self.known(value)
                if part is None or part is decisive:
                    return part
            return not decisive
        if any(isinstance(n, ast.Call | ast.Subscript | ast.Attribute) for n in ast.walk(test)):
            return None
        names = [self.names.get(n.id) for n in ast.walk(test) if isinstance(n, ast.Name)]
        if any(isinstance(item, Variable | Lazy) or not is_known(item) for item in names):
            return None
        item = self.expression(test)
        return bool(plain(item)) if is_known(item) else None

    def condition(self, test: ast.expr, yes: str, no: str, exact: bool = False) -> None:
        """Branches on a test, short-circuiting. With ``exact``, where the value of ``and`` and ``or`` is wanted, what
        they are of must be boolean: Python's would give one of the operands."""
        builder = self.builder
        match test:
            case ast.BoolOp(op=op, values=values):
                conjunction = isinstance(op, ast.And)
                for value in values[:-1]:
                    following = builder.fresh("and" if conjunction else "or")
                    self.condition(value, following if conjunction else yes, no if conjunction else following, exact)
                    builder.block(following)
                self.condition(values[-1], yes, no, exact)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self.condition(operand, no, yes)
            case _:
                item = self.expression(test)
                if exact and not isinstance(item, bool) and not (isinstance(item, Value) and item.type == BOOLEAN):
                    got = item.type if isinstance(item, Value) else repr(item)
                    raise NativeError(f"and and or give a value of boolean operands only, got {got}")
                truth = builder.truth(item)
                hint = item.hint if isinstance(item, Value) else ""
                builder.branch(Value(truth.ref, BOOLEAN, hint), yes, no)

    def give(self, node: ast.expr | None) -> None:
        builder = self.builder
        if self.result is None and isinstance(node, ast.Constant) and node.value is None:
            node = None
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
        if not isinstance(target, ast.Name):
            self.put(self.place(target), item)
            return
        variable = self.names.get(target.id)
        if variable is None:
            kind = item.type if isinstance(item, Value) else BOOLEAN if isinstance(item, bool) else U64
            self.builder.coerce(item, kind)
            variable = self.variable(target.id, kind)
        self.put(variable, item)
        self.assigned |= {target.id}

    def variable(self, name: str, type_: Any) -> Variable:
        """The variable of a name that gets a value now; of that type, if this is the first one."""
        if name not in self.names:
            self.names[name] = self.builder.variable(type_)
        self.assigned |= {name}
        found: Variable = self.names[name]
        return found

    def place(self, target: ast.expr) -> Variable | Value:
        """Where a target is that has a value: its variable, or a pointer."""
        match target:
            case ast.Name(id=name):
                self.check_assigned(name)
                found: Variable = self.names[name]
                return found
            case ast.Attribute(value=base, attr=name):
                return self.field(self.expression(base), name)
            case ast.Subscript(value=base, slice=index):
                return self.builder.element(self.expression(base), self.expression(index))
        raise NativeError(f"cannot assign to {type(target).__name__}")

    def field(self, base: Any, name: str) -> Value:
        """A pointer to a field that can be assigned to."""
        if isinstance(self.builder.field_of(base, name)[1], ArrayType):
            raise NativeError(f"{name} is an array: assign to its elements")
        return self.builder.field(base, name)

    def put(self, place: Variable | Value, item: Any) -> None:
        if isinstance(place, Variable):
            self.builder.write(place, self.builder.coerce(item, place.type))
        else:
            self.builder.store(place, item)

    def check_assigned(self, name: str) -> None:
        if name in self.local and name not in self.assigned:
            raise NativeError(f"{name} may have no value here")

    # expressions

    def expression(self, node: ast.expr) -> Any:
        """A Value, or a Python object for what is known when compiling."""
        builder = self.builder
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                self.check_assigned(name)
                item = self.names[name] if name in self.names else self.global_(name)
                if isinstance(item, Lazy):
                    return item.emit()
                return builder.read(item) if isinstance(item, Variable) else item
            case ast.Attribute(value=base, attr=name):
                item = self.expression(base)
                return self.fetch(item, name) if isinstance(item, Value) else getattr(item, name)
            case ast.Subscript(value=base, slice=index):
                return self.subscript(self.expression(base), self.expression(index))
            case ast.BinOp(left=left, op=op, right=right):
                return self.operate(_symbol_of(op), self.expression(left), self.expression(right))
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                a, b = self.expression(left), self.expression(right)
                if not isinstance(a, Value) and not isinstance(b, Value):
                    return PYTHON[_symbol_of(op)](a, b)
                return builder.compare(_symbol_of(op), a, b)
            case ast.UnaryOp(op=op, operand=operand):
                return self.unary(op, self.expression(operand))
            case ast.BoolOp() | ast.IfExp():
                return self.conditional(node)
            case ast.Call(func=callee, args=args, keywords=[]):
                return self.call(self.expression(callee), args)
            case ast.Call():
                raise NativeError("arguments by keyword are not in the language")
        raise NativeError(f"expression {type(node).__name__} is not in the language")

    def global_(self, name: str) -> Any:
        if name not in self.outer:
            raise NativeError(f"unknown name {name}")
        return self.builder.module.bound(self.outer[name])

    def fetch(self, base: Any, name: str) -> Value:
        """Reads a record's field: records and arrays give their address."""
        type_ = self.builder.field_of(base, name)[1]
        pointer = self.builder.field(base, name)
        return self.builder.load(pointer) if isinstance(type_, IntType | PtrType) else pointer

    def subscript(self, base: Any, index: Any) -> Any:
        builder = self.builder
        if isinstance(base, Table):
            if is_known(index):
                return builder.constant(base.values[plain(index)], base.element)
            return builder.table(base, index)
        if not isinstance(base, Value):
            return base[plain(index)] if is_known(index) else builder.element(base, index)
        pointer = builder.element(base, index)
        return builder.load(pointer) if isinstance(base.type.target, Type) else pointer

    def operate(self, operation: str, left: Any, right: Any) -> Any:
        if not isinstance(left, Value) and not isinstance(right, Value):
            return PYTHON[operation](left, right)
        return self.builder.binary(operation, left, right)

    def unary(self, op: ast.unaryop, item: Any) -> Any:
        builder = self.builder
        match op:
            case ast.Not():
                return builder.opposite(item) if isinstance(item, Value) else not item
            case ast.USub():
                return builder.negative(item) if isinstance(item, Value) else -item
            case ast.Invert():
                return builder.inverted(item) if isinstance(item, Value) else ~item
        raise NativeError(f"operator {type(op).__name__} is not in the language")

    def conditional(self, node: ast.BoolOp | ast.IfExp) -> Any:
        """``a if c else b``, ``and`` and ``or`` as values."""
        builder = self.builder
        if isinstance(node, ast.IfExp):
            known = self.known(node.test)
            if known is not None:
                return self.expression(node.body if known else node.orelse)
            test, then, otherwise = node.test, node.body, node.orelse
        else:
            if (decided := self.decided(node)) is not None:
                return self.expression(decided)
            test, then, otherwise = node, ast.Constant(value=True), ast.Constant(value=False)
        yes, no, after = builder.fresh("yes"), builder.fresh("no"), builder.fresh("join")
        self.condition(test, yes, no, exact=isinstance(node, ast.BoolOp))
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
        builder.insert_jump(from_yes, after)
        builder.block(after)
        return builder.value(type_, f"phi {type_.ir} [ {a.ref}, %{from_yes} ], [ {b.ref}, %{from_no} ]")

    def decided(self, node: ast.BoolOp) -> ast.expr | None:
        """The operand that is the value of ``and`` or ``or``, if it is known which one."""
        decisive = isinstance(node.op, ast.Or)
        for value in node.values[:-1]:
            known = self.known(value)
            if known is None:
                return None
            if known is decisive:
                return value
        return node.values[-1]

    def call(self, callee: Any, nodes: list[ast.expr]) -> Any:
        builder = self.builder
        if isinstance(callee, NativeFunction) and callee.inline:
            return call(builder, callee, [self.argument(node) for node in nodes])
        if isinstance(callee, Intrinsic):
            if len(nodes) < callee.least or (callee.most is not None and len(nodes) > callee.most):
                raise NativeError(f"{callee.name} takes {callee.least} arguments, got {len(nodes)}")
            if callee.name == "ref":
                return self.reference(nodes[0])
            return INTRINSICS[callee.name](builder, [self.expression(node) for node in nodes])
        args = [self.expression(node) for node in nodes]
        if isinstance(callee, IntType):
            if len(args) != 1:
                raise NativeError(f"{callee} takes 1 argument, got {len(args)}")
            return builder.convert(args[0], callee)
        if isinstance(callee, Hook):
            return self.hook(callee.name, args)
        if isinstance(callee, NativeFunction):
            return call(builder, callee, args)
        if isinstance(callee, Dispatch):
            return dispatch(builder, callee, args[0], args[1:])
        if callee is getattr and len(args) == 2 and isinstance(args[0], Value):
            return self.fetch(args[0], args[1])
        if callee is setattr and len(args) == 3 and isinstance(args[0], Value):
            return self.put(self.field(args[0], args[1]), args[2])
        if callable(callee) and all(is_known(arg) for arg in args):
            return callee(*map(plain, args))
        raise NativeError(f"cannot call {callee!r:.80} with values")

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
        if not isinstance(pointer, Value) or not isinstance(pointer.type, PtrType):
            raise NativeError(f"{ast.unparse(node)} has no address")
        return builder.convert(pointer, U64)
