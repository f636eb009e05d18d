"""The containers of a machine: the one description that docker-compose.yml, deploy/ and `vmesh deploy` follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vmesh.board import virt

MACHINE = "machine"  # its name inside of its containers, as `vmesh serve` has it
IMAGE = "vmesh"
USER = 10001  # as deploy/Dockerfile has it
RUNTIME = "/run/vmesh"  # where the volume is that all share: guest memory and sockets
VOLUME = "machine"
RAM = "1g"  # of the volume, unless somebody says otherwise: guest memory, and some MiB for each service
STOP_SECONDS = 20

MEMORY, MONITOR, KEEPER, MIGRATION, CPU = "memory", "monitor", "keeper", "migration", "cpu"
DEVICES = virt.DEVICES  # without further flags


@dataclass(frozen=True, slots=True)
class Health:
    """How often an engine asks; seconds. A check stays `hold` once the service was well (vmesh/cli/health.py)."""

    interval: int = 2
    timeout: int = 40
    start: int = 60
    retries: int = 3
    hold: int = 30

    def command(self, service: str) -> list[str]:
        asked = [] if service == MONITOR else [service]
        return ["vmesh", "health", MACHINE, *asked, "--hold", str(self.hold)]


HEALTH = Health()


@dataclass(frozen=True, slots=True)
class Container:
    """One service. `after`: who begins before it, and whether that one has to be well. `restarts`: a killed one comes
    back into the running machine; the others' end is the machine's."""

    service: str
    after: Mapping[str, bool] = field(default_factory=dict)
    restarts: bool = False
    input: bool = False  # its standard input is kept open: the console's
    arguments: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        return ["serve", self.service, *self.arguments]


@dataclass(frozen=True, slots=True)
class Deployment:
    """A machine: its containers in the order in which they begin."""

    containers: tuple[Container, ...]
    image: str = IMAGE
    ram: str = RAM


def describe(
    flags: Sequence[str] = (), devices: Sequence[str] = DEVICES, image: str = IMAGE, ram: str = RAM
) -> Deployment:
    """The machine with these flags of `vmesh run`, which are memory's, and the devices that they make."""
    began = {MEMORY: False}
    device_after = {MEMORY: True, KEEPER: True}
    containers = (
        Container(MEMORY, arguments=tuple(flags)),
        Container(MONITOR, began),
        Container(KEEPER, began, restarts=True, input=True),
        Container(MIGRATION, began, restarts=True),
        *(Container(device, device_after, restarts=True) for device in devices),
        Container(CPU, {MEMORY: True, MONITOR: True, **dict.fromkeys(devices, True)}),
    )
    return Deployment(containers, image, ram)
