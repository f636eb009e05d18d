"""Which function carries out which command of the schema."""

from __future__ import annotations

from collections.abc import Callable

from vmesh_services.monitor.control import Control
from vmesh_services.monitor.qmp.check import Json, check_arguments
from vmesh_services.monitor.qmp.errors import CommandNotFound
from vmesh_services.monitor.qmp.schema import SCHEMA

#: Gets arguments that the schema has checked; gives the answer, or the Work whose result it is. Raises QmpError.
Handler = Callable[[Control, Json], object]

COMMANDS = SCHEMA.commands
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """The decorated function carries out these commands. What was registered before is replaced."""
    assert all(name in COMMANDS for name in names), names

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def execute(control: Control, name: str, arguments: Json) -> object:
    """Carry out a command: its answer, or the Work whose result it is. Raises QmpError."""
    command = COMMANDS.get(name)
    if command is None:
        raise CommandNotFound(f"The command {name[:80]} has not been found")
    check_arguments(arguments, command.arguments)
    return HANDLERS[name](control, arguments)
