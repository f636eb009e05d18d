"""Whether the guest runs, and why not: what the services report, what stops the machine, and the guest's own reset."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from vmesh.v1 import cpu_pb2, gateway_pb2
from vmesh_services.monitor import operations, run_states
from vmesh_services.monitor.events import EventHub
from vmesh_services.monitor.operations import Operation, RequestError
from vmesh_services.monitor.run_states import Act
from vmesh_services.monitor.supervisor.condition import Condition, Stop
from vmesh_services.monitor.supervisor.ending import Ending
from vmesh_services.monitor.supervisor.runs import Runs
from vmesh_services.monitor.warnings import Warnings


class RunState:
    """`mend` gives each broken device a next life; RequestError if one is not there then."""

    def __init__(self, condition: Condition, runs: Runs, ending: Ending, events: EventHub, warnings: Warnings) -> None:
        self.mend: Callable[[], Operation] = _nothing
        self._condition, self._runs, self._ending = condition, runs, ending
        self._events, self._warnings = events, warnings

    @property
    def name(self) -> str:
        """QEMU's RunState."""
        condition = self._condition
        if condition.lost and condition.paused:
            return "internal-error"
        if condition.custody.run_state:
            return condition.custody.run_state
        if condition.powered_off or condition.ending:
            return "shutdown"
        if condition.running:
            return "running"
        if condition.stop is not None:
            return condition.stop.run_state
        return "paused" if condition.launched else "prelaunch"

    def observe(self) -> None:
        """The services have said how they are."""
        condition = self._condition
        cpu = condition.roster.cpu
        paused = bool(cpu) and condition.services[cpu].state == "paused"
        former = condition.state
        condition.state = gateway_pb2.MACHINE_PAUSED if paused else gateway_pb2.MACHINE_RUNNING
        condition.launched |= not paused
        if condition.state != former and condition.launched:
            self._events.publish("STOP" if paused else "RESUME")

    # Operations

    def pause(self) -> Operation:
        """What stands still already does so whatever becomes of it, and afterwards."""
        condition = self._condition
        condition.custody.stay_paused()
        if condition.stop is not None:
            condition.stop = replace(condition.stop, ran=False)
        if condition.broken or (condition.lost and condition.paused):
            yield []
        else:
            yield from (operations.stop if condition.paused else operations.pause)(condition.roster)

    def resume(self) -> Operation:
        """Unless something has the machine. Broken devices are mended before."""
        condition = self._condition
        condition.check(Act.RESUME)
        if condition.reset_to_run:
            raise RequestError("the guest has asked for a reset, which waits for its pages", callers_fault=True)
        if condition.powered_off:
            raise RequestError("Resetting the Virtual Machine is required", callers_fault=True)
        yield from self.mend()
        yield from operations.resume(condition.roster)
        self.mended()
        condition.custody.resumed()

    def reset(self, *, reason: str = "host-qmp-system-reset", run: bool = False) -> Operation:
        """A machine that is paused when it begins stays so, unless it is to `run`.

        `reason` is QEMU's ShutdownCause.
        """
        condition = self._condition
        condition.check(Act.RESET)
        yield from operations.reset(condition.roster, stay_paused=condition.paused and not run)
        condition.powered_off = condition.reset_due = condition.reset_to_run = False
        condition.stop = None
        condition.custody.was_reset()
        self._events.publish("RESET", {"guest": reason.startswith("guest-"), "reason": reason})

    def write_memory(self, request: cpu_pb2.WriteMemory) -> Operation:
        """As operations.write_memory."""
        self._condition.check(Act.WRITE)
        yield from operations.write_memory(self._condition.roster, request)

    def write_registers(self, request: cpu_pb2.WriteRegisters) -> Operation:
        """As operations.write_registers; a machine that is paused stays so."""
        self._condition.check(Act.WRITE)
        yield from operations.write_registers(self._condition.roster, request, stay_paused=self._condition.paused)

    # What the guest does

    def power_off(self, status: int) -> None:
        """The guest has powered itself off, with an exit status."""
        condition = self._condition
        if condition.powered_off:
            return  # another hart, before the pause reached it
        if condition.actions.shutdown != "pause":
            self._ending.end(status, reason="guest-shutdown")
            return
        condition.powered_off = True
        condition.exit_status = status
        self._events.publish("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
        self._runs.submit(self.pause(), exclusive=True)

    def reset_for_guest(self) -> None:
        """The guest has asked for a reset. If that must not be now, it stands still until it may: `try_reset`."""
        self._condition.reset_due = True
        self.try_reset()

    def try_reset(self) -> None:
        """A reset that the guest waits for may be possible by now."""
        if self._condition.reset_due:
            self._runs.submit(self._reset_for_guest(), exclusive=True).add_done_callback(self._reset_done)

    def _reset_for_guest(self) -> Operation:
        condition = self._condition
        if not condition.reset_due:
            return  # another hart had asked, too
        if not run_states.refusal(condition.stage, Act.RESET):
            yield from self.reset(reason="guest-reset", run=condition.reset_to_run)
        elif not condition.paused:
            condition.reset_to_run = True
            yield from operations.pause(condition.roster)

    def _reset_done(self, future: Future[None]) -> None:
        if isinstance(error := future.exception(), RequestError):
            self._ending.end(1, f"the reset that the guest asked for failed: {error}")

    def came_in(self) -> None:
        """The machine is another one, by a migration or from a snapshot."""
        condition = self._condition
        condition.launched = True
        condition.powered_off = condition.reset_due = condition.reset_to_run = False

    # Stopped, to be mended

    def stop_for(self, name: str, why: str, run_state: str) -> None:
        """The machine stops because of a service, or ends, if that is what was asked for."""
        condition = self._condition
        stops = condition.actions.failure == "pause"
        told = {"service": name, "reason": why, "action": "stop" if stops else "exit"}
        self._events.publish("__org.vmesh_SERVICE_FAILED", told)
        if not stops:
            self._ending.end(1, why)
            return
        self._warnings.warn(name, f"{why}; {condition.way_on}")
        if condition.stop is None:
            condition.stop = Stop(run_state, why, ran=condition.running)
        self.halt()

    def lose(self, name: str, why: str) -> None:
        """Guest memory is lost. The machine stops, for whoever wants to look at it, and can only be ended."""
        condition = self._condition
        if condition.starting:
            self._ending.end(1, why)
        elif not condition.lost and not condition.ending:  # else another service has seen it, too
            condition.lost = why
            condition.stop = None
            self.stop_for(name, why, "internal-error")

    def halt(self) -> None:
        """Stand still without the devices that are broken."""
        self._runs.submit(self._halt(), exclusive=True, mends=True)

    def _halt(self) -> Operation:
        yield from operations.halt(self._condition.roster, {service.name for service in self._condition.broken})

    def mended(self) -> None:
        """What the machine was stopped for is no more, if it is."""
        if not self._condition.broken:
            self._condition.stop = None

    def go_on_when_mended(self) -> None:
        """It ran before something else had it stand still."""
        if self._condition.stop is not None:
            self._condition.stop = replace(self._condition.stop, ran=True)

    def goes_on_when_mended(self) -> bool:
        """Whether a machine that stands still does so only for what has just been mended."""
        condition = self._condition
        return condition.stop is not None and condition.stop.ran and not condition.broken


def _nothing() -> Operation:
    yield []
