"""The `vmesh` command: finds the subcommand and hands over. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn


class _Parser(argparse.ArgumentParser):
    """Errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} ({self.prog} --help says more)", file=sys.stderr)
        raise SystemExit(2)


@dataclass(frozen=True, slots=True)
class Subcommand:
    """`run` gets the arguments behind the name and returns the exit status."""

    help: str
    run: Callable[[Sequence[str]], int]


def entry() -> NoReturn:
    """The process `vmesh`: `main`, and the end without taking Python apart, which takes 50 ms after a machine ran."""
    try:
        status = main()
    except SystemExit as ending:
        if not (ending.code is None or isinstance(ending.code, int)):
            raise  # a text: Python prints it
        status = ending.code or 0
    except OSError as problem:
        # output that goes nowhere is what is left to go wrong here
        with contextlib.suppress(OSError):
            print(f"vmesh: {problem}", file=sys.stderr)
        os._exit(1)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 1
    os._exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the subcommand. Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"vmesh {version('vmesh')}")
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        print(f"vmesh: unknown command '{arguments[0]}': expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return command.run(arguments[1:])
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; nothing may be written at the interpreter's exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _usage() -> str:
    lines = ["usage: vmesh COMMAND ...", "", "RISC-V machines made of processes.", "", "commands:"]
    lines += [f"  {name:<12}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "`vmesh COMMAND --help` says more of each."])


def _run(arguments: Sequence[str]) -> int:
    if {"-h", "-help", "--help"} & set(arguments):
        from vmesh.cli.options import usage

        print(usage())
        return 0
    from vmesh.cli.run import run

    return run(arguments)


def _ps(arguments: Sequence[str]) -> int:
    parser = _Parser(prog="vmesh ps", description="List the running machines and, for each, its services.")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args(arguments)
    from vmesh.cli.ps import ps

    return ps(as_json=options.json)


def _control(name: str, text: str) -> Callable[[Sequence[str]], int]:
    def run(arguments: Sequence[str]) -> int:
        parser = _Parser(prog=f"vmesh {name}", description=text)
        parser.add_argument("name", metavar="NAME", help="the machine, as `vmesh ps` lists it")
        if name == "registers":
            parser.add_argument("--hart", type=int, default=0, metavar="N", help="which hart (default: 0)")
        options = parser.parse_args(arguments)
        from vmesh.cli.control import control

        return control(name, options.name, getattr(options, "hart", 0))

    return run


def _swap(arguments: Sequence[str]) -> int:
    parser = _Parser(
        prog="vmesh swap",
        usage="vmesh swap [MACHINE] DEVICE -- COMMAND ...",
        description="Put another program in the place of a device while the guest runs. The machine is paused, "
        "the device saved and ended, and COMMAND started with the options that every device has (--machine, --name, "
        "--epoch, --lifeline, --base, --irq); it takes the state and goes on. If it cannot, the former one does.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="the machine, if several run, and the device")
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:cut])
    command = arguments[cut + 1 :]
    if len(options.names) > 2 or not command:
        parser.error("expected [MACHINE] DEVICE -- COMMAND ...")
    from vmesh.cli.swap import swap

    return swap(options.names, command)


def _guest(arguments: Sequence[str]) -> int:
    actions = "fetch: Debian's kernel, firmware and busybox, with apt; image: a disk with Debian on it"
    parser = _Parser(prog="vmesh guest", description="What there is to boot.")
    parser.add_argument("action", choices=["fetch", "image"], help=actions)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="`vmesh guest ACTION --help` says which")
    options = parser.parse_args(arguments)
    from vmesh.guest import fetch, image

    return {"fetch": fetch.main, "image": image.main}[options.action](options.arguments)


def _hub(arguments: Sequence[str]) -> int:
    parser = _Parser(prog="vmesh hub", description="Link the networks of any number of machines, until Ctrl-C.")
    parser.add_argument("socket", type=Path, help="the Unix socket that their -netdev stream names")
    options = parser.parse_args(arguments)
    from vmesh.netdev import hub

    return hub.run(options.socket.absolute())


_CONTROLS: Mapping[str, str] = {
    "status": "Show a machine's state, services, harts and bus counters.",
    "pause": "Stop a machine's harts and drain its bus.",
    "resume": "Let a paused machine go on.",
    "reset": "Bring a machine back to the state after power-on.",
    "registers": "Show all registers of a hart.",
    "stop": "End a machine in order.",
    "quit": "End a machine in order (the same as stop).",
}

COMMANDS: Mapping[str, Subcommand] = {
    "run": Subcommand("Start a machine; takes QEMU's flags.", _run),
    "ps": Subcommand("List the running machines and their services.", _ps),
    **{name: Subcommand(text, _control(name, text)) for name, text in _CONTROLS.items()},
    "swap": Subcommand("Put another program in the place of a device.", _swap),
    "hub": Subcommand("Link the networks of machines.", _hub),
    "guest": Subcommand("Fetch the default guest; make a disk with Debian on it.", _guest),
}
