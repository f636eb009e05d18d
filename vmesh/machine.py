"""The machine directory: where the processes of one machine meet.

`$VMESH_RUNTIME`, or `/dev/shm/vmesh-<uid>`, holds one directory per machine, named after it. The file `lock` in it
carries a `flock` that the monitor and every service but memory inherit: it is free exactly when none of them lives.
That is how a name in use is told from the leavings of a machine that was killed, without trusting process ids; and
memory, when it ends as an orphan, waits for the lock before it removes the directory. `lock` says what it is: no
directory without one that does is ever removed, whatever else somebody keeps where `$VMESH_RUNTIME` points.
Everything here is owner-only.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LOCK = "lock"
MARK = b"the lock of a vmesh machine\n"  # what is in it
RECORD = "machine.json"
GATEWAY = "gateway.sock"
LOG = "log"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_BLOCK = 4096  # bytes; what a record has of its last one is there for the next record
_LOOKS, _LOOK_SECONDS = 5, 0.01
_SUN_PATH_BYTES = 108  # struct sockaddr_un, unix(7)
_LONGEST_FILE = len("/virtio-console-00.console")
#: What a device has in the directory, behind its name and a dot.
_DEVICE_FILES = (
    *(
        "attach",
        "console",
        "doorbell",
        "elsewhere",
        "epoch",
        "export",
        "files",
        "former",
        "fresh",
        "guard",
        "interrupts",
    ),
    *("kept", "ledger", "lock", "nbd", "new", "pulse", "slot", "sock"),
)


class MachineError(Exception):
    """A machine directory that cannot be made, found or read; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """One service as `vmesh ps` shows it; `epoch` counts its lives from 1."""

    name: str
    kind: str
    pid: int
    epoch: int
    state: str


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """`machine.json`. `created` is in seconds since 1970; `pid` is the monitor's."""

    name: str
    pid: int
    created: float
    state: str
    services: tuple[ServiceRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class MachineDirectory:
    """A machine directory, and where `lock_fd` is not -1 the lock that keeps its name in use."""

    path: Path
    lock_fd: int = -1

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def gateway(self) -> Path:
        return self.path / GATEWAY

    @property
    def qmp(self) -> Path:
        """Where every machine speaks QMP."""
        return self.path / "qmp.sock"

    @property
    def hmp(self) -> Path:
        """Where every machine speaks HMP."""
        return self.path / "hmp.sock"

    @property
    def terminal_monitor(self) -> Path:
        """Where the launcher finds the monitor that -qmp or -mon puts on its terminal."""
        return self.path / "terminal-monitor.sock"

    @property
    def log(self) -> Path:
        return self.path / LOG

    @property
    def handover(self) -> Path:
        """Where a machine with -incoming handover:NAME waits for that one."""
        return self.path / "handover.sock"

    def socket(self, service: str) -> Path:
        """The ZeroMQ ROUTER that `service` binds."""
        return self.path / f"{service}.sock"

    def console(self, device: str) -> Path:
        """The stream socket with the raw bytes of a serial device."""
        return self.path / f"{device}.console"

    def doorbell(self, device: str) -> Path:
        """The FIFO by which harts ring a device."""
        return self.path / f"{device}.doorbell"

    def interrupts(self, device: str) -> Path:
        """The FIFO by which a device raises its interrupts."""
        return self.path / f"{device}.interrupts"

    def files(self, service: str) -> Path:
        """Where a service gives descriptors: proto/vmesh/v1/files.proto."""
        return self.path / f"{service}.files"

    def kept_console(self, device: str) -> Path:
        """Where the keeper of that console listens for the device: proto/vmesh/v1/console.proto."""
        return self.path / f"{device}.kept"

    def network(self, device: str) -> Path:
        """The folder where the network of that card listens for it, if the keeper has one."""
        return self.path / f"{device}.network"

    def attached_console(self, device: str) -> Path:
        """Where the keeper of that console listens for who wants to attach to it: services/monitor/attach.py."""
        return self.path / f"{device}.attach"

    def elsewhere(self, device: str) -> Path:
        """The link to what that device keeps outside of this directory: vmesh/elsewhere.py."""
        return self.path / f"{device}.elsewhere"

    def device_files(self, device: str) -> list[Path]:
        """All that it may have here, but for the folder of its network, which is the keeper's to remove."""
        return [self.path / f"{device}.{ending}" for ending in _DEVICE_FILES]

    def pulse(self, service: str) -> Path:
        """Whose time of modification says when the loop of that service ran last, if nobody has its lifeline."""
        return self.path / f"{service}.pulse"

    def claim(self, service: str) -> int:
        """The descriptor that holds the lock of a service that nobody supervises: there is one of each.

        Raises MachineError.
        """
        try:
            fd = os.open(self.path / f"{service}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise MachineError(f"machine directory {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise MachineError(f"machine '{self.name}' has a service '{service}' already, which runs") from None
        return fd

    def next_epoch(self, service: str) -> int:
        """Count another life of a service that was started by nobody who counts; the monitor may, and then it is the
        one that the monitor waits for."""
        counted = self.path / f"{service}.epoch"
        try:
            epoch = int(counted.read_text()) + 1
        except (OSError, ValueError):
            epoch = 1
        with suppress(MachineError):
            epoch = max([epoch, *(each.epoch for each in self.read_record().services if each.name == service)])
        fresh = counted.with_suffix(".fresh")
        fresh.write_text(str(epoch))
        fresh.replace(counted)
        return epoch

    def write_record(self, record: MachineRecord) -> None:
        """Replace machine.json at once: a reader sees the old or the new one. Does nothing if the directory is gone.

        In a file system that is full it is written over. Raises OSError if there is no room for that either; the old
        one is there then, unless the file system takes room for what is written over, too.
        """
        text = json.dumps(asdict(record), indent=1).encode()
        fresh = self.path / f".{RECORD}.{os.getpid()}"
        try:
            fresh.write_bytes(_filled(text, -(-len(text) // _BLOCK) * _BLOCK))
            fresh.replace(self.path / RECORD)
        except FileNotFoundError:
            pass
        except OSError as error:
            fresh.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            try:
                with open(self.path / RECORD, "r+b", buffering=0) as former:
                    size = os.fstat(former.fileno()).st_size
                    if size < len(text) or former.write(_filled(text, size)) != size:
                        raise error
            except FileNotFoundError:  # it is the first
                raise error from None

    def read_record(self) -> MachineRecord:
        """Raises MachineError if machine.json is missing or not what `write_record` writes."""
        try:
            raw = self._read_json()
            services = tuple(ServiceRecord(**service) for service in raw.pop("services"))
            return MachineRecord(**raw, services=services)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise MachineError(f"machine '{self.name}': cannot read {self.path / RECORD}: {error}") from error

    def _read_json(self) -> Any:
        for _ in range(_LOOKS):
            with suppress(ValueError):  # it is just being written over
                return json.loads((self.path / RECORD).read_bytes())
            time.sleep(_LOOK_SECONDS)
        return json.loads((self.path / RECORD).read_bytes())

    def alive(self) -> bool:
        """Whether a process of the machine lives."""
        try:
            fd = os.open(self.path / LOCK, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(fd)

    def is_there(self) -> bool:
        """Whether the directory is still that of the machine whose lock file this has open."""
        try:
            return os.path.samestat(os.fstat(self.lock_fd), (self.path / LOCK).stat())
        except OSError:
            return False

    def remove(self) -> None:
        """Remove the directory and all in it, if it is still ours, and a machine's; what is gone already is no error.

        With the lock in hand it is told whether another process of this machine has removed it already, and a new
        machine has taken the name.
        """
        with _root_lock(self.path.parent):
            if _is_machines(self.path) and (self.lock_fd < 0 or self.is_there()):
                _remove_tree(self.path)


def runtime_root() -> Path:
    """`$VMESH_RUNTIME` or `/dev/shm/vmesh-<uid>`, made if missing.

    Raises MachineError if another user owns it or may enter it, since whoever can enter can control the machines.
    """
    root = Path(os.environ.get("VMESH_RUNTIME") or f"/dev/shm/vmesh-{os.getuid()}").absolute()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = root.lstat()
    except OSError as error:
        raise MachineError(f"cannot make the runtime directory {root}: {error.strerror} (set VMESH_RUNTIME)") from error
    if not stat.S_ISDIR(status.st_mode):
        raise MachineError(f"the runtime directory {root} is not a directory (set VMESH_RUNTIME)")
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        raise MachineError(
            f"the runtime directory {root} must be yours with mode 0700, it is uid {status.st_uid}'s with mode {mode}"
        )
    return root


def create(name: str | None = None) -> MachineDirectory:
    """Make and lock the directory of a new machine; without a name it gets a short random one.

    Raises MachineError for a name that is in use, is not one, or makes socket paths longer than the system allows.
    """
    root = runtime_root()
    chosen = name if name is not None else os.urandom(3).hex()
    check_name(chosen)
    longest = len(os.fsencode(root / chosen)) + _LONGEST_FILE
    if longest >= _SUN_PATH_BYTES:
        raise MachineError(
            f"the sockets of machine '{chosen}' in {root} would have paths of {longest} bytes, "
            f"at most {_SUN_PATH_BYTES - 1} are possible (set VMESH_RUNTIME to a shorter one)"
        )
    with _root_lock(root):
        _reap(root)
        path = root / chosen
        try:
            _clear(path)
            path.mkdir(mode=0o700)
            fd = _make_lock(path)
        except FileExistsError:
            if not _is_machines(path):
                raise MachineError(f"{path} is in the way: it is no machine's (set VMESH_RUNTIME)") from None
            raise MachineError(f"machine name '{chosen}' is in use (vmesh ps lists the machines)") from None
        except OSError as error:
            raise MachineError(f"cannot make {path}: {error.strerror}") from error
        fcntl.flock(fd, fcntl.LOCK_EX)
    machine = MachineDirectory(path, fd)
    machine.write_record(MachineRecord(chosen, os.getpid(), time.time(), "starting"))
    return machine


def adopt(path: Path, lock_fd: int = -1) -> MachineDirectory:
    """The directory at `path` as one of its own processes sees it; without `lock_fd` its lock is taken here.

    Raises MachineError if there is no such directory, it has something else in it, or another machine's processes hold
    it.
    """
    if lock_fd < 0:
        try:
            if os.listdir(path):
                _check_machines(path)
            lock_fd = _make_lock(path)
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock_fd)
            raise MachineError(f"machine directory {path} is in use by a running machine") from None
        except OSError as error:
            raise MachineError(f"machine directory {path}: {error.strerror}") from error
    return MachineDirectory(path, lock_fd)


def meet(path: Path, lock_fd: int = -1) -> MachineDirectory:
    """The directory at `path`, of which another process has the lock: `remove` leaves a later machine's alone.

    Raises MachineError if there is no such directory, or it is not a machine's.
    """
    if lock_fd < 0:
        try:
            lock_fd = os.open(path / LOCK, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise MachineError(f"machine directory {path}: {error.strerror}") from error
        try:
            _check_machines(path)
        except MachineError:
            os.close(lock_fd)
            raise
    return MachineDirectory(path, lock_fd)


def find(name: str) -> MachineDirectory:
    """The running machine of that name, or without one the only one.

    Raises MachineError, with the names there are, if there is none.
    """
    for machine in (running := machines()):
        if machine.name == name or (not name and len(running) == 1):
            return machine
    if not name:
        several = f"expected NAME, several machines run: {', '.join(each.name for each in running)}"
        raise MachineError(several if running else "no machine is running")
    there = ", ".join(machine.name for machine in running)
    raise MachineError(f"no machine '{name}' is running; " + (f"running: {there}" if there else "none is running"))


def machines() -> list[MachineDirectory]:
    """The running machines, by name; the directories of dead ones are removed on the way."""
    root = runtime_root()
    with _root_lock(root):
        _reap(root)
        return _machines(root)


def reap() -> None:
    """Remove the directories of machines of which no process lives any more."""
    root = runtime_root()
    with _root_lock(root):
        _reap(root)


def _filled(text: bytes, size: int) -> bytes:
    return text.ljust(size, b"\n")


def check_name(name: str) -> None:
    """Raises MachineError for what cannot name a machine."""
    if not _NAME.fullmatch(name):
        raise MachineError(
            f"'{name}' cannot name a machine: expected 1 to 32 letters, digits, '.', '_' or '-', "
            "the first a letter or digit"
        )


def _machines(root: Path) -> list[MachineDirectory]:
    """Those that live, by name; also of a vmesh that did not say in `lock` what it is (before December 2026)."""
    found = map(MachineDirectory, _directories(root))
    return [machine for machine in found if (machine.path / RECORD).exists() and machine.alive()]


def _directories(root: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False))


def _reap(root: Path) -> None:
    for path in _directories(root):
        if _is_machines(path) and not MachineDirectory(path).alive():
            _remove_tree(path)


def _make_lock(path: Path) -> int:
    """The lock of a machine's directory, which it thereby becomes. Another program's lock is left as it is."""
    fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        found = os.pread(fd, len(MARK), 0)
        if not found:
            os.pwrite(fd, MARK, 0)
        elif found != MARK:
            raise FileExistsError(errno.EEXIST, f"its file '{LOCK}' is another program's")
    except OSError:
        os.close(fd)
        _clear(path)
        raise
    return fd


def _check_machines(path: Path) -> None:
    """Raises MachineError: what is done to a machine's directory must not be done to another one."""
    if not _is_machines(path):
        raise MachineError(f"{path} is no machine's directory: it has no file '{LOCK}' that says so")


def _is_machines(path: Path) -> bool:
    """Whether a directory is a machine's: of a vmesh, living or dead."""
    try:
        fd = os.open(path / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    with open(fd, "rb") as file, suppress(OSError):
        return file.read(len(MARK)) == MARK
    return False


def _clear(path: Path) -> None:
    """Remove a directory that `create` had only begun when it was killed."""
    with suppress(OSError):
        if os.listdir(path) == [LOCK] and (path / LOCK).stat().st_size == 0:
            (path / LOCK).unlink()
        path.rmdir()


#: A gateway that is just being opened may put its socket into a directory that is being removed.
_REMOVALS = 3


def _remove_tree(path: Path) -> None:
    """The lock goes last: what was begun by who is killed meanwhile can be told for a machine's, and is ended later."""
    import shutil  # here: 4 ms that the start of a machine need not wait for

    with suppress(OSError):
        for entry in os.scandir(path):
            if entry.is_symlink():
                from vmesh import elsewhere

                elsewhere.remove(Path(entry.path))
    for _ in range(_REMOVALS):
        with suppress(OSError):
            for entry in os.scandir(path):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                elif entry.name != LOCK:
                    with suppress(OSError):
                        os.unlink(entry.path)
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return


@contextmanager
def _root_lock(root: Path) -> Iterator[None]:
    """Held while directories come and go, so that a fresh one is never taken for a dead one before it is locked."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
