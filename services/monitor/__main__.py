"""The monitor: starts the services of one machine, supervises them, and opens the control plane's door.

It ends with the guest's exit status, 1 if a service failed. No process, socket or file of the machine is left then.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from vmesh import addresses, listening
from vmesh.errors import ConfigError, VmeshError
from vmesh.log import Log
from vmesh.machine import MachineError, adopt, meet
from vmesh.remote import Remote
from vmesh.remote import parse as parse_remote
from vmesh.spawn import end_orphans
from vmesh.stdio import Stderr
from vmesh_services.monitor import doors
from vmesh_services.monitor.control import Control
from vmesh_services.monitor.gdb.server import GdbServer
from vmesh_services.monitor.keeper import Keeper, command_argument, console_argument, redirection
from vmesh_services.monitor.migration import IncomingOptions, Migration
from vmesh_services.monitor.output import Output
from vmesh_services.monitor.supervisor.condition import Actions
from vmesh_services.monitor.supervisor.settings import Settings
from vmesh_services.monitor.supervisor.supervisor import Supervisor


def main(argv: list[str]) -> int:
    """Run one machine. Returns its exit status."""
    os.umask(0o077)  # the gateway's socket is its owner's from the moment it exists
    arguments = _parse(argv)
    try:
        machine = (meet if arguments.attached else adopt)(arguments.machine, arguments.lock)
        if arguments.attached:
            machine.claim("monitor")  # to the end of this process
    except MachineError as error:
        print(f"monitor: {error}", file=sys.stderr)
        return 2
    log = Log("monitor", machine.log)
    phase = _phases(log, arguments.began, show=arguments.startup)
    phase("monitor up")
    settings = Settings(
        actions=Actions(**{"reboot": "shutdown" if arguments.no_reboot else "reset", **dict(arguments.action)}),
        health_interval=arguments.health_interval,
        health_limit=arguments.health_limit,
        start_limit=arguments.start_limit,
        absence_limit=arguments.absence_limit,
    )
    try:
        places = addresses.of_options(arguments, machine, "monitor")
    except ConfigError as error:
        _tell(arguments.report, str(error))
        machine.remove()
        return 1
    output = Output(log, Stderr() if arguments.warnings else None)
    keeper = None if arguments.attached else Keeper(machine, dict(arguments.console), arguments.service)
    supervisor = Supervisor(machine, arguments.service, settings, keeper, log, output, places, phase)
    incoming = IncomingOptions(arguments.incoming, arguments.load, arguments.stay_paused)
    migration = Migration(supervisor, keeper, log, output, incoming)
    control = Control(supervisor, migration, log, dict(arguments.console))
    if keeper is not None:
        keeper.redirected = partial(_redirected, control)
    signals = _signal_pipe()
    if arguments.incoming:
        listening.succeed()
    try:
        opened = doors.open_all(control, arguments.door)
    except ConfigError as error:
        _tell(arguments.report, str(error))
        machine.remove()
        return 1
    ends = [signals] if arguments.lifeline is None else [signals, arguments.lifeline]
    if not all(server.wait(ends) for server in opened if server.where.wait):
        machine.remove()
        return 0
    # The services see the end of this pipe when this process ends; nobody ever writes to it.
    services_lifeline, ours = os.pipe()
    if arguments.attached:
        supervisor.attach()
    else:
        gc.freeze()  # what was imported is shared with the services, page by page
        supervisor.start(services_lifeline)
        migration.prepare()
    os.close(services_lifeline)
    gdb = GdbServer(supervisor)
    gdb.console = partial(doors.hmp_line, control)
    control.gdbserver = gdb.listen
    if arguments.gdb:
        try:
            gdb.listen(arguments.gdb)
        except ConfigError as error:
            supervisor.end(1, f"gdb server: {error}")
    supervisor.loop.watch(signals, read=lambda: supervisor.end(0, reason="host-signal"))
    if arguments.lifeline is not None:
        supervisor.loop.watch(arguments.lifeline, read=lambda: _launcher_gone(supervisor, arguments.lifeline))
    supervisor.open_gateway = lambda: threading.Thread(
        target=_open_gateway, args=(supervisor, migration, arguments.gateway, arguments.metrics, phase), daemon=True
    ).start()
    status = supervisor.run()
    os.close(ours)
    end_orphans()  # what a keeper that was killed has left
    gdb.close()
    for server in opened:
        server.close()
    machine.remove()
    if supervisor.condition.failure:
        _tell(arguments.report, supervisor.condition.failure)
    return status


def _redirected(control: Control, console: str, place: str) -> None:
    control.consoles[console] = place
    Stderr().write(f"{redirection(console, place)}\n")


def _open_gateway(
    supervisor: Supervisor,
    migration: Migration,
    remote: Remote | None,
    metrics: tuple[str, int] | None,
    phase: Callable[[str], None],
) -> None:
    """The gateway is opened last: whoever is answered there finds all else."""
    # gRPC is imported last: it has threads, which do not survive the forks, and the guest need not wait for it.
    from vmesh_services.monitor.gateway import serve

    place = ""
    try:
        if metrics is not None:
            place = f"for metrics, {metrics[0]}:{metrics[1]}"
            from vmesh_services.monitor import metrics as exporter  # here: nobody else needs it
            from vmesh_services.monitor.status import machine_status

            exporter.serve(*metrics, lambda: machine_status(supervisor, usage=True), len(supervisor.roster.all))
        place = str(remote or supervisor.machine.gateway)
        server = serve(supervisor, migration, supervisor.machine.gateway, remote)
    except (OSError, RuntimeError, VmeshError) as error:
        failure = f"the monitor cannot open its gateway {place}: {error}"
        supervisor.call(lambda: supervisor.end(1, failure))
        return
    supervisor.call(lambda: phase("gateway open"))
    server.wait_for_termination()


def _launcher_gone(supervisor: Supervisor, lifeline: int) -> None:
    supervisor.loop.watch(lifeline)
    supervisor.end(1, "the launcher is gone")


def _signal_pipe() -> int:
    """A descriptor that becomes readable when this process is asked to end (SIGTERM, SIGINT, SIGHUP)."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _phases(log: Log, began_ns: int, *, show: bool) -> Callable[[str], None]:
    """Logs how far the start has come, in ms since `began_ns` (CLOCK_MONOTONIC; 0: now), on stderr too if `show`."""
    began_ns = began_ns or time.monotonic_ns()

    def phase(text: str) -> None:
        elapsed = f"{(time.monotonic_ns() - began_ns) / 1e6:.1f}"
        log.info("start", phase=text, ms=elapsed)
        if show:
            with suppress(OSError):
                Stderr().write(f"start: {elapsed:>7} ms  {text}\n")

    return phase


def _tell(report: int | None, failure: str) -> None:
    """Say why the machine ended: to the launcher, which owns the terminal, or where there is none on stderr."""
    if report is None:
        print(f"monitor: {failure}", file=sys.stderr)
        return
    with suppress(OSError):
        os.write(report, failure.encode(errors="replace"))


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -P -m vmesh_services.monitor", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--machine", type=Path, required=True, metavar="DIR", help="the machine directory")
    add("--service", type=command_argument, action="append", required=True, metavar="'NAME KIND MODULE ARGUMENT...'",
        help="a service to start; once for each, quoted as for a shell")  # fmt: skip
    add(
        "--console",
        type=console_argument,
        action="append",
        default=[],
        metavar="NAME=CHARDEV",
        help="what to keep for the serial device NAME, which has --chardev kept:DIR/NAME.kept",
    )
    add("--gdb", default="", metavar="ENDPOINT", help="where gdb can connect: unix:PATH or tcp:127.0.0.1:PORT")
    add(
        "--door",
        type=doors.parse,
        action="append",
        default=[],
        metavar="MODE=ENDPOINT",
        help="where to speak QMP (control, control-pretty) or HMP (readline): unix:PATH or tcp:127.0.0.1:PORT",
    )
    add("--gateway", type=_remote, metavar="tcp:HOST:PORT,tls-creds=DIR", help="another door, by mutual TLS")
    add("--metrics", type=_port, metavar="HOST:PORT", help="answer Prometheus over HTTP, on the loopback interface")
    add("--action", type=_action, action="append", default=[], metavar="EVENT=ACTION", help="as -action of vmesh run")
    add("--no-reboot", action="store_true", help="end when the guest asks for a reset")
    add("--health-interval", type=float, default=1.0, metavar="SECONDS", help="between two looks at a service")
    add("--health-limit", type=float, default=10.0, metavar="SECONDS", help="without an answer: it hangs")
    add("--start-limit", type=float, default=60.0, metavar="SECONDS", help="for all services to get ready")
    addresses.add_options(parser)
    add("--attached", action="store_true", help="start nothing: somebody else starts the services, in any order")
    add("--absence-limit", type=float, default=60.0, metavar="SECONDS", help="attached: for a service to come back")
    add("--incoming", default="", metavar="URI", help="where the machine comes in by migration, or 'defer'")
    add("--load", default="", metavar="FILE", help="a snapshot to begin with")
    add("--stay-paused", action="store_true", help="do not run once it has come in or was loaded")
    add("--warnings", action="store_true", help="copy the services' warnings and errors to stderr")
    add("--startup", action="store_true", help="say on stderr how long each phase of the start took")
    add("--began", type=int, default=0, metavar="NS", help="CLOCK_MONOTONIC when the user's command began")
    add("--lifeline", type=int, metavar="FD", help="a pipe: at its end the machine ends")
    add("--lock", type=int, default=-1, metavar="FD", help="the machine directory's lock, held already")
    add("--report", type=int, metavar="FD", help="a pipe that gets the failure, if any, that ended the machine")
    return parser.parse_args(argv)


def _action(text: str) -> tuple[str, str]:
    event, _, action = text.partition("=")
    return event, action


def _remote(text: str) -> Remote:
    try:
        return parse_remote(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
