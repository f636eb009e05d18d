"""Services that start as a machine starts them: forked from a process that has imported them.

`python -P -m services.X` spends nearly all its processor time on importing, and the contract's tests start some
thousand services. What only that shows, services that are started by hand show, and the example of a device.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection

from tests.waiting import LIMIT

_forks = multiprocessing.get_context("forkserver")
SERVICES = (
    "vmesh_services.cpu",
    "vmesh_services.devices.fw_cfg",
    "vmesh_services.devices.goldfish_rtc",
    "vmesh_services.devices.ns16550a",
    "vmesh_services.devices.sifive_test",
    "vmesh_services.devices.virtio_9p",
    "vmesh_services.devices.virtio_balloon",
    "vmesh_services.devices.virtio_blk",
    "vmesh_services.devices.virtio_console",
    "vmesh_services.devices.virtio_net",
    "vmesh_services.devices.virtio_rng",
    "vmesh_services.memory",
    "vmesh_services.migration",
)
_forks.set_forkserver_preload([__name__, *(f"{service}.__main__" for service in SERVICES)])


class Process:
    """`python -P -m MODULE ARGUMENTS --lifeline FD` with its standard error in a pipe, as subprocess.Popen has it."""

    def __init__(self, module: str, arguments: Sequence[str], lifeline: int) -> None:
        self.args = [module, *arguments]
        self._said, theirs = _forks.Pipe(duplex=False)
        with theirs, Connection(os.dup(lifeline), writable=False) as alive:
            self._process = _forks.Process(target=_run, args=(module, list(arguments), alive, theirs))
            self._process.start()
        self._output = b""
        self.pid: int = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float = LIMIT) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float = LIMIT) -> tuple[None, str]:
        """All that it has said, when it has ended."""
        until = time.monotonic() + timeout
        while not self._said.closed:
            if not connection.wait([self._said], max(0.0, until - time.monotonic())):
                raise subprocess.TimeoutExpired(self.args, timeout)
            if piece := os.read(self._said.fileno(), 65536):
                self._output += piece
            else:
                self._said.close()
        self.wait(max(0.0, until - time.monotonic()))
        return None, self._output.decode()

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(module: str, arguments: list[str], lifeline: Connection, stderr: Connection) -> None:
    signal.set_wakeup_fd(-1)
    with open(os.devnull) as null:
        os.dup2(null.fileno(), 0)
    os.dup2(stderr.fileno(), 2)
    stderr.close()
    sys.exit(importlib.import_module(f"{module}.__main__").main([*arguments, "--lifeline", str(lifeline.fileno())]))
