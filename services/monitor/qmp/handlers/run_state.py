"""Running, stopping, ending."""

from __future__ import annotations

from services.monitor import operations
from services.monitor.control import Control, Parts, Work
from services.monitor.operations import Operation
from services.monitor.qmp.check import Json
from services.monitor.qmp.errors import QmpError
from services.monitor.qmp.handlers.registry import handles
from services.monitor.supervisor import Supervisor
from vmesh.v1 import gateway_pb2


@handles("query-status")
def _query_status(control: Control, arguments: Json) -> object:
    status = run_state(control.supervisor)
    return {"running": status == "running", "singlestep": False, "status": status}


def run_state(supervisor: Supervisor) -> str:
    """QEMU's RunState."""
    if supervisor.powered_off or supervisor.state == gateway_pb2.MACHINE_ENDING:
        return "shutdown"
    if not supervisor.launched:
        return "prelaunch"
    return "paused" if supervisor.paused else "running"


@handles("stop")
def _stop(control: Control, arguments: Json) -> object:
    return Work(_nothing(operations.pause(control.board)), exclusive=True)


@handles("cont")
def _cont(control: Control, arguments: Json) -> object:
    if control.supervisor.powered_off:
        raise QmpError("Resetting the Virtual Machine is required")
    return Work(_nothing(operations.resume(control.board)), exclusive=True)


@handles("system_reset")
def _system_reset(control: Control, arguments: Json) -> object:
    return Work(_nothing(control.supervisor.reset()), exclusive=True)


@handles("system_powerdown")
def _system_powerdown(control: Control, arguments: Json) -> object:
    control.supervisor.events.publish("POWERDOWN")
    return {}


@handles("set-action")
def _set_action(control: Control, arguments: Json) -> object:
    actions = control.supervisor.actions
    actions.reboot = str(arguments.get("reboot", actions.reboot))
    actions.shutdown = str(arguments.get("shutdown", actions.shutdown))
    return {}


def _nothing(operation: Operation) -> Parts:
    yield from operation
    return {}
