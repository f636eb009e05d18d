"""TCP of a Linux guest: to the host through passt, and to another guest, vmesh and QEMU by turns.

bench/net.c does the work in the guest and times it by the guest's clock. Both use the same passt; what QEMU speaks to
it is `-netdev stream`. Two guests of vmesh meet at a `vmesh hub`, two of QEMU are joined by a socket, which is what
each brings.
"""

from __future__ import annotations

import shutil
import socketserver
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench import harness, programs
from bench.harness import BenchError
from bench.report import Report, Row, Sample
from vmesh.guest import initramfs
from vmesh.netdev.options import User
from vmesh.netdev.user import PROGRAM, command
from vmesh.spawn import python

BYTES = 32 << 20  # each way
ROUNDS = 500
PORT = 9
USUAL_MTU, LARGE_MTU = 1500, 65520

_SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = ("-m", "512M", "-smp", "1")
_MARKS = {"begin": b"net begin", "end": b"net end"}
_REQUEST = struct.Struct("<c3xQ")
_CHUNK = 256 << 10
_WAIT_SECONDS = 10.0
_MAC = "52:54:00:00:00:0"

Result = Mapping[str, tuple[int, float]]
"""By job (t: guest gives, g: guest gets, r: round trips): how many, and seconds."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way between a guest and another end."""

    what: str
    mtu: int
    guests: bool  # two of them, rather than a guest and the host


PATHS = (
    Way("host, packets of 1500", USUAL_MTU, guests=False),
    Way("host, packets of 65520", LARGE_MTU, guests=False),
    Way("guest, packets of 1500", USUAL_MTU, guests=True),
    Way("guest, packets of 65520", LARGE_MTU, guests=True),
)


def measure(runs: int) -> Report:
    """Raises BenchError."""
    if shutil.which(PROGRAM) is None:
        raise BenchError(f"{PROGRAM} is not installed (make test-peers)")
    rows: list[Row] = []
    with harness.scratch() as scratch, _server() as port:
        scratch.chmod(0o755)  # passt, which is not root, makes its socket in a folder there
        initrd = _initrd(scratch)
        for path in PATHS:
            ours, theirs = (_Vmesh(scratch, initrd, path.mtu), _Qemu(scratch, initrd, path.mtu))
            if path.guests:
                pairs = harness.by_turns(ours.two_guests, theirs.two_guests, runs)
            else:
                pairs = harness.by_turns(_bound(ours.to_host, port), _bound(theirs.to_host, port), runs)
            rows += _rows(path, *pairs)
    return Report(f"virtio-net, TCP, {runs} boots each", rows)


def read(output: bytes) -> Result:
    """What one boot printed. Raises BenchError unless all is there."""
    found = {}
    for words in map(str.split, output.decode(errors="replace").splitlines()):
        match words:
            case ["net", job, count, nanoseconds] if count.isdecimal() and nanoseconds.isdecimal():
                found[job] = (int(count), int(nanoseconds) / 1e9)
    if found.keys() != set("tgr"):
        raise BenchError(f"expected t, g and r, got: {output[-2000:]!r}")
    return found


def _rows(path: Way, ours: Sequence[Result], theirs: Sequence[Result]) -> Iterator[Row]:
    for job, what in (("t", f"to the {path.what}"), ("g", f"from the {path.what}")):
        mine, peers = (Sample(tuple(each[job][0] / 2**20 / each[job][1] for each in boots)) for boots in (ours, theirs))
        yield Row(what, "MiB/s", mine, peers, digits=1)
    mine, peers = (Sample(tuple(each["r"][1] / each["r"][0] * 1e6 for each in boots)) for boots in (ours, theirs))
    yield Row(f"round trip with the {path.what}", "us", mine, peers, digits=0)


def _bound(run: Callable[[int], Result], port: int) -> Callable[[], Result]:
    return lambda: run(port)


@dataclass(frozen=True, slots=True)
class _Emulator:
    """How one emulator's guests are started; `initrd` has the program."""

    scratch: Path
    initrd: Path
    mtu: int

    def flags(self, number: int, address: str, job: str, netdev: str) -> list[str]:
        """For the `number`th guest, with its `address` and what it runs."""
        guest = replace(harness.debian(), initrd=self.initrd)
        set_up = f"ip link set eth0 mtu {self.mtu} up; ip addr add {address}/24 dev eth0"
        device = f"virtio-net-device,netdev=n,mac={_MAC}{number},host_mtu={self.mtu}"
        flags = harness.guest_flags(guest, f'quiet vmesh.run="{set_up}; {job}"')
        return [*_FLAGS, *flags, "-netdev", netdev, "-device", device]

    def client(self, address: str, port: int) -> str:
        return f"net {address} {port} {BYTES} {ROUNDS}"


class _Vmesh(_Emulator):
    def to_host(self, port: int) -> Result:
        flags = self.flags(1, "10.0.2.15", self.client("10.0.2.2", port), "user,id=n")
        return read(harness.run(harness.ours(*flags), _MARKS).output)

    def two_guests(self) -> Result:
        path = self.scratch / "hub"
        with process(python("vmesh.cli", "hub", str(path)), path):
            netdev = f"stream,id=n,addr.type=unix,addr.path={path}"
            server = harness.ours(*self.flags(1, "10.1.0.1", f"net {PORT}", netdev))
            with harness.kept(server, b"net listens"):
                flags = self.flags(2, "10.1.0.2", self.client("10.1.0.1", PORT), netdev)
                return read(harness.run(harness.ours(*flags), _MARKS).output)


class _Qemu(_Emulator):
    def to_host(self, port: int) -> Result:
        folder = self.scratch / "passt"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
        path = folder / "socket"
        path.unlink(missing_ok=True)
        words = command(User(), "--fd", "-1")
        place = words.index("--fd")
        with process([*words[:place], "--one-off", "--socket", str(path), *words[place + 2 :]], path):
            netdev = f"stream,id=n,server=off,addr.type=unix,addr.path={path}"
            flags = self.flags(1, "10.0.2.15", self.client("10.0.2.2", port), netdev)
            return read(harness.run(harness.theirs(*flags), _MARKS).output)

    def two_guests(self) -> Result:
        path = self.scratch / "wire"
        netdev = f"id=n,addr.type=unix,addr.path={path}"
        server = harness.theirs(*self.flags(1, "10.1.0.1", f"net {PORT}", f"stream,server=on,{netdev}"))
        with harness.kept(server, b"net listens"):
            flags = self.flags(2, "10.1.0.2", self.client("10.1.0.1", PORT), f"stream,server=off,{netdev}")
            return read(harness.run(harness.theirs(*flags), _MARKS).output)


@contextmanager
def process(words: Sequence[str], path: Path) -> Iterator[None]:
    """A process that listens at `path`, for a `with` block."""
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + _WAIT_SECONDS
        try:
            while not path.is_socket():
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    _, said = process.communicate()
                    raise BenchError(f"{words[0]} does not listen: {said.decode(errors='replace').strip()}")
                time.sleep(0.01)
            yield
        finally:
            process.terminate()


class _Handler(socketserver.BaseRequestHandler):
    """The host's side of bench/net.c."""

    def handle(self) -> None:
        what, count = _REQUEST.unpack(self._take(_REQUEST.size))
        if what == b"r":
            for _ in range(count):
                self.request.sendall(self._take(1))
            return
        buffer = memoryview(bytearray(_CHUNK))
        while count:
            part = buffer[: min(count, _CHUNK)]
            done = self.request.recv_into(part) if what == b"t" else self.request.send(part)
            if not done:
                return
            count -= done
        if what == b"t":
            self.request.sendall(b"!")

    def _take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part: bytes = self.request.recv(size - len(data))
            if not part:
                raise ConnectionError("the guest has closed the connection")
            data += part
        return data


@contextmanager
def _server() -> Iterator[int]:
    """The host's side, for a `with` block: its port on the loopback."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def _initrd(scratch: Path) -> Path:
    return with_program(scratch / "net.cpio", "bin/net", programs.compiled("net", [_SOURCE]))


def with_program(archive: Path, name: str, program: Path) -> Path:
    """The default guest's initramfs with a program added, written to `archive`."""
    guest = harness.debian()
    assert guest.initrd is not None
    entry = initramfs.Entry(name, stat.S_IFREG | 0o755, program.read_bytes())
    archive.write_bytes(guest.initrd.read_bytes() + initramfs.archive(iter([entry])))
    return archive
