"""A machine whose services are containers: `make image`, docker-compose.yml, and what the guest makes of killed ones.

Few tests, each with many steps: where tests run side by side, an engine and an image are made for each.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.engine import BUILD_LIMIT, Engine, started
from tests.hosts import free_port
from tests.keys import make_keys
from tests.waiting import LIMIT, Process, wait_for, wait_life
from vmesh.deploy.description import IMAGE, USER
from vmesh.spawn import python

PROJECT = "vmesh-test"
DEVICES = ("uart0", "rtc", "test")
SHELL = "Enter 'help' for a list"  # of its last whole line, as an engine keeps lines; the prompt is none
SERVICES = ("memory", "monitor", "keeper", "migration", "cpu", *DEVICES)

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1800)]


MIGRATION_FILES = ("docker-compose.yml", "docs/examples/compose/migration.yml")
OPENSSL = shutil.which("openssl") or ""


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
        self.lines = 0  # that were typed
        self.configure(*files, **environment)

    def configure(self, *files: str, **environment: str) -> None:
        """What holds from the next `up` on."""
        self.files = [word for file in files for word in ("--file", file)]
        self.environment = environment

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
        """Its whole lines: an engine keeps what stands behind them until the keeper ends."""
        return self.engine.docker("logs", self.container("keeper"))

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
        wait_for(lambda: text in self.console(), lambda: f"{text!r} in {self.console()[-500:]!r}", BUILD_LIMIT)

    def wait_life(self, service: str, epoch: int) -> None:
        wait_life(service, epoch, partial(self.vmesh, "status", "machine"), LIMIT)


def test_compose(engine: Engine, tmp_path: Path) -> None:
    check_image(engine)
    machine = Composed(engine)
    try:
        machine.compose("up", "--detach")
        machine.wait_console(SHELL)
        check_services(machine)
        check_kills(machine, "uart0")
        check_end(machine)
        check_migration(engine, machine, tmp_path)
    finally:
        machine.compose("down", "--volumes")


def test_deploy_with_docker(engine: Engine) -> None:
    with deployed(engine, "docker"):
        wait_for(lambda: SHELL in engine.docker("logs", "there-keeper"), "the guest's shell", BUILD_LIMIT)
        assert vmesh(engine, "deploy", "--on", "docker", "there", check=False).startswith(
            "vmesh deploy: 'there' is deployed already"
        )


def test_swarm(engine: Engine, tmp_path: Path) -> None:
    """The stack, with its secrets; then `vmesh deploy`."""
    said = engine.docker("swarm", "init", "--advertise-addr=127.0.0.1", "--listen-addr=127.0.0.1:2377", check=False)
    if "Swarm initialized" not in said:
        pytest.skip(f"no swarm mode: {said.splitlines()[-1]}")
    try:
        engine.docker("node", "update", "--label-add", "vmesh=true", engine.docker("node", "ls", "--quiet").strip())
        check_stack(engine, tmp_path)
        with deployed(engine, "swarm"):
            wait_for(
                lambda: SHELL in engine.docker("service", "logs", "there-keeper"), "the guest's shell", BUILD_LIMIT
            )
    finally:
        engine.docker("swarm", "leave", "--force")


def check_stack(engine: Engine, folder: Path) -> None:
    keys, others = make_keys(folder / "keys", OPENSSL), make_keys(folder / "others", OPENSSL)
    for file in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
        engine.docker("secret", "create", f"vmesh-{file.removesuffix('.pem')}", str(keys / file))
    engine.docker("stack", "deploy", "--compose-file=deploy/stack.yml", "--resolve-image=never", "vm")
    wait_for(
        lambda: SHELL in engine.docker("service", "logs", "vm_keeper", check=False), "the guest's shell", BUILD_LIMIT
    )
    gateway = "tcp:127.0.0.1:7700,tls-creds="
    assert " is running" in vmesh(engine, "status", f"{gateway}{keys}")
    assert "does not answer" in vmesh(engine, "status", f"{gateway}{others}", check=False)
    (device,) = engine.docker("ps", "--quiet", "--filter=name=vm_uart0").split()
    engine.docker("kill", device)  # what a swarm starts is its own affair, and so is to start it again
    back = re.compile(r"^uart0 .* 2 +running", re.MULTILINE)
    wait_for(lambda: back.search(vmesh(engine, "status", f"{gateway}{keys}")), "the next life of uart0", LIMIT)
    # Swarm gives back late what its tasks use, and refuses until then: it is asked for until it is gone.
    gone = "Nothing found in stack"
    wait_for(lambda: gone in engine.docker("stack", "rm", "vm", check=False), "all of the stack to go", LIMIT)
    wait_for(lambda: not engine.containers(), "the stack's containers to go", LIMIT)
    used = "volume is in use"
    wait_for(
        lambda: used not in engine.docker("volume", "rm", "vm_machine", check=False), "the volume to be free", LIMIT
    )
    assert not engine.docker("volume", "ls", "--quiet")


@contextmanager
def deployed(engine: Engine, on: str) -> Iterator[None]:
    """A machine `there`, by `vmesh deploy`, which leaves nothing."""
    assert f"vmesh deploy --on {on} --down there" in vmesh(engine, "deploy", "--on", on, "--ram", "600m", "there")
    yield
    vmesh(engine, "deploy", "--on", on, "--down", "there")
    assert not engine.containers()
    assert not engine.docker("volume", "ls", "--quiet")


def vmesh(engine: Engine, *arguments: str, check: bool = True) -> str:
    return engine.run(*python("vmesh.cli", *arguments), check=check)


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
    """The guest outlives them: the device is the one that its work goes through."""
    begin_work(machine)
    os.kill(int(machine.inspect(device, "{{.State.Pid}}")), signal.SIGKILL)  # as the kernel does when memory runs out
    machine.wait_life(device, 2)
    # An engine takes `docker kill` for the user's wish, and leaves it to the user to start the container again.
    machine.engine.docker("kill", machine.container(device))
    machine.compose("up", "--detach", "--no-recreate")
    machine.wait_life(device, 3)
    end_work(machine, machine.console)


def check_migration(engine: Engine, here: Composed, folder: Path) -> None:
    """The guest goes on in another composed machine, over TLS between their migration services."""
    keys = make_keys(folder / "keys", OPENSSL)
    for path in (keys, *keys.iterdir()):
        os.chown(path, USER, USER)
    uri = f"tcp:127.0.0.1:{free_port()},tls-creds=/keys"
    there = Composed(engine, "there", *MIGRATION_FILES, VMESH_KEYS=str(keys), VMESH_FLAGS=f"-incoming {uri}")
    here.configure(*MIGRATION_FILES, VMESH_KEYS=str(keys))
    try:
        for machine in (here, there):
            machine.compose("up", "--detach")
        here.wait_console(SHELL)
        wait_for(lambda: "inmigrate" in there.vmesh("status", "machine", "--json"), "the destination to listen", LIMIT)
        begin_work(here)
        assert "moved 'machine'" in here.vmesh("migrate", "machine", uri)
        assert " is paused" in here.vmesh("status", "machine")
        here.compose("stop")  # else the part of a line that came out here, the rest of it there, is not seen
        end_work(there, lambda: here.console() + there.console())
    finally:
        there.compose("down", "--volumes")


def begin_work(machine: Composed) -> None:
    """Have the guest do what prints as it goes, and says what it came to."""
    work = "n=$((n+1)); s=$((s+n)); [ $((n%1000)) = 0 ] && echo at $n"
    machine.type(f"(n=0; s=0; until [ -e /end ]; do {work}; done; echo did $n sum $s) &")
    machine.wait_console("at 1000\n")


def end_work(machine: Composed, console: Callable[[], str]) -> None:
    """Nothing of it was lost, done twice or done wrong, as `console` shows."""
    machine.type("hwclock -u; touch /end")
    done = re.compile(r"did (\d+) sum (\d+)$", re.MULTILINE)
    wait_for(lambda: done.search(console()), "the end of the guest's work", LIMIT)
    said = console()
    found = done.search(said)
    assert found
    count, total = map(int, found.groups())
    assert total == count * (count + 1) // 2
    # A prompt or what is typed may stand before it on the line.
    told = [int(number) for number in re.findall(r"at (\d+)\n", said)]
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
