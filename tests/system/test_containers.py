"""A machine whose services are containers: `make image`, docker-compose.yml, and what the guest makes of killed ones.

Few tests, each with many steps: where tests run side by side, an engine and an image are made for each.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.engine import LIMIT, Engine, started
from tests.waiting import Process, wait_for

IMAGE = "vmesh-test"
PROJECT = "vmesh-test"
DEVICES = ("uart0", "rtc", "test")
SERVICES = ("memory", "monitor", "keeper", "migration", "cpu", *DEVICES)

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with started() as engine:
        engine.build(IMAGE)
        yield engine


class Composed:
    """The machine of a compose file."""

    def __init__(self, engine: Engine, project: str = PROJECT, *files: str, **environment: str) -> None:
        self.engine = engine
        self.project = project
        self.files = [word for file in files for word in ("--file", file)]
        self.environment = {"VMESH_IMAGE": IMAGE, **environment}
        self.lines = 0  # that were typed

    def compose(self, *arguments: str) -> str:
        command = ("docker-compose", "--project-name", self.project, *self.files, *arguments)
        return self.engine.run(*command, environment=self.environment)

    def container(self, service: str) -> str:
        return f"{self.project}_{service}_1"

    def inspect(self, service: str, template: str) -> str:
        return self.engine.docker("inspect", "--format", template, self.container(service)).strip()

    def is_healthy(self, service: str) -> bool:
        return self.inspect(service, "{{.State.Health.Status}}") == "healthy"

    def vmesh(self, *arguments: str) -> str:
        return self.engine.docker("exec", self.container("monitor"), "vmesh", *arguments)

    def console(self) -> str:
        return self.compose("logs", "--no-color", "--no-log-prefix", "keeper")

    def type(self, text: str) -> None:
        """Have the guest's shell carry out a line."""
        command = ["docker", "exec", "-i", self.container("monitor"), "vmesh", "attach", "machine"]
        typist = Process(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=self.engine.environment)
        assert typist.stdin
        self.lines += 1
        try:
            typist.stdin.write(f"echo line {self.lines} begins; {text}\n".encode())
            typist.stdin.flush()
            self.wait_console(f"line {self.lines} begins\n")
        finally:
            typist.kill()
            typist.wait()

    def wait_console(self, text: str) -> None:
        wait_for(lambda: text in self.console(), lambda: f"{text!r} in {self.console()[-500:]!r}", LIMIT)

    def wait_life(self, service: str, epoch: int) -> None:
        def there() -> bool:
            lines = [line.split() for line in self.vmesh("status", "machine").splitlines()]
            return any(line[:1] == [service] and line[3:5] == [str(epoch), "running"] for line in lines)

        wait_for(there, f"life {epoch} of {service}", LIMIT)


def test_compose(engine: Engine) -> None:
    check_image(engine)
    machine = Composed(engine)
    try:
        machine.compose("up", "--detach")
        machine.wait_console("Enter 'help' for a list")  # the prompt is no whole line, and an engine keeps lines
        check_services(machine)
        for device in ("uart0", "rtc"):
            check_kills(machine, device)
        check_end(machine)
    finally:
        machine.compose("down", "--volumes")


def check_image(engine: Engine) -> None:
    """It is slim, and has no compiler."""
    where = ["docker", "run", "--rm", "--network=none", "--read-only", "--entrypoint", "python3", IMAGE, "-c"]
    asked = "import os, shutil; print(os.getuid(), [p for p in ('cc', 'gcc', 'clang', 'as', 'ld') if shutil.which(p)])"
    assert engine.run(*where, asked) == "10001 []\n"
    assert int(engine.docker("inspect", "--format", "{{.Size}}", IMAGE)) < 600e6


def check_services(machine: Composed) -> None:
    """Each is well, and has no rights that it does not need."""
    rights = "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.NetworkMode}}"
    for service in SERVICES:
        wait_for(partial(machine.is_healthy, service), f"{service} to be healthy", LIMIT)
        assert machine.inspect(service, rights) == "true [ALL] none", service


def check_kills(machine: Composed, device: str) -> None:
    """The guest outlives them. Work that prints as it goes, through the very device, and says what it came to."""
    work = "n=$((n+1)); s=$((s+n)); [ $((n%1000)) = 0 ] && echo $D at $n"
    machine.type(f"D={device}; rm -f /end; (n=0; s=0; until [ -e /end ]; do {work}; done; echo $D did $n sum $s) &")
    machine.wait_console(f"{device} at 1000\n")
    os.kill(int(machine.inspect(device, "{{.State.Pid}}")), signal.SIGKILL)  # as the kernel does when memory runs out
    machine.wait_life(device, 2)
    # An engine takes `docker kill` for the user's wish, and leaves it to the user to start the container again.
    machine.engine.docker("kill", machine.container(device))
    machine.compose("up", "--detach", "--no-recreate")
    machine.wait_life(device, 3)
    machine.type("touch /end; hwclock -u && echo the clock is read")
    machine.wait_console("the clock is read\n")
    done = re.compile(rf"^{device} did (\d+) sum (\d+)$", re.MULTILINE)
    wait_for(lambda: done.search(machine.console()), "the end of the guest's work", LIMIT)
    said = machine.console()
    count, total = map(int, done.search(said).groups())
    assert total == count * (count + 1) // 2
    told = [int(number) for number in re.findall(rf"{device} at (\d+)\n", said)]
    assert told == list(range(1000, count + 1, 1000))


def check_end(machine: Composed) -> None:
    """The machine ends in order, and leaves nothing."""
    machine.compose("stop")
    states = {service: machine.inspect(service, "{{.State.ExitCode}}") for service in SERVICES}
    assert states == dict.fromkeys(SERVICES, "0"), machine.compose("logs", "--no-color")
    machine.compose("down", "--volumes")
    assert not machine.engine.containers()
    assert not machine.engine.docker("volume", "ls", "--quiet")
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{PROJECT}_machine" in line]
