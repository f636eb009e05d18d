"""A machine on several hosts as a user starts it: the same flags and places on each, one `vmesh serve` a service."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.hosts import free_port
from tests.system.conftest import BRIEF
from tests.waiting import LIMIT, Process, kill_all, wait_for
from vmesh import curve
from vmesh.spawn import python

# What is where; the first of each host is what makes the machine directory there.
HOSTS = {
    "127.0.0.1": ("memory", "monitor", "rtc", "test"),
    "127.0.0.2": ("host", "cpu", "cache"),
    "127.0.0.3": ("host", "keeper", "uart0"),
}
KEYS = ("memory", "cache", "cpu", "monitor", "uart0", "rtc", "test")

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


class Hosts:
    """Each has a runtime directory and keys of its own, and is known by a loopback address."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.processes: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
        curve.make(root / "keys", KEYS)
        self.places: list[str] = []
        for address, services in HOSTS.items():
            folder = root / address / "keys"
            folder.mkdir(0o700, parents=True)
            (root / address / "run").mkdir(0o700)
            for name in KEYS:
                for suffix in (curve.PUBLIC, curve.SECRET) if name in services else (curve.PUBLIC,):
                    os.link(root / "keys" / f"{name}{suffix}", folder / f"{name}{suffix}")
                if name in services and name != "monitor":
                    self.places += ["--place", f"{name}=tcp://{address}:{free_port(address)}"]

    def start(self, address: str, service: str, *flags: str) -> None:
        words = python("vmesh.cli", "serve")
        if service in ("memory", "host"):
            words += ["--keys", str(self.root / address / "keys"), *self.places]
        with open(self.said(address, service), "wb") as err, open(self.root / f"{address}-{service}.out", "wb") as out:
            self.processes[address, service] = Process(
                [*words, service, *flags],
                env=self.environment(address),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def environment(self, address: str) -> dict[str, str]:
        return {**os.environ, "VMESH_RUNTIME": str(self.root / address / "run")}

    def said(self, address: str, service: str) -> Path:
        return self.root / f"{address}-{service}.err"

    @property
    def console(self) -> bytes:
        return (self.root / "127.0.0.3-keeper.out").read_bytes()


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with TemporaryDirectory(prefix="vm-", dir="/dev/shm") as scratch:
        made = Hosts(Path(scratch))
        try:
            yield made
        finally:
            kill_all(made.processes.values(), LIMIT)


def test_boots_answers_and_leaves_nothing(hosts: Hosts) -> None:
    for address, services in HOSTS.items():
        for service in services:
            hosts.start(address, service, *(["-m", "256M", "-append", BRIEF] if service in ("memory", "host") else []))
    prompt = b"~ # "
    wait_for(lambda: prompt in hosts.console, lambda: f"a prompt in {hosts.console[-500:]!r}", LIMIT)
    here = hosts.environment("127.0.0.1")
    vmesh = python("vmesh.cli")
    status = subprocess.run(
        [*vmesh, "status", "machine"], env=here, capture_output=True, text=True, timeout=LIMIT, check=True
    )
    assert "cache" in status.stdout
    subprocess.run([*vmesh, "quit", "machine"], env=here, capture_output=True, timeout=LIMIT, check=True)
    for where, process in hosts.processes.items():
        assert process.wait() == 0, (where, hosts.said(*where).read_text())
    for address in HOSTS:
        assert not list((hosts.root / address / "run").iterdir()), address


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--place", "uart0=10.0.0.2:7000"], "expected SERVICE=tcp://HOST:PORT"),
        (["--place", "uart0=tcp://10.0.0.2:7000"], "expected --keys FOLDER with it"),
        (["--keys", "k", "--place", "uart0=tcp://10.0.0.2:7000"], "expected --place memory too, which all dial"),
        (["--keys", "k", "--place", "memory=tcp://a:1", "--place", "gpu=tcp://a:2"], "--place gpu: expected one of "),
        (["--keys", "k", "--place", "memory=tcp://a:1", "--place", "cpu=tcp://b:2"], "--place cache"),
    ],
)
def test_places_that_cannot_be(tmp_path: Path, words: Sequence[str], said: str) -> None:
    environment = {**os.environ, "VMESH_RUNTIME": str(tmp_path)}
    command = python("vmesh.cli", "serve", *words, "memory")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
