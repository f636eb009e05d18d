"""Starting a service from a warm interpreter: fork, become a process of its own, import the service, call its `main`.

The same service starts by hand as `python -P -m vmesh_services.<name> ...`; what it needs to know is on its command
line.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import importlib
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_ABOVE = 200  # descriptors that are not in the way of those that a process is to have

_libc = ctypes.CDLL(None, use_errno=True)


def python(module: str, *arguments: str) -> list[str]:
    """The command line of a Python that runs `module`, wherever it is started.

    `-P`: with `-m` alone, Python would import from the current directory first, where anybody may have put a select.py.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


@dataclass(frozen=True, slots=True)
class ServiceCommand:
    """The command line of a service: `python -P -m <module> <arguments>`; `kind` is what the service says it is."""

    name: str
    kind: str
    module: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(python(self.module, *self.arguments))

    @property
    def monitor_text(self) -> str:
        """The one word that the monitor's --service takes."""
        return shlex.join([self.name, self.kind, self.module, *self.arguments])


@dataclass(frozen=True, slots=True)
class Child:
    """A process forked here. `pidfd` becomes readable at its end; `output`, or -1, has its stdout and stderr."""

    pid: int
    pidfd: int
    output: int = -1


@dataclass(frozen=True, slots=True)
class Task:
    """What a process is to do: run `module` with `arguments`.

    It has the files `keep`, by the same numbers, and those in `standard` as its standard ones (0, 1, 2: which of ours).
    `death_signal` (0: none) comes when its parent dies.
    """

    module: str
    arguments: tuple[str, ...]
    title: str
    keep: frozenset[int] = frozenset()
    standard: Mapping[int, int] = field(default_factory=dict)
    death_signal: int = 0

    @property
    def files(self) -> dict[int, int]:
        """What the process has by what number, and which one of ours it is."""
        return {**self.standard, **{fd: fd for fd in self.keep}}

    def perform(self, received: Mapping[int, int]) -> int:
        """Do it, in the process; `received` are the `files` as this process has them. Returns its exit status."""
        _put_in_place(received)
        close_all_but({0, 1, 2, *received, *standing_by.files()})
        main: Callable[[list[str]], int | None] = importlib.import_module(f"{self.module}.__main__").main
        return main(list(self.arguments)) or 0


class StandingBy:
    """The processes that have imported a module and wait for their task: vmesh/standby.py puts them here."""

    def __init__(self) -> None:
        self._processes: dict[str, tuple[frozenset[int], Callable[[Task], Child]]] = {}

    def add(self, module: str, files: Collection[int], give: Callable[[Task], Child]) -> None:
        """`give` hands a task over; until then `files` stay open, under numbers that no task's files have (`aside`)."""
        self._processes[module] = frozenset(files), give

    def take(self, module: str) -> Callable[[Task], Child] | None:
        """Who has imported `module`, once."""
        return self._processes.pop(module, (frozenset(), None))[1]

    def files(self) -> set[int]:
        return {fd for files, _ in self._processes.values() for fd in files}

    def forget(self) -> None:
        """In a new process: they are its parent's."""
        self._processes.clear()


standing_by = StandingBy()


def start(task: Task, *, parent: int = 0) -> Child:
    """Have `task` done by a process that stands by for it, else by a new one. For `parent` see `fork`."""
    if not parent and (give := standing_by.take(task.module)):
        return give(task)

    def run() -> int:
        standing_by.forget()
        return task.perform(task.files)

    return fork(run, title=task.title, death_signal=task.death_signal, parent=parent)


def start_service(
    command: ServiceCommand,
    *,
    lifeline: int,
    more: Sequence[str] = (),
    keep: Collection[int] = (),
    death_signal: int = signal.SIGKILL,
    parent: int = 0,
) -> Child:
    """Start a process that runs `command`, with `more` arguments and `--lifeline`, the end of a pipe.

    Of the open files the child keeps `lifeline` and `keep`; its output comes through a pipe. The kernel sends it
    `death_signal` (0: none) when its parent dies, for the case that it hangs and does not see its lifeline end. For
    `parent` see `fork`.
    """
    with ExitStack() as failed, ExitStack() as given:
        reader, writer = os.pipe()
        failed.callback(os.close, reader)
        given.callback(os.close, writer)
        os.set_blocking(reader, False)
        null = os.open(os.devnull, os.O_RDONLY)
        given.callback(os.close, null)
        task = Task(
            command.module,
            (*command.arguments, *more, "--lifeline", str(lifeline)),
            f"vmesh-{command.name}",
            keep=frozenset((lifeline, *keep)),
            standard={0: null, 1: writer, 2: writer},
            death_signal=death_signal,
        )
        child = start(task, parent=parent)
        failed.pop_all()
    return Child(child.pid, child.pidfd, reader)


def fork(run: Callable[[], int], *, title: str, death_signal: int = 0, parent: int = 0) -> Child:
    """Fork a process that calls `run` and exits with what it returns; `title` is its name in ps(1), 15 bytes of it.

    Its parent is this process, or `parent`: the nearest process above that adopts orphans, which waits for it then.
    Only for a process without threads. Signal handlers of this process do not hold in the child. Raises OSError; then
    there is no process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if parent:
        pid = _fork_orphan(lambda: _run_child(run, title, death_signal, parent))
    else:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _run_child(run, title, death_signal, parent)
    try:
        return Child(pid, os.pidfd_open(pid))
    except OSError:
        os.kill(pid, signal.SIGKILL)
        if parent == os.getpid():  # else it is another's to wait for
            os.waitpid(pid, 0)
        raise


def describe_self(title: str, death_signal: int) -> None:
    """This process's name in ps(1), and the signal (0: none) that it gets when its parent dies."""
    _libc.prctl(_PR_SET_NAME, title.encode()[:15], 0, 0, 0)
    _libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)


def close_all_but(keep: Collection[int]) -> None:
    """Close every open file but these."""
    for fd in [int(entry) for entry in os.listdir("/proc/self/fd")]:
        if fd not in keep:
            with suppress(OSError):  # the one that listdir used
                os.close(fd)


def adopt_orphans() -> None:
    """Make this process the parent of its descendants whose own parent dies, so that it can wait for them."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans() -> None:
    """Kill the children that this process still has, adopted ones too, and wait for them."""
    children: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has just ended; its children are another one's now
            children += map(int, (task / "children").read_text().split())
    for pid in children:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def describe_exit(status: int) -> str:
    """What a wait status says: "was killed by SIGKILL", "ended with status 3"."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:
            return f"was killed by signal {number}"
    return f"ended with status {os.waitstatus_to_exitcode(status)}"


def aside(fd: int) -> int:
    """The same open file by a number that is not in the way of those that a process is to have; `fd` is closed."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
    os.close(fd)
    return moved


def _put_in_place(files: Mapping[int, int]) -> None:
    """Give open files the numbers that they are to have. None of them may be closed by the number of another."""
    above = {place: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for place, fd in files.items()}
    for place, fd in above.items():
        os.dup2(fd, place, inheritable=place <= 2)
        os.close(fd)


def _fork_orphan(run: Callable[[], NoReturn]) -> int:
    """The child of a child that has ended when `run` is called."""
    reader, writer = os.pipe()
    with open(reader, "rb") as told:
        try:
            if (between := os.fork()) == 0:
                _fork_and_tell(writer, run)
        finally:
            os.close(writer)
        answer = told.read(4)
        os.waitpid(between, 0)
    if not answer:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return int.from_bytes(answer, "little")


def _fork_and_tell(writer: int, run: Callable[[], NoReturn]) -> NoReturn:
    """In the process between: whatever happens, it goes no further than here."""
    middle = os.getpid()
    try:
        pid = os.fork()
        if pid:
            os.write(writer, pid.to_bytes(4, "little"))
    except OSError:
        os._exit(1)
    if pid:
        os._exit(0)
    while os.getppid() == middle:
        time.sleep(0.0001)
    run()


def _run_child(run: Callable[[], int], title: str, death_signal: int, parent: int) -> NoReturn:
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCONT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        describe_self(title, death_signal)
        if death_signal and os.getppid() != parent:
            os._exit(1)
        status = run()
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            status = ending.code or 0
        else:
            print(ending.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status & 0xFF)
