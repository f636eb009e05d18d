"""query-qmp-schema: the schema in QEMU's SchemaInfo form (QEMU, qapi/introspect.json).

Names of types mean nothing to clients, says QEMU, and hides them behind numbers; here they are the schema's own.
"""

from __future__ import annotations

from vmesh_services.monitor.qmp.check import Json
from vmesh_services.monitor.qmp.types import (
    Alternate,
    Array,
    Builtin,
    Command,
    Enum,
    Event,
    Schema,
    Struct,
    Type,
    type_name,
)

_EMPTY = "empty"  # the object type of what has no members


def schema_info(schema: Schema) -> list[Json]:
    """The array that answers query-qmp-schema."""
    entities = [_command(command) for command in schema.commands.values()]
    entities += [_event(event) for event in schema.events.values()]
    entities.append({"name": _EMPTY, "meta-type": "object", "members": []})
    seen: set[str] = set()
    for each in schema.types():
        entity = _type(each)
        if str(entity["name"]) not in seen:
            seen.add(str(entity["name"]))
            entities.append(entity)
    return entities


def _command(command: Command) -> Json:
    arguments = _reference(command.arguments) if command.arguments else _EMPTY
    returns = _reference(command.returns) if command.returns else _EMPTY
    return {"name": command.name, "meta-type": "command", "arg-type": arguments, "ret-type": returns}


def _event(event: Event) -> Json:
    return {"name": event.name, "meta-type": "event", "arg-type": _reference(event.data) if event.data else _EMPTY}


def _reference(each: Type) -> str:
    """How a type is referred to: integers are all one, arrays are named by their element in brackets."""
    match each:
        case Builtin(json="int"):
            return "int"
        case Array():
            return f"[{_reference(each.element)}]"
        case _:
            return type_name(each)


def _type(each: Type) -> Json:
    name = _reference(each)
    match each:
        case Builtin():
            return {"name": name, "meta-type": "builtin", "json-type": each.json}
        case Enum():
            members = [{"name": value} for value in each.values]
            return {"name": name, "meta-type": "enum", "members": members, "values": list(each.values)}
        case Array():
            return {"name": name, "meta-type": "array", "element-type": _reference(each.element)}
        case Alternate():
            return {"name": name, "meta-type": "alternate", "members": [{"type": _reference(t)} for t in each.types]}
        case Struct():
            return _struct(each)


def _struct(each: Struct) -> Json:
    members: list[Json] = []
    for member in each.members:
        described: Json = {"name": member.name, "type": _reference(member.type)}
        if member.optional:
            described["default"] = None
        members.append(described)
    info: Json = {"name": each.name, "meta-type": "object", "members": members}
    if each.tag:
        info["tag"] = each.tag
        info["variants"] = [{"case": case, "type": _reference(type_)} for case, type_ in each.variants.items()]
        tag = next(member.type for member in each.members if member.name == each.tag)
        assert isinstance(tag, Enum)
        rest = [value for value in tag.values if value not in each.variants]
        info["variants"] += [{"case": case, "type": _EMPTY} for case in rest]  # type: ignore[operator]
    return info
