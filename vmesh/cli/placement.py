"""Where the services of a machine are, if that is on several hosts: the options that each gets on its command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmesh.cli.flags.options import OptionError
from vmesh.cli.plan import CACHE
from vmesh.deploy.description import CPU, KEEPER, MEMORY, MIGRATION, MONITOR
from vmesh.wire import is_tcp

USAGE = "SERVICE=tcp://HOST:PORT"
_NOT_DIALLED = (MONITOR, KEEPER, MIGRATION)  # from other hosts: they are where they are needed


@dataclass(frozen=True, slots=True)
class Placement:
    """`places` has the addresses of services, by name; two are on one host if their HOST is the same. A service
    without one is on memory's host. `keys` is the folder of `vmesh keys`."""

    places: Mapping[str, str] = field(default_factory=dict)
    keys: Path | None = None

    def host(self, service: str) -> str:
        return _host(self.places.get(service) or self.places.get(MEMORY, ""))

    @property
    def cpu_apart(self) -> bool:
        """Whether the cpu is on another host than RAM."""
        return self.host(CPU) != self.host(MEMORY)

    def check(self, services: Iterable[str]) -> None:
        """Raises OptionError unless all services of the machine can meet."""
        names = list(services)
        for name in self.places:
            if name not in names or name in _NOT_DIALLED[1:]:
                raise OptionError(
                    f"--place {name}: expected one of {', '.join(sorted({*names} - {KEEPER, MIGRATION}))}"
                )
        if self.places and self.keys is None:
            raise OptionError(f"--place {next(iter(self.places))}: expected --keys FOLDER with it")
        if self.places and MEMORY not in self.places:
            raise OptionError(f"--place {next(iter(self.places))}: expected --place {MEMORY} too, which all dial")
        if CACHE in names and self.host(CACHE) != self.host(CPU):
            raise OptionError(f"--place {CACHE}: expected it on the host of {CPU}, {self.host(CPU)}")
        for name in names:
            for other in self.dialled(name, names):
                if other not in self.places and self.host(name) != self.host(other):
                    raise OptionError(f"expected --place {other}={USAGE[8:]}, as {name} is on another host")

    def dialled(self, service: str, services: Sequence[str]) -> list[str]:
        """Whom a service dials."""
        devices = [name for name in services if name not in (MEMORY, CPU, CACHE, *_NOT_DIALLED)]
        core = [name for name in (MEMORY, CACHE, CPU) if name in services]
        whom: dict[str, list[str]] = {
            MEMORY: [],
            KEEPER: [],
            MONITOR: [*core, *devices],
            MIGRATION: [MEMORY, CPU],
            CPU: [CACHE if CACHE in services else MEMORY, *devices],
        }
        return whom.get(service, [MEMORY])

    def arguments(self, service: str, services: Sequence[str]) -> list[str]:
        """What a service gets on its command line besides."""
        if self.keys is None or service == KEEPER:
            return []
        words = ["--keys", str(self.keys)]
        if service in self.places and service not in _NOT_DIALLED:
            words += ["--listen", self.places[service]]
        for other in self.dialled(service, services):
            if self.host(other) != self.host(service):
                words += ["--peer", f"{other}={self.places[other]}"]
        return words


def parse(texts: Sequence[str], keys: Path | None) -> Placement:
    """Of `SERVICE=tcp://HOST:PORT` for each. Raises OptionError."""
    places: dict[str, str] = {}
    for text in texts:
        name, _, address = text.partition("=")
        if not name or not is_tcp(address):
            raise OptionError(f"--place {text}: expected {USAGE}")
        if name in places:
            raise OptionError(f"--place {name}: expected once")
        places[name] = address
    return Placement(places, keys.absolute() if keys else None)


def _host(address: str) -> str:
    return re.sub(r":\d+$", "", address.removeprefix("tcp://"))
