"""Processes that import a service before it is known how it is to be started.

Importing Python modules is most of the time that a machine takes to start, and a process imports on one core. So
`vmesh run` forks the monitor-to-be at once, which imports its modules, and itself forks the cpu-to-be, while the
launcher still reads its flags. `spawn.start` then finds them, and hands over a command line and files instead of
forking.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from vmesh import spawn
from vmesh.spawn import Child, Task

_MOST_FILES = 32


@dataclass(frozen=True, slots=True)
class Forerunner:
    """A process that imports `shared`, forks those in `then`, which have that by the fork, and imports `module`."""

    module: str
    shared: Sequence[str] = ()
    then: Sequence[Forerunner] = ()


MACHINE = Forerunner(
    "vmesh_services.monitor",
    shared=("vmesh.service", "vmesh.device"),
    then=(Forerunner("vmesh_services.cpu"),),
)
"""What every machine has."""


def prepare(forerunner: Forerunner) -> None:
    """Fork the process. Until it has its task it ends with this one."""
    ours, theirs = socket.socketpair()
    child = spawn.fork(lambda: _wait(forerunner, theirs), title="vmesh-standby", death_signal=signal.SIGKILL)
    theirs.close()
    ours = socket.socket(fileno=spawn.aside(ours.detach()))
    child = Child(child.pid, spawn.aside(child.pidfd))

    def give(task: Task) -> Child:
        message = {
            "arguments": task.arguments,
            "title": task.title,
            "places": list(task.files),
            "death_signal": task.death_signal,
            "umask": _umask(),
        }
        with ours, suppress(BrokenPipeError, ConnectionResetError):  # it has died: whoever waits for it is told how
            socket.send_fds(ours, [b"\0"], list(task.files.values()))
            ours.sendall(json.dumps(message).encode())
        return child

    spawn.standing_by.add(forerunner.module, (ours.fileno(), child.pidfd), give)


def _wait(forerunner: Forerunner, theirs: socket.socket) -> int:
    spawn.standing_by.forget()
    spawn.close_all_but({0, 1, 2, theirs.fileno()})
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    for module in forerunner.shared:
        importlib.import_module(module)
    gc.freeze()  # what was imported is shared with those that come, page by page
    for each in forerunner.then:
        prepare(each)
    importlib.import_module(f"{forerunner.module}.__main__")
    with theirs:
        start, files, _, _ = socket.recv_fds(theirs, 1, _MOST_FILES)
        if not start:  # nobody needs it
            return 0
        message = json.loads(b"".join(iter(lambda: theirs.recv(1 << 16), b"")))
    os.umask(message["umask"])
    spawn.describe_self(message["title"], message["death_signal"])
    task = Task(forerunner.module, tuple(message["arguments"]), message["title"])
    return task.perform(dict(zip(message["places"], files, strict=True)))


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
