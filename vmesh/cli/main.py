"""The `vmesh` command: finds the subcommand and hands over. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import NoReturn

from vmesh import stdio
from vmesh.command_line import Parser

_AT_ONCE = 0.0  # --postcopy without a number of seconds


@dataclass(frozen=True, slots=True)
class Subcommand:
    """`run` gets the arguments behind the name and returns the exit status."""

    help: str
    run: Callable[[Sequence[str]], int]


def entry() -> NoReturn:
    """The process `vmesh`: `main`, and the end without taking Python apart, which takes 50 ms after a machine ran."""
    stdio.open_closed()
    try:
        status = main()
    except SystemExit as ending:
        if not (ending.code is None or isinstance(ending.code, int)):
            raise  # a text: Python prints it
        status = ending.code or 0
    except OSError as problem:
        _say_lost(problem)  # it is what is left to go wrong here
        os._exit(1)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as problem:
        _say_lost(problem)
        status = status or 1
    os._exit(status)


def _say_lost(problem: OSError) -> None:
    if isinstance(problem, BrokenPipeError):
        return  # whoever read it knows
    with contextlib.suppress(OSError):
        print(f"vmesh: output is lost: {problem.strerror}", file=sys.stderr)


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
    except Exception as error:  # the boundary: whatever a command did not foresee is one line
        from vmesh.errors import said

        print(f"vmesh {arguments[0]}: {said(error)}", file=sys.stderr)
        return 1


def _usage() -> str:
    lines = ["usage: vmesh COMMAND ...", "", "RISC-V machines made of processes.", "", "commands:"]
    lines += [f"  {name:<12}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "`vmesh COMMAND --help` says more of each."])


_HOSTS = ("x86_64",)  # which native code is made for: services/cpu/native/host.py


def _check_host(command: str) -> bool:
    """Says so where machines cannot run."""
    kind = os.uname().machine.lower()
    if kind in _HOSTS:
        return True
    print(f"vmesh {command}: machines run on x86-64 hosts only so far, this is {kind}", file=sys.stderr)
    return False


def _run(arguments: Sequence[str]) -> int:
    if {"-h", "-help", "--help"} & set(arguments):
        from vmesh.cli.flags.help import usage

        print(usage())
        return 0
    if not _check_host("run"):
        return 1
    from vmesh import descriptors, standby

    descriptors.raise_limit()
    standby.prepare(standby.MACHINE)  # before everything else is imported: it imports beside us
    from vmesh.cli.run import run

    return run(arguments)


def _ps(arguments: Sequence[str]) -> int:
    parser = Parser(prog="vmesh ps", description="List the running machines and, for each, its services.")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args(arguments)
    from vmesh.cli.ps import ps

    return ps(as_json=options.json)


def _control(name: str, text: str) -> Callable[[Sequence[str]], int]:
    def run(arguments: Sequence[str]) -> int:
        parser = _machine_parser(name, text)
        if name == "status":
            parser.add_argument("--json", action="store_true", help="print JSON for programs")
        if name == "registers":
            parser.add_argument("--hart", type=_count, default=0, metavar="N", help="which hart (default: 0)")
        options = parser.parse_intermixed_args(arguments)
        from vmesh.cli.control import control

        return control(name, options.name, getattr(options, "hart", 0), as_json=getattr(options, "json", False))

    return run


def _deploy(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="vmesh deploy",
        usage="vmesh deploy [-h] [--on {local,docker,swarm}] [--image IMAGE] [--ram SIZE] [--down | --print "
        "{compose,stack,kubernetes}] NAME [FLAG ...]",
        description="Start a machine in the background, with the flags of `vmesh run`: as processes of this host, as "
        "containers of Docker, or as services of a Swarm. With --print it starts nothing, and writes the manifest.",
    )
    add = parser.add_argument
    add("--on", choices=("local", "docker", "swarm"), default="local", help="where (default: %(default)s)")
    add("--image", default="vmesh", help="the containers' image (default: %(default)s)")
    add(
        "--ram",
        type=_room,
        default="1g",
        metavar="SIZE",
        help="room for guest memory in containers, with m or g (default: 1g)",
    )
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--down", action="store_true", help="end the machine and remove what was made for it")
    actions.add_argument("--print", choices=("compose", "stack", "kubernetes"), help="print a manifest")
    add("name", metavar="NAME", help="the machine's, which is to come or, with --down, to go")
    add("flags", nargs=argparse.REMAINDER, metavar="FLAG", help="of `vmesh run`: `vmesh run --help` lists them")
    options = parser.parse_args(arguments)
    from vmesh.cli import deploy

    if options.down:
        return deploy.remove(options.name, options.on)
    if options.print:
        return deploy.show(options.print, options.flags, options.image, options.ram)
    return deploy.deploy(options.name, options.on, options.flags, options.image, options.ram)


def _health(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="vmesh health",
        description="Whether a service of a machine is well, by the gateway's health service: status 0 if it is. For a "
        "container engine, which asks again and again: with --hold it answers at once until it is well for the first "
        "time, then stays so long with the question, and answers early if it is no longer well.",
    )
    _add_machine(parser)
    parser.add_argument(
        "service", metavar="SERVICE", nargs="?", default="", help="which one (default: the monitor itself)"
    )
    parser.add_argument("--hold", type=_patience, default=0.0, metavar="SECONDS", help="how long to stay (default: 0)")
    options = parser.parse_intermixed_args(arguments)
    from vmesh.cli.health import health

    return health(options.name, options.service, options.hold)


def _keys(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="vmesh keys",
        description="Make the keys by which the services of one machine know each other over TCP: a pair for each "
        "service, for its owner only. Keys that are there stay as they are.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to put them")
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help="besides those of every machine, e.g. blk0")
    options = parser.parse_args(arguments)
    from vmesh.cli.curve_keys import keys

    return keys(options.folder, options.devices)


def _serve(arguments: Sequence[str]) -> int:
    from vmesh.cli import placement
    from vmesh.cli.flags.options import OptionError

    parser = Parser(
        prog="vmesh serve",
        usage=f"vmesh serve [-h] [--name NAME] [--keys FOLDER] [--place {placement.USAGE} ...] SERVICE [FLAG ...]",
        description="Run one service of a machine in this process, for whoever starts the services themselves, such as "
        "a container engine. SERVICE is memory, cpu, keeper, monitor, migration or a device. Memory takes the flags of "
        "`vmesh run`, makes the machine directory and removes it; the others wait for it. On further hosts the service "
        "`host` does that, with the same --place and flags as memory.",
    )
    parser.add_argument("--name", default="machine", help="the machine's (default: %(default)s)")
    parser.add_argument("--keys", type=Path, metavar="FOLDER", help="of `vmesh keys`, if there are several hosts")
    parser.add_argument(
        "--place",
        action="append",
        default=[],
        metavar=placement.USAGE,
        help="memory, host: where a service is, once for each that others dial from another host",
    )
    parser.add_argument("service", metavar="SERVICE", help="memory, cpu, keeper, monitor, migration, host or a device")
    parser.add_argument(
        "flags", nargs=argparse.REMAINDER, metavar="FLAG",
        help="memory, host: of `vmesh run`; others: more of the service's own options",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    from vmesh.cli.serve import serve

    try:
        places = placement.parse(options.place, options.keys)
    except OptionError as error:
        parser.error(str(error))
    if not _check_host("serve"):
        return 1
    return serve(options.service, options.name, options.flags, places)


def _swap(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="vmesh swap",
        usage="vmesh swap [-h] [NAME] DEVICE -- COMMAND ...",
        description="Put another program in the place of a device while the guest runs. The machine is paused, "
        "the device saved and ended, and COMMAND started with the options that every device has (--machine, --name, "
        "--epoch, --lifeline, --base, --irq); it takes the state and goes on. If it cannot, the former one does.",
    )
    _add_machine(parser)
    parser.add_argument("device", metavar="DEVICE", help="the device, as `vmesh ps` lists it")
    parser.add_argument("command", metavar="COMMAND", nargs="*", help="the other program, and its arguments")
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:cut])
    command = arguments[cut + 1 :]
    if options.command or not command:
        parser.error("expected [NAME] DEVICE -- COMMAND ...")
    from vmesh.cli.swap import swap

    return swap(options.name, options.device, command)


def _device_add(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="vmesh device_add",
        description="Add a device to a machine that runs, in the words of `vmesh run`. A Linux guest is told to look: "
        "echo 10008000.virtio_mmio >/sys/bus/platform/drivers/virtio-mmio/bind",
    )
    _add_machine(parser)
    parser.add_argument("device", metavar="DEVICE", help="as behind -device: virtio-blk-device,id=disk1,drive=d1")
    for flag, example in (
        ("drive", "file=/tmp/disk,format=raw,if=none,id=d1"),
        ("netdev", "user,id=n1"),
        ("fsdev", "local,id=f1,path=/srv,security_model=none"),
    ):
        parser.add_argument(
            f"-{flag}", f"--{flag}", action="append", default=[], metavar="TEXT", help=f"what it stands on: {example}"
        )
    options = parser.parse_intermixed_args(arguments)
    from vmesh.cli.control import device_add

    return device_add(options.name, options.device, options.drive, options.netdev, options.fsdev)


def _device_del(arguments: Sequence[str]) -> int:
    parser = Parser(prog="vmesh device_del", description="Take a device away from a machine that runs.")
    _add_machine(parser)
    parser.add_argument("device", metavar="DEVICE", help="the device, as `vmesh ps` lists it")
    options = parser.parse_intermixed_args(arguments)
    from vmesh.cli.control import device_del

    return device_del(options.name, options.device)


def _attach(arguments: Sequence[str]) -> int:
    text = "Show a console of a running machine on this terminal, and type at it. The terminal that the machine was "
    text += "started on, and others that are attached, go on as before. Ctrl-A d detaches, Ctrl-A h lists the keys."
    parser = _machine_parser("attach", text)
    parser.add_argument(
        "device", nargs="?", default="", metavar="DEVICE", help="which console (default: the serial port)"
    )
    parser.add_argument("--read-only", action="store_true", help="only look; Ctrl-C ends that")
    options = parser.parse_intermixed_args(arguments)
    from vmesh.cli.attach import attach

    return attach(options.name, options.device, read_only=options.read_only)


def _events(arguments: Sequence[str]) -> int:
    parser = _machine_parser("events", "Print what happens to a machine (QMP's events), until it ends or Ctrl-C.")
    parser.add_argument("--json", action="store_true", help="print JSON, an object a line, as QMP has it")
    options = parser.parse_intermixed_args(arguments)
    from vmesh.cli.events import events

    return events(options.name, as_json=options.json)


def _top(arguments: Sequence[str]) -> int:
    text = "Show what a machine does: whether it is stuck, slow or idle; its services with CPU and memory; its harts "
    text += "with MIPS; the bus. Live on a terminal (q quits), otherwise once."
    parser = _machine_parser("top", text)
    parser.add_argument(
        "--interval", type=_seconds, default=1.0, metavar="SECONDS", help="between two looks (default: 1)"
    )
    parser.add_argument("--once", action="store_true", help="print it once, also on a terminal")
    options = parser.parse_intermixed_args(arguments)
    from vmesh.cli.top import top

    return top(options.name, options.interval, once=options.once)


def _trace(arguments: Sequence[str]) -> int:
    text = "Record the bus's traffic: accesses by register name, value, pc and duration, batches, updates and "
    text += "interrupts, DMA. The harts are slower meanwhile. Without -o: a line each on stdout; with it: a Chrome "
    text += "trace for Perfetto."
    parser = _machine_parser("trace", text)
    parser.add_argument("-o", dest="output", type=Path, metavar="FILE", help="write Chrome trace JSON to FILE")
    parser.add_argument("--lines", action="store_true", help="with -o: write readable lines instead")
    parser.add_argument("--seconds", type=_seconds, default=0.0, metavar="N", help="how long (default: until Ctrl-C)")
    options = parser.parse_intermixed_args(arguments)
    from vmesh.cli.trace import trace

    return trace(options.name, options.output, options.seconds, lines=options.lines)


def _memory(arguments: Sequence[str]) -> int:
    text = "Show guest memory: virtual addresses as a hart would translate them, or physical ones."
    parser = _machine_parser("memory", text)
    parser.add_argument("address", type=_number, metavar="ADDRESS", help="where to begin, e.g. 0x80200000")
    parser.add_argument("length", type=_number, nargs="?", metavar="LENGTH", help="how many bytes (default: 256)")
    parser.add_argument("--physical", action="store_true", help="ADDRESS is a physical one (default: a virtual one)")
    parser.add_argument("--hart", type=_count, default=0, metavar="N", help="whose translation (default: 0)")
    parser.add_argument("-o", dest="output", type=Path, metavar="FILE", help="write the bytes to FILE")
    parser.add_argument("--json", action="store_true", help="print JSON, the bytes in hexadecimal")
    options = parser.parse_intermixed_args(arguments)
    if options.length is None:
        # Two words are NAME and ADDRESS, or ADDRESS and LENGTH.
        options.length = 256
        if options.name.isascii() and options.name[:1].isdecimal() and not _runs(options.name):
            try:
                options.name, options.address, options.length = "", _number(options.name), options.address
            except argparse.ArgumentTypeError as error:
                parser.error(str(error))
    from vmesh.cli.memory import memory

    return memory(options)


def _runs(name: str) -> bool:
    from vmesh.machine import MachineError, find

    try:
        return find(name).name == name
    except MachineError:
        return False


def _number(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"'{text}': expected a number such as 4096 or 0x1000")
    return value


def _metrics(arguments: Sequence[str]) -> int:
    parser = _machine_parser("metrics", "Print a machine's counters in Prometheus's text format.")
    options = parser.parse_intermixed_args(arguments)
    from vmesh.cli.control import control

    return control("metrics", options.name, 0)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) < 1 << 31):
        raise argparse.ArgumentTypeError(f"'{text}': expected a number from 0 on")
    return int(text)


def _room(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,9}[mg]", text):
        raise argparse.ArgumentTypeError(f"'{text}': expected a size such as 512m or 2g")
    return text


def _patience(text: str) -> float:
    return 0.0 if re.fullmatch(r"0(\.0*)?", text) else _seconds(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"'{text}': expected seconds, above 0")
    return value


def _machine_parser(command: str, text: str) -> Parser:
    parser = Parser(prog=f"vmesh {command}", description=text)
    _add_machine(parser)
    return parser


def _add_machine(parser: argparse.ArgumentParser) -> None:
    """A machine's name, which is "" where it is left out: the one that runs (vmesh.machine.find)."""
    text = "the machine, as `vmesh ps` lists it, or its -gateway address; needless where one runs"
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help=text)


def _guest(arguments: Sequence[str]) -> int:
    actions = "fetch: Debian's kernel, firmware and busybox, with apt; image: a disk with Debian on it"
    usage = "vmesh guest [-h] ACTION [ARGUMENT ...]"
    parser = Parser(prog="vmesh guest", usage=usage, description="What there is to boot.")
    parser.add_argument("action", choices=["fetch", "image"], metavar="ACTION", help=actions)
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="`vmesh guest ACTION --help` says which"
    )
    options = parser.parse_args(arguments)
    from vmesh.guest import fetch, image

    return {"fetch": fetch.main, "image": image.main}[options.action](options.arguments)


def _hub(arguments: Sequence[str]) -> int:
    parser = Parser(prog="vmesh hub", description="Link the networks of any number of machines, until Ctrl-C.")
    parser.add_argument("socket", type=Path, metavar="SOCKET", help="the Unix socket that their -netdev stream names")
    options = parser.parse_args(arguments)
    from vmesh.netdev import hub

    return hub.run(options.socket.absolute())


def _snapshot(arguments: Sequence[str]) -> int:
    parser = Parser(prog="vmesh snapshot", description="Machines in files: all of one but its disks.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, text in (("save", "write a running machine into a snapshot"), ("load", "take a machine back to one")):
        added = actions.add_parser(action, help=text, description=text.capitalize() + ".")
        _add_machine(added)
        added.add_argument("snapshot", metavar="TAG|FILE", help="a tag, or a file with '/' in its path")
    text = "list the snapshots that have tags"
    listed = actions.add_parser("list", help=text, description=text.capitalize() + ".")
    listed.add_argument("--json", action="store_true", help="print JSON for programs")
    delete = actions.add_parser("delete", help="delete a snapshot", description="Delete a snapshot.")
    delete.add_argument("snapshot", metavar="TAG|FILE", help="a tag, or a file with '/' in its path")
    options = parser.parse_args(arguments)
    from vmesh.cli import snapshot

    match options.action:
        case "save" | "load":
            return snapshot.save_or_load(options.action, options.name, options.snapshot)
        case "list":
            return snapshot.show(as_json=options.json)
        case _:
            return snapshot.delete(options.snapshot)


def _migrate(arguments: Sequence[str]) -> int:
    from vmesh.cli import migrate

    parser = Parser(prog="vmesh migrate", description="Move a running machine to where one waits with -incoming.")
    add = parser.add_argument
    _add_machine(parser)
    add("uri", metavar="URI", nargs="?", help=f"where to: {migrate.USAGE}")
    add("--postcopy", nargs="?", type=float, const=_AT_ONCE, metavar="SECONDS",
        help="switch over at once (or after so many seconds) and let pages follow")  # fmt: skip
    add("--bandwidth", type=migrate.rate, metavar="SIZE", help="bytes a second, with K, M or G; 0: no limit")
    add("--downtime", type=_count, metavar="MS", help="how long the guest may stand still at the switch (default: 300)")
    add("--auto-converge", action="store_true", help="slow the guest down if it writes faster than can be sent")
    add("--resume", action="store_true", help="go on with a post-copy whose connection broke")
    add("--detach", action="store_true", help="do not wait for the end")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--status", action="store_true", help="how the last migration went, or goes")
    actions.add_argument("--cancel", action="store_true", help="give it up; the machine goes on")
    actions.add_argument("--start-postcopy", action="store_true", help="switch a migration to post-copy now")
    actions.add_argument("--pause", action="store_true", help="break the connection of a post-copy")
    actions.add_argument("--incoming", metavar="URI", help="have a machine of -incoming defer listen")
    actions.add_argument("--recover", metavar="URI", help="have the destination of a broken post-copy listen again")
    add("--json", action="store_true", help="with --status: print JSON for programs")
    options = parser.parse_intermixed_args(_with_seconds(arguments))
    controls = (options.status, options.cancel, options.start_postcopy, options.pause)
    if options.uri is None and not (any(controls) or options.incoming or options.recover):
        options.name, options.uri = "", options.name or None  # a URI alone
    if (options.uri is None) != bool(any(controls) or options.incoming or options.recover):
        parser.error("expected URI, or one of --status, --cancel, --start-postcopy, --pause, --incoming, --recover")
    if options.detach and options.postcopy:
        parser.error(
            "--postcopy SECONDS: expected no --detach, as somebody has to wait; --start-postcopy does it later"
        )
    return migrate.migrate(options)


def _with_seconds(arguments: Sequence[str]) -> list[str]:
    """`--postcopy` with what is meant: a word behind it that is no number is the machine's name, which argparse would
    take for its value."""
    found: list[str] = []
    for word, follows in zip_longest(arguments, arguments[1:], fillvalue=""):
        number = re.fullmatch(r"[0-9.]+", follows)
        found.append(f"{word}={_AT_ONCE}" if word == "--postcopy" and not number else word)
    return found


def _upgrade(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="vmesh upgrade",
        description="New processes for a guest that runs, perhaps of another version of vmesh: start NEW with the "
        "flags of NAME and `-incoming handover:NAME`; then NAME hands its RAM, which is not copied, and all state over "
        "to NEW, and ends. Should NEW not take it, NAME goes on.",
    )
    parser.add_argument("name", metavar="NAME", help="the machine that runs")
    parser.add_argument("new", metavar="NEW", help="the one that waits")
    options = parser.parse_args(arguments)
    from vmesh.cli import migrate

    return migrate.upgrade(options.name, options.new)


def _migration(arguments: Sequence[str]) -> int:
    parser = Parser(prog="vmesh migration", description="Look into migration streams.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = "print what is in a stream: a snapshot, or a migration to a file"
    look = actions.add_parser("inspect", help=text, description=text.capitalize() + ".")
    look.add_argument("file", type=Path, metavar="FILE", help="the stream")
    look.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args(arguments)
    from vmesh.cli.inspect import inspect

    return inspect(options.file, as_json=options.json)


def _monitor(arguments: Sequence[str]) -> int:
    text = "A machine's monitor prompt (QEMU's HMP), with completion and history; Ctrl-D ends it, not the machine."
    parser = _machine_parser("monitor", text)
    parser.add_argument(
        "-c", dest="commands", action="append", default=[], metavar="COMMAND", help="carry this out, and end"
    )
    options = parser.parse_intermixed_args(arguments)
    from vmesh.cli.monitor import monitor

    return monitor(options.name, options.commands)


def _completion(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="vmesh completion",
        description="Print what a shell needs to complete commands and flags: `source <(vmesh completion bash)`.",
    )
    parser.add_argument("shell", choices=("bash",), metavar="SHELL", help="bash")
    parser.parse_args(arguments)
    from vmesh.cli.completion import bash

    print(bash(COMMANDS), end="")
    return 0


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
    "serve": Subcommand("Run one service of a machine, as a container does.", _serve),
    "deploy": Subcommand("Start a machine in the background, in containers or not.", _deploy),
    "health": Subcommand("Whether a service of a machine is well, as a container's health check.", _health),
    "ps": Subcommand("List the running machines and their services.", _ps),
    **{name: Subcommand(text, _control(name, text)) for name, text in _CONTROLS.items()},
    "monitor": Subcommand("A machine's HMP prompt, with completion and history.", _monitor),
    "attach": Subcommand("Show a console of a machine on this terminal.", _attach),
    "events": Subcommand("Print what happens to a machine.", _events),
    "top": Subcommand("Show what a machine does, and whether it is stuck.", _top),
    "trace": Subcommand("Record a machine's bus traffic.", _trace),
    "memory": Subcommand("Show a machine's memory.", _memory),
    "metrics": Subcommand("Print a machine's counters for Prometheus.", _metrics),
    "swap": Subcommand("Put another program in the place of a device.", _swap),
    "migrate": Subcommand("Move a running machine to another that waits for it.", _migrate),
    "upgrade": Subcommand("Hand a running machine over to new processes on this host.", _upgrade),
    "snapshot": Subcommand("Save machines into files, and load them.", _snapshot),
    "migration": Subcommand("Look into a migration stream.", _migration),
    "device_add": Subcommand("Add a device to a machine that runs.", _device_add),
    "device_del": Subcommand("Take a device away from a machine that runs.", _device_del),
    "keys": Subcommand("Make the keys of a machine on several hosts.", _keys),
    "hub": Subcommand("Link the networks of machines.", _hub),
    "guest": Subcommand("Fetch the default guest; make a disk with Debian on it.", _guest),
    "completion": Subcommand("Print what a shell needs to complete commands and flags.", _completion),
}
