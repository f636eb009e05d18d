"""Operations that fail: every QMP command and most verbs of the command line while the host has run out of something.

What is taken from the machine's processes is taken from outside, as a host does: room in the file system of its
directory (ENOSPC), descriptors (EMFILE), address space (ENOMEM), permission to write there (EACCES). Each operation
must be done or be said in one line; afterwards the machine must be in charge of itself, and the guest, whose every line
is checked, goes on. Where this process is root, the machine is without the capabilities to which permissions mean
nothing, and its directory lies in a small file system of its own; otherwise ENOSPC is left out.
"""

from __future__ import annotations

import json
import os
import random
import resource
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.harness import BenchError
from bench.report import Report, Row, Sample, held
from tests.system import programs
from vmesh.machine import MachineDirectory, MachineError
from vmesh.spawn import python
from vmesh_services.monitor.qmp.schema import SCHEMA
from vmesh_services.monitor.qmp.types import Array, Builtin, Enum, Type

LIMIT = 120.0  # seconds for one operation, and for the guest's next line
LINES = (1 << 31) - 1  # more than the guest will write
_TMPFS_BYTES = 96 << 20
_RAM_BYTES = 64 << 20
_STOPPED_SECONDS = 1.0
_MARGIN_BYTES = 256 << 10  # of address space, which are left
#: They end the machine, or begin the guest anew, whatever the host has.
LEFT_OUT = ("quit", "system_reset", "qmp_capabilities")


class Guest:
    """A machine whose guest writes numbered lines; each is checked."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], machine: MachineDirectory) -> None:
        self.machine = machine
        self.lines = 0
        self.wrong = ""
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._reader = threading.Thread(target=self._check, daemon=True)
        self._reader.start()

    def _check(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line != b"%08x\n" % self.lines:
                self.wrong = self.wrong or f"line {self.lines}: {line!r}"
            self.lines += 1

    def goes_on(self, more: int = 1) -> None:
        """Wait for so many lines more. Raises BenchError."""
        wanted, deadline = self.lines + more, time.monotonic() + LIMIT
        while self.lines < wanted:
            if self.wrong or self.process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"the guest does not go on after {self.lines} lines: {self.wrong or self._state()}")
            time.sleep(0.002)

    def _state(self) -> str:
        status = self.process.poll()
        return "no line comes" if status is None else f"the machine has ended with status {status}"

    def processes(self) -> list[int]:
        """The monitor, the keeper and the services, but not the launcher and the translator."""
        pids = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                name = (entry / "comm").read_text().strip() if entry.name.isdigit() else ""
                if (
                    name.startswith("vmesh-")
                    and os.fsencode(self.machine.path.parent) in (entry / "environ").read_bytes()
                ):
                    pids.append(int(entry.name))
        return pids

    def monitor(self) -> int:
        return self.machine.read_record().pid

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Door:
    """One QMP client, which stays connected."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self.ask("qmp_capabilities", {})

    def ask(self, command: str, arguments: Mapping[str, object]) -> dict[str, Any]:
        """The answer: a message with `return` or `error`. Raises BenchError if none comes."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            try:
                line = self._lines.readline()
            except OSError as error:
                raise BenchError(f"no answer to {command}: {error}") from error
            if not line:
                raise BenchError(f"no answer to {command}: the door was closed")
            answer: dict[str, Any] = json.loads(line)
            if "event" not in answer:
                return answer

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


# What is taken


@contextmanager
def no_space(guest: Guest) -> Iterator[None]:
    """ENOSPC: the file system of the machine directory is full. The guest's memory is there, as with -mem-prealloc."""
    folder = guest.machine.path
    if (free := shutil.disk_usage(folder).free) > 2 * _TMPFS_BYTES:
        raise BenchError(f"{folder}: {free >> 20} MiB are free, which is too much to fill")
    with open(folder / "ram.seg", "rb+") as ram:
        os.posix_fallocate(ram.fileno(), 0, os.fstat(ram.fileno()).st_size)
    filler = folder.parent / "filler"
    try:
        with open(filler, "wb", buffering=0) as file, suppress(OSError):
            for size in (1 << 20, 4096):
                with suppress(OSError):
                    while file.write(bytes(size)):
                        pass
        yield
    finally:
        filler.unlink()


@contextmanager
def _limited(pids: Sequence[int], which: int, limit: Callable[[int], int]) -> Iterator[None]:
    former = {}
    for pid in pids:
        with suppress(OSError):
            soft, hard = resource.prlimit(pid, which)
            former[pid] = (soft, hard)
            resource.prlimit(pid, which, (limit(pid), hard))
    try:
        yield
    finally:
        for pid, limits in former.items():
            with suppress(OSError):
                resource.prlimit(pid, which, limits)


def no_files(guest: Guest) -> AbstractContextManager[None]:
    """EMFILE: no process of the machine may open more files than it has."""
    return _limited(guest.processes(), resource.RLIMIT_NOFILE, lambda pid: len(os.listdir(f"/proc/{pid}/fd")))


def no_memory(guest: Guest) -> AbstractContextManager[None]:
    """ENOMEM: the monitor gets no more address space."""

    def limit(pid: int) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize() + _MARGIN_BYTES

    return _limited([guest.monitor()], resource.RLIMIT_AS, limit)


@contextmanager
def no_permission(guest: Guest) -> Iterator[None]:
    """EACCES: nothing can be made in the machine directory."""
    folder = guest.machine.path
    mode = folder.stat().st_mode
    folder.chmod(0o500)
    try:
        yield
    finally:
        folder.chmod(mode)


INJECTIONS: Mapping[str, Callable[[Guest], AbstractContextManager[None]]] = {
    "ENOSPC": no_space,
    "EMFILE": no_files,
    "ENOMEM": no_memory,
    "EACCES": no_permission,
}


# What is asked


def qmp_operations(scratch: Path) -> dict[str, dict[str, object]]:
    """Every QMP command with arguments that could be meant, by what it is called here."""
    denied, long = str(scratch / "denied" / "file"), f"/{'a' * 300}"
    job: dict[str, object] = {"job-id": "job", "tag": "tag", "vmstate": "disk", "devices": ["disk"]}
    asked: dict[str, dict[str, object]] = {
        "memsave": {"val": 0x8000_0000, "size": 4096, "filename": denied},
        "pmemsave": {"val": 0x8000_0000, "size": 4096, "filename": str(scratch / "memory")},
        "device_add": {"driver": "virtio-rng-device", "id": "new"},
        "device_del": {"id": "new"},
        "netdev_add": {"type": "stream", "id": "n", "addr": {"type": "unix", "path": long}},
        "blockdev-add": {"driver": "raw", "node-name": "b", "file": {"driver": "file", "filename": denied}},
        "human-monitor-command": {"command-line": f"dump-guest-memory {denied}"},
        "migrate": {"uri": f"unix:{scratch}/nobody"},
        "snapshot-save": job,
        "snapshot-load": job,
        "snapshot-delete": {"job-id": "job", "tag": "tag", "devices": ["disk"]},
        "migrate-continue": {"state": "pre-switchover"},
    }
    made = {
        name: asked.get(name, {each.name: _value(each.type) for each in _required(name)})
        for name in SCHEMA.commands
        if name not in LEFT_OUT
    }
    drive = {"driver": "virtio-blk-device", "drive": "b", "id": "disk"}
    return made | {
        "device_add of a file that is denied": drive,
        "device_add with a long id": {**drive, "id": "x" * 300},
    }


def _required(name: str) -> list[Any]:
    arguments = SCHEMA.commands[name].arguments
    return [each for each in arguments.members if not each.optional] if arguments is not None else []


def _value(kind: Type) -> object:
    match kind:
        case Enum():
            return kind.values[0]
        case Array():
            return []
        case Builtin():
            return {"string": "nothing", "int": 0, "boolean": False}.get(kind.json, 0)
        case _:
            return {}


def verbs(name: str, scratch: Path) -> list[list[str]]:
    """Verbs of the command line, with what could be meant."""
    denied, long = str(scratch / "denied" / "file"), f"/{'a' * 300}"
    disk = ("virtio-blk-device,drive=d,id=disk", "-drive")
    return [
        ["status", name],
        ["pause", name],
        ["resume", name],
        ["registers", name],
        ["metrics", name],
        ["ps"],
        ["monitor", name, "-c", f"pmemsave 0x80000000 4096 {denied}"],
        ["device_add", name, "virtio-rng-device,id=rng9"],
        ["device_add", name, *disk, f"file={long},format=raw,if=none,id=d"],
        ["device_add", name, *disk, f"file={denied},format=raw,if=none,id=d"],
        [
            "device_add",
            name,
            "virtio-9p-device,fsdev=f,mount_tag=t",
            "-fsdev",
            f"local,id=f,path={denied},security_model=none",
        ],
        ["device_del", name, "rng9"],
        ["swap", name, "rtc", "--", "false"],
        ["migrate", name, f"unix:{scratch}/nobody"],
        ["migrate", name, f"file:{denied}"],
        ["snapshot", "save", name, denied],
        ["snapshot", "load", name, denied],
        ["upgrade", name, "nobody"],
        ["health", name, "rtc"],
        ["stop", "another"],
    ]


@dataclass(slots=True)
class Result:
    """What became of the operations of one kind of failure."""

    operations: int = 0
    failed: int = 0
    stopped: int = 0  # after so many the machine stood still, for a device that could not be started
    unclear: list[str] = field(default_factory=list)  # not said in one line
    what: Counter[str] = field(default_factory=Counter)


class Campaign:
    """Operations on one machine, one after the other, under what was injected."""

    def __init__(self, guest: Guest, scratch: Path, environment: Mapping[str, str], user: Sequence[str] = ()) -> None:
        self.results: dict[str, Result] = {}
        self.guest = guest
        self._scratch = scratch
        self._environment = environment
        self._user = user
        self._door = Door(guest.machine.qmp)

    def close(self) -> None:
        self._door.close()

    def qmp(self, injection: str, operations: Sequence[tuple[str, Mapping[str, object]]]) -> None:
        """Ask all of these. Raises BenchError where the machine does not go on."""
        result = self.results.setdefault(injection, Result())
        with INJECTIONS[injection](self.guest):
            for name, arguments in operations:
                answer = self._door.ask(name.split()[0], arguments)
                self._count(result, name, answer.get("error", {}).get("desc") if "error" in answer else None)
                self._mend(result, name)
        self._settle(injection)

    def verbs(self, injection: str, asked: Sequence[Sequence[str]]) -> None:
        """As `qmp`, by the command line."""
        result = self.results.setdefault(injection, Result())
        with INJECTIONS[injection](self.guest):
            for words in asked:
                command = [*self._user, *python("vmesh.cli", *words)]
                done = subprocess.run(
                    command, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                    timeout=2 * LIMIT, check=False,
                )  # fmt: skip
                self._count(result, f"vmesh {words[0]}", done.stderr.strip() if done.returncode else None)
                self._mend(result, f"vmesh {words[0]}")
        self._settle(injection)

    def _count(self, result: Result, name: str, said: str | None) -> None:
        result.operations += 1
        if said is None:
            return
        result.failed += 1
        result.what[name] += 1
        if not said or "\n" in said or "Traceback" in said or "internal error" in said:
            result.unclear.append(f"{name}: {said[:200]!r}")

    def _mend(self, result: Result, name: str) -> None:
        """Have the guest run, if that operation has stopped it, and see that it does."""
        deadline = time.monotonic() + _STOPPED_SECONDS
        while self._door.ask("query-status", {})["return"]["status"] != "running":
            if "error" in self._door.ask("cont", {}) and time.monotonic() > deadline:
                result.stopped += 1  # it stands still while this lasts, and says why: `_settle` has it go on
                return
        try:
            self.guest.goes_on()
        except BenchError as error:
            raise BenchError(f"after {name}: {error}") from error

    def _settle(self, injection: str) -> None:
        """What was taken is there again: the machine is as it was."""
        deadline = time.monotonic() + LIMIT
        while True:
            for name in ("new", "rng9", "disk"):
                self._door.ask("device_del", {"id": name})
            self._door.ask("cont", {})
            if self._door.ask("query-status", {})["return"]["status"] == "running":
                break
            if time.monotonic() > deadline:
                raise BenchError(f"after {injection}: the machine does not go on")
            time.sleep(0.1)
        self.guest.goes_on(100)


@contextmanager
def machine(here: Place, *flags: str) -> Iterator[Campaign]:
    """A machine whose guest runs."""
    (here.scratch / "guest.elf").write_bytes(programs.elf(programs.count(LINES)))
    environment = {**os.environ, "VMESH_RUNTIME": str(here.runtime)}
    flags = ("-name", "failing", "-m", f"{_RAM_BYTES >> 20}M", "-nographic", "-bios", "none", *flags)
    command = [*here.user, *python("vmesh.cli", "run", *flags, "-kernel", str(here.scratch / "guest.elf"))]
    guest = Guest(command, environment, MachineDirectory(here.runtime / "failing"))
    try:
        guest.goes_on()
        deadline = time.monotonic() + LIMIT
        while not _is_open(guest.machine) and time.monotonic() < deadline:
            time.sleep(0.05)
        campaign = Campaign(guest, here.scratch, environment, here.user)
        try:
            yield campaign
        finally:
            campaign.close()
    finally:
        guest.close()


def _is_open(there: MachineDirectory) -> bool:
    with suppress(MachineError):
        return there.read_record().state == "running" and there.gateway.exists()
    return False


@dataclass(frozen=True, slots=True)
class Place:
    """A folder for files, one for the runtime directory, and the command that begins a process as permissions hold for
    it; and what can be injected here."""

    scratch: Path
    runtime: Path
    user: Sequence[str]
    injections: Sequence[str]

    @property
    def missing(self) -> str:
        return ", ".join(name for name in INJECTIONS if name not in self.injections) or "nothing"


def place(stack: ExitStack) -> Place:
    """Made until `stack` is closed."""
    scratch = Path(tempfile.mkdtemp(prefix="vmesh-failing-"))
    stack.callback(shutil.rmtree, scratch, ignore_errors=True)
    runtime, denied = scratch / "run", scratch / "denied"
    runtime.mkdir(mode=0o700)
    denied.mkdir(mode=0)
    user: Sequence[str] = ()
    left_out = set[str]()
    if os.geteuid() == 0:
        user = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
        if not _done([*user, "true"]):
            user, left_out = (), {"EACCES"}
    if _done(["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES},mode=700", "vmesh", str(runtime)]):
        stack.callback(_done, ["umount", "-l", str(runtime)])
    else:
        left_out |= {"ENOSPC"}
    return Place(scratch, runtime, user, [name for name in INJECTIONS if name not in left_out])


def _done(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def measure(runs: int) -> Report:
    """At least `runs` operations that fail. Raises BenchError."""
    seed = secrets.randbits(32)
    chance = random.Random(seed)
    with ExitStack() as stack:
        here = place(stack)
        campaign = stack.enter_context(machine(here))
        failed = 0
        while failed < runs:
            for injection in here.injections:
                operations = list(qmp_operations(here.scratch).items())
                chance.shuffle(operations)
                campaign.qmp(injection, operations)
                asked = verbs(campaign.guest.machine.name, here.scratch)
                chance.shuffle(asked)
                campaign.verbs(injection, asked)
            failed = sum(result.failed for result in campaign.results.values())
        lines = campaign.guest.lines
    rows = [Row("lines of the guest, each checked", "count", Sample((float(lines),)), digits=0)]
    for name, result in campaign.results.items():
        rows.append(
            Row(f"{name}: operations", "count", Sample((float(result.operations),)), digits=0),
        )
        rows.append(
            Row(
                f"{name}: of them failed, and were said in one line",
                "count",
                Sample((float(result.failed - len(result.unclear)),)),
                bar=held("all that failed", not result.unclear),
                digits=0,
            )
        )
        rows.append(
            Row(
                f"{name}: after which the machine stood still until it was over",
                "count",
                Sample((float(result.stopped),)),
                digits=0,
            )
        )
        for each in result.unclear[:3]:
            print(f"{name}: {each}")
    return Report(f"operations that fail under a checked guest (seed {seed}); not here: {here.missing}", rows)
