"""What a guest does while its devices are killed, and how it is checked: bench/kills.py. A work is a line in WORKS."""

from __future__ import annotations

import hashlib
import socketserver
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import harness, net, programs
from bench.harness import BenchError
from vmesh.spawn import python

Check = Callable[[int, list[str], Path], str]
"""Gets a step's number, the lines that the guest said, and the directory; says what is wrong, if anything."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a work needs of the host: flags of the machine, and variables of the guest's shell."""

    flags: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Work:
    """What the guest does again and again: `script`, with the step's number in $1; `first` is done once.

    `prepare` makes its place, with files in a directory; what must end with the campaign goes on the stack.
    """

    prepare: Callable[[Path, ExitStack], Place]
    script: Sequence[str]
    check: Check
    first: Sequence[str] = ()


_LINES = 40
_DISK_BYTES, _BLOCK, _BLOCKS = 16 << 20, 65536, 8
_STREAM_BYTES = 4_000_000
_RANDOM_BYTES = 20_000
_HOST_SECONDS = 5.0  # until what the guest has said is in a file of the host


def _check_console(step: int, said: list[str], _scratch: Path) -> str:
    clock, *lines = said
    if not clock.isdecimal() or abs(int(clock) - time.time()) > 5:
        return f"the clock says {clock}"
    return _differs([f"{step} {number} the quick brown fox jumps over the lazy dog" for number in range(_LINES)], lines)


def _differs(expected: Sequence[str], got: Sequence[str]) -> str:
    if len(expected) != len(got):
        return f"expected {len(expected)} lines, got {len(got)}"
    return next((f"expected {a!r}, got {b!r}" for a, b in zip(expected, got, strict=True) if a != b), "")


def _disk(scratch: Path, _stack: ExitStack) -> Place:
    (scratch / "disk").write_bytes(bytes(_DISK_BYTES))
    return Place(("-drive", f"file={scratch / 'disk'},format=raw"))


def _check_disk(step: int, said: list[str], scratch: Path) -> str:
    with (scratch / "disk").open("rb") as disk:
        disk.seek(step % 32 * _BLOCKS * _BLOCK)
        stored = hashlib.sha256(disk.read(_BLOCKS * _BLOCK)).hexdigest()
    return _one_sum(said, stored, 2)


def _one_sum(said: list[str], stored: str, times: int) -> str:
    """Whether the guest said so often what the host has."""
    sums = [line.split()[0] for line in said if line]
    return "" if sums == [stored] * times else f"the host has {stored}, the guest wrote and read {', '.join(sums)}"


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while part := self.request.recv(65536):
            self.request.sendall(part)


def _router(scratch: Path, stack: ExitStack) -> Place:
    """A server on the host, behind passt."""
    server = stack.enter_context(socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stack.callback(server.shutdown)
    address = {"own": "10.0.2.15", "there": "10.0.2.2", "port": str(server.server_address[1])}
    return Place((*_guest(scratch, "loglevel=1"), "-nic", "user"), address)


def _hub(scratch: Path, stack: ExitStack) -> Place:
    """A server in another guest, at a hub."""
    path = scratch / "hub"
    stack.enter_context(net.process(python("vmesh.cli", "hub", str(path)), path))
    nic = f"stream,addr.type=unix,addr.path={path},reconnect-ms=20,mac=52:54:00:00:00:0"
    serve = 'quiet vmesh.run="ip addr add 10.1.0.2/24 dev eth0; ip link set eth0 up; stream 9"'
    other = harness.ours("-m", "512M", *_guest(scratch, serve), "-nic", f"{nic}2")
    stack.enter_context(harness.kept(other, b"stream listens"))
    flags = (*_guest(scratch, "loglevel=1"), "-nic", f"{nic}1")
    return Place(flags, {"own": "10.1.0.1", "there": "10.1.0.2", "port": "9"})


def _guest(scratch: Path, append: str) -> list[str]:
    """Flags for the default guest with bench/stream.c in it."""
    program = programs.compiled("stream", [Path(__file__).with_name("stream.c")])
    initrd = net.with_program(scratch / "stream.cpio", "bin/stream", program)
    return harness.guest_flags(replace(harness.debian(), initrd=initrd), append)


def _check_stream(step: int, said: list[str], _scratch: Path) -> str:
    return _differs([f"stream {step} {_STREAM_BYTES}"], said)


def _share(scratch: Path, _stack: ExitStack) -> Place:
    (scratch / "share").mkdir()
    return Place(("-virtfs", f"local,path={scratch / 'share'},mount_tag=host,security_model=none"))


def _check_share(step: int, said: list[str], scratch: Path) -> str:
    there = sorted(path.name for path in (scratch / "share").iterdir())
    if there != ["done"]:
        return f"expected the folder to hold 'done' alone, got {there}"
    return _one_sum(said, hashlib.sha256((scratch / "share/done").read_bytes()).hexdigest(), 2)


def _serial(scratch: Path, _stack: ExitStack) -> Place:
    chardev = f"file,id=c,path={scratch / 'said'}"
    return Place(("-chardev", chardev, "-device", "virtio-serial-device", "-device", "virtconsole,chardev=c"))


def _check_serial(step: int, said: list[str], scratch: Path) -> str:
    expected = [f"{n} {number} over the lazy dog" for n in range(step + 1) for number in range(_LINES)]
    deadline = time.monotonic() + _HOST_SECONDS
    while (wrong := _differs(expected, (scratch / "said").read_text().splitlines())) and time.monotonic() < deadline:
        time.sleep(0.01)
    return wrong or _differs([], said)


def _random(_scratch: Path, _stack: ExitStack) -> Place:
    return Place(("-device", "virtio-rng-device"))


def _check_random(step: int, said: list[str], scratch: Path) -> str:
    """As much as was asked for, and never the same; that it is nothing but noise the guest cannot see."""
    with (scratch / "sums").open("a+") as file:
        file.seek(0)
        former = file.read().split()
        file.write("\n".join(said) + "\n")
    if len(said) != 2 or said[0] != str(_RANDOM_BYTES):
        return f"expected {_RANDOM_BYTES} bytes and their sum, got {said}"
    return f"{said[1]} came before" if said[1] in former else ""


_LAN = ("ip link set eth0 up; ip addr add $own/24 dev eth0",)
_STREAM = (f"stream $there $port $1 {_STREAM_BYTES}",)

WORKS = {
    "console and clock": Work(
        lambda scratch, stack: Place(),
        (
            "cat /sys/class/rtc/rtc0/since_epoch; i=0",
            f"while [ $i -lt {_LINES} ]; do",
            'echo "$1 $i the quick brown fox jumps over the lazy dog"; i=$((i+1)); done',
        ),
        _check_console,
    ),
    "disk": Work(
        _disk,
        (
            f"head -c {_BLOCKS * _BLOCK} /dev/urandom >/tmp/n; sha256sum </tmp/n; s=$(($1%32*{_BLOCKS}))",
            "dd if=/tmp/n of=/dev/vda bs=64k seek=$s conv=fsync,notrunc 2>/dev/null",
            "echo 3 >/proc/sys/vm/drop_caches",
            f"dd if=/dev/vda bs=64k skip=$s count={_BLOCKS} 2>/dev/null | sha256sum",
        ),
        _check_disk,
    ),
    "TCP to the host": Work(_router, _STREAM, _check_stream, _LAN),
    "TCP to a guest": Work(_hub, _STREAM, _check_stream, _LAN),
    "shared folder": Work(
        _share,
        (
            "head -c 300000 /dev/urandom >/tmp/n; sha256sum </tmp/n; rm -f /mnt/done",
            "mkdir /mnt/d; cp /tmp/n /mnt/d/f; mv /mnt/d/f /mnt/done; rmdir /mnt/d; sha256sum </mnt/done",
        ),
        _check_share,
        ("mount -t 9p -o trans=virtio,msize=65536 host /mnt",),
    ),
    "virtio console": Work(
        _serial,
        (
            f"i=0; while [ $i -lt {_LINES} ]; do",  # lines that the shell's editor does not break
            'echo "$1 $i over the lazy dog" >&7; i=$((i+1)); done',
        ),
        _check_serial,
        ("exec 7>/dev/hvc0; stty -F /dev/hvc0 -opost",),
    ),
    "random numbers": Work(
        _random,
        (
            f"dd if=/dev/hwrng bs=1000 count={_RANDOM_BYTES // 1000} of=/tmp/r 2>/dev/null",
            "wc -c </tmp/r; sha256sum </tmp/r",
        ),
        _check_random,
    ),
}


def select_works(names: Sequence[str]) -> Mapping[str, Work]:
    """Those works, or all. Raises BenchError."""
    if unknown := [name for name in names if name not in WORKS]:
        raise BenchError(f"expected one of {', '.join(WORKS)}, got '{unknown[0]}'")
    return {name: WORKS[name] for name in names or WORKS}
