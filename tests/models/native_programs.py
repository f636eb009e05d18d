"""Programs in the native language, and in Python that is not in it, made by hypothesis."""

from __future__ import annotations

import itertools
import linecache
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tests.models.native_reference import TYPES, NoMeaning, reference
from vmesh_services.cpu.native import lang
from vmesh_services.cpu.native.blob import Blob
from vmesh_services.cpu.native.build import build
from vmesh_services.cpu.native.compiler import Module, NativeError

HELPERS = """
YES = True
NO = False
FIVE = 5
NEGATIVE = -7
SQUARES = Table(u16, (0, 1, 4, 9, 16, 25, 36, 49))
SIGNED = Table(i32, (-1, -2, 3, 2147483647))

@native
def difference(p: u64, q: u64) -> u64:
    return p - q

@inline
def smaller(p: u64, q: u64) -> u64:
    if p < q:
        return p
    return q

@inline
def counted(p: u8) -> u64:
    p += 200
    total = u64(0)
    for k in range(p & 3):
        total += u64(k) * 3
    return total + u64(p + 100)

@native
def halves(p: i64) -> i64:
    if p > 100:
        return quotient(p, 2)
    return p >> 1
"""
"""What every program may call, of both kinds."""


@dataclass
class _Scope:
    """The names that a program has at a place, by type."""

    draw: st.DrawFn
    names: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)  # of all its variables, ever
    counters: list[str] = field(default_factory=list)  # which are not assigned to
    loops: int = 0
    foreign: bool = False  # something of what may not be in the language is to come


_WIDTHS = ("u8", "u16", "u32", "u64", "u128", "i8", "i16", "i32", "i64", "i128")
_COMPARISONS = ("<", "<=", "==", "!=", ">", ">=")
_NUMBERS = st.one_of(
    st.integers(0, 9), st.sampled_from([63, 64, 127, 128, 255, 256, 65535, 1 << 31, (1 << 32) - 1, (1 << 64) - 1])
)
_FOREIGN_EXPRESSIONS = (
    "(-7 // 2)", "(-7 % 3)", "difference({u64}, q=1)", "difference(q={u64}, p=1)", "u64({u64}, base=3)", "u64()",
    "u64({u64}, {u64})", "(1 < {u64} < 9)", "({u64} and {u64})", "({u64} or {u64})", "(not {u64} or {u64})",
    "({u64} / 2)", "({u64} ** 2)", "+{u64}", "(lambda: {u64})()", "[{u64}, 5][0]", "({u64}, 5)[1]", "({u64} is {u64})",
    "({u64} in (1, 2))", "(fresh := {u64})", "(i64({u64}) // 2)", "(i64({u64}) % 3)", "({u64} == -1)", "({u64} > -1)",
    "({u64} << 70)", "({u64} >> 64)", "SQUARES[i64({u64})]", "SQUARES[-1]", "SQUARES[99]", "SIGNED[2] // 2",
    "(({u64} > 3) + ({u64} > 5))", "(~({u64} > 3))", "(-({u64} > 3))", "(({u64} > 3) << 1)", "(5 and 3)", "(0 or 7)",
    "(1 // 0)", "(u64(1) // 0)", "max({u64}, 3)", "max(FIVE, 3)", "len((1, 2, 3))", "smaller(-1, {u64})",
    "counted(300)", "counted(55)", "difference(-1, 2)", "difference(*({u64}, 1))", "missing", "late", "{u64}.real",
    "(u8({u64}) + 256)", "(u8({u64}) == 256)", "i8(200)", "(i8({u64}) == 200)", "boolean(2)", "boolean(1)",
    "(1 if {u64} else -1)", "u64(-7 // 2)", "u64(i64(-7) // 2)", "(FIVE and NO and YES)", "(YES and NO and YES)",
    "(5 if YES and NO and YES else 6)", "(NO or YES or NO)", "(YES and {u64} > 5)", "(NEGATIVE // 2)",
    "quotient(i64({u64}), -2)", "quotient(i64({u64}), 0)", "likely({u64})", "None", "1.5", "'text'", "...",
)  # fmt: skip
_FOREIGN_STATEMENTS = (
    "x = y = {u64}", "x, y = {u64}, 3", "assert {u64}", "del {name}", "global FIVE", "x: u64", "FIVE += 1", "x = -1",
    "x = 1 << 64", "x = FIVE\nFIVE = 3", "import os", "x = None", "SQUARES[0] = 5", "x = u64(3) if {u64} else None",
    "for x in (1, 2):\n    pass", "for x in range(3):\n    pass\nelse:\n    result += 777",
    "for x in range({u64} & 3):\n    x += 5\n    result += u64(x)", "for x in range({u64} & 3):\n    pass\nresult += x",
    "x = u64(9)\nfor x in range({u64} & 3):\n    pass\nresult += x", "for x in range(6, 3):\n    result += 1",
    "for x in range(0, 9, 2):\n    result += x", "for x in range(-3):\n    result += 1", "for x in range():\n    pass",
    "for x in range({u64} & 7):\n    if x > 2:\n        break\nelse:\n    result = u64(777)",
    "n = {u64} & 7\nfor x in range(n):\n    n = u64(2)\n    result += n",
    "x = u64(3)\nwhile x > 0:\n    x -= 1\nelse:\n    result = u64(777)", "while NO:\n    result += 1\nelse:\n    pass",
    "if {u64} > 5:\n    late = u64(5)\nresult += late",
    "if {u64} > 5:\n    x = u64(5)\nelse:\n    x = u64(6)\nresult += x",
    "if {u64} > 5:\n    x = u64(5)\nelse:\n    x = u8(6)", "if YES:\n    x = u64(5)\nresult += x",
    "if NO:\n    x = u64(5)\nresult += x", "while True:\n    x = u64(7)\n    break\nresult += x",
    "while {u64} > 5:\n    x = u64(7)\n    break\nresult += x",
    "while True:\n    if {u64} > 3:\n        x = u64(1)\n        break\n    y = u64(2)\n    break\nresult += x",
    "try:\n    x = {u64}\nfinally:\n    pass", "with {u64}:\n    pass", "match {u64}:\n    case _:\n        pass",
    "def inner():\n    pass", "class Inner:\n    pass", "yield {u64}", "await {u64}", "return",
    "raise ValueError({u64})",
    "raise", "nonlocal a", "range = 3", "u8 = u64(3)\nresult += u8", "a += difference(a, b)\nresult += a",
    "result += FIVE", "if (x := {u64}) > 3:\n    result += x", "result = result\n", "not_there += 1", "...",
)  # fmt: skip


def _block(text: str, depth: int) -> list[str]:
    return ["    " * depth + line for line in text.splitlines()]


def _leaf(scope: _Scope, type_: str) -> str:
    names = [name for name, kind in scope.names.items() if kind == type_]
    if names and scope.draw(st.integers(0, 3)) > 0:
        return scope.draw(st.sampled_from(names))
    if type_ == "boolean":
        return f"({scope.draw(st.sampled_from(['a', 'b', 'c']))} > {scope.draw(st.integers(0, 9))})"
    if scope.draw(st.booleans()):
        return f"{type_}({scope.draw(st.sampled_from(['a', 'b', 'c']))})"
    number = scope.draw(_NUMBERS)
    return f"{type_}({-number if type_[0] == 'i' and scope.draw(st.booleans()) else number})"


def _literal(scope: _Scope, type_: str) -> str:
    return str(scope.draw(st.integers(1, 100)))


def _expression(scope: _Scope, type_: str, depth: int) -> str:
    draw = scope.draw
    if scope.foreign and type_ == "u64" and not draw(st.integers(0, 3)):
        scope.foreign = False
        text: str = draw(st.sampled_from(_FOREIGN_EXPRESSIONS))
        return _fill(scope, text)
    if depth == 0:
        return _leaf(scope, type_)

    def inner(kind: str = type_) -> str:
        return _expression(scope, kind, depth - 1)

    def count() -> str:
        return f"({inner('u8')} ^ u8(c))"  # not known when compiling

    other = draw(st.sampled_from(_WIDTHS))
    if type_ == "boolean":
        tests: list[Callable[[], str]] = [
            lambda: f"({inner(other)} {draw(st.sampled_from(['<', '<=', '==', '!=', '>', '>=']))} {inner(other)})",
            lambda: f"(not {inner(other)})",
            lambda: f"({inner()} and {inner()})",
            lambda: f"({inner()} or {inner()} or not {inner()})",
            lambda: f"({inner()} {draw(st.sampled_from(['&', '|', '^', '==', '!=']))} {inner()})",
            lambda: f"({inner()} if {inner()} else {inner()})",
        ]
        return draw(st.sampled_from(tests))()
    choices = [
        lambda: f"({inner()} {draw(st.sampled_from(['+', '-', '*', '&', '|', '^']))} {inner()})",
        lambda: f"({inner()} {draw(st.sampled_from(['+', '-', '*', '&', '|', '^']))} {_literal(scope, type_)})",
        lambda: f"({_literal(scope, type_)} {draw(st.sampled_from(['+', '-', '*', '&', '|', '^']))} {inner()})",
        lambda: f"({inner()} & ~{_literal(scope, type_)})",
        lambda: f"({inner()} {draw(st.sampled_from(['<<', '>>']))} {count()})",
        lambda: f"({inner()} {draw(st.sampled_from(['<<', '>>']))} {draw(st.integers(0, 7))})",
        lambda: f"({inner()} >> ({inner('u64')} & 63))",
        lambda: f"{draw(st.sampled_from('-~'))}{inner()}",
        lambda: f"({inner()} if {inner('boolean')} else {inner()})",
        lambda: f"({inner()} if {inner(other)} else {_literal(scope, type_)})",
        lambda: f"{type_}({inner(other)})",
        lambda: f"{type_}({inner('boolean')})",
    ]
    if "128" not in type_:
        choices.append(lambda: f"{draw(st.sampled_from(['quotient', 'remainder']))}({inner()}, {inner()} | 1)")
    if type_ in ("u8", "u16", "u32", "u64"):
        choices += [
            lambda: f"({inner()} {draw(st.sampled_from(['//', '%']))} ({inner()} | 1))",
            lambda: f"({inner()} {draw(st.sampled_from(['//', '%']))} {_literal(scope, type_)})",
        ]
    if type_ == "u64":
        choices += [
            lambda: f"difference({inner()}, {inner()})",
            lambda: f"smaller({inner()}, {inner()})",
            lambda: f"smaller({_literal(scope, type_)}, {inner()})",
            lambda: f"counted({inner('u8')})",
            lambda: "counted(99)",
            lambda: f"(1 << ({inner('u64')} & 63))",
            lambda: f"(1 if {inner('boolean')} else 2)",
        ]
    if type_ == "i64":
        choices.append(lambda: f"halves({inner()})")
    if type_ == "u16":
        choices += [lambda: f"SQUARES[{inner('u64')} & 7]", lambda: f"SQUARES[{draw(st.integers(0, 7))}]"]
    if type_ == "i32":
        choices.append(lambda: f"SIGNED[{inner('u8')} & 3]")
    return draw(st.sampled_from(choices))()


def _fill(scope: _Scope, text: str) -> str:
    while "{u64}" in text:
        text = text.replace("{u64}", _leaf(scope, "u64"), 1)
    return text.replace("{name}", scope.draw(st.sampled_from([*scope.names])))


def _test(scope: _Scope) -> str:
    if not scope.draw(st.integers(0, 5)):
        return scope.draw(st.sampled_from(["YES", "NO", "not NO", "FIVE > 3", "YES and NO", "FIVE", "NO or YES"]))
    return _expression(scope, scope.draw(st.sampled_from(["boolean", "boolean", "u64", "i8"])), 2)


def _statements(scope: _Scope, depth: int, count: int) -> list[str]:
    lines: list[str] = []
    for _ in range(scope.draw(st.integers(1, count))):
        lines += _statement(scope, depth)
    return lines


def _inside(scope: _Scope, depth: int) -> list[str]:
    """A block whose names may have no value behind it."""
    before = dict(scope.names)
    lines = _statements(scope, depth, 3)
    scope.names = before
    return lines


def _statement(scope: _Scope, depth: int) -> list[str]:
    draw = scope.draw
    if scope.foreign and not draw(st.integers(0, 3)):
        scope.foreign = False
        return _block(_fill(scope, draw(st.sampled_from(_FOREIGN_STATEMENTS))), depth)
    kind = draw(st.sampled_from(["set", "set", "new", "new", "add", "if", "for", "while", "leave"]))
    if depth > 3 and kind in ("if", "for", "while"):
        kind = "add"
    pad = "    " * depth
    settable = [name for name in scope.names if name not in scope.counters and name not in "abc"]
    if kind in ("set", "add") and settable:
        name = draw(st.sampled_from(settable))
        type_ = scope.names[name]
        if kind == "set" or type_ == "boolean":
            return [f"{pad}{name} = {_expression(scope, type_, 3)}"]
        operation = draw(st.sampled_from(["+", "-", "*", "&", "|", "^", "<<", ">>"]))
        value = f"u8({_expression(scope, 'u64', 2)} ^ c)" if operation in ("<<", ">>") else _expression(scope, type_, 2)
        return [f"{pad}{name} {operation}= {value}"]
    if kind == "if":
        lines = [f"{pad}if {_test(scope)}:", *_inside(scope, depth + 1)]
        if draw(st.booleans()):
            lines += [f"{pad}elif {_test(scope)}:", *_inside(scope, depth + 1)]
        if draw(st.booleans()):
            lines += [f"{pad}else:", *_inside(scope, depth + 1)]
        return lines
    if kind in ("for", "while"):
        name = f"n{len(scope.types)}"
        before = dict(scope.names)
        scope.counters.append(name)
        scope.loops += 1
        if kind == "for":
            type_ = draw(st.sampled_from(["u64", "u8", "i16"]))
            scope.types[name] = type_
            stop = f"{_expression(scope, type_, 1)} & 7"
            start = draw(st.sampled_from(["", "", "2, ", f"{type_}(a) & 3, "]))
            scope.names[name] = type_
            lines = [f"{pad}for {name} in range({start}{stop}):", *_statements(scope, depth + 1, 3)]
        else:
            first = _expression(scope, "u64", 1)
            scope.types[name] = scope.names[name] = "u64"
            more = f" and {_test(scope)}" if draw(st.booleans()) else ""
            lines = [f"{pad}{name} = u64({first}) & 7", f"{pad}while {name} > 0{more}:"]
            lines += [f"{pad}    {name} -= 1", *_statements(scope, depth + 1, 3)]
        scope.loops -= 1
        scope.names = before
        return lines
    if kind == "leave" and depth > 1:
        if scope.loops and draw(st.booleans()):
            return [f"{pad}{draw(st.sampled_from(['break', 'continue']))}"]
        if not draw(st.integers(0, 3)):
            return [f"{pad}return {_expression(scope, 'u64', 2)}"]
    name, type_ = f"v{len(scope.types)}", draw(st.sampled_from([*_WIDTHS, "boolean"]))
    value = _expression(scope, type_, 3)
    annotated = f"{name}: {type_}" if draw(st.booleans()) else name
    if type_ == "u64" and draw(st.booleans()):
        value = _literal(scope, type_)
    scope.types[name] = type_
    scope.names[name] = type_
    return [f"{pad}{annotated} = {value}"]


@dataclass(frozen=True)
class Program:
    """The source of a function `main` of three 64-bit numbers, beside HELPERS, and the types of its variables."""

    source: str
    types: dict[str, str]
    foreign: bool


def whole(body: list[str], scope_types: dict[str, str]) -> tuple[str, dict[str, str]]:
    """The source of `main` with this body, and the types of all variables."""
    lines = ["@export", "def main(a: u64, b: u64, c: u64) -> u64:", "    result = u64(1)", *body]
    types = {**scope_types, "result": "u64", "total": "u64"}
    types |= dict.fromkeys(("x", "y", "n", "late", "fresh", "i"), "u64")
    return "\n".join([*lines, "    return result", ""]), types


def foreign() -> dict[str, Program]:
    """Each piece of Python that the language may not have in a program of its own, by its text."""
    made = {text: f"result += u64({text})" for text in _FOREIGN_EXPRESSIONS}
    made |= {f"if {text}": f"if {text}:\n    result += 5" for text in _FOREIGN_EXPRESSIONS}
    made |= {text: text for text in _FOREIGN_STATEMENTS}
    found = {}
    for text, statement in made.items():
        filled = statement.replace("{u64}", "b").replace("{name}", "c")
        found[text] = Program(*whole(_block(filled, 1), {}), True)
        found[f"never {text}"] = Program(*whole(["    if NO:", *_block(filled, 2)], {}), True)
    return found


@st.composite
def programs(draw: st.DrawFn, other: bool) -> Program:
    """With `other`, there is a piece of Python in it that the language may not have."""
    scope = _Scope(draw, {"a": "u64", "b": "u64", "c": "u64"}, foreign=other)
    scope.names["result"] = scope.types["result"] = "u64"
    body = _statements(scope, 1, 6)
    seen = [f"    result ^= {'u64(' + name + ')' if kind != 'u64' else name}" for name, kind in scope.names.items()]
    return Program(*whole([*body, *seen], scope.types), other)


assert set(_WIDTHS) == set(TYPES)

INPUTS = (
    (0, 0, 0),
    (1, 2, 3),
    (5, 64, 9),
    (255, 256, 65535),
    ((1 << 64) - 1, 1 << 63, (1 << 63) - 1),
    (0x1234_5678_9ABC_DEF0, 7, (1 << 64) - 8),
)
_numbers = itertools.count()
_MAY_BE_REFUSED = re.compile(r"(//|%|<<|>>|div|rem) by ")  # what is known to have no value, or next to none


def names() -> dict[str, Any]:
    """The names of the language."""
    return {name: getattr(lang, name) for name in dir(lang) if not name.startswith("_")}


def compiled(source: str) -> Any:
    """`main` of a program as native code. Raises NativeError."""
    file = f"<native program {next(_numbers)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    try:
        scope = {**names(), "range": range}
        exec(compile(source, file, "exec", dont_inherit=True), scope)
        module = Module()
        module.function(scope["main"])
        code = build(module.text())
    except NativeError as error:
        if not re.match(rf"{file}:[1-9][0-9]*: .", str(error)):
            raise AssertionError(f"no file and line: {error}") from None
        raise
    finally:
        del linecache.cache[file]
    blob = Blob(code.image, code.symbols)
    main = blob.function("main", 3)
    return lambda *inputs: (blob, main(*inputs))[1]


def check(program: Program, inputs: tuple[tuple[int, int, int], ...] = INPUTS) -> str:
    """Python's and the compiler's results are equal, or the compiler refuses the program; says which."""
    source = HELPERS + program.source
    try:
        main = compiled(source)
    except SyntaxError:
        assert program.foreign
        return "no Python"
    except NativeError as error:
        if not program.foreign and not _MAY_BE_REFUSED.search(str(error)):
            raise AssertionError(f"{error}\n{program.source}") from None
        return "refused"
    outcome = "no meaning"
    for each in inputs:
        try:
            expected = reference(source, program.types, "main", each)
        except NoMeaning:
            continue
        except Exception as error:
            raise AssertionError(
                f"main{each}: {type(error).__name__}: {error}, and compiled\n{program.source}"
            ) from error
        assert main(*each) == expected, f"main{each}: {main(*each)}, Python {expected}\n{program.source}"
        outcome = "equal"
    return outcome
