"""A container engine of the tests' own: Debian's dockerd, with everything that it keeps in a temporary folder."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.waiting import LIMIT, Process, wait_for

ROOT = Path(__file__).resolve().parent.parent
SUITE = "bookworm"
BUILD_LIMIT = 600.0  # seconds, for a busy host
BASE = "vmesh-test-base"
_PROGRAMS = ("dockerd", "docker", "docker-compose", "containerd", "runc")
# Without a network for containers: the engine needs no firewall then, and nothing of the host's changes.
_NETWORK = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false")
# By default all containers are in one control group, which has the processor time of one process of the host's: where
# many run, the build of an image gets next to none. Here each container has the share of a process.
_SHARES = ("--exec-opt=native.cgroupdriver=cgroupfs", "--cgroup-parent=/")
_FLAGS = (*_NETWORK, *_SHARES)
_SETUP = Path(__file__).with_name("engine_base.sh")


class Engine:
    """A running engine; `images` is done by `build`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"unix://{folder}/docker.sock"
        self.environment = {**os.environ, "DOCKER_HOST": self.address}

    def docker(self, *arguments: str, input: str | None = None, check: bool = True) -> str:
        return self.run("docker", *arguments, input=input, check=check)

    def run(
        self,
        *command: str,
        input: str | None = None,
        check: bool = True,
        limit: float = BUILD_LIMIT,
        environment: dict[str, str] | None = None,
    ) -> str:
        """What the command says, on both outputs. Fails, with all of it, at another status than 0 if `check`."""
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment | (environment or {}), input=input, text=True, timeout=limit,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)}: status {done.returncode}: {done.stdout}")
        return done.stdout

    def build(self, image: str) -> None:
        """`make image`, upon a base of the tests' own; as that is Debian's Python, it has to be the one we run on."""
        with open(base(), "rb") as archive:
            subprocess.run(
                ["docker", "import", "-", BASE], stdin=archive, env=self.environment, timeout=LIMIT, check=True,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
        self.run("make", "image", f"IMAGE={image}", f"IMAGE_BASE={BASE}", limit=BUILD_LIMIT)

    def containers(self) -> set[str]:
        return set(self.docker("ps", "--all", "--format", "{{.Names}}").split())


@contextmanager
def started() -> Iterator[Engine]:
    """An engine, as long as it is needed; skips the test where none can run."""
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"no container engine: {', '.join(missing)} not installed (make test-peers)")
    if os.geteuid():
        pytest.skip("no container engine: only root can start one")
    with TemporaryDirectory(prefix="vmesh-engine-", dir="/tmp") as scratch:
        folder = Path(scratch)
        engine = Engine(folder)
        places = {"data-root": folder / "data", "exec-root": folder / "exec", "pidfile": folder / "pid"}
        log = folder / "log"
        with open(log, "wb") as out:
            process = Process(
                ["dockerd", f"--host={engine.address}", *(f"--{key}={path}" for key, path in places.items()), *_FLAGS],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        try:
            wait_for(lambda: process.poll() is not None or _answers(engine), "dockerd", LIMIT)
            if process.poll() is not None:
                pytest.skip(f"no container engine: dockerd: {log.read_text().splitlines()[-1]}")
            yield engine
        finally:
            if process.poll() is None and (left := engine.docker("ps", "-aq", check=False).split()):
                engine.docker("rm", "--force", "--volumes", *left, check=False)
            process.send_signal(signal.SIGTERM)
            process.wait(LIMIT)
            _unmount(folder)


def base() -> Path:
    """An image to stand on, as an archive: Debian with its Python, made once. Skips the test where it cannot be."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip(f"{SUITE}'s Python is 3.11, this is {platform.python_version()}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmesh-test"
    archive = cache / f"base-{SUITE}-{platform.machine()}.tar"
    if not archive.exists():
        if shutil.which("debootstrap") is None:
            pytest.skip("no base image: debootstrap not installed (make test-peers)")
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [_SETUP, SUITE, archive], capture_output=True, text=True, timeout=BUILD_LIMIT, check=False
        )
        if done.returncode:
            pytest.skip(f"no base image: {(done.stdout + done.stderr).splitlines()[-1]}")
    return archive


def _answers(engine: Engine) -> bool:
    return (
        subprocess.run(["docker", "version"], env=engine.environment, capture_output=True, check=False).returncode == 0
    )


def _unmount(folder: Path) -> None:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for place in sorted((each for each in mounts if each.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", place], check=False)
