"""The board, its harts and its memory."""

from __future__ import annotations

from services.monitor.control import Control
from services.monitor.qmp.check import Json
from services.monitor.qmp.handlers.registry import handles
from vmesh.board import virt


@handles("query-name")
def _query_name(control: Control, arguments: Json) -> object:
    return {"name": control.supervisor.machine.name}


@handles("query-cpus-fast")
def _query_cpus_fast(control: Control, arguments: Json) -> object:
    if not control.board.cpu:
        return []
    pid = control.supervisor.services[control.board.cpu].child.pid
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
            "acpi": False,
        }
    ]


@handles("query-memory-size-summary")
def _query_memory_size_summary(control: Control, arguments: Json) -> object:
    return {"base-memory": int(control.options(control.board.memory).get("ram", "0")), "plugged-memory": 0}


@handles("query-chardev")
def _query_chardev(control: Control, arguments: Json) -> object:
    return [
        {"label": label, "filename": filename, "frontend-open": True}
        for label, filename in [*control.consoles.items(), *control.monitors.items()]
    ]
