"""What is known of the machine as a whole: one record, which the supervisor's parts share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmesh.v1 import gateway_pb2
from vmesh_services.monitor import run_states
from vmesh_services.monitor.custody import Custody
from vmesh_services.monitor.operations import RequestError, Roster
from vmesh_services.monitor.run_states import Act, Stage
from vmesh_services.monitor.supervisor.supervised import Supervised

NAMES: Mapping[int, str] = {
    gateway_pb2.MACHINE_STARTING: "starting",
    gateway_pb2.MACHINE_RUNNING: "running",
    gateway_pb2.MACHINE_PAUSED: "paused",
    gateway_pb2.MACHINE_ENDING: "ending",
}


@dataclass(slots=True)
class Actions:
    """What follows when the guest resets or powers off, in QEMU's words (qapi/run-state.json, set-action), or when a
    device does not come back or a hart cannot go on."""

    reboot: str = "reset"  # or "shutdown"
    shutdown: str = "poweroff"  # or "pause"
    failure: str = "pause"  # or "exit-failure"


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the machine was stopped, though nobody asked for it, as QEMU's RunState and as one line; whether it ran."""

    run_state: str
    why: str
    ran: bool


@dataclass(slots=True)
class Condition:
    """Of the loop's thread only."""

    roster: Roster
    actions: Actions
    attached: bool  # somebody else starts the services, and their next lives
    custody: Custody = field(default_factory=Custody)
    services: dict[str, Supervised] = field(default_factory=dict)
    state: gateway_pb2.MachineState.ValueType = gateway_pb2.MACHINE_STARTING
    failure: str = ""  # for which the machine ends
    exit_status: int = 0  # of the machine, once it is known
    lost: str = ""  # why guest memory is lost, for good
    stop: Stop | None = None
    launched: bool = False  # whether the harts have ever run
    powered_off: bool = False  # by the guest, and paused since, as `actions` says
    reset_due: bool = False  # the guest has asked for a reset
    reset_to_run: bool = False  # as it did before it was paused for the reset, which must not be yet

    @property
    def starting(self) -> bool:
        return self.state == gateway_pb2.MACHINE_STARTING

    @property
    def running(self) -> bool:
        return self.state == gateway_pb2.MACHINE_RUNNING

    @property
    def paused(self) -> bool:
        return self.state == gateway_pb2.MACHINE_PAUSED

    @property
    def ending(self) -> bool:
        return self.state == gateway_pb2.MACHINE_ENDING

    @property
    def stage(self) -> Stage:
        """What has the machine."""
        return Stage.LOST if self.lost else self.custody.stage

    def check(self, act: Act) -> None:
        """Raises RequestError for what must not be done to the machine now."""
        if reason := run_states.refusal(self.stage, act):
            raise RequestError(reason, callers_fault=True)

    @property
    def broken(self) -> list[Supervised]:
        """The devices that have died too often, and are not there before they are mended."""
        return [service for service in self.services.values() if service.broken]

    @property
    def why_stopped(self) -> str:
        return self.lost or (self.stop.why if self.stop else "")

    @property
    def way_on(self) -> str:
        """What can be done about a machine that is stopped."""
        if self.lost:
            return "the machine can be looked at and ended, no more"
        return "`vmesh resume` tries again, `vmesh swap` puts another program in its place"

    def devices_refusal(self) -> str:
        """Why no device can come, go or be replaced now; empty if it can."""
        if self.attached:
            return "somebody else starts this machine's services"
        return run_states.refusal(self.stage, Act.CHANGE_DEVICES)

    @property
    def ram_bytes(self) -> int:
        return int(self.services[self.roster.memory].options.get("ram", "0"))

    def is_device(self, name: str) -> bool:
        return name in self.roster.devices

    def may_return(self, service: Supervised) -> bool:
        """Whether a service that has ended may have another life: a device, and whoever has done nothing yet if it was
        somebody else that started it."""
        if self.attached and not service.was_ready:
            return True
        return service.was_ready and self.is_device(service.name)
