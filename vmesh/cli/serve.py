"""`vmesh serve`: one service of a machine in this process, for whoever starts services themselves, as an engine does.

The machine is described once, by the flags of its memory: that process makes the machine directory, with the command
lines of all services, and removes it. The others wait for it there, in any order.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from vmesh import machine as machines
from vmesh.board.errors import BoardError
from vmesh.cli import options as flags
from vmesh.cli.options import HelpRequested, OptionError
from vmesh.cli.plan import MachinePlan, monitor_command, plan
from vmesh.errors import VmeshError
from vmesh.guest import GuestError
from vmesh.machine import Machine, MachineError
from vmesh.spawn import ServiceCommand

MEMORY, MONITOR, KEEPER, MIGRATION = "memory", "monitor", "keeper", "migration"
COMMANDS = "services.json"  # in the machine directory: a command line by name
_LOOK_SECONDS = 0.05


def serve(service: str, name: str, arguments: Sequence[str]) -> int:
    """Run the service of the machine `name`; the arguments are the machine's flags for memory, more for the others."""
    for number in (signal.SIGTERM, signal.SIGINT):  # the first process of a container has no default for them
        signal.signal(number, lambda number, _frame: sys.exit(0))
    try:
        if service == MEMORY:
            return _own(name, arguments)
        machine = Machine(machines.runtime_root() / name)
        command = _wait(machine, service)
        return _perform(command, arguments)
    except HelpRequested as request:
        print(request)
        return 0
    except (OptionError, BoardError, GuestError, MachineError, VmeshError) as error:
        print(f"vmesh serve {service}: {error}", file=sys.stderr)
        return 1


def commands(planned: MachinePlan, monitor: ServiceCommand, machine: Machine) -> tuple[ServiceCommand, ...]:
    """The services of a machine that somebody else starts: the board's, and those that a monitor starts elsewhere."""
    place = ("--machine", str(machine.path))
    consoles = {name: _console(name, text, machine) for name, text in planned.consoles.items()}
    keeper = [*place, *(word for name, text in consoles.items() for word in ("--console", f"{name}={text}"))]
    keeper += [word for command in planned.services for word in ("--service", command.monitor_text)]
    return (
        *planned.services,
        ServiceCommand(KEEPER, KEEPER, "services.monitor.keeper", tuple(keeper)),
        ServiceCommand(MIGRATION, MIGRATION, "services.migration", place),
        replace(monitor, arguments=(*monitor.arguments, "--attached")),
    )


def _own(name: str, arguments: Sequence[str]) -> int:
    options = flags.parse(arguments)
    machine = machines.create(name)
    try:
        planned = plan(options, machine)
        planned.write(machine)
        for note in planned.notes:
            print(f"vmesh serve {MEMORY}: {note}", file=sys.stderr)
        found = commands(planned, monitor_command(planned, options, machine), machine)
        described = {each.name: [each.kind, each.module, *each.arguments] for each in found}
        fresh = machine.path / f".{COMMANDS}"
        fresh.write_text(json.dumps(described, indent=1))
        fresh.replace(machine.path / COMMANDS)
        return _perform(next(each for each in found if each.name == MEMORY))
    finally:
        machine.remove()


def _perform(command: ServiceCommand, more: Sequence[str] = ()) -> int:
    """Run the service in this process; gives its exit status."""
    main: Callable[[list[str]], int | None] = importlib.import_module(f"{command.module}.__main__").main
    return main([*command.arguments, *more]) or 0


def _wait(machine: Machine, service: str) -> ServiceCommand:
    """The command line of a service, once the machine is there."""
    said = False
    while True:
        with suppress(OSError, ValueError):
            described = json.loads((machine.path / COMMANDS).read_text())
            if machine.alive():
                break
        if not said:
            print(f"vmesh serve {service}: waiting for machine '{machine.name}'", file=sys.stderr)
            said = True
        time.sleep(_LOOK_SECONDS)
    if service not in described:
        raise MachineError(f"machine '{machine.name}' has no service '{service}'; it has {', '.join(described)}")
    kind, module, *arguments = described[service]
    return ServiceCommand(service, kind, module, tuple(arguments))


def _console(name: str, specification: str, machine: Machine) -> str:
    """Where a terminal was to be, the keeper's own standard input and output are."""
    return "stdio" if specification == f"socket:{machine.console(name)}" else specification
