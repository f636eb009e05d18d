"""`vmesh deploy`: a machine whose services run without a terminal, on this host, under Docker or in a Swarm."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from vmesh.board.errors import BoardError
from vmesh.cli.flags.options import OptionError, status_of
from vmesh.cli.flags.parsing import parse
from vmesh.cli.plan import plan
from vmesh.client import GatewayError, MachineClient
from vmesh.deploy import manifests
from vmesh.deploy.description import CPU, MEMORY, Deployment, describe
from vmesh.errors import VmeshError
from vmesh.guest import GuestError
from vmesh.machine import MachineDirectory, MachineError, check_name, find
from vmesh.properties import HelpRequested
from vmesh.spawn import python
from vmesh.v1 import gateway_pb2

LOCAL, DOCKER, SWARM = "local", "docker", "swarm"
ENGINES = (LOCAL, DOCKER, SWARM)
MANIFESTS = {"compose": manifests.compose, "stack": manifests.stack, "kubernetes": manifests.kubernetes}
_ANSWER_SECONDS = 10.0  # of a machine that may be there; it is asked again
_START_SECONDS = 60.0
_LOOK_SECONDS = 0.1


def deploy(name: str, on: str, arguments: Sequence[str], image: str, ram: str) -> int:
    """Start it, and say how to look at it."""
    try:
        check_name(name)
        if on == LOCAL:
            _start_here(name, arguments)
            look = f"vmesh attach {name}, vmesh status {name}"
        else:
            from vmesh.deploy import engines

            engines.up(_described(arguments, image, ram), name, swarm=on == SWARM)
            look = f"docker logs {name}-keeper, docker exec {name}-monitor vmesh status machine"
            if on == SWARM:
                look = f"docker service logs {name}-keeper"
    except HelpRequested as request:
        print(request)
        return 0
    except (OptionError, BoardError, GuestError, MachineError, VmeshError, ImportError) as error:
        return _failed(error)
    print(f"'{name}' runs: {look}; vmesh deploy --on {on} --down {name} ends it")
    return 0


def remove(name: str, on: str) -> int:
    """End it."""
    try:
        if on == LOCAL:
            with MachineClient(find(name)) as client:
                client.quit()
        else:
            from vmesh.deploy import engines

            engines.down(name)
    except (MachineError, GatewayError, VmeshError, ImportError) as error:
        return _failed(error)
    return 0


def show(kind: str, arguments: Sequence[str], image: str, ram: str) -> int:
    """Print a manifest of the machine with these flags."""
    try:
        import yaml

        class Plain(yaml.SafeDumper):
            def ignore_aliases(self, data: Any) -> bool:
                return True

        machine = _described(arguments, image, ram)
        print(yaml.dump(MANIFESTS[kind](machine), Dumper=Plain, sort_keys=False, width=120), end="")
    except HelpRequested as request:
        print(request)
    except (OptionError, BoardError, GuestError, VmeshError, ImportError) as error:
        return _failed(error)
    return 0


def _failed(error: Exception) -> int:
    if isinstance(error, ImportError):
        how = "make dev, in vmesh's checkout, installs what --on docker, --on swarm and --print need"
        print(f"vmesh deploy: no package '{error.name}': {how}", file=sys.stderr)
    else:
        print(f"vmesh deploy: {error}", file=sys.stderr)
    return status_of(error)


def _described(arguments: Sequence[str], image: str, ram: str) -> Deployment:
    """Which services there are follows from the flags. Files that they name have to be here, and in the image."""
    with TemporaryDirectory(prefix="vmesh-") as scratch:
        planned = plan(parse(arguments), MachineDirectory(Path(scratch)))
    devices = [command.name for command in planned.services if command.name not in (MEMORY, CPU)]
    return describe(arguments, devices, image, ram)


def _start_here(name: str, arguments: Sequence[str]) -> None:
    """`vmesh run` of its own session, without a terminal; its console is there for `vmesh attach`."""
    parse(arguments)
    with suppress(MachineError):
        find(name)
        raise VmeshError(f"'{name}' runs already (vmesh deploy --down {name} ends it)")
    with TemporaryFile() as said:
        command = python("vmesh.cli", "run", "-name", name, "-serial", "null", *arguments)
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=said, start_new_session=True)
        until = time.monotonic() + _START_SECONDS
        while process.poll() is None and time.monotonic() < until:
            if _runs(name):
                return
            time.sleep(_LOOK_SECONDS)
        process.kill()
        said.seek(0)
        words = said.read().decode(errors="replace").strip().splitlines()
        raise MachineError(words[-1] if words else f"'{name}' did not start in {_START_SECONDS:g} s")


def _runs(name: str) -> bool:
    try:
        with MachineClient(find(name), timeout=_ANSWER_SECONDS) as client:
            return client.status().state in (gateway_pb2.MACHINE_RUNNING, gateway_pb2.MACHINE_PAUSED)
    except (MachineError, GatewayError):
        return False
