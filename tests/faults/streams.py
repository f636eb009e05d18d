"""Two machines for migration between them, and a proxy on the way that cuts, damages or delays what goes through."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.system import programs
from tests.waiting import LIMIT, wait_for
from vmesh.board import encode as e
from vmesh.client import MachineClient
from vmesh.guest.tiny import Program
from vmesh.machine import MachineDirectory
from vmesh.migration.records import VERSION, BytesSink, Writer
from vmesh.spawn import python
from vmesh.v1 import migration_pb2
from vmesh.v1.migration_pb2 import MigrationStatus

DATA_BYTES = 12 << 20  # of RAM that are not zero, behind the page with the program
COUNT_PAGE = DATA_BYTES  # where in RAM the guest counts
_PAGE = 4096
_IN_A_ROW = 1024  # counts between two rests, a power of 2
_ROUNDS = 1000  # instructions
ENDED = (migration_pb2.MIGRATION_COMPLETED, migration_pb2.MIGRATION_FAILED, migration_pb2.MIGRATION_CANCELLED)


def counter(seed: int = 3) -> bytes:
    """A guest that counts in memory for ever: in the last page of a lot of data, which comes last when it is moved.

    Now and then it rests, lest it keep a core from what is tested.
    """
    program = Program()
    program.emit(e.auipc(e.S0, COUNT_PAGE >> 12), e.addi(e.S1, e.ZERO, 0))
    program.label("again")
    program.emit(e.addi(e.S1, e.S1, 1), e.sw(e.S1, e.S0, 0), e.andi(e.T0, e.S1, _IN_A_ROW - 1))
    program.to("again", lambda offset: e.bne(e.T0, e.ZERO, offset))
    program.emit(*programs.rest(1))
    program.jump("again")
    return programs.elf(program.assemble().ljust(_PAGE, b"\0") + random.Random(seed).randbytes(DATA_BYTES))


def smallest_snapshot() -> bytes:
    """What begins as a snapshot does, so that another may take its place."""
    sink = BytesSink()
    writer = Writer(sink)
    writer.magic()
    writer.message(migration_pb2.RECORD_HEADER, migration_pb2.StreamHeader(version=VERSION))
    return b"".join(sink.parts)


class Proxy:
    """Listens at `path` and passes everything on to `target`. `through` gets each piece that goes to the target, with
    the number of bytes before it, and gives what is to go on; None cuts the connection."""

    def __init__(self, path: Path, target: Path, through: Callable[[int, bytes], bytes | None]) -> None:
        self.uri = f"unix:{path}"
        self._target = target
        self._through = through
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._open: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        for each in self._open:
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self._target))
                self._open += [near, far]
                threading.Thread(target=self._pass, args=(near, far, self._through), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, lambda at, data: data), daemon=True).start()

    def _pass(self, here: socket.socket, there: socket.socket, through: Callable[[int, bytes], bytes | None]) -> None:
        at = 0
        with suppress(OSError):
            while data := here.recv(65536):
                changed = through(at, data)
                if changed is None:
                    break
                there.sendall(changed)
                at += len(data)
        for each in (here, there):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class Pair:
    """A machine that counts, and one with `-incoming defer` that could take it.

    `logs` has what they log and say, also of those that have ended.
    """

    def __init__(self, root: Path, guest: bytes | None = None) -> None:
        """`guest` is an ELF file; without, what counts."""
        self._root = root
        self.runtime = Path(tempfile.mkdtemp(prefix="vmesh-streams-"))
        self.environment = {**os.environ, "VMESH_RUNTIME": str(self.runtime)}
        self.logs = self.runtime.with_suffix(".logs")
        self.logs.mkdir()
        self.kernel = self.runtime.with_suffix(".elf")
        self.kernel.write_bytes(guest or counter())
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._clients: dict[str, MachineClient] = {}
        self._number = 0

    def start(self, name: str, *flags: str) -> MachineClient:
        command = python("vmesh.cli", "run", "-name", name, "-m", "64M", "-serial", "null")
        command += ["-bios", "none", "-kernel", str(self.kernel), *flags]
        with (self.logs / f"{name}.said").open("wb") as said:
            self._processes[name] = subprocess.Popen(
                command, cwd=self._root, env=self.environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=said,
            )  # fmt: skip
        gateway = self.runtime / name / "gateway.sock"
        wait_for(gateway.exists, f"the gateway of {name}")
        machine = MachineDirectory(self.runtime / name)
        wait_for(lambda: machine.read_record().state != "starting", f"{name} to be there")
        (self.logs / f"{name}.log").hardlink_to(self.runtime / name / "log")
        client = self._clients[name] = MachineClient(machine, timeout=LIMIT)
        return client

    def wait_end(self, name: str) -> tuple[int, str]:
        """The exit status of a machine that ends by itself, and what it said."""
        status = self._processes[name].wait(timeout=LIMIT)
        self._clients.pop(name).close()
        del self._processes[name]
        return status, (self.logs / f"{name}.said").read_text(errors="replace")

    def stop(self, name: str) -> None:
        """End a machine, whatever has become of it."""
        self._clients.pop(name).close()
        process = self._processes.pop(name)
        process.terminate()
        _end(process)

    def has_its_data(self, name: str) -> bool:
        """Whether what lies before the counter's page in a machine's memory is as at its start."""
        started_with = self.kernel.read_bytes()[-DATA_BYTES:-_PAGE]
        with (self.runtime / name / "ram.seg").open("rb") as memory:
            memory.seek(_PAGE)
            return memory.read(len(started_with)) == started_with

    def place(self) -> Path:
        """A path for a socket that was not used before."""
        self._number += 1
        return self.runtime / f"stream{self._number}"

    def listen(self, target: MachineClient) -> Path:
        """Have a machine listen at a new place."""
        path = self.place()
        target.migrate_incoming(f"unix:{path}")
        return path

    def pid(self, machine: str, service: str) -> int | None:
        """The process of a machine's service."""
        mark = f"VMESH_RUNTIME={self.runtime}".encode()
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                here = Path("/proc", entry)
                if (here / "comm").read_text() != f"vmesh-{service}"[:15] + "\n":
                    continue
                if mark not in (here / "environ").read_bytes().split(b"\0"):
                    continue
                maps = (here / "maps").read_text()
                if f"{self.runtime}/{machine}/" in maps:
                    return int(entry)
        return None

    def close(self, *, keep_logs: bool = False) -> None:
        for client in self._clients.values():
            client.close()
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            _end(process)
        shutil.rmtree(self.runtime, ignore_errors=True)
        if not keep_logs:
            shutil.rmtree(self.logs)
        self.kernel.unlink()


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def mend(pair: Pair, source: MachineClient, target: MachineClient) -> None:
    """Give a post-copy that is paused another link, and let it end."""
    place = pair.place()
    target.migrate_recover(f"unix:{place}")
    source.migrate_set(max_postcopy_bandwidth=0)
    source.migrate(f"unix:{place}", resume=True)
    for side in (source, target):
        assert wait_state(side, *ENDED).state == migration_pb2.MIGRATION_COMPLETED


def wait_state(client: MachineClient, *states: migration_pb2.MigrationState.ValueType) -> MigrationStatus:
    """The status once it is one of these."""
    found: list[MigrationStatus] = []

    def reached() -> bool:
        found[:] = [client.query_migrate().status]
        return found[0].state in states

    names = [migration_pb2.MigrationState.Name(state) for state in states]
    wait_for(reached, lambda: f"the migration to be {names}, it is {found}", LIMIT)
    return found[0]


def counts(client: MachineClient) -> bool:
    """Whether the guest's hart goes on, and not just to the next page that is not there."""
    before = None
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        status = client.status()
        if status.harts:  # there are none while the cpu has no time to tell
            before = before or status.harts[0]
            if status.run_state == "running" and status.harts[0].retired > before.retired + _ROUNDS:
                return True
        time.sleep(0.02)
    return False
