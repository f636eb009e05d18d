"""A module of native functions (see ``lang``), compiled to LLVM IR text.

Functions are compiled when they are first named: ``frame`` has the statements and expressions, ``builder`` emits,
``source`` reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .builder import Builder
from .frame import Frame
from .intrinsics import INTRINSIC_DECLARATIONS
from .lang import NativeFunction, PtrType, Record, Table, size_of
from .source import signature
from .values import NativeError, Value

__all__ = ["Module", "NativeError"]


@dataclass(slots=True)
class Module:
    """IR text under construction. ``bindings`` has the function that does what a ``provided`` one declares, and for a
    record the one that extends it: wherever the one is named, the other is meant."""

    bindings: Mapping[Any, Any] = field(default_factory=dict)
    functions: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    exports: list[str] = field(default_factory=list)
    _symbols: dict[int, str] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)
    _exported: set[int] = field(default_factory=set)
    _keep: list[Any] = field(default_factory=list)
    _queue: list[NativeFunction] = field(default_factory=list)

    def bound(self, item: Any) -> Any:
        """What a name means here. Raises NativeError for a function that nobody provides."""
        if isinstance(item, PtrType):
            return PtrType(self.bound(item.target))
        if isinstance(item, NativeFunction) and item.provided:
            if item not in self.bindings:
                raise NativeError(f"{item.name} is provided by nobody")
            return self.bindings[item]
        return self.bindings.get(item, item) if isinstance(item, type) and issubclass(item, Record) else item

    def signature(self, item: NativeFunction) -> tuple[list[tuple[str, Any]], Any]:
        """A function's parameters (name, type) and the type of its result, as they are here."""
        parameters, result = signature(item)
        return [(name, self.bound(type_)) for name, type_ in parameters], self.bound(result)

    def check_bindings(self) -> None:
        """Raises NativeError if a function is bound to one of another signature, or a record to one that does not
        extend it."""
        for declared, meant in self.bindings.items():
            if isinstance(declared, NativeFunction):
                wanted, found = self.signature(declared), self.signature(meant)
                if [type_ for _, type_ in wanted[0]] != [type_ for _, type_ in found[0]] or wanted[1] != found[1]:
                    raise NativeError(f"{declared.name}: expected {_shown(wanted)}, got {_shown(found)}")
            elif not issubclass(meant, declared):
                raise NativeError(f"{meant.__name__} does not extend {declared.__name__}")

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
            parameters, result = self.signature(item)
            builder = Builder(self)
            arguments = {name: Value(f"%arg.{name}", type_) for name, type_ in parameters}
            Frame(builder, item, arguments).run()
            head = ", ".join(f"{value.type.ir} {value.ref}" for value in arguments.values())
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


def _shown(signature: tuple[list[tuple[str, Any]], Any]) -> str:
    return f"({', '.join(str(type_) for _, type_ in signature[0])}) -> {signature[1]}"
