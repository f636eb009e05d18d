"""Running, stopping, ending."""

from __future__ import annotations

from vmesh_services.monitor.control import Control, Parts, Work
from vmesh_services.monitor.operations import Operation
from vmesh_services.monitor.qmp.check import Json
from vmesh_services.monitor.qmp.handlers.registry import handles


@handles("query-status")
def _query_status(control: Control, arguments: Json) -> object:
    status = control.supervisor.run_state.name
    return {"running": status == "running", "singlestep": False, "status": status}


@handles("stop")
def _stop(control: Control, arguments: Json) -> object:
    return Work(_nothing(control.supervisor.run_state.pause()), exclusive=True, mends=True)


@handles("cont")
def _cont(control: Control, arguments: Json) -> object:
    return Work(_nothing(control.supervisor.run_state.resume()), exclusive=True, mends=True)


@handles("system_reset")
def _system_reset(control: Control, arguments: Json) -> object:
    return Work(_nothing(control.supervisor.run_state.reset()), exclusive=True)


@handles("system_powerdown")
def _system_powerdown(control: Control, arguments: Json) -> object:
    control.supervisor.events.publish("POWERDOWN")
    return {}


@handles("set-action")
def _set_action(control: Control, arguments: Json) -> object:
    actions = control.supervisor.condition.actions
    actions.reboot = str(arguments.get("reboot", actions.reboot))
    actions.shutdown = str(arguments.get("shutdown", actions.shutdown))
    return {}


def _nothing(operation: Operation) -> Parts:
    yield from operation
    return {}
