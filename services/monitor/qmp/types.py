"""How the schema describes commands: QAPI's kinds of types (QEMU, docs/devel/qapi-code-gen.rst) as plain records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Builtin:
    """`json` is what JSON calls it (SchemaInfo's JSONType); integers have `low` and `high`, both included."""

    name: str
    json: str
    low: int = 0
    high: int = 0


STR = Builtin("str", "string")
BOOL = Builtin("bool", "boolean")
NUMBER = Builtin("number", "number")
ANY = Builtin("any", "value")
INT = Builtin("int", "int", -(1 << 63), (1 << 63) - 1)
UINT8 = Builtin("uint8", "int", 0, (1 << 8) - 1)
UINT16 = Builtin("uint16", "int", 0, (1 << 16) - 1)
UINT32 = Builtin("uint32", "int", 0, (1 << 32) - 1)
UINT64 = Builtin("uint64", "int", 0, (1 << 64) - 1)
SIZE = Builtin("size", "int", 0, (1 << 64) - 1)


@dataclass(frozen=True, slots=True)
class Enum:
    name: str
    values: tuple[str, ...]
    doc: str = ""


@dataclass(frozen=True, slots=True)
class Array:
    element: Type


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    type: Type
    doc: str = ""
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Struct:
    """An object. With `tag`, the member of that name selects one of `variants`, whose members are added.

    `open` objects may have members that are not described (device_add takes the device's properties so).
    """

    name: str
    members: tuple[Member, ...] = ()
    doc: str = ""
    tag: str = ""
    variants: Mapping[str, Struct] = field(default_factory=dict)
    open: bool = False


@dataclass(frozen=True, slots=True)
class Alternate:
    """One of several types, told apart by JSON's kind."""

    name: str
    types: tuple[Type, ...]
    doc: str = ""


Type = Builtin | Enum | Array | Struct | Alternate


@dataclass(frozen=True, slots=True)
class Command:
    """`arguments` is an object type; `returns` is None for the empty object. `doc` says what it does, for the page."""

    name: str
    doc: str
    arguments: Struct | None = None
    returns: Type | None = None


@dataclass(frozen=True, slots=True)
class Event:
    name: str
    doc: str
    data: Struct | None = None


@dataclass(frozen=True, slots=True)
class Module:
    """A part of the schema, as the page has it."""

    title: str
    commands: tuple[Command, ...] = ()
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Schema:
    modules: tuple[Module, ...]

    @property
    def commands(self) -> dict[str, Command]:
        return {command.name: command for module in self.modules for command in module.commands}

    @property
    def events(self) -> dict[str, Event]:
        return {event.name: event for module in self.modules for event in module.events}

    def types(self) -> Iterator[Type]:
        """Every type that a command or an event uses, each once, the used ones behind those that use them."""
        seen: set[str] = set()
        todo: list[Type] = []
        for command in self.commands.values():
            todo += [each for each in (command.arguments, command.returns) if each is not None]
        todo += [event.data for event in self.events.values() if event.data is not None]
        while todo:
            each = todo.pop(0)
            if (name := type_name(each)) not in seen:
                seen.add(name)
                yield each
                todo += _used(each)


def type_name(each: Type) -> str:
    """The name of a type; that of an array is made from its element's."""
    return f"{type_name(each.element)}List" if isinstance(each, Array) else each.name


def _used(each: Type) -> list[Type]:
    match each:
        case Struct():
            return [member.type for member in each.members] + list(each.variants.values())
        case Array():
            return [each.element]
        case Alternate():
            return list(each.types)
        case _:
            return []


def optional(name: str, type_: Type, doc: str = "") -> Member:
    return Member(name, type_, doc, optional=True)
