"""One machine over several hosts: its services started one by one, each pair on different hosts joined by a relay.

A host is a machine directory of its own and, if a `Network` is given, a network namespace; otherwise all are on the
loopback interface. What they have in common is the file system, on which a service finds its images only.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.relay import Passage, Relay
from tests.waiting import LIMIT, Process, wait_for
from vmesh import curve
from vmesh.cli.flags.parsing import parse
from vmesh.cli.placement import Placement
from vmesh.cli.plan import CACHE, monitor_command, plan
from vmesh.cli.serve import commands
from vmesh.deploy.description import CPU, KEEPER, MEMORY, MIGRATION, MONITOR
from vmesh.machine import LOCK, MARK, MachineDirectory
from vmesh.spawn import ServiceCommand, python

ROOT = Path(__file__).resolve().parents[1]
_PORTS = (10000, 30000)
# Whoever kills a test or a benchmark leaves no machine behind, where util-linux is.
_WITH_US = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()
HERE = "here"  # the host of services of which nothing else is said


@dataclass(frozen=True, slots=True)
class Host:
    """`address` is where its services listen, `relay` where it finds what leads elsewhere; `enter` begins commands."""

    name: str
    address: str = "127.0.0.1"
    relay: str = "127.0.0.1"
    enter: tuple[str, ...] = ()


def free_port(address: str = "127.0.0.1") -> int:
    """Below those that the kernel gives to connections, so that nobody else has it when the service begins."""
    while True:
        port = random.randrange(*_PORTS)
        with suppress(OSError), socket.create_server((address, port)):
            return port


@contextmanager
def namespaces(names: Sequence[str]) -> Iterator[list[Host]]:
    """Hosts that reach nothing but the relay. Raises OSError (needs root) or CalledProcessError."""
    if os.geteuid():
        raise PermissionError("network namespaces need root")
    made: list[Host] = []
    try:
        for number, name in enumerate(names, 1):
            space, link = f"vmesh-{os.getpid()}-{name}", f"vm{os.getpid() % 100000}-{number}"
            _ip("netns", "add", space)
            made.append(Host(name, f"10.77.{number}.2", f"10.77.{number}.1", ("ip", "netns", "exec", space)))
            _ip("link", "add", link, "type", "veth", "peer", "name", "up0", "netns", space)
            _ip("address", "add", f"10.77.{number}.1/24", "dev", link)
            _ip("link", "set", link, "up")
            _ip("-n", space, "address", "add", f"10.77.{number}.2/24", "dev", "up0")
            for each in ("lo", "up0"):
                _ip("-n", space, "link", "set", each, "up")
        yield made
    finally:
        for host in made:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", host.enter[-1])  # its links go with it


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


@dataclass
class Spread:
    """A machine with the flags of `vmesh run`, of which `where` says which service is on which of the hosts.

    `more` are arguments of single services. Without any service elsewhere nothing listens at TCP.
    """

    machine_flags: Sequence[str]
    where: Mapping[str, str]
    relay: Relay
    hosts: Sequence[Host] = ()
    more: Mapping[str, Sequence[str]] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    passages: dict[tuple[str, str], Passage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="vm-", dir="/dev/shm"))
        names = {HERE, *self.where.values()}
        known = {host.name: host for host in self.hosts}
        self._hosts = {name: known.get(name) or Host(name) for name in names}
        for name in names:
            place = self._directory(name)
            place.mkdir(0o700, parents=True)
            (place / LOCK).write_bytes(MARK)
            log = self.root / f"{name}.log"
            log.touch(0o600)
            os.link(log, place / "log")  # to be read when the directory is gone
        self.machine = MachineDirectory(self._directory(HERE))
        options = parse(self.machine_flags)
        planned = plan(options, self.machine)
        planned.write(self.machine)
        found = commands(planned, monitor_command(planned, options, self.machine), self.machine)
        self.commands = {each.name: each for each in found if each.name != MIGRATION}
        self._core = tuple(name for name in (MEMORY, CACHE, CPU) if name in self.commands)
        self.devices = tuple(name for name in self.commands if name not in (*self._core, MONITOR, KEEPER))
        self._spread = len(names) > 1
        self.ports: dict[str, int] = {}
        if self._spread:
            self._make_keys(names)
            for name in (*self._core, *self.devices):
                self.ports[name] = self._free_port(self.host(name))

    def host(self, service: str) -> Host:
        return self._hosts[self.where.get("uart0" if service == KEEPER else service, HERE)]

    def directory(self, service: str) -> Path:
        """The machine directory of that service's host."""
        return self._directory(self.host(service).name)

    def start(self, *services: str) -> None:
        """Start these, or all."""
        for service in services or tuple(self.commands):
            host, command = self.host(service), self.commands[service]
            words = [*host.enter, *_WITH_US, *python(command.module, *self._arguments(command))]
            with open(self.output(service), "ab") as out, open(self.errors(service), "ab") as err:
                self.processes[service] = Process(
                    words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
                )

    def output(self, service: str) -> Path:
        return self.root / f"{service}.out"

    def errors(self, service: str) -> Path:
        return self.root / f"{service}.err"

    @property
    def console(self) -> bytes:
        return self.output(KEEPER).read_bytes()

    def wait_console(self, text: bytes, limit: float = LIMIT) -> None:
        """Wait for the guest to print `text`; fails at once if the machine ends before."""

        def seen() -> bool:
            ended = self.processes[MONITOR].poll() is not None
            if text in self.console:
                return True
            assert not ended, f"ended before {text!r}: {self.said(MONITOR)}; {self.console[-300:]!r}"
            return False

        wait_for(seen, lambda: f"{text!r} in {self.console[-500:]!r}; {self.said(MONITOR)}", limit)

    def said(self, service: str) -> str:
        """What a service said on stderr, the last line of it."""
        return (self.errors(service).read_text().splitlines() or [""])[-1]

    def between(self, one: str, other: str) -> list[Passage]:
        """The ways between two services."""
        return [self.passages[pair] for pair in ((one, other), (other, one)) if pair in self.passages]

    def kill(self, service: str) -> None:
        self.processes[service].kill()
        self.processes[service].wait()

    def log(self, service: str) -> Path:
        """The machine's log on the host of that service."""
        return self.root / f"{self.host(service).name}.log"

    def close(self) -> None:
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def _directory(self, host: str) -> Path:
        return self.root / host / "m"

    def _arguments(self, command: ServiceCommand) -> list[str]:
        service, here = command.name, self.host(command.name)
        place = str(self._directory(here.name))
        words = [word.replace(str(self.machine.path), place) for word in command.arguments]
        if service == MEMORY:  # the images are files of the host that made them
            words = list(command.arguments)
        words += self.more.get(service, ())
        if not self._spread or service == KEEPER:
            return words
        if service != MONITOR:
            words += ["--listen", f"tcp://{here.address}:{self.ports[service]}"]
        for other in Placement().dialled(service, list(self.commands)):
            if self.host(other) is not here:
                words += ["--peer", f"{other}=tcp://{here.relay}:{self._passage(service, other).address[1]}"]
        return [*words, "--keys", str(self.keys(service))]

    def keys(self, service: str) -> Path:
        """The folder of keys of that service's host."""
        return self.root / self.host(service).name / "keys"

    def _passage(self, dialler: str, listener: str) -> Passage:
        found = self.passages.get((dialler, listener))
        if found is None:
            target = self.host(listener).address, self.ports[listener]
            found = self.relay.passage(target, self.host(dialler).relay)
            self.passages[dialler, listener] = found
        return found

    def _make_keys(self, hosts: set[str]) -> None:
        whole = self.root / "keys"
        names = [name for name in self.commands if name != KEEPER]
        curve.make(whole, names)
        for host in hosts:
            folder = self.root / host / "keys"
            folder.mkdir(0o700)
            for name in names:
                shutil.copy(whole / f"{name}{curve.PUBLIC}", folder)
                if self.host(name).name == host:
                    shutil.copy(whole / f"{name}{curve.SECRET}", folder)

    def _free_port(self, host: Host) -> int:
        while True:
            port = random.randrange(*_PORTS) if host.enter else free_port(host.address)
            if port not in self.ports.values():
                return port
