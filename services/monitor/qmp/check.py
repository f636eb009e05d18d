"""Whether JSON is what the schema says. The errors are QEMU's (qapi/qmp/qerror.h), so that its clients know them."""

from __future__ import annotations

from vmesh_services.monitor.qmp.errors import QmpError
from vmesh_services.monitor.qmp.types import Alternate, Array, Builtin, Enum, Struct, Type

Json = dict[str, object]


def check_arguments(arguments: Json, expected: Struct | None) -> None:
    """Raises QmpError where `arguments` are not those that a command takes."""
    _check_struct(arguments, expected or Struct("empty"), "")
    for name, value in arguments.items():
        _check_nul(value, name)


def check(value: object, expected: Type, path: str) -> None:
    """Raises QmpError, which calls the value `path`, where it is not of the type `expected`."""
    match expected:
        case Builtin():
            _check_builtin(value, expected, path)
        case Enum():
            if not isinstance(value, str):
                raise _wrong_type(path, "string")
            if value not in expected.values:
                raise QmpError(f"Parameter '{path}' does not accept value '{value[:80]}'")
        case Array():
            if not isinstance(value, list):
                raise _wrong_type(path, "array")
            for place, element in enumerate(value):
                check(element, expected.element, f"{path}[{place}]")
        case Struct():
            if not isinstance(value, dict):
                raise _wrong_type(path, "object")
            _check_struct(value, expected, path)
        case Alternate():
            _check_alternate(value, expected, path)


def _check_nul(value: object, path: str) -> None:
    """JSON can say NUL; no path, and no argument of a program, can be given with it."""
    if isinstance(value, str) and "\0" in value:
        raise QmpError(f"Parameter '{path}' expects a string without NUL")
    if isinstance(value, dict):
        for name, each in value.items():
            _check_nul(each, f"{path}.{name}")
    elif isinstance(value, list):
        for place, each in enumerate(value):
            _check_nul(each, f"{path}[{place}]")


def _check_struct(value: Json, expected: Struct, path: str) -> None:
    members = {member.name: member for member in expected.members}
    if expected.tag and isinstance(tag := value.get(expected.tag), str) and tag in expected.variants:
        members |= {member.name: member for member in expected.variants[tag].members}
    for name, member in members.items():
        where = f"{path}.{name}" if path else name
        if name in value:
            check(value[name], member.type, where)
        elif not member.optional:
            raise QmpError(f"Parameter '{where}' is missing")
    if not expected.open:
        for name in value:
            if name not in members:
                raise QmpError(f"Parameter '{f'{path}.{name}' if path else name[:80]}' is unexpected")


def _check_builtin(value: object, expected: Builtin, path: str) -> None:
    match expected.json:
        case "string" if not isinstance(value, str):
            raise _wrong_type(path, "string")
        case "boolean" if not isinstance(value, bool):
            raise _wrong_type(path, "boolean")
        case "number" if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong_type(path, "number")
        case "int":
            if isinstance(value, bool) or not isinstance(value, int):
                raise _wrong_type(path, "integer")
            if not expected.low <= value <= expected.high:
                raise QmpError(f"Parameter '{path}' expects {expected.name}")
        case _:
            pass


def _check_alternate(value: object, expected: Alternate, path: str) -> None:
    for each in expected.types:
        try:
            check(value, each, path)
        except QmpError:
            continue
        return
    raise _wrong_type(path, expected.name)


def _wrong_type(path: str, expected: str) -> QmpError:
    return QmpError(f"Invalid parameter type for '{path}', expected: {expected}")
