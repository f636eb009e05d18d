"""The board, its harts and its memory."""

from __future__ import annotations

import os
from pathlib import Path

from vmesh import plain
from vmesh.board import virt
from vmesh.v1.lifecycle_pb2 import SetProperty
from vmesh.virtio.balloon import COUNTER, PROPERTY
from vmesh_services.monitor import balloon
from vmesh_services.monitor.control import Control, Parts, Work, counters
from vmesh_services.monitor.guest import read
from vmesh_services.monitor.operations import Request
from vmesh_services.monitor.qmp.check import Json
from vmesh_services.monitor.qmp.errors import DeviceNotActive, QmpError
from vmesh_services.monitor.qmp.handlers.registry import handles
from vmesh_services.monitor.run_states import Act

_PIECE = 1 << 20


@handles("query-name")
def _query_name(control: Control, arguments: Json) -> object:
    return {"name": control.supervisor.machine.name}


@handles("query-cpus-fast")
def _query_cpus_fast(control: Control, arguments: Json) -> object:
    if not control.roster.cpu:
        return []
    pid = control.supervisor.services[control.roster.cpu].child.pid
    return [
        {
            "cpu-index": hart,
            "qom-path": f"/machine/soc0/harts[{hart}]",
            "thread-id": pid,
            "props": {"core-id": hart},
            "target": "riscv64",
        }
        for hart in range(control.harts)
    ]


@handles("query-machines")
def _query_machines(control: Control, arguments: Json) -> object:
    return [
        {
            "name": "virt",
            "is-default": True,
            "cpu-max": virt.MAX_HARTS,
            "hotpluggable-cpus": False,
            "numa-mem-supported": False,
            "deprecated": False,
            "default-cpu-type": "rv64-riscv-cpu",
            "default-ram-id": "riscv_virt_board.ram",
        }
    ]


@handles("query-memory-size-summary")
def _query_memory_size_summary(control: Control, arguments: Json) -> object:
    return {"base-memory": control.supervisor.condition.ram_bytes, "plugged-memory": 0}


@handles("balloon")
def _balloon(control: Control, arguments: Json) -> object:
    name, ram = _balloon_device(control), control.supervisor.condition.ram_bytes
    target = _integer(arguments, "value")
    if target <= 0:
        raise QmpError("Parameter 'target' expects a size")
    return Work(_inflate(control, name, balloon.pages(ram, target)), exclusive=True)


def _inflate(control: Control, name: str, pages: int) -> Parts:
    control.supervisor.condition.check(Act.WRITE)
    yield [Request(name, SetProperty(name=PROPERTY, value=pages))]
    return {}


@handles("query-balloon")
def _query_balloon(control: Control, arguments: Json) -> object:
    return Work(_balloon_info(_balloon_device(control), control.supervisor.condition.ram_bytes))


def _balloon_info(name: str, ram: int) -> Parts:
    counted = yield from counters(name)
    return {"actual": balloon.actual(ram, counted.get(COUNTER, 0))}


def _balloon_device(control: Control) -> str:
    """The name of the machine's balloon. Raises DeviceNotActive."""
    for service in control.devices():
        if service.command.kind == balloon.KIND:
            return service.name
    raise DeviceNotActive("No balloon device has been activated")


@handles("query-chardev")
def _query_chardev(control: Control, arguments: Json) -> object:
    return [
        {"label": label, "filename": filename, "frontend-open": True}
        for label, filename in [*control.consoles.items(), *control.monitors.items()]
    ]


@handles("memsave")
def _memsave(control: Control, arguments: Json) -> object:
    return Work(_save(control, arguments, control.hart(arguments.get("cpu-index", 0))))


@handles("pmemsave")
def _pmemsave(control: Control, arguments: Json) -> object:
    return Work(_save(control, arguments, None))


def _save(control: Control, arguments: Json, hart: int | None) -> Parts:
    address, size, path = _integer(arguments, "val"), _integer(arguments, "size"), Path(str(arguments["filename"]))
    if size and not (yield from read(control, address + size - 1, 1, hart=hart)):
        raise QmpError(f"Invalid addr 0x{address:016x}/size {size} specified")
    try:
        with open(plain.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            for done in range(0, size, _PIECE):
                wanted = min(_PIECE, size - done)
                content = yield from read(control, address + done, wanted, hart=hart)
                file.write(content)
                if len(content) < wanted:
                    raise QmpError(f"Invalid addr 0x{address + done + len(content):016x}/size {size} specified")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise QmpError(f"Could not open '{path}': {reason}") from error
    return {}


def _integer(arguments: Json, name: str) -> int:
    value = arguments[name]
    assert isinstance(value, int)
    return value
