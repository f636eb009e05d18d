"""The keys of a machine whose services meet over TCP: CURVE (RFC 26/CURVEZMQ), one pair for each service's name.

A folder holds `NAME.key`, the public key of each service of the machine, and `NAME.key_secret` of those that run on
this host, in ZeroMQ's certificate format. A key that is not in the folder is answered by nobody; one that is stands for
its name, and the service that proves it may be nothing else. The check is ZAP's (RFC 27/ZAP).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from vmesh import errors

PUBLIC, SECRET = ".key", ".key_secret"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OTHERS_MAY = 0o027  # of a secret key: its owner's group may read it, nobody else may do anything
_DOMAIN = b"vmesh"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of the service `name`: its own pair, and the public keys of all by name. As Z85 texts."""

    name: str
    public: bytes
    secret: bytes
    known: dict[str, bytes]

    def name_of(self, public: bytes) -> str | None:
        """Whose key this is."""
        return next((name for name, key in self.known.items() if key == public), None)

    def guard(self, socket: zmq.Socket[bytes]) -> None:
        """Whatever `socket` binds from now on answers the keys that are known and nobody else."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def identify(self, socket: zmq.Socket[bytes], service: str) -> None:
        """Whatever `socket` connects to from now on has to be `service`. Raises ConfigError if its key is not known."""
        if service not in self.known:
            raise errors.ConfigError(f"no public key of {service}", expected=f"{service}{PUBLIC} in the folder of keys")
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.known[service])
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.secret)

    def callback(self, _domain: str, public: bytes) -> bool:
        """What zmq.auth asks: whether this key is answered."""
        return self.name_of(public) is not None


def authenticate(context: zmq.Context[zmq.Socket[bytes]], keys: Keys) -> Any:
    """Begin to check who connects, in a thread of its own; `stop` ends it. Each message then has the name that its
    sender's key stands for as its User-Id."""
    # Imported here: it brings asyncio, which a machine on one host can do without.
    from zmq.auth.thread import ThreadAuthenticator
    from zmq.utils import z85

    class Authenticator(ThreadAuthenticator):
        def curve_user_id(self, client_public_key: bytes) -> str:
            return keys.name_of(z85.encode(client_public_key)) or ""

    made = Authenticator(context)
    made.configure_curve_callback(_DOMAIN.decode(), keys)
    made.start()
    return made


def load(folder: Path, name: str) -> Keys:
    """The keys of the service `name`. Raises ConfigError for a folder without them, and for secrets that others may
    read."""
    path = folder / f"{name}{SECRET}"
    public, secret = _read(path)
    if secret is None:
        raise errors.ConfigError(f"{path}", expected="a secret key", got="none in it")
    if (mode := path.stat().st_mode & 0o777) & _OTHERS_MAY:
        raise errors.ConfigError(f"{path} can be used by others", expected="mode 0600 or 0640", got=f"{mode:04o}")
    known = {path.name.removesuffix(PUBLIC): _read(path)[0] for path in sorted(folder.glob(f"*{PUBLIC}"))}
    if len(set(known.values())) < len(known):
        raise errors.ConfigError(f"{folder}", expected="each key once", got="one that stands for several names")
    return Keys(name, public, secret, known)


def make(folder: Path, names: Sequence[str]) -> list[str]:
    """Make a pair for each name that has none; gives these names. Everything is its owner's only.

    Raises ConfigError if that is not possible, or for what cannot name a service.
    """
    from zmq.auth import create_certificates

    for name in names:
        if not _NAME.fullmatch(name):
            raise errors.ConfigError("name of a service", expected="1 to 64 of [A-Za-z0-9._-]", got=repr(name[:80]))
    former = os.umask(0o077)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = [name for name in names if not (folder / f"{name}{PUBLIC}").exists()]
        for name in there:
            create_certificates(folder, name)
    except OSError as error:
        raise errors.ConfigError(f"cannot make keys in {folder}: {error.strerror}") from error
    finally:
        os.umask(former)
    return there


def _read(path: Path) -> tuple[bytes, bytes | None]:
    from zmq.auth import load_certificate

    try:
        public, secret = load_certificate(path)
    except (OSError, ValueError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else "no key in it"
        raise errors.ConfigError(f"cannot read the key {path}: {text} (`vmesh keys` makes keys)") from None
    if len(public) != 40 or (secret is not None and len(secret) != 40):
        raise errors.ConfigError(f"{path}", expected="keys of 40 characters", got="others")
    return public, secret
