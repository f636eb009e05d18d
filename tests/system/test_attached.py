"""A machine whose services somebody else starts, one by one, as a container engine does: `vmesh serve`."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.system.conftest import BRIEF
from tests.waiting import LIMIT, kill_all, wait_for, wait_life
from vmesh.spawn import python

SERVICES = ("monitor", "cpu", "rtc", "uart0", "test", "keeper", "memory")  # not in the order in which they wait

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


class Engine:
    """Starts services, and nothing else: what they need of each other they find by themselves."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {**os.environ, "VMESH_RUNTIME": str(root)}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, service: str) -> None:
        flags = ["-m", "256M", "-append", BRIEF] if service == "memory" else []
        with open(self.output(service), "ab") as out, open(self.errors(service), "ab") as err:
            self.processes[service] = subprocess.Popen(
                python("vmesh.cli", "serve", service, *flags),
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=self.environment,
            )  # fmt: skip

    def output(self, service: str) -> Path:
        return self.root.with_name(f"{self.root.name}-{service}.out")

    def errors(self, service: str) -> Path:
        return self.root.with_name(f"{self.root.name}-{service}.err")

    def console(self) -> bytes:
        return self.output("keeper").read_bytes()

    def vmesh(self, *arguments: str) -> str:
        return self._vmesh(*arguments).stdout

    def refused(self, *arguments: str) -> str:
        done = self._vmesh(*arguments)
        assert done.returncode == 1
        return done.stderr

    def is_ill(self, service: str) -> bool:
        return self._vmesh("health", "machine", service).stderr == f"vmesh health: '{service}' is not well\n"

    def _vmesh(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            python("vmesh.cli", *arguments),
            check=False, env=self.environment, capture_output=True, text=True, timeout=LIMIT,
        )  # fmt: skip

    def kill(self, service: str) -> None:
        self.processes[service].kill()
        self.processes[service].wait(LIMIT)

    def wait_console(self, text: bytes) -> None:
        wait_for(lambda: text in self.console(), lambda: f"{text!r} in {self.console()[-500:]!r}", LIMIT)

    def wait_running(self, service: str, epoch: int) -> None:
        wait_life(service, epoch, partial(self.vmesh, "status", "machine"), LIMIT)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with TemporaryDirectory(prefix="vmesh-", dir="/dev/shm") as scratch:
        root = Path(scratch) / "run"
        root.mkdir(0o700)
        engine = Engine(root)
        try:
            for service in SERVICES:
                engine.start(service)
            engine.wait_console(b"~ # ")
            yield engine
        finally:
            kill_all(engine.processes.values(), LIMIT)


def test_attached_machine_boots_outlives_its_devices_and_ends_in_order(engine: Engine) -> None:
    for service in ("uart0", "rtc"):
        engine.vmesh("health", "machine", service, "--hold", "0.1")
        engine.kill(service)
        wait_for(partial(engine.is_ill, service), f"{service} not to be well", LIMIT)
        engine.start(service)
        engine.wait_running(service, 2)
    for command in (("swap", "machine", "rtc", "--", "true"), ("device_add", "machine", "virtio-rng-device")):
        assert engine.refused(*command).endswith("now: somebody else starts this machine's services\n")
    engine.processes["cpu"].send_signal(signal.SIGTERM)  # as an engine stops containers in an order of its own
    for service, process in engine.processes.items():
        assert process.wait(LIMIT) == 0, (service, engine.errors(service).read_text())
    assert not list(engine.root.iterdir())


def test_attached_machine_ends_with_its_cpu_and_says_so(engine: Engine) -> None:
    wait_for(lambda: "is running" in engine.vmesh("status", "machine"), "the machine to run", LIMIT)
    engine.kill("cpu")
    assert engine.processes["monitor"].wait(LIMIT) == 1
    assert engine.errors("monitor").read_text().splitlines()[-1] == "monitor: service 'cpu' is gone"
    for service in ("memory", "uart0", "rtc", "test", "keeper"):
        assert engine.processes[service].wait(LIMIT) == 0, (service, engine.errors(service).read_text())
    assert not list(engine.root.iterdir())
