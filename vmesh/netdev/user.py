"""`user`: the guest behind a router that is a process of the host, Debian's passt (passt(1)).

Here passt is started by a card that nobody supervises: it gets one end of a pair of sockets and ends when the other is
closed, however this process ends. In a machine the keeper has one that listens for the card
(services/monitor/network.py).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import subprocess
import tempfile
import time
from contextlib import suppress

from vmesh import errors
from vmesh.log import Log
from vmesh.loop import Loop
from vmesh.netdev import options
from vmesh.netdev.port import MAX_FRAME, Port
from vmesh.netdev.stream import SocketNetdev

PROGRAM = "passt"
SOCKET = "socket"  # where one listens that is to outlive the card, in a folder of its own
_ANSWER_SECONDS = 2.0
_TRIES = 3  # at the start: a former passt may be about to give up its ports
_RETRY_SECONDS = 0.3
_END_SECONDS = 1.0
_ERROR_BYTES = 4096
# What passt can have sent and we not read; the host may give less (net.core.wmem_max). A passt whose socket is full
# drops frames, which its TCP then repeats only after a while.
_PASST_BYTES = 4 << 20


def command(asked: options.User, *where: str) -> list[str]:
    """passt's command line; `where` is --fd and the number of a connected socket, or --socket and a path."""
    dns = asked.address(asked.dns, options.DNS)
    made = [PROGRAM, "--foreground", "--quiet", "--stderr", *where]
    made += ["--address", asked.address(asked.guest, options.GUEST), "--netmask", asked.netmask]
    made += ["--gateway", asked.address(asked.host, options.HOST), "--dns", dns, "--dns-forward", dns]
    if not asked.ipv6:
        made.append("--ipv4-only")
    for each in asked.forwards:
        address = f"{each.address}/" if each.address else ""
        made += ["-t" if each.protocol == "tcp" else "-u", f"{address}{each.port}:{each.guest_port}"]
    return made


def taken(asked: options.User) -> str:
    """Which forwarded port somebody else has, in one line; empty if none is. passt is content with half of one: where
    127.0.0.1 is taken it listens at [::] alone."""
    for each in asked.forwards:
        kind = socket.SOCK_STREAM if each.protocol == "tcp" else socket.SOCK_DGRAM
        for family, address in _addresses(each.address):
            with socket.socket(family, kind) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                if kind == socket.SOCK_STREAM:  # connections that have ended are nobody's
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((address, each.port))
                except OSError as error:
                    where = f"[{address}]" if ":" in address else address
                    return f"hostfwd={each.protocol}:{each.address}:{each.port}: cannot have {where}: {error.strerror}"
    return ""


def _addresses(given: str) -> list[tuple[socket.AddressFamily, str]]:
    """Where passt listens for a forward."""
    if given:
        return [(socket.AF_INET, given)]
    found = [(socket.AF_INET, "0.0.0.0")]
    with suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))  # a host without IPv6 has none to listen at
        found.append((socket.AF_INET6, "::"))
    return found


class UserNetdev(SocketNetdev):
    """Starts passt, and again when it ends."""

    def __init__(self, asked: options.User, loop: Loop, log: Log, port: Port) -> None:
        super().__init__(loop, log, port)
        self._asked = asked
        self._passt: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115

    def start(self) -> None:
        for _ in range(_TRIES):
            if not (failure := self._begin()):
                return
            time.sleep(_RETRY_SECONDS)
        raise errors.ConfigError(failure)

    def close(self) -> None:
        super().close()
        if self._passt is not None:
            try:
                self._passt.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._passt.kill()
                self._passt.wait()

    def _lost(self, reason: str) -> None:
        self._log.info("netdev", reason=self._end_of_passt())
        self._later(_RETRY_SECONDS)

    def _again(self) -> None:
        if failure := self._begin():
            self._log.info("netdev", reason=failure)
            self._later(_RETRY_SECONDS)

    def _begin(self) -> str:
        """Start passt; gives why it is not there."""
        if reason := taken(self._asked):
            return reason
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PASST_BYTES)
        self._errors.seek(0)
        self._errors.truncate()
        with theirs:
            try:
                self._passt = subprocess.Popen(
                    command(self._asked, "--fd", str(theirs.fileno())),
                    stdin=subprocess.DEVNULL,
                    stdout=self._errors,
                    stderr=self._errors,
                    pass_fds=[theirs.fileno()],
                )
            except OSError as error:
                ours.close()
                return not_started(error)
        if not _answers(ours, self._asked):
            ours.close()
            return self._end_of_passt()
        self._log.info("netdev", passt=self._passt.pid)
        self._connected(ours)
        return ""

    def _end_of_passt(self) -> str:
        """Wait for it; gives how it ended and what it said last."""
        self.close()
        assert self._passt is not None
        self._errors.seek(0)
        return end_of_passt(self._passt.returncode, self._errors.read(_ERROR_BYTES))


def not_started(error: OSError) -> str:
    return f"cannot start {PROGRAM}, Debian's package passt (apt install passt): {error.strerror}"


def end_of_passt(status: int, output: bytes) -> str:
    """How it ended, and what it said last."""
    lines = output.decode(errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip() and "syslog" not in line]
    return f"passt ended with status {status}" + (f": {said[-1]}" if said else "")


def _answers(connection: socket.socket, asked: options.User) -> bool:
    """Whether passt is there: who has the host's address (ARP, RFC 826)? If it ends instead, it cannot do its work."""
    host, guest = (
        ipaddress.IPv4Address(asked.address(*each)).packed
        for each in ((asked.host, options.HOST), (asked.guest, options.GUEST))
    )
    mac = b"\x02\0\0\0\0\0"  # passt takes the guest's as soon as that sends
    ask = struct.pack(">6s6sHHHBBH6s4s6s4s", b"\xff" * 6, mac, 0x0806, 1, 0x0800, 6, 4, 1, mac, guest, b"", host)
    connection.settimeout(_ANSWER_SECONDS)
    try:
        connection.sendall(struct.pack(">I", len(ask)) + ask)
        size = struct.unpack(">I", _read(connection, 4))[0]
        return bool(_read(connection, min(size, MAX_FRAME)))
    except TimeoutError:
        return True  # it has its reasons, and lives
    except (OSError, EOFError):
        return False


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data
