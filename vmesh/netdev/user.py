"""`user`: the guest behind a router that is a process of the host, Debian's passt (passt(1)).

passt gets one end of a pair of sockets and ends when the other is closed, however this process ends.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress

from vmesh import errors
from vmesh.log import Log
from vmesh.loop import Loop
from vmesh.netdev import options
from vmesh.netdev.port import Port
from vmesh.netdev.stream import SocketNetdev

PROGRAM = "passt"
_HOST, _DNS, _GUEST = 2, 3, 15  # places in the network: as QEMU has them
_BEGIN_SECONDS = 3.0  # an end before that is one of a passt that cannot do what it was asked for
_RETRY_SECONDS = 1.0
_END_SECONDS = 1.0
# What passt can have sent and we not read; the host may give less (net.core.wmem_max). A passt whose socket is full
# drops frames, which its TCP then repeats only after a while.
_PASST_BYTES = 4 << 20
_ERROR_BYTES = 4096


def command(asked: options.User, connection: int) -> list[str]:
    """passt's command line for a connected socket of that number."""
    dns = asked.address(asked.dns, _DNS)
    made = [PROGRAM, "--foreground", "--quiet", "--stderr", "--fd", str(connection)]
    made += ["--address", asked.address(asked.guest, _GUEST), "--netmask", asked.netmask]
    made += ["--gateway", asked.address(asked.host, _HOST), "--dns", dns, "--dns-forward", dns]
    if not asked.ipv6:
        made.append("--ipv4-only")
    for each in asked.forwards:
        address = f"{each.address}/" if each.address else ""
        made += ["-t" if each.protocol == "tcp" else "-u", f"{address}{each.port}:{each.guest_port}"]
    return made


class UserNetdev(SocketNetdev):
    """Starts passt, and again when it ends."""

    def __init__(self, asked: options.User, loop: Loop, log: Log, port: Port) -> None:
        super().__init__(loop, log, port)
        self._asked = asked
        self._passt: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._fatal_until = time.monotonic() + _BEGIN_SECONDS

    def start(self) -> None:
        if shutil.which(PROGRAM) is None:
            raise errors.ConfigError("-netdev user needs passt", expected="Debian's package passt (apt install passt)")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PASST_BYTES)
        self._errors.seek(0)
        self._errors.truncate()
        with theirs:
            self._passt = subprocess.Popen(
                command(self._asked, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
            )
        self._log.info("netdev", passt=self._passt.pid)
        self._connected(ours)

    def close(self) -> None:
        super().close()
        if self._passt is not None:
            try:
                self._passt.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._passt.kill()
                self._passt.wait()

    def _lost(self, reason: str) -> None:
        assert self._passt is not None
        said = self._last_line()
        text = f"passt ended with status {self._passt.returncode}" + (f": {said}" if said else "")
        if time.monotonic() < self._fatal_until:
            raise errors.ConfigError(text)
        self._log.warning("netdev", reason=text)
        self._later(_RETRY_SECONDS)

    def _last_line(self) -> str:
        with suppress(OSError):
            self._errors.seek(0)
            lines = self._errors.read(_ERROR_BYTES).decode(errors="replace").splitlines()
            told = [line.strip() for line in lines if line.strip() and "syslog" not in line]
            return told[-1] if told else ""
        return ""
