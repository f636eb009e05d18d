"""Where bytes of a machine come out on its host: QEMU's `unix:PATH` and `tcp:HOST:PORT` with their options, from the
flag to the socket. One record, one reader and one writer of its text, for consoles, monitors and gdb alike.

TCP is for this host alone: whoever reaches a monitor has the machine.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vmesh import connecting, listening, properties
from vmesh.errors import ConfigError

USAGE = "unix:PATH[,server=on][,wait=off] or tcp:127.0.0.1:PORT[,server=on][,wait=off]"

_BACKLOG = 8
_LOCAL_NAMES = frozenset({"localhost", "ip6-localhost"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A Unix socket at `path`, or a TCP port of the loopback interface (0: any that is free).

    Without `server` it is connected to; `wait` tells that the machine is to start when a client has come.
    """

    path: Path | None = None
    host: str = ""
    port: int = 0
    server: bool = True
    wait: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"unix:{self.path}" if self.path else f"tcp:{host}:{self.port}"

    @property
    def text(self) -> str:
        """As `parse` reads it."""
        flags = [f"server={'on' if self.server else 'off'}", f"wait={'on' if self.wait else 'off'}"]
        return properties.join([str(self), *flags])

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_UNIX if self.path else socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def address(self) -> str | tuple[str, int]:
        """As bind and connect take it."""
        return str(self.path) if self.path else (self.host, self.port)


def parse(text: str) -> Endpoint:
    """`unix:PATH` or `tcp:HOST:PORT`, then QEMU's `,server[=on|off]`, `,wait[=on|off]`, `,nowait`. Raises ConfigError.

    As with QEMU, whoever is no server connects, and a server waits unless told not to.
    """
    address, *flags = properties.split(text)
    server, wait = False, True
    for flag in flags:
        name, _, value = flag.partition("=")
        if name not in ("server", "wait", "nowait", "nodelay") or value not in ("", "on", "off"):
            raise ConfigError(f"'{address}'", expected="server=on|off or wait=on|off behind it", got=f"'{flag}'")
        on = value != "off"
        if name == "server":
            server = on
        elif name != "nodelay":  # as it is anyway
            wait = on == (name == "wait")
    kind, _, where = address.partition(":")
    if kind == "unix" and where:
        return Endpoint(Path(where).absolute(), server=server, wait=wait and server)
    if kind == "tcp" and where:
        host, _, port = where.rpartition(":")
        return tcp(host, port, server=server, wait=wait and server)
    raise ConfigError("endpoint", expected=USAGE, got=f"'{text}'")


def tcp(host: str, port: str, *, server: bool, wait: bool) -> Endpoint:
    """The port of this host. Raises ConfigError."""
    host = host.strip("[]") or "127.0.0.1"
    if not is_loopback(host):
        raise ConfigError("endpoint", expected="an address of this host alone, such as 127.0.0.1", got=f"'{host}'")
    if not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ConfigError("endpoint", expected="a port of 0 to 65535", got=f"'{port}'")
    return Endpoint(host="127.0.0.1" if host in _LOCAL_NAMES else host, port=int(port), server=server, wait=wait)


def is_loopback(host: str) -> bool:
    """Whether nothing sent to `host` leaves this one; names are not looked up."""
    import ipaddress  # here: `vmesh run` reads its flags with this module, and has no time for what it does not need

    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host in _LOCAL_NAMES


class Listener:
    """A listening socket that only this user (Unix) or this host (TCP) can reach. Raises ConfigError.

    A socket that an earlier process has left there is replaced; one that is still listened at is not, unless this
    machine comes from another one (`listening.succeed`), nor is a file of another kind.
    """

    def __init__(self, where: Endpoint) -> None:
        self.where = where
        try:
            self.socket = listening.listen(where.path, _BACKLOG, named=True) if where.path else _listen(where)
        except OSError as error:
            raise ConfigError(f"cannot listen on {where.path or where}: {error.strerror or error}") from error
        self._made = listening.identity(where.path) if where.path else None

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def port(self) -> int:
        """The TCP port that is listened at: the one that was chosen, where 0 was asked for."""
        return int(self.socket.getsockname()[1]) if self.where.path is None else 0

    def accept(self) -> socket.socket:
        """Who has come. Raises OSError, BlockingIOError if nobody has."""
        return self.socket.accept()[0]

    def close(self) -> None:
        """Listen no more, and remove the socket's file unless somebody else listens there by now."""
        self.socket.close()
        if self.where.path is not None:
            listening.remove(self.where.path, self._made)


def connect(where: Endpoint) -> socket.socket:
    """A connection to who listens there. Raises ConfigError, also if it is not there soon."""
    try:
        peer = connecting.connect(where.path or (where.host, where.port))
    except OSError as error:
        raise ConfigError(f"cannot connect to {where.path or where}: {error.strerror or error}") from error
    peer.setblocking(False)
    return peer


def _listen(port: Endpoint) -> socket.socket:
    made = socket.socket(port.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(port.address)
        made.listen(_BACKLOG)
    except OSError:
        made.close()
        raise
    return made
