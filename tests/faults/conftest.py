"""A machine of stand-ins under its real launcher and monitor, and what must be left of it: nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.native import share_core
from tests.waiting import LIMIT, Process, wait_for
from vmesh.client import MachineClient
from vmesh.machine import MachineDirectory, MachineError, MachineRecord, ServiceRecord
from vmesh.spawn import python

DEADLINE = LIMIT


class Rig:
    """Starts machines in a runtime directory of its own, by which their processes are known too."""

    def __init__(self, runtime: Path, root: Path) -> None:
        self.runtime = runtime
        self.machine = MachineDirectory(runtime / "m")
        self.environment = {
            **os.environ,
            "VMESH_RUNTIME": str(runtime),
            "XDG_CACHE_HOME": str(runtime / "cache"),  # where no guest is
        }
        share_core(runtime / "cache")
        self._root = root
        self._started: list[subprocess.Popen[bytes]] = []
        self._seen: set[int] = set()

    def start(self, *flags: str) -> subprocess.Popen[bytes]:
        """`vmesh run` of stand-ins; its stdin stays open."""
        return self._start("tests.standin.launch", *flags)

    def start_real(self, *flags: str) -> subprocess.Popen[bytes]:
        """`vmesh run` of the real services with the guest that needs no files."""
        return self._start("vmesh.cli", "run", *flags)

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        process = Process(
            python(module, *arguments, "-name", "m"),
            cwd=self._root,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._started.append(process)
        return process

    def client(self) -> MachineClient:
        """Of its gateway, as patient as all who wait in tests."""
        return MachineClient(self.machine, timeout=LIMIT)

    def record(self) -> MachineRecord | None:
        try:
            return self.machine.read_record()
        except MachineError:
            return None

    def wait_running(self, state: str = "running") -> MachineRecord:
        def reached() -> bool:
            record = self.record()
            return record is not None and record.state == state

        wait_for(reached, f"the machine to be {state}")
        record = self.record()
        assert record is not None
        return record

    def service(self, name: str) -> ServiceRecord:
        """What machine.json says of a service."""
        record = self.record()
        assert record is not None
        return next(service for service in record.services if service.name == name)

    def pid(self, name: str) -> int | None:
        """The process of a service, however young it is; None while there is none."""
        for pid in self.processes():
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text() == f"vmesh-{name}"[:15] + "\n":
                    return pid
        return None

    def wait_life(self, name: str, epoch: int) -> ServiceRecord:
        """Wait until that life of a device, or a later one, runs."""

        def there() -> bool:
            service = self.service(name)
            return service.epoch >= epoch and service.state in ("running", "paused")

        wait_for(there, f"life {epoch} of {name}")
        return self.service(name)

    def order(self, service: str, text: str) -> None:
        """Have a stand-in misbehave, see tests/standin."""
        fresh = self.runtime / f"{service}.order"
        fresh.write_text(text)
        fresh.rename(self.machine.path / f"{service}.do")

    def asked(self, service: str) -> list[str]:
        """What a stand-in was asked for."""
        try:
            return (self.runtime / f"{service}.asked").read_text().split()
        except FileNotFoundError:
            return []

    def processes(self) -> list[int]:
        """The living processes that have this runtime directory in their environment."""
        mark = f"VMESH_RUNTIME={self.runtime}".encode()
        found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _lives_with(pid, mark)]
        self._seen.update(found)
        return found

    def wait_ended(self) -> None:
        """Wait until all processes have ended, and with them their files: locks are held until then."""
        wait_for(lambda: not self.processes(), "all processes to end")
        wait_for(lambda: not any(map(_ends, self._seen)), "all processes to let go of their files")

    def wait_clean(self) -> None:
        """Wait until no process and no machine directory is left."""
        self.wait_ended()
        assert not self.machine.path.exists(), list(self.machine.path.iterdir())

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
        self.wait_ended()
        self._tell()
        shutil.rmtree(self.runtime, ignore_errors=True)

    def _tell(self) -> None:
        """Print what the machine's end left to read, for whoever looks into a failure."""
        for process in self._started:
            assert process.stderr is not None
            if not process.stderr.closed:
                print(process.stderr.read().decode(errors="replace"), end="")
        if self.machine.log.exists():
            print(self.machine.log.read_text(errors="replace"), end="")


def _lives_with(pid: int, mark: bytes) -> bool:
    try:
        if b"State:\tZ" in Path(f"/proc/{pid}/status").read_bytes():
            return False
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _ends(pid: int) -> bool:
    """Whether a process that has no memory any more, and so no environment, still has files or threads."""
    with suppress(OSError):  # there is no such process any more, or it is another user's
        with suppress(ProcessLookupError):  # or, of an older Linux, nothing
            if Path(f"/proc/{pid}/environ").read_bytes():
                return False
        zombie = b"State:\tZ" in Path(f"/proc/{pid}/status").read_bytes()
        return not zombie or len(os.listdir(f"/proc/{pid}/task")) > 1
    return False


@pytest.fixture
def rig(root: Path) -> Iterator[Rig]:
    # Not pytest's tmp_path: it is too long for a socket's path.
    made = Rig(Path(tempfile.mkdtemp(prefix="vmesh-faults-")), root)
    yield made
    made.close()
