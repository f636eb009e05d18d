"""One machine's supervisor: its parts, their loop, and the port that all doors and the migration share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from vmesh.addresses import Addresses
from vmesh.errors import said
from vmesh.log import Log
from vmesh.loop import Loop
from vmesh.machine import RECORD, MachineDirectory, MachineRecord, ServiceRecord
from vmesh.spawn import ServiceCommand
from vmesh.stdio import Stderr
from vmesh.v1 import gateway_pb2
from vmesh_services.monitor.events import EventHub
from vmesh_services.monitor.keeper import Keeper
from vmesh_services.monitor.operations import Roster
from vmesh_services.monitor.output import Output, one_line
from vmesh_services.monitor.supervisor import health
from vmesh_services.monitor.supervisor.condition import NAMES, Condition
from vmesh_services.monitor.supervisor.ending import Ending
from vmesh_services.monitor.supervisor.health import Health
from vmesh_services.monitor.supervisor.lives import Lives
from vmesh_services.monitor.supervisor.notices import Notices
from vmesh_services.monitor.supervisor.run_state import RunState
from vmesh_services.monitor.supervisor.runs import Runs
from vmesh_services.monitor.supervisor.settings import Settings
from vmesh_services.monitor.supervisor.supervised import Supervised
from vmesh_services.monitor.warnings import Warnings

_TICK = 0.2  # seconds between two looks at the deadlines
_QUICK_TICK = 0.02  # the same while the machine starts or ends
_GATEWAY_DELAY = 2.0  # seconds after which the gateway opens though the machine is not ready


class Supervisor:
    """The life of one machine, from `start` or `attach` to the exit status that `run` returns.

    What raises where nobody foresaw it is a warning, and the machine goes on. `submit`, `call` and `ask` are for any
    thread, all else is for the loop's. A door has `condition` to look at, `run_state` for what may be done to the
    guest, `lives` for devices that come, go and are replaced.
    """

    def __init__(
        self,
        machine: MachineDirectory,
        commands: Sequence[ServiceCommand],
        settings: Settings,
        keeper: Keeper | None,
        log: Log,
        output: Output,
        addresses: Addresses,
        on_phase: Callable[[str], None] = lambda phase: None,
    ) -> None:
        self.machine = machine
        self.loop = Loop()
        self.loop.failed = self._unforeseen
        self.events = EventHub()
        self.warnings = Warnings(self.events, log)
        self.at_end: set[Callable[[], None]] = set()  # called when the loop has ended
        self.open_gateway: Callable[[], None] = lambda: None
        self.tell_health: Callable[[Mapping[str, bool]], None] = lambda health: None
        self.started: Callable[[], None] = self.let_in  # every service is there
        self._commands, self._settings, self._keeper = commands, settings, keeper
        self._log, self._output, self._on_phase = log, output, on_phase
        self._created, self._began = time.time(), time.monotonic()
        self._ticked = self._began
        self._recorded: MachineRecord | None = None
        self._gateway_opened = False
        self.condition = condition = Condition(_roster(commands), settings.actions, keeper is None)
        self._runs = runs = Runs(condition, self.loop, settings.health_limit, output, log)
        self._ending = ending = Ending(condition, runs, self.events, log)
        self.run_state = run_state = RunState(condition, runs, ending, self.events, self.warnings)
        self.lives = lives = Lives(
            machine, condition, runs, ending, run_state, keeper, addresses, self.loop, self.events, self.warnings,
            output, log,
        )  # fmt: skip
        self._health = Health(condition, settings, runs, ending, lives, on_phase, log)
        self.notices = Notices(condition, ending, run_state, lives, self._health, self.events, log)
        self._health.ready = self._maybe_started
        runs.finished = self._operation_ended
        self.submit, self.call, self.ask, self.as_failure = runs.submit, runs.call, runs.ask, runs.as_failure
        self.end = ending.end

    def when_ending(self, work: Callable[[], None]) -> None:
        """Call `work` when the machine begins to end."""
        self._ending.begun = work

    @property
    def roster(self) -> Roster:
        return self.condition.roster

    @property
    def services(self) -> dict[str, Supervised]:
        return self.condition.services

    @property
    def uptime(self) -> float:
        return time.monotonic() - self._began

    # From begin to end

    def start(self, lifeline: int) -> None:
        """Fork every service and the keeper, `lifeline` in hand. Call before any thread runs."""
        assert self._keeper is not None
        self._keeper.failed = lambda failure: self.end(1, failure)
        self._keeper.amiss = self._console_amiss
        self.lives.start(self._commands, lifeline)
        self._on_phase("services forked")
        self.loop.watch(self._keeper.socket.fileno(), read=self._keeper.receive)

    def attach(self) -> None:
        """Meet services that somebody else starts: another process, a container engine; in any order."""
        self.lives.attach(self._commands)

    def run(self) -> int:
        """Loop until no service is left. Returns the exit status of the machine."""
        self._tick()
        self.loop.run()
        for end in self.at_end:
            with suppress(Exception):  # the machine has ended: whatever one cannot do, the others can
                end()
        return self.condition.exit_status

    def let_in(self) -> None:
        """Open the gateway, once: when the machine runs, or takes long to; to do so earlier would cost the start."""
        if not self._gateway_opened:
            self._gateway_opened = True
            self.open_gateway()

    def _maybe_started(self) -> None:
        condition = self.condition
        if not condition.starting or not all(service.ready for service in condition.services.values()):
            return
        self.run_state.observe()
        self._on_phase("machine " + NAMES[condition.state])
        self.started()
        self._runs.next()

    def _operation_ended(self) -> None:
        self.run_state.observe()
        self._record()  # `vmesh ps` sees what was done as soon as whoever asked for it is told
        self.lives.resume_strays()

    # What is known

    @property
    def other_processes(self) -> dict[str, int]:
        """The pids of those that are no services: this one, and its keeper."""
        return {"monitor": os.getpid()} | ({"keeper": self._keeper.child.pid} if self._keeper else {})

    def machine_status(self) -> gateway_pb2.MachineStatus:
        """All that is known here without asking the services."""
        condition = self.condition
        status = gateway_pb2.MachineStatus(
            name=self.machine.name,
            state=condition.state,
            uptime_seconds=self.uptime,
            last_error=condition.failure or condition.why_stopped,
            run_state=self.run_state.name,
            warnings=self.warnings.lines,
        )
        now = time.monotonic()
        for service in condition.services.values():
            status.services.add(
                name=service.name,
                kind=service.command.kind,
                pid=service.child.pid,
                epoch=service.epoch,
                state=service.state,
                last_error=service.last_error,
                counters=service.counters,
                complaints=self._health.complaints_about(service.name),
                owes_seconds=now - service.asked_at if service.asked_at is not None else 0.0,
            )
            if waiting := service.console.unread(now):
                status.warnings.append(f"the console of {service.name} is not read: {waiting:,} bytes wait")
        return status

    def mirror_warnings(self, on: bool) -> None:
        """Whether the services' warnings are copied to stderr."""
        self._output.mirror = Stderr() if on else None

    def _record(self) -> None:
        """What `vmesh ps` shows."""
        services = tuple(
            ServiceRecord(each.name, each.command.kind, each.child.pid, each.epoch, each.state)
            for each in self.condition.services.values()
        )
        state = NAMES[self.condition.state]
        record = MachineRecord(self.machine.name, os.getpid(), self._created, state, services)
        if record == self._recorded:
            return
        try:
            self.machine.write_record(record)
        except OSError as error:  # `vmesh ps` shows the former one; written when there is room: each tick tries
            self.warnings.warn(RECORD, f"cannot be written: {error.strerror}")
        else:
            self._recorded = record
            self.warnings.end(RECORD)

    def _console_amiss(self, console: str, text: str) -> None:
        about = f"console of {console}"
        if text:
            self.warnings.warn(about, text)
        else:
            self.warnings.end(about)

    def _unforeseen(self, error: Exception) -> None:
        """The loop's boundary."""
        self._log.error("unforeseen", reason=said(error), error=repr(error))
        self.warnings.warn("monitor", one_line(str(said(error))))

    # Time

    def _tick(self) -> None:
        """Some times a second, more often while the machine starts or ends."""
        settled = self.condition.running or self.condition.paused
        again = min(_TICK, self._settings.health_interval) if settled else _QUICK_TICK
        self.loop.call_in("tick", again, self._tick)  # first, so that nothing keeps it from coming
        self._look()

    def _look(self) -> None:
        """At all deadlines."""
        now = time.monotonic()
        interval, limit = self._settings.health_interval, self._settings.health_limit
        if (lost := now - self._ticked) > max(1.0, min(2 * max(interval, 1.0), limit / 2)):
            for part in (self._ending, self._health, self._runs):  # this process was stopped: nobody owes anything
                part.forgive(lost)
        self._ticked = now
        if self.condition.ending:
            if self._ending.is_late(now):
                self._ending.kill_all()
                if self.condition.attached:
                    self.loop.stop()
        else:
            self._runs.look(now)
            self._health.look(now)
            if self.condition.attached or self.uptime > _GATEWAY_DELAY:
                self.let_in()
        self._record()
        self.tell_health(health.by_name(self.condition, self.machine))


def _roster(commands: Sequence[ServiceCommand]) -> Roster:
    kinds = {command.kind: command.name for command in commands}
    devices = tuple(command.name for command in commands if command.kind not in ("memory", "cpu", "cache"))
    return Roster(kinds["memory"], kinds.get("cpu", ""), devices, kinds.get("cache", ""))
