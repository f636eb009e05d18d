"""QMP's commands that stand on HMP's."""

from __future__ import annotations

from vmesh_services.monitor.control import Control
from vmesh_services.monitor.hmp import commands
from vmesh_services.monitor.qmp.check import Json
from vmesh_services.monitor.qmp.handlers import handles


@handles("human-monitor-command")
def _human_monitor_command(control: Control, arguments: Json) -> object:
    hart = control.hart(arguments.get("cpu-index", 0))
    return commands.execute(control, str(arguments["command-line"]), hart)


@handles("__org.vmesh_complete")
def _complete(control: Control, arguments: Json) -> object:
    return commands.complete(control, str(arguments["line"]))
