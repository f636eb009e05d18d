"""`vmesh run`: the launcher. Makes the machine directory, starts the monitor, has the terminal, gives the exit status.

What is imported here is start-up time (`-d startup` prints it); the monitor and its services import what they need
meanwhile (vmesh/standby.py).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from vmesh import descriptors, guest, waiting
from vmesh import machine as machines
from vmesh.board.errors import BoardError
from vmesh.cli.console import Console
from vmesh.cli.flags.options import OptionError, RunOptions, status_of
from vmesh.cli.flags.parsing import parse
from vmesh.cli.plan import MachinePlan, device_tree, monitor_command, plan
from vmesh.cli.script import Form, Script
from vmesh.errors import HostLimit, VmeshError
from vmesh.guest import GuestError
from vmesh.machine import MachineDirectory, MachineError
from vmesh.properties import HelpRequested
from vmesh.spawn import Child, Task, adopt_orphans, describe_exit, start
from vmesh.stdio import Stderr

_ORPHANS_LIMIT = 1.5  # seconds for services to end by themselves after the monitor was killed
_REPORT_LIMIT = 4096  # bytes
_SAY_LIMIT = 1.0  # seconds for a terminal to take a line


def run(arguments: Sequence[str]) -> int:
    """Run a machine as the flags say. Returns the exit status: the guest's, 1 after a failure, 2 for bad flags."""
    try:
        return _run(parse(arguments))
    except HelpRequested as request:
        print(request)
        return 0
    except (OptionError, BoardError, GuestError, MachineError, VmeshError) as error:
        return _complain(error, status_of(error))


def _run(options: RunOptions) -> int:
    if options.dumpdtb is not None:
        return _dump_device_tree(options, options.dumpdtb)
    if options.print_commands:
        return _print_commands(options)
    script = _script(options)
    options = replace(options, stdin=_stdin(options, script))
    # Until the terminal is run, which has its own ways with signals: end, and remove what was made.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    machine = machines.create(options.name)
    adopt_orphans()
    try:
        planned = plan(options, machine)
        descriptors.check(len(planned.services), options.harts)
        planned.write(machine)
        for note in planned.notes:
            print(f"vmesh: {note}", file=sys.stderr)
        _link_log(machine, options)
        if options.pid_file is not None:
            _write_pid(options.pid_file)
        monitor, report, lifeline = _fork_monitor(machine, planned, options)
    except BaseException:
        machine.remove()
        raise
    # From now on the monitor and its services hold the lock, and this process removes only what they leave.
    os.close(machine.lock_fd)
    try:
        status, console = _run_console(machine, monitor, options, script)
    finally:
        os.close(lifeline)
        _end_orphans()
        machines.reap()
        if options.pid_file is not None:
            options.pid_file.unlink(missing_ok=True)
    failure = _read_report(report)
    if console.unread:
        _say(f"vmesh: {console.unread} bytes of the console were not read")
    if left := script.end() if script else b"":
        Stderr(_SAY_LIMIT).write(left.decode(errors="replace"))
    if os.WIFSIGNALED(status) and not console.ended_by:
        failure = f"the monitor (pid {monitor.pid}) {describe_exit(status)}"
    if failure:
        return _complain(f"machine '{machine.name}': {failure}", 1)
    if console.ended_by:
        _say(f"vmesh: {console.ended_by}")
        return 0
    ended = os.waitstatus_to_exitcode(status)
    return script.status if script and script.status is not None and not ended else ended


def _script(options: RunOptions) -> Script | None:
    """How the default guest gets what is piped in; None for other guests, and where the console is elsewhere."""
    if not options.boots_default_guest or options.terminal[1].kind != "stdio":
        return None
    words = (options.append or "").split()
    if options.incoming or any(word.startswith(("root=", "init=", "rdinit=")) for word in words):
        form = Form.RAW  # another system's console
    elif options.load_snapshot is not None or guest.find() is None:
        form = Form.TYPED
    elif options.quiet and not any(word.startswith("vmesh.run=") for word in words):
        form = Form.PIECES
    else:
        form = Form.AT_PROMPT
    return Script(form, options.quiet and form in (Form.AT_PROMPT, Form.PIECES))


def _stdin(options: RunOptions, script: Script | None) -> str:
    """What the default guest's /init is told of its input: nothing where somebody types and sees all."""
    if script is None or (os.isatty(0) and not options.quiet):
        return ""
    return "script" if options.quiet and not os.isatty(0) else "prompts"


def _run_console(
    machine: MachineDirectory, monitor: Child, options: RunOptions, script: Script | None
) -> tuple[int, Console]:
    """Run the terminal until the machine has ended: the monitor's wait status, and what it knows of the end."""
    device, serial = options.terminal
    door = machine.hmp if options.monitor == "stdio" or (options.monitor is None and serial.mux) else None
    if any(each.endpoint is None for each in options.doors):
        door = machine.terminal_monitor
    console = Console(machine, device, serial, door, monitor, script)
    return console.run(), console


def _write_pid(path: Path) -> None:
    """Raises HostLimit."""
    try:
        path.write_text(f"{os.getpid()}\n")
    except OSError as error:
        raise HostLimit(f"-pidfile {path}: {error.strerror}") from error


def _link_log(machine: MachineDirectory, options: RunOptions) -> None:
    """Have the machine's log written to the file of -D. Raises HostLimit if that cannot be."""
    if options.log_file is None:
        return
    try:
        options.log_file.write_bytes(b"")
    except OSError as error:
        raise HostLimit(f"-D {options.log_file}: {error.strerror}") from error
    machine.log.symlink_to(options.log_file)


def _fork_monitor(machine: MachineDirectory, planned: MachinePlan, options: RunOptions) -> tuple[Child, int, int]:
    """The monitor, the pipe where it reports a failure, and the pipe whose end tells it that this process is gone."""
    watched, lifeline = os.pipe()
    report, reports = os.pipe()
    command = monitor_command(planned, options, machine)
    own = ["--lifeline", str(watched), "--lock", str(machine.lock_fd), "--report", str(reports)]
    own += ["--began", str(_process_start_ns())]

    null = os.open(os.devnull, os.O_RDWR)
    keep = frozenset((watched, machine.lock_fd, reports))
    child = start(Task(command.module, (*command.arguments, *own), "vmesh-monitor", keep, {0: null, 1: null, 2: 2}))
    for fd in (watched, reports, null):
        os.close(fd)
    return child, report, lifeline


def _process_start_ns() -> int:
    """When this process was started, on CLOCK_MONOTONIC, to 10 ms (proc(5): /proc/pid/stat, field 22)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.monotonic_ns() - int(age * 1e9)


def _end_orphans() -> None:
    """After the monitor was killed: wait for the services, which see their lifeline end, and kill those that do not."""
    deadline = time.monotonic() + _ORPHANS_LIMIT
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid:
            continue
        if time.monotonic() > deadline:
            for child in _children():
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _read_report(report: int) -> str:
    """What the monitor wrote before it ended, if anything."""
    if not waiting.readable(report, seconds=0):
        return ""
    return os.read(report, _REPORT_LIMIT).decode(errors="replace")


def _print_commands(options: RunOptions) -> int:
    """The processes as they could be started by hand, the monitor first: it starts the others."""
    from tempfile import TemporaryDirectory  # here, as below: 6 ms that no machine needs

    with TemporaryDirectory() as scratch:
        there = MachineDirectory(Path(scratch))
        planned = plan(options, there)
        place = str(machines.runtime_root() / (options.name or "NAME"))
        for command in (monitor_command(planned, options, there), *planned.services):
            print(str(command).replace(scratch, place))
    return 0


def _dump_device_tree(options: RunOptions, path: Path) -> int:
    from tempfile import TemporaryDirectory

    try:
        with TemporaryDirectory() as scratch:
            data = device_tree(options, Path(scratch))
        path.write_bytes(data)
    except OSError as error:
        return _complain(f"-machine dumpdtb={path}: {error.strerror}", 1)
    print(f"wrote the device tree, {len(data)} bytes, to {path}")
    return 0


def _complain(error: object, status: int) -> int:
    _say(f"vmesh run: {error}")
    return status


def _say(line: str) -> None:
    """On stderr, which may be a terminal that nobody reads."""
    Stderr(_SAY_LIMIT).write(f"{line}\n")
