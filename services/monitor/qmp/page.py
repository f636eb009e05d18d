"""docs/qmp.md, made from the schema: `python -P -m vmesh_services.monitor.qmp.page > docs/qmp.md`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from vmesh_services.monitor.qmp.schema import SCHEMA
from vmesh_services.monitor.qmp.types import (
    Alternate,
    Array,
    Builtin,
    Command,
    Enum,
    Event,
    Member,
    Module,
    Struct,
    Type,
)

_HEAD = """# QMP: commands and events

Made from the schema (`services/monitor/qmp/schema/`) by `python -P -m vmesh_services.monitor.qmp.page`;
query-qmp-schema gives programs the same. Names are QEMU's. [monitor.md](monitor.md) says how to connect. A member
with a `?` may be missing.
"""


def page() -> str:
    """The text of docs/qmp.md."""
    return "\n".join([_HEAD, *(_wrapped(line) for module in SCHEMA.modules for line in _module(module))])


def _wrapped(line: str) -> str:
    """A paragraph or an item of a list, in lines of at most 120."""
    text = line.rstrip("\n")
    deeper = " " * (text.index("* ") + 2) if text.lstrip().startswith("* ") else ""
    lines = textwrap.wrap(text, 120, subsequent_indent=deeper, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines) + line[len(text) :]


def _module(module: Module) -> Iterator[str]:
    yield f"## {module.title}\n"
    for command in module.commands:
        yield from _command(command)
    for event in module.events:
        yield from _event(event)


def _command(command: Command) -> Iterator[str]:
    yield f"### {command.name}\n"
    yield f"{command.doc}\n"
    if command.arguments is not None:
        yield from _object("Arguments", command.arguments)
    match command.returns:
        case None:
            pass
        case Array(Struct() as element):
            yield from _object("Result: an array of", element)
        case Struct() as result:
            yield from _object("Result", result)
        case other:
            yield f"Result: {_type(other)}\n"


def _event(event: Event) -> Iterator[str]:
    yield f"### Event {event.name}\n"
    yield f"{event.doc}\n"
    if event.data is not None:
        yield from _object("Data", event.data)


def _object(title: str, struct: Struct) -> Iterator[str]:
    yield f"{title}{', and others' if struct.open else ''}:\n"
    yield from (_member(member) for member in struct.members)
    for value, variant in struct.variants.items():
        yield f"* where `{struct.tag}` is `{value}`:"
        yield from (f"  {_member(member)}" for member in variant.members)
    yield ""


def _member(member: Member) -> str:
    text = f"* `{member.name}`{'?' if member.optional else ''}: {_type(member.type)}"
    return f"{text}; {member.doc}" if member.doc else text


def _type(each: Type) -> str:
    match each:
        case Builtin():
            return each.name
        case Enum():
            return " \\| ".join(f"`{value}`" for value in each.values)
        case Array():
            return f"array of {_type(each.element)}"
        case Struct():
            inner = ", ".join(f"`{member.name}`{'?' if member.optional else ''}" for member in each.members)
            return f"object ({inner}{', ...' if each.open else ''})"
        case Alternate():
            return " or ".join(_type(kind) for kind in each.types)


if __name__ == "__main__":
    print(page(), end="")
