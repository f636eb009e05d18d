"""How the services are: what they answer and report, what they owe an answer for, and what is done about it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

from vmesh.errors import PeerError, from_message
from vmesh.limits import BROKEN, MOST_LIVES
from vmesh.log import Log
from vmesh.machine import MachineDirectory
from vmesh.v1 import lifecycle_pb2
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.monitor.custody import MIGRATION
from vmesh_services.monitor.keeper import KEEPER
from vmesh_services.monitor.output import one_line
from vmesh_services.monitor.run_states import Stage
from vmesh_services.monitor.supervisor.condition import Condition
from vmesh_services.monitor.supervisor.ending import Ending
from vmesh_services.monitor.supervisor.lives import Lives
from vmesh_services.monitor.supervisor.runs import Runs
from vmesh_services.monitor.supervisor.settings import Settings
from vmesh_services.monitor.supervisor.supervised import Supervised, by_hand, patience

_PULSE_SECONDS = 5.0  # without its pulse, a service is not well

_STATES = {
    lifecycle_pb2.SERVICE_STARTING: "starting",
    lifecycle_pb2.SERVICE_RUNNING: "running",
    lifecycle_pb2.SERVICE_PAUSED: "paused",
    lifecycle_pb2.SERVICE_STOPPING: "stopping",
}


class Health:
    """`ready` is called when a service has become so, or has again."""

    def __init__(
        self,
        condition: Condition,
        settings: Settings,
        runs: Runs,
        ending: Ending,
        lives: Lives,
        on_phase: Callable[[str], None],
        log: Log,
    ) -> None:
        self.ready: Callable[[], None] = lambda: None
        self._condition, self._settings = condition, settings
        self._runs, self._ending, self._lives = runs, ending, lives
        self._on_phase, self._log = on_phase, log
        lives.welcomed, lives.broke, runs.reported = self.welcome, self.broke, self.report

    # What they say

    def welcome(self, service: Supervised, packet: Packet) -> None:
        """The answer to the monitor's Hello."""
        if packet.WhichOneof("body") != "welcome":
            refused = packet.refused
            reason = f"expected {refused.expected}, got {refused.got}" if refused.expected else refused.reason
            how = f"refused the monitor: {one_line(reason) or 'no reason given'}"
            (self._lives.give_up if service.on_trial else self._lives.fail)(service, how)
            return
        if service.child.pidfd >= 0 and not service.alive:
            return  # it has ended since it said so
        if service.awaits_hand:
            service.began = time.monotonic()  # until now it was waited for
        service.welcomed = service.came = service.alive = True
        if not self._is_life(service, packet.welcome.epoch):
            return
        self._on_phase(f"{service.name} answers")
        if self._ending.came(service):
            return
        stopped = self._is_stopped
        if service.was_ready and (stopped or not self._condition.attached):  # started here: it waits for this
            go_on = lifecycle_pb2.Pause() if stopped else lifecycle_pb2.Resume()
            with suppress(PeerError):  # it will then be found hung
                service.link.ask(go_on, partial(self._told_to_go_on, service))
        self._ask(service)
        if self._condition.ending:
            self._ending.go_on()

    def report(self, service: Supervised, packet: Packet) -> None:
        """The answer to a question about its health."""
        service.asked_at = None
        if service.state == "hung" and not self._condition.attached:
            return  # what it has said before it is ended does not make it well
        if packet.WhichOneof("body") != "health_report":
            service.ask_at = time.monotonic() + self._settings.health_interval
            return
        report = packet.health_report
        was_ready = service.ready
        if not self._is_life(service, report.epoch):
            return
        service.state = _STATES.get(report.phase, "starting")
        service.counters = dict(report.counters)
        service.console.see(service.counters.get("console_bytes_waiting", 0), time.monotonic())
        former, service.complaints = service.complaints, {}
        last = {(each.service, each.what): one_line(each.last) for each in report.complaints}
        for complaint in report.complaints:
            service.complaints.setdefault(complaint.service, {})[one_line(complaint.what)] = complaint.count
        service.ask_at = time.monotonic() + (self._settings.health_interval if service.ready else 0.0)
        if not self._condition.is_device(service.name):
            for name, causes in service.complaints.items():
                if causes.get(BROKEN, 0) > former.get(name, {}).get(BROKEN, 0):
                    self.broke(name, f"{service.name} says: {last.get((name, BROKEN)) or 'not how'}")
        if service.ready and not was_ready:
            self._on_phase(f"{service.name} {service.state}")
            if service.was_ready or service.on_trial:
                self._lives.back(service)
            service.was_ready = True
            self.ready()

    def complaints_about(self, name: str) -> dict[str, int]:
        """What the others have counted of a service."""
        total: Counter[str] = Counter()
        for service in self._condition.services.values():
            total.update(service.complaints.get(name, {}))
        return total

    def broke(self, name: str, how: str) -> None:
        """A service has said what no message may say. A device is ended, as one that hangs; others are of this project,
        and their own loops have refused it."""
        self._log.warning("broke the protocol", cause=f"{name} {BROKEN}", service=name, how=how)
        service = self._condition.services.get(name)
        if self._condition.is_device(name) and service is not None and service.alive and service.state != "hung":
            self.hung(service, f"{BROKEN}: {how}")

    def hung(self, service: Supervised, how: str) -> None:
        """It does not do what it is for; `how`. A device is ended, and has a next life."""
        if self._condition.attached:  # it is not ours to kill: it may go on, or somebody else ends it
            service.state, service.last_error, service.asked_at = "hung", how, None
            service.ask_at, service.began = time.monotonic(), time.monotonic()
            return
        if service.leaving:
            pass
        elif self._condition.is_device(service.name) and (service.was_ready or service.on_trial):
            self._log.info("killed", service=service.name, pid=service.child.pid, how=how)
            service.last_error, service.asked_at = how, None
            service.began = time.monotonic()
        else:
            self._lives.fail(service, how)
        service.state = "hung"
        service.kill()

    @property
    def _is_stopped(self) -> bool:
        """Whether the machine is paused, or may be so in the midst of an operation, or has yet to come in."""
        awaited = self._condition.stage in (Stage.AWAITED, Stage.LOADING)
        return self._condition.paused or awaited or self._runs.exclusive

    def _told_to_go_on(self, service: Supervised, packet: Packet) -> None:
        """A next life that cannot do as it is told, since its disk is in use for one, is none."""
        if packet.WhichOneof("body") in ("error", "refused") and service.alive:
            why = str(from_message(packet.error)) if packet.HasField("error") else packet.refused.reason
            self.hung(service, one_line(why))

    def _is_life(self, service: Supervised, epoch: int) -> bool:
        """Take the life that a service says it is; a number far from the one that it was given costs it its life.

        Attached, it was given none: it counts in its machine directory, which may be another one than before.
        """
        first = 1 if self._condition.attached else service.epoch
        if first <= epoch <= service.epoch + MOST_LIVES:
            service.epoch = epoch
            return True
        self.broke(service.name, f"it says it is life {epoch}, and is {service.epoch}")
        return False

    # What they owe, in seconds of the monotonic clock

    def look(self, now: float) -> None:
        """Ask who is to be asked; one that owes something for too long, or does not come, hangs."""
        # The cpu waits for all others to start: it is the last to blame.
        there = [service for service in self._condition.services.values() if not service.broken]
        if any(service.awaits_hand for service in there):
            for service in there:  # they wait for it at the machine's start
                if not service.was_ready and not by_hand(service.command):
                    service.began = now
        for service in sorted(there, key=lambda each: each.name == self._condition.roster.cpu):
            if not (self._is_there(service, now) and self._answers(service, now)):
                return
            if service.welcomed and service.asked_at is None and now >= service.ask_at:
                self._ask(service)

    def forgive(self, seconds: float) -> None:
        """The services owe nothing for a time in which this process was stopped."""
        for service in self._condition.services.values():
            if service.asked_at is not None:
                service.asked_at += seconds
            service.began += seconds

    def _is_there(self, service: Supervised, now: float) -> bool:
        """Whether it has come, or may still."""
        settings, waited = self._settings, now - service.began
        if self._condition.attached:
            limit = settings.absence_limit if service.was_ready else settings.start_limit
            if not service.ready and waited > limit:
                self._lives.fail(service, f"{service.last_error or 'did not come'}, for {limit:g} s")
                return False
            return True
        limit = settings.health_limit if service.was_ready else settings.start_limit
        if service.awaits_hand:
            limit = patience(service.command) + settings.health_limit
        if waited <= limit:
            return True
        if service.state == "restarting" and not service.alive:
            self._lives.not_spawned(service, f"the keeper has not started it within {limit:g} s")
            return False
        if service.alive and not service.ready:
            self.hung(service, f"is not ready {limit:g} s after its start")
            return False
        return True

    def _answers(self, service: Supervised, now: float) -> bool:
        limit = self._settings.health_limit
        if service.asked_at is None or now - service.asked_at <= limit:
            return True
        self.hung(service, f"hangs: it owes an answer for {limit:g} s")
        return False

    def _ask(self, service: Supervised) -> None:
        service.asked_at = time.monotonic()
        with suppress(PeerError):  # the answer will then be missed
            service.link.ask(lifecycle_pb2.Health(), partial(self.report, service))


def by_name(condition: Condition, machine: MachineDirectory) -> Mapping[str, bool]:
    """Whether each service does what it is for; those that nobody asks show it by their pulse."""
    health = {name: service.ready and service.alive for name, service in condition.services.items()}
    for name in (KEEPER, MIGRATION) if condition.attached else ():
        with suppress(OSError):
            health[name] = time.time() - machine.pulse(name).stat().st_mtime < _PULSE_SECONDS
    return health
