"""A native function's source: its syntax tree, the names it sees, its parameters."""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from functools import cache
from typing import Any

from .lang import NativeFunction, PtrType, Record, Type
from .values import BOOLEAN, NativeError


def place_of(function: NativeFunction, line: int) -> str:
    """File and line, for people."""
    return f"{function.python.__code__.co_filename}:{line}"


@cache
def parse(function: NativeFunction) -> ast.FunctionDef:
    """The syntax tree of a native function, with the line numbers of its file. Raises NativeError."""
    lines, first = inspect.getsourcelines(function.python)
    place = place_of(function, first)
    try:
        node = ast.parse(textwrap.dedent("".join(lines))).body[0]
    except SyntaxError:
        raise NativeError("a native function is a def of its own", place) from None
    ast.increment_lineno(node, first - 1)
    if not isinstance(node, ast.FunctionDef):
        raise NativeError("a native function is a plain def", place)
    for each in ast.walk(node):  # wherever they are, they decide what a name is, or what a call gives
        if isinstance(each, ast.Global | ast.Nonlocal | ast.Import | ast.ImportFrom | ast.Yield | ast.YieldFrom):
            raise NativeError(f"{type(each).__name__} is not in the language", place_of(function, each.lineno))
    given = node.args
    if given.vararg or given.kwarg or given.kwonlyargs or given.defaults:
        raise NativeError(f"{node.name} has other parameters than positional ones without a default", place)
    missing = [each.arg for each in (*given.posonlyargs, *given.args) if each.annotation is None]
    if missing:
        raise NativeError(f"{node.name}: parameter {missing[0]} has no type", place)
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


def resolve(annotation: Any, names: dict[str, Any]) -> Any:
    """The type that an annotation (or its source) names: a Record's is the pointer to one."""
    type_ = eval(annotation, names) if isinstance(annotation, str) else annotation
    if type_ is bool:
        return BOOLEAN
    return PtrType(type_) if isinstance(type_, type) and issubclass(type_, Record) else type_


@cache
def signature(function: NativeFunction) -> tuple[list[tuple[str, Any]], Any]:
    """The parameters (name, type) and the result's type (None for no result). Only an inlined function may have
    parameters of other types than native ones: what is known when compiling. Raises NativeError."""
    node, names = parse(function), scope(function)
    place = place_of(function, node.lineno)
    try:
        annotations = {name: resolve(annotation, names) for name, annotation in function.python.__annotations__.items()}
    except Exception as problem:
        raise NativeError(f"{function.name}: {problem}", place) from None
    result = annotations.pop("return", None)
    for name, type_ in [*annotations.items(), ("its result", result or BOOLEAN)]:
        if not isinstance(type_, Type) and not (function.inline and name != "its result"):
            raise NativeError(f"{function.name}: {name} has no native type, but {type_}", place)
    return list(annotations.items()), result
