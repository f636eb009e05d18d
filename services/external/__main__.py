"""`python -P -m vmesh_services.external`: stands for a device that is not one of ours.

With --command it becomes that program, in the same process. Without, the device is started by hand: this process waits
until it listens, then lives as long as it does, so that the monitor has a process to watch for each service.
"""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vmesh import connecting, service, waiting
from vmesh.log import Log
from vmesh.machine import MachineDirectory

_LOOK_SECONDS = 0.05
_PEER_CREDENTIALS = struct.Struct("iii")  # struct ucred: pid, uid, gid; unix(7)


def main(argv: Sequence[str]) -> int:
    """Become the device, or wait for it and its end; gives the exit status."""
    parser = service.parser("external", __doc__)
    parser.add_argument("--base", type=service.number, required=True, metavar="ADDRESS")
    parser.add_argument("--irq", type=service.number, default=0, metavar="N")
    parser.add_argument("--command", default="", metavar="TEXT", help="the program and its arguments, as for a shell")
    parser.add_argument("--directory", default="", metavar="DIR", help="where to start it (default: where this is)")
    parser.add_argument("--wait", type=float, default=60.0, metavar="SECONDS", help="for a device started by hand")
    options = parser.parse_args(argv)
    machine = MachineDirectory(options.machine.absolute())
    log = Log(options.name, machine.log)
    arguments = ["--machine", str(machine.path), "--name", options.name]
    arguments += ["--epoch", str(service.epoch(options, machine))]
    arguments += ["--base", hex(options.base), *(["--irq", str(options.irq)] if options.irq else [])]
    arguments += _elsewhere(options)
    if options.command:
        if options.lifeline >= 0:
            arguments += ["--lifeline", str(options.lifeline)]
        return _become([*shlex.split(options.command), *arguments], options.directory or ".", log)
    log.info("waiting for a device", arguments=shlex.join(arguments))
    return _stand_in(machine.socket(options.name), options.lifeline, options.wait, log)


def _elsewhere(options: argparse.Namespace) -> list[str]:
    """What the device has to know of other hosts."""
    arguments = [word for name, address in options.peer for word in ("--peer", f"{name}={address}")]
    for flag in ("listen", "endpoint"):
        if address := getattr(options, flag):
            arguments += [f"--{flag}", address]
    return arguments + (["--keys", str(options.keys.absolute())] if options.keys else [])


def _become(command: list[str], directory: str, log: Log) -> int:
    # The lifeline, and the lock that says that a process of the machine lives.
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # the one that listdir used
            os.set_inheritable(fd, True)
    try:
        os.chdir(directory)
        os.execvp(command[0], command)
    except OSError as error:
        log.error("cannot start", reason=f"{command[0]}: {error.strerror}")
        return 1


def _stand_in(path: Path, lifeline: int, wait: float, log: Log) -> int:
    deadline = time.monotonic() + wait
    while (pid := _listener(path)) is None:
        if time.monotonic() > deadline:
            log.error("gave up", reason=f"no device has come to {path} within {wait:g} s")
            return 1
        if _ended(lifeline, timeout=_LOOK_SECONDS):
            return 0
    log.info("found the device", pid=pid)
    try:
        device = os.pidfd_open(pid)
    except OSError as error:
        log.error("cannot watch the device", reason=f"process {pid}: {error.strerror}")
        return 1
    if _ended(device, lifeline) == device:
        print(f"the device, process {pid}, has ended", file=sys.stderr)
        return 1
    return 0


def _listener(path: Path) -> int | None:
    """The process that listens on a Unix socket, if one does."""
    try:
        probe = connecting.connect(path)
    except OSError:
        return None
    with probe:
        pid, _, _ = _PEER_CREDENTIALS.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)


def _ended(*fds: int, timeout: float | None = None) -> int:
    """Wait until one of these is readable, a pipe at its end or a process that ended; gives it, 0 after `timeout`."""
    ready = waiting.readable(*(fd for fd in fds if fd >= 0), seconds=timeout)
    return ready[0] if ready else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
