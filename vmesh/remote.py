"""A gateway beyond the machine directory: `tcp:HOST:PORT,tls-creds=FOLDER`, by mutual TLS and not otherwise.

The folder has QEMU's file names (docs/system/tls.rst): ca-cert.pem, and {server,client}-{cert,key}.pem.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vmesh import errors, properties

USAGE = "tcp:HOST:PORT,tls-creds=FOLDER"
_ADDRESS = re.compile(r"tcp:(?P<host>\[[0-9a-fA-F:.]+\]|[^:,\[\]]*):(?P<port>\d{1,5})")


@dataclass(frozen=True, slots=True)
class Keys:
    """PEM texts: whom to believe, who we are, and the proof of it."""

    authority: bytes
    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a gateway listens, or a client goes; an empty `host` is every address of this one."""

    host: str
    port: int
    folder: Path

    def __str__(self) -> str:
        return f"tcp:{self.target}"

    @property
    def text(self) -> str:
        """As `parse` reads it."""
        return properties.join([f"tcp:{self.host}:{self.port}", f"tls-creds={self.folder}"])

    @property
    def target(self) -> str:
        """As gRPC has it."""
        return f"{self.host or '[::]'}:{self.port}"

    def keys(self, *, server: bool) -> Keys:
        """Raises ConfigError for keys that are not there, or do not belong together."""
        from vmesh.migration.uri import tls

        tls(self.folder, server=server)
        side = "server" if server else "client"
        names = ("ca-cert.pem", f"{side}-cert.pem", f"{side}-key.pem")
        return Keys(*((self.folder / name).read_bytes() for name in names))


def is_remote(text: str) -> bool:
    """Whether this is an address rather than a machine's name."""
    return text.startswith("tcp:")


def parse(text: str) -> Remote:
    """Raises ConfigError, also where the keys are missing: TCP is refused without."""
    address, *options = properties.pairs(text, "address")
    found = _ADDRESS.fullmatch(address[1])
    if found is None or int(found["port"]) > 65535 or any(key != "tls-creds" for key, _ in options):
        raise errors.ConfigError("gateway address", expected=USAGE, got=f"'{text[:200]}'")
    keys = dict(options).get("tls-creds", "")
    if not keys:
        raise errors.ConfigError(
            f"{text}: whoever reaches a gateway has the whole machine", expected="keys: ,tls-creds=FOLDER"
        )
    return Remote(found["host"], int(found["port"]), Path(keys).absolute())
