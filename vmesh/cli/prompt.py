"""The monitor prompt behind Ctrl-A c: a few of QEMU's HMP commands, carried out through the gateway."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vmesh.cli import show
from vmesh.client import GatewayError, MachineClient

Run = Callable[[MachineClient, list[str]], str]


class UsageError(Exception):
    """A command line at the prompt that cannot be followed; the message is one line."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command: what it takes and does. `run` gets the words behind its name and returns the text to print."""

    arguments: str
    help: str
    run: Run


def execute(client: MachineClient, line: str) -> str:
    """The text that answers a line; errors are text too."""
    words = line.split()
    if not words:
        return ""
    for count in (2, 1):  # `info status` is one command of two words
        command = COMMANDS.get(" ".join(words[:count]))
        if command is not None and len(words) >= count:
            try:
                return command.run(client, words[count:])
            except (GatewayError, UsageError) as error:
                return str(error)
    close = difflib.get_close_matches(" ".join(words[:2]), COMMANDS, n=1)
    return f"unknown command '{words[0]}'" + (f": did you mean '{close[0]}'?" if close else ", 'help' lists them")


def _help(_client: MachineClient, _words: list[str]) -> str:
    heads = {f"{name} {command.arguments}".strip(): command.help for name, command in COMMANDS.items()}
    return "\n".join(f"{head:<24}{text}" for head, text in heads.items())


def _info(_client: MachineClient, _words: list[str]) -> str:
    raise UsageError("info: expected " + ", ".join(name for name in COMMANDS if name.startswith("info ")))


def _info_status(client: MachineClient, _words: list[str]) -> str:
    return show.state(client.status())


def _info_registers(client: MachineClient, words: list[str]) -> str:
    if len(words) > 1 or (words and not words[0].isdecimal()):
        raise UsageError("info registers: expected the number of a hart")
    return show.registers(client.registers(int(words[0]) if words else 0))


def _info_services(client: MachineClient, _words: list[str]) -> str:
    return show.services(client.status())


def _stop(client: MachineClient, _words: list[str]) -> str:
    client.pause()
    return ""


def _cont(client: MachineClient, _words: list[str]) -> str:
    client.resume()
    return ""


def _system_reset(client: MachineClient, _words: list[str]) -> str:
    client.reset()
    return ""


def _quit(client: MachineClient, _words: list[str]) -> str:
    client.quit()
    return ""


COMMANDS: Mapping[str, Command] = {
    "help": Command("", "list the commands", _help),
    "info": Command("WHAT", "show something; see the next lines", _info),
    "info status": Command("", "whether the machine runs", _info_status),
    "info registers": Command("[HART]", "the registers of a hart", _info_registers),
    "info services": Command("", "the services of the machine", _info_services),
    "stop": Command("", "pause the machine", _stop),
    "cont": Command("", "go on", _cont),
    "system_reset": Command("", "reset the machine", _system_reset),
    "quit": Command("", "end the machine", _quit),
}
