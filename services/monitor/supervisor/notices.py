"""What the services say without having been asked: each notice is for one part of the supervisor."""

from __future__ import annotations

from collections.abc import Callable

from vmesh.log import Log
from vmesh.v1 import common_pb2
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.monitor import balloon
from vmesh_services.monitor.events import EventHub
from vmesh_services.monitor.output import one_line
from vmesh_services.monitor.supervisor.condition import Condition
from vmesh_services.monitor.supervisor.ending import Ending
from vmesh_services.monitor.supervisor.health import Health
from vmesh_services.monitor.supervisor.lives import Lives
from vmesh_services.monitor.supervisor.run_state import RunState


class Notices:
    """`hart_stopped` is told when harts have stopped for a debugger."""

    def __init__(
        self,
        condition: Condition,
        ending: Ending,
        run_state: RunState,
        lives: Lives,
        health: Health,
        events: EventHub,
        log: Log,
    ) -> None:
        self.hart_stopped: Callable[[common_pb2.HartStop], None] = lambda stop: None
        self._condition, self._ending, self._run_state = condition, ending, run_state
        self._lives, self._health = lives, health
        self._events, self._log = events, log
        lives.noticed = self.take

    def take(self, name: str, packet: Packet) -> None:
        """A packet that answers nothing."""
        if packet.WhichOneof("body") != "notice":
            return
        notice, service = packet.notice, self._condition.services[name]
        self._log.info("notice", service=name, kind=notice.WhichOneof("event") or "", text=notice.text)
        if notice.severity == common_pb2.SEVERITY_ERROR:
            service.last_error = one_line(notice.text)
        if service.on_trial:  # the machine does not depend on it yet
            if notice.HasField("fault"):
                self._lives.give_up(service, one_line(notice.fault.reason or notice.text))
            return
        match notice.WhichOneof("event"):
            case "hart_stop" if name == self._condition.roster.cpu:
                self.hart_stopped(notice.hart_stop)
            case "disk_error":
                self._disk_error(name, notice.disk_error)
            case "balloon_change" if service.command.kind == balloon.KIND:
                actual = balloon.actual(self._condition.ram_bytes, notice.balloon_change.pages)
                self._events.publish("BALLOON_CHANGE", {"actual": actual})
            case "power_off":
                self._run_state.power_off(min(notice.power_off.exit_code, 255))
            case "reset_request" if self._condition.actions.reboot == "shutdown":
                self._ending.end(0, reason="guest-reset")
            case "reset_request":
                self._run_state.reset_for_guest()
            case "stop_request" if not self._condition.is_device(name):
                self._ending.end(0, reason="host-signal")
            case "fault":
                self._fault(name, notice.fault, one_line(notice.fault.reason or notice.text))
            case "hart_stop" | "stop_request" | "balloon_change":
                self._health.broke(name, f"a notice that is not a device's to give: {notice.WhichOneof('event')}")

    def _disk_error(self, name: str, error: common_pb2.DiskError) -> None:
        told = {
            "device": name,
            "operation": "write" if error.write else "read",
            "action": "report",
            "nospace": error.no_space,
            "reason": one_line(error.reason),
        }
        self._events.publish("BLOCK_IO_ERROR", told)

    def _fault(self, name: str, fault: common_pb2.Fault, reason: str) -> None:
        """A service cannot go on, or the cpu or memory saw a device misbehave. A device speaks of itself only."""
        about = fault.service or name
        text = f"service '{one_line(about)}': {reason}"
        from_device = self._condition.is_device(name)
        if from_device and about != name:
            self._health.broke(name, f"it blames '{one_line(about)}': {reason}")
        elif fault.lost and from_device:
            self._health.broke(name, "it says that guest memory is lost, and would have ended")
        elif fault.lost:
            self._run_state.lose(name, f"guest memory is lost: {reason}")
        elif fault.stops:
            self._run_state.stop_for(name, text, "internal-error")
        elif self._condition.is_device(about) and self._condition.services[about].was_ready:
            self._health.hung(self._condition.services[about], reason)
        else:
            self._ending.end(1, text)
