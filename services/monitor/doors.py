"""The doors where QMP and HMP are spoken: those of the flags, and two that every machine has in its directory."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from vmesh import descriptors, endpoint
from vmesh.endpoint import Endpoint
from vmesh.errors import ConfigError
from vmesh_services.monitor.control import Control
from vmesh_services.monitor.stream_server import MOST_CLIENTS, Session, Stream, StreamServer

MODES = ("control", "control-pretty", "readline")


@dataclass(frozen=True, slots=True)
class Door:
    """`mode` is QEMU's: control for QMP, readline for HMP."""

    mode: str
    where: Endpoint
    label: str = ""


def parse(text: str) -> Door:
    """`MODE=ENDPOINT`, an argument of the monitor's command line."""
    mode, _, where = text.partition("=")
    if mode not in MODES:
        raise argparse.ArgumentTypeError(f"expected {', '.join(MODES)} before =, got '{mode}'")
    try:
        return Door(mode, endpoint.parse(where))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def open_all(control: Control, doors: Sequence[Door]) -> list[StreamServer]:
    """Listen at every door. Raises ConfigError."""
    machine = control.supervisor.machine
    own = [Door("control", Endpoint(path=machine.qmp), "qmp"), Door("readline", Endpoint(path=machine.hmp), "hmp")]
    opened = []
    most = descriptors.for_clients(len(control.roster.all), MOST_CLIENTS)
    for number, door in enumerate([*own, *doors]):
        server = StreamServer(control.supervisor.loop, door.where, partial(_session, control, door), most)
        control.monitors[door.label or f"compat_monitor{number - len(own)}"] = str(door.where)
        opened.append(server)
    return opened


def _session(control: Control, door: Door, stream: Stream) -> Session:
    # Imported with the first client: a machine that is started need not wait for what it may not need.
    if door.mode == "readline":
        from vmesh_services.monitor.hmp.session import Session as Hmp

        return Hmp(control, stream)
    from vmesh_services.monitor.qmp.session import Session as Qmp

    return Qmp(control, stream, pretty=door.mode == "control-pretty")


def hmp_line(control: Control, line: str, hart: int, done: Callable[[str], None]) -> None:
    """Carry out a line of HMP, as for gdb's `monitor`; `done` gets what it printed."""
    from vmesh_services.monitor.hmp import commands

    def printed(answer: object) -> None:
        done(answer if isinstance(answer, str) else f"Error: {answer}\n")

    control.carry_out(lambda: commands.execute(control, line, hart), printed)
