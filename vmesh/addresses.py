"""Where the services of a machine are: Unix sockets in its directory, or elsewhere by TCP and with keys."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import zmq

from vmesh import curve, errors, wire
from vmesh.curve import Keys
from vmesh.machine import MachineDirectory
from vmesh.v1.common_pb2 import Hello

TCP = "tcp://HOST:PORT"


@dataclass(frozen=True, slots=True)
class Addresses:
    """What one service knows: `peers` has the addresses of services elsewhere, by name."""

    machine: MachineDirectory
    peers: Mapping[str, str] = field(default_factory=dict)
    keys: Keys | None = None

    def of(self, service: str) -> str:
        """Where this service is dialled."""
        return self.peers.get(service) or wire.endpoint(self.machine.socket(service))

    def dial(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        service: str,
        said: Hello,
        *,
        address: str = "",
        lifeline: int = -1,
        wake: int = -1,
        heed_loss: bool = False,
    ) -> wire.Peer:
        """A connection to a service; at `address`, which it gave itself, unless we were told another one.

        Raises ConfigError for what is elsewhere, without keys.
        """
        place = self.peers.get(service) or address or self.of(service)
        identify = None if self.keys is None else partial(self.keys.identify, service=service)
        return wire.Peer(context, place, said, lifeline=lifeline, wake=wake, identify=identify, heed_loss=heed_loss)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say where other services are."""
    parser.add_argument(
        "--peer",
        type=_peer,
        action="append",
        default=[],
        metavar=f"NAME={TCP}",
        help="a service that is elsewhere (default: all are in the machine directory)",
    )
    parser.add_argument("--keys", type=Path, metavar="FOLDER", help="of `vmesh keys`; TCP needs it")


def of_options(options: argparse.Namespace, machine: MachineDirectory, name: str) -> Addresses:
    """As `add_options` has them, for the service `name`. Raises ConfigError."""
    keys = curve.load(options.keys.absolute(), name) if options.keys else None
    if options.peer and keys is None:
        raise errors.ConfigError(f"--peer {options.peer[0][0]}", expected="keys (--keys FOLDER)")
    return Addresses(machine, dict(options.peer), keys)


def tcp(text: str) -> str:
    """`tcp://HOST:PORT`."""
    if not wire.is_tcp(text):
        raise argparse.ArgumentTypeError(f"'{text}' is no address: expected {TCP}")
    return text


def _peer(text: str) -> tuple[str, str]:
    name, _, address = text.partition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"'{text}': expected NAME={TCP}")
    return name, tcp(address)
