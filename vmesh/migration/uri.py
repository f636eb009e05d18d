"""Where a stream goes or comes from: QEMU's `tcp:HOST:PORT` and `unix:PATH`, and its JSON of a channel.

TCP carries all of the guest's memory: without keys it is for the loopback interface only. `tls-creds=FOLDER` behind a
comma names the keys, in files of QEMU's names (docs/system/tls.rst): ca-cert.pem, and {server,client}-{cert,key}.pem.
Behind `unix:` all is the path, commas too, as for QEMU.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmesh import errors, properties
from vmesh.endpoint import is_loopback

if TYPE_CHECKING:
    import ssl

HANDOVER = "handover:"  # and the name of a machine of this host whose RAM is adopted
USAGE = "tcp:HOST:PORT[,tls-creds=FOLDER] or unix:PATH"


@dataclass(frozen=True, slots=True)
class Tcp:
    """`host` may be empty (any address); `keys` is the folder with the keys, or None."""

    host: str
    port: int
    keys: Path | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Unix:
    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


Place = Tcp | Unix


def parse(text: str) -> Place:
    """Raises ConfigError for what is no place, and for TCP beyond this host without keys."""
    text = _from_json(text) if text.startswith("{") else text
    if text.startswith("unix:") and text != "unix:":
        return Unix(Path(text.removeprefix("unix:")).absolute())
    head, *options = properties.split(text)
    kind, _, rest = head.partition(":")
    keys = None
    for option in options:
        key, _, value = option.partition("=")
        if key == "tls-creds" and value:
            keys = Path(value).absolute()
        elif key not in ("ipv4", "ipv6") or value not in ("", "on", "off"):
            raise _wrong(text)
    found = re.fullmatch(r"(?:\[([^]]*)\]|([^:]*)):(\d{1,5})", rest)
    if kind != "tcp" or found is None or int(found[3]) > 65535:
        raise _wrong(text)
    host = found[1] if found[1] is not None else found[2]
    host = "" if host == "0" else host
    if keys is None and not is_loopback(host):
        raise errors.ConfigError(
            f"{text}: the stream holds the guest's memory, which plain TCP shows to the network",
            expected="localhost, unix:PATH, or keys (,tls-creds=FOLDER)",
        )
    return Tcp(host, int(found[3]), keys)


def tls(keys: Path, *, server: bool) -> ssl.SSLContext:
    """Mutual TLS with the keys of a folder. Raises ConfigError if they cannot be used."""
    import ssl

    side = "server" if server else "client"
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(keys / "ca-cert.pem")
        context.load_cert_chain(keys / f"{side}-cert.pem", keys / f"{side}-key.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        wanted = f"ca-cert.pem, {side}-cert.pem and {side}-key.pem"
        raise errors.ConfigError(f"tls-creds {keys}: {error}", expected=wanted) from error
    return context


def _from_json(text: str) -> str:
    """The plain form of QEMU's MigrationChannel or SocketAddress as JSON."""
    try:
        found = json.loads(text)
        address = found.get("addr", found)
        match address.get("type"):
            case "inet":
                host = str(address["host"])
                return f"tcp:{f'[{host}]' if ':' in host else host}:{address['port']}"
            case "unix":
                return f"unix:{address['path']}"
    except (ValueError, KeyError, AttributeError):
        pass
    raise _wrong(text)


def _wrong(text: str) -> errors.ConfigError:
    return errors.ConfigError("migration address", expected=USAGE, got=f"'{text[:200]}'")
