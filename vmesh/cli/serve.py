"""`vmesh serve`: one service of a machine in this process, for whoever starts services themselves, as an engine does.

The machine is described once, by the flags of its memory: that process makes the machine directory, with the command
lines of all services, and removes it. The others wait for it there, in any order. On further hosts the service `host`
does the same with the same flags, and has no other work.
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
from pathlib import Path

from vmesh import descriptors
from vmesh import machine as machines
from vmesh.board.errors import BoardError
from vmesh.cli.flags.options import OptionError, status_of
from vmesh.cli.flags.parsing import parse
from vmesh.cli.placement import Placement
from vmesh.cli.plan import MachinePlan, monitor_command, plan
from vmesh.deploy.description import KEEPER, MEMORY, MIGRATION
from vmesh.errors import VmeshError
from vmesh.guest import GuestError
from vmesh.machine import MachineDirectory, MachineError
from vmesh.properties import HelpRequested
from vmesh.spawn import ServiceCommand

HOST = "host"
COMMANDS = "services.json"  # in the machine directory: a command line by name
_LOOK_SECONDS = 0.05
_ENDED_SECONDS, _GONE_SECONDS = 5.0, 60.0  # since the end of the last service of a host, or its last sign of life


def serve(service: str, name: str, arguments: Sequence[str], placement: Placement) -> int:
    """Run the service of the machine `name`; the arguments are the machine's flags for memory and `host`, more for the
    others."""
    for number in (signal.SIGTERM, signal.SIGINT):  # the first process of a container has no default for them
        signal.signal(number, lambda number, _frame: sys.exit(0))
    try:
        descriptors.raise_limit()
        if service in (MEMORY, HOST):
            return _own(service, name, arguments, placement)
        machine = MachineDirectory(machines.runtime_root() / name)
        command = _wait(machine, service)
        return _perform(command, arguments)
    except HelpRequested as request:
        print(request)
        return 0
    except (OptionError, BoardError, GuestError, MachineError, VmeshError) as error:
        print(f"vmesh serve {service}: {error}", file=sys.stderr)
        return status_of(error)


def commands(planned: MachinePlan, monitor: ServiceCommand, machine: MachineDirectory) -> tuple[ServiceCommand, ...]:
    """The services of a machine that somebody else starts: the board's, and those that a monitor starts elsewhere."""
    place = ("--machine", str(machine.path))
    consoles = {name: _console(name, text, machine) for name, text in planned.consoles.items()}
    keeper = [*place, *(word for name, text in consoles.items() for word in ("--console", f"{name}={text}"))]
    keeper += [word for command in planned.services for word in ("--service", command.monitor_text)]
    return (
        *planned.services,
        ServiceCommand(KEEPER, KEEPER, "vmesh_services.monitor.keeper", tuple(keeper)),
        ServiceCommand(MIGRATION, MIGRATION, "vmesh_services.migration", place),
        replace(monitor, arguments=(*monitor.arguments, "--attached")),
    )


def _own(service: str, name: str, arguments: Sequence[str], placement: Placement) -> int:
    """Have the machine directory of this host, as long as there is something in it."""
    options = parse(arguments)
    options = replace(options, cpu_apart=options.cpu_apart or placement.cpu_apart)
    machine = machines.create(name)
    try:
        planned = plan(options, machine)
        planned.write(machine)
        for note in planned.notes:
            print(f"vmesh serve {service}: {note}", file=sys.stderr)
        found = commands(planned, monitor_command(planned, options, machine), machine)
        names = [each.name for each in found]
        placement.check(names)
        found = tuple(
            replace(each, arguments=(*each.arguments, *placement.arguments(each.name, names))) for each in found
        )
        described = {each.name: [each.kind, each.module, *each.arguments] for each in found}
        fresh = machine.path / f".{COMMANDS}"
        fresh.write_text(json.dumps(described, indent=1))
        fresh.replace(machine.path / COMMANDS)
        if service == HOST:
            return _stay(machine, names)
        return _perform(next(each for each in found if each.name == MEMORY))
    finally:
        machine.remove()


def _stay(machine: MachineDirectory, services: Sequence[str]) -> int:
    """Until the services that have been on this host are gone; gives the exit status."""
    began, seen = False, time.monotonic()
    watched = [name for name in services if name != KEEPER]  # which ends with the directory
    while not began or time.monotonic() - seen < _ENDED_SECONDS:
        time.sleep(_LOOK_SECONDS)
        if any((age := _age(machine.pulse(name))) is not None and age < _GONE_SECONDS for name in watched):
            began, seen = True, time.monotonic()
    return 0


def _age(path: Path) -> float | None:
    """Seconds since the file was touched; None if it is not there."""
    with suppress(OSError):
        return time.time() - path.stat().st_mtime
    return None


def _perform(command: ServiceCommand, more: Sequence[str] = ()) -> int:
    """Run the service in this process; gives its exit status."""
    main: Callable[[list[str]], int | None] = importlib.import_module(f"{command.module}.__main__").main
    return main([*command.arguments, *more]) or 0


def _wait(machine: MachineDirectory, service: str) -> ServiceCommand:
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


def _console(name: str, specification: str, machine: MachineDirectory) -> str:
    """Where a terminal was to be, the keeper's own standard input and output are."""
    return "stdio" if specification == f"socket:{machine.console(name)}" else specification
