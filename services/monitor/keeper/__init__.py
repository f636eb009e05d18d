"""The keeper: a process that has what must outlive a device. It holds the consoles and networks, and forks next lives.

The monitor cannot fork once its gateway runs, which has threads; the keeper has none, and has imported what devices
need, so that a next life begins within milliseconds. Requests and answers are JSON on a socket between the two, with a
number by which they belong together: a card waits for its network, and others need not wait for it.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import shlex
import shutil
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from vmesh import errors, lifeline, spawn
from vmesh.log import Log
from vmesh.loop import Loop
from vmesh.machine import MachineDirectory
from vmesh.spawn import Child, ServiceCommand
from vmesh.stdio import Stderr
from vmesh_services.monitor.console import KeptConsole

if TYPE_CHECKING:
    from vmesh_services.monitor.network import KeptNetwork

_MESSAGE_BYTES = 128 << 10
KEEPER = "keeper"  # its name where it is started as the services are
_LOOK_SECONDS = 0.5  # between two looks whether the machine is still there
_WARM_SECONDS = 1.0  # after the start, when the guest boots already

Spawned = Callable[[Child | None, str], None]


class Keeper:
    """The monitor's side. `failed` is called when the process cannot do its work, with one line; `redirected` when it
    knows where a console is, as query-chardev has it; `amiss` when a console's output is lost, and with nothing when it
    no longer is."""

    def __init__(
        self, machine: MachineDirectory, consoles: Mapping[str, str], commands: Sequence[ServiceCommand]
    ) -> None:
        for command in commands:
            _make_place(machine, command)
        self._machine = machine
        self._consoles = consoles
        self._commands = commands
        self._waiting: dict[int, Spawned] = {}  # by the number of the request
        self._numbers = count(1)
        self.child = Child(-1, -1)
        self.socket, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.failed: Callable[[str], None] = lambda failure: None
        self.redirected: Callable[[str, str], None] = lambda console, place: None
        self.amiss: Callable[[str, str], None] = lambda console, text: None

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def start(self, lifeline: int) -> None:
        """Fork the process. Call before any thread runs."""
        spawn.adopt_orphans()  # the next lives are to be this process's children
        monitor = os.getpid()

        def run() -> int:
            spawn.close_all_but({0, 1, 2, lifeline, self._machine.lock_fd, self._theirs.fileno()})
            process = _Process(self._machine, self._theirs, lifeline, monitor, self._commands)
            return process.run(self._consoles)

        self.child = spawn.fork(run, title="vmesh-keeper")  # ends by its lifeline: it has processes of its own to end
        self._theirs.close()

    def spawn(self, command: ServiceCommand, more: Sequence[str], spawned: Spawned) -> None:
        """Have `command` started with `more` arguments; `spawned` gets the process, or why there is none."""
        words = [command.name, command.kind, command.module, *command.arguments]
        number = next(self._numbers)
        request = json.dumps({"number": number, "command": words, "more": list(more)}).encode()
        if len(request) > _MESSAGE_BYTES:
            spawned(None, f"its command line is too long: expected at most {_MESSAGE_BYTES} bytes, got {len(request)}")
            return
        try:
            _make_place(self._machine, command)
            self.socket.send(request, socket.MSG_DONTWAIT)
        except OSError as error:
            spawned(None, f"the keeper cannot be asked: {error.strerror}")
        else:
            self._waiting[number] = spawned

    def forget(self, device: str) -> None:
        """The device has left the machine: what was kept for it ends."""
        with suppress(OSError):
            self.socket.send(json.dumps({"forget": device}).encode(), socket.MSG_DONTWAIT)

    def receive(self) -> None:
        """The socket is readable: take one answer."""
        try:
            data, files, _, _ = socket.recv_fds(self.socket, _MESSAGE_BYTES, 1)
        except OSError:
            data, files = b"", []
        if not data:  # its end is told by its process
            return
        answer = json.loads(data)
        if "failed" in answer:
            self.failed(answer["failed"])
        elif "place" in answer:
            self.redirected(answer["console"], answer["place"])
        elif "amiss" in answer:
            self.amiss(answer["console"], answer["amiss"])
        elif spawned := self._waiting.pop(answer["number"], None):
            child, failure = None, ""
            try:
                child = _child(answer, files)
            except OSError as error:
                failure = error.strerror or str(error)
            spawned(child, failure)

    def close(self) -> None:
        """Have it bring out what the consoles still hold, and end."""
        self.socket.close()

    def kill(self) -> None:
        signal.pidfd_send_signal(self.child.pidfd, signal.SIGKILL)


def _child(answer: dict[str, Any], files: Sequence[int]) -> Child:
    """The process that was forked. Raises OSError if it was not, or if this process has no descriptors for it."""
    if "error" in answer:
        raise OSError(errno.ECHILD, answer["error"])
    pid = answer["pid"]
    try:
        if not files:  # the kernel had to drop it
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return Child(pid, os.pidfd_open(pid), files[0])
    except OSError:
        for fd in files:
            os.close(fd)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def keep(machine: MachineDirectory, consoles: Mapping[str, str], commands: Sequence[ServiceCommand]) -> int:
    """Be the keeper of a machine whose services somebody else starts, until its end; `machine` is from `meet`.

    Raises ConfigError for what cannot be kept.
    """
    for command in commands:
        _make_place(machine, command)
    return _Process(machine, None, -1, 0, commands).run(consoles)


def redirection(console: str, place: str) -> str:
    """A line for the user, in QEMU's words."""
    return f"char device redirected to {place.partition(':')[2]} (label {console})"


def console_argument(text: str) -> tuple[str, str]:
    """NAME=CHARDEV: what is to be kept for a serial device."""
    name, equals, specification = text.partition("=")
    if not (name and equals and specification):
        raise argparse.ArgumentTypeError(f"expected NAME=CHARDEV, got '{text}'")
    return name, specification


def command_argument(text: str) -> ServiceCommand:
    """`NAME KIND MODULE ARGUMENT...`: the command line of a service."""
    parts = shlex.split(text)
    if len(parts) < 3:
        raise argparse.ArgumentTypeError(f"expected 'NAME KIND MODULE ARGUMENT...', got '{text}'")
    return ServiceCommand(parts[0], parts[1], parts[2], tuple(parts[3:]))


def _may_need_network(command: ServiceCommand) -> bool:
    """What is imported for networks takes 30 ms, which other machines need not wait for."""
    return "--netdev" in command.arguments


def _make_place(machine: MachineDirectory, command: ServiceCommand) -> None:
    if _may_need_network(command):
        from vmesh_services.monitor.network import make_place, network_of

        if network_of(command) is not None:
            make_place(machine.network(command.name))


class _Process:
    """The keeper itself."""

    def __init__(
        self,
        machine: MachineDirectory,
        control: socket.socket | None,
        lifeline: int,
        monitor: int,
        commands: Sequence[ServiceCommand],
    ) -> None:
        self._machine = machine
        self._control = control
        self._lifeline = lifeline
        self._monitor = monitor
        self._commands = commands
        self._loop = Loop()
        self._log = Log(KEEPER, machine.log)
        self._loop.failed = lambda error: self._log.error("unforeseen", reason=errors.said(error))
        self._consoles: list[KeptConsole] = []
        self._networks: dict[str, KeptNetwork] = {}
        self._orphaned = False

    def run(self, consoles: Mapping[str, str]) -> int:
        try:
            for name, specification in consoles.items():
                log = Log(name, self._machine.log)
                path, attach = self._machine.kept_console(name), self._machine.attached_console(name)
                console = KeptConsole(path, attach, specification, self._loop, log)
                console.tell_amiss(partial(self._amiss, name))
                self._consoles.append(console)
                if console.place:
                    self._redirected(name, console.place)
        except errors.VmeshError as error:
            self._failed(f"the console of {name}: {error}")
        for command in self._commands:
            self._keep_network(command, partial(self._network_failed, command.name))
        self._loop.settle = self._settle
        if self._control is not None:
            self._loop.watch(self._control.fileno(), read=self._serve)
            lifeline.watch(self._loop, self._lifeline, self._end)
            self._loop.call_in("warm", _WARM_SECONDS, self._warm)
        else:
            self._stay()
        self._loop.run()
        for console in self._consoles if not self._orphaned else ():
            console.finish()
        for console in self._consoles:
            console.close()
        for network in self._networks.values():
            network.close()
        return 0

    def _redirected(self, console: str, place: str) -> None:
        """Say where a console is, which nobody knew before."""
        if self._control is None:
            Stderr().write(f"{redirection(console, place)}\n")
        else:
            self._control.send(json.dumps({"console": console, "place": place}).encode())

    def _amiss(self, console: str, text: str) -> None:
        """It is in the log already. The monitor may be late to read, and is told at the next change then."""
        if self._control is not None:
            with suppress(OSError):
                answer = json.dumps({"console": console, "amiss": text}).encode()
                self._control.send(answer, socket.MSG_DONTWAIT)

    def _failed(self, reason: str) -> None:
        if self._control is None:
            raise errors.ConfigError(reason)
        self._control.send(json.dumps({"failed": reason}).encode())

    def _stay(self) -> None:
        """Without a monitor that started it: until the machine's directory is gone, or this process is to end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: self._loop.stop())
        if self._machine.is_there():
            self._machine.pulse(KEEPER).touch(0o600)
            self._loop.call_in("machine", _LOOK_SECONDS, self._stay)
        else:
            self._loop.stop()

    def _network_failed(self, device: str, reason: str) -> None:
        if reason:
            self._failed(f"the network of {device}: {reason}")

    def _keep_network(self, command: ServiceCommand, met: Callable[[str], None]) -> None:
        """Have the network that a card is plugged into. `met` is called when it serves, or is not needed, or with the
        reason why there is none."""
        network = self._networks.get(command.name)
        if network is None and _may_need_network(command):
            from vmesh_services.monitor.network import KeptNetwork, network_of

            if (asked := network_of(command)) is not None:
                place, log = self._machine.network(command.name), Log(command.name, self._machine.log)
                network = self._networks[command.name] = KeptNetwork(asked, place, self._loop, log)
        if network is None:
            met("")
        else:
            network.meet(met)

    def _forget_network(self, device: str) -> None:
        network = self._networks.pop(device, None)
        if network is not None:
            network.close()
            shutil.rmtree(self._machine.network(device), ignore_errors=True)

    def _settle(self) -> None:
        for console in self._consoles:
            console.look()

    def _end(self) -> None:
        self._orphaned = True
        self._loop.stop()

    def _warm(self) -> None:
        for command in self._commands:
            with suppress(ImportError):
                importlib.import_module(f"{command.module}.__main__")

    def _serve(self) -> None:
        assert self._control is not None
        data = self._control.recv(_MESSAGE_BYTES)
        if not data:
            self._loop.stop()
            return
        asked = json.loads(data)
        if "forget" in asked:
            self._forget_network(asked["forget"])
            return
        name, kind, module, *arguments = asked["command"]
        command = ServiceCommand(name, kind, module, tuple(arguments))
        number, more = asked["number"], asked["more"]
        try:
            self._keep_network(command, partial(self._start, number, command, more))
        except Exception as error:
            self._refuse(number, str(errors.said(error)))

    def _refuse(self, number: int, reason: str) -> None:
        assert self._control is not None
        self._control.send(json.dumps({"number": number, "error": reason}).encode())

    def _start(self, number: int, command: ServiceCommand, more: Sequence[str], no_network: str) -> None:
        assert self._control is not None
        if no_network:
            self._forget_network(command.name)
            self._refuse(number, f"its network: {no_network}")
            return
        try:
            child = spawn.start_service(
                command,
                lifeline=self._lifeline,
                more=[*more, "--monitor", str(self._monitor)],
                keep=[self._machine.lock_fd],
                parent=self._monitor,
            )
        except OSError as error:
            self._refuse(number, f"cannot fork: {error.strerror}")
            return
        answer = json.dumps({"number": number, "pid": child.pid}).encode()
        socket.send_fds(self._control, [answer], [child.output])
        os.close(child.output)
        os.close(child.pidfd)
