"""The supervisor: starts the services, watches them, carries out operations, ends the machine and leaves nothing.

One thread, one loop. Other threads (the gateway's) hand in work with `submit` and wait for its future.

The boundaries: whatever an operation raises fails that operation (`_advance`), what a call from another thread raises
is that caller's (`ask`), and anything else that was not foreseen is a warning, and the machine goes on (`_unforeseen`).
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import zmq

from services.monitor import operations, run_states
from services.monitor.backlog import Backlog
from services.monitor.events import EventHub
from services.monitor.keeper import KEEPER, Keeper
from services.monitor.link import Answered, Link
from services.monitor.migration import NAME as MIGRATION
from services.monitor.migration import IncomingOptions, Migration
from services.monitor.operations import Board, Operation, Request, RequestError
from services.monitor.output import Output, one_line
from services.monitor.run_states import AWAY, Act, Stage
from services.monitor.warnings import Warnings
from vmesh import elsewhere
from vmesh.addresses import Addresses
from vmesh.errors import HostLimit, PeerError, from_message, said
from vmesh.limits import BROKEN, MOST_LIVES
from vmesh.log import Log
from vmesh.loop import Inbox, Loop
from vmesh.machine import RECORD, Machine, MachineRecord, ServiceRecord
from vmesh.spawn import Child, ServiceCommand, describe_exit, start_service
from vmesh.stdio import Stderr
from vmesh.v1 import common_pb2, cpu_pb2, gateway_pb2, lifecycle_pb2, memory_pb2
from vmesh.v1.packet_pb2 import Packet

# Seconds for each step of an orderly end; what then still lives is killed. A console has 5 for a client that is slow.
END_LIMIT = 6.0
FAILED_END_LIMIT = 1.0  # the same after a failure
DEATHS, DEATHS_SECONDS = 5, 10.0  # a device that dies so often within so long is not started again
EXTERNAL = "services.external"  # stands for a program that is not one of ours
_TICK = 0.2  # seconds between two looks at the deadlines
_GATEWAY_DELAY = 2.0  # seconds after which the gateway opens though the machine is not ready
_PULSE_SECONDS = 5.0  # without its pulse, a service is not well
_QUICK_TICK = 0.02  # the same while the machine starts or ends

_STATES = {
    lifecycle_pb2.SERVICE_STARTING: "starting",
    lifecycle_pb2.SERVICE_RUNNING: "running",
    lifecycle_pb2.SERVICE_PAUSED: "paused",
    lifecycle_pb2.SERVICE_STOPPING: "stopping",
}
_NOT_READY = ("starting", "restarting", "hung")
_MACHINE_STATES = {
    gateway_pb2.MACHINE_STARTING: "starting",
    gateway_pb2.MACHINE_RUNNING: "running",
    gateway_pb2.MACHINE_PAUSED: "paused",
    gateway_pb2.MACHINE_ENDING: "ending",
}


Found = TypeVar("Found")


class StateError(Exception):
    """The machine is in no state for what was asked; the message is one line for people."""


@dataclass(slots=True)
class Actions:
    """What follows when the guest resets or powers off, in QEMU's words (qapi/run-state.json, set-action), or when a
    device does not come back or a hart cannot go on."""

    reboot: str = "reset"  # or "shutdown"
    shutdown: str = "poweroff"  # or "pause"
    failure: str = "pause"  # or "exit-failure"


@dataclass(frozen=True, slots=True)
class Settings:
    """How the machine is to be run; times in seconds."""

    actions: Actions = field(default_factory=Actions)
    health_interval: float = 1.0
    health_limit: float = 10.0
    start_limit: float = 60.0
    absence_limit: float = 60.0  # attached: for a service that was there to come back
    incoming: IncomingOptions = field(default_factory=IncomingOptions)


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the machine was stopped, though nobody asked for it, as QEMU's RunState and as one line; whether it ran."""

    run_state: str
    why: str
    ran: bool


@dataclass(frozen=True, slots=True)
class Successor:
    """What is to be the next life of a device; `prepare` is called when the former one has ended."""

    command: ServiceCommand
    prepare: Callable[[], None]


@dataclass(slots=True, eq=False)
class Service:
    """A service and what is known of it."""

    command: ServiceCommand
    child: Child
    link: Link
    began: float
    epoch: int = 1
    state: str = "starting"
    last_error: str = ""
    counters: dict[str, int] = field(default_factory=dict)
    complaints: dict[str, dict[str, int]] = field(default_factory=dict)  # about others, by name and cause
    console: Backlog = field(default_factory=Backlog)
    welcomed: bool = False
    alive: bool = True
    asked_at: float | None = None  # when the question about its health was sent that is still open
    ask_at: float = 0.0  # when to ask next
    was_ready: bool = False  # in this life or one before
    on_trial: bool = False  # it has yet to show that it can take its place: if it ends, the machine does not
    leaving: bool = False  # it was taken off the board
    finished: bool = False  # at the machine's end: it has brought out what the guest has written
    broken: bool = False  # it died too often, and has no next life before it is mended
    successor: Successor | None = None  # what to start when this life ends, as it was asked to
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=DEATHS))  # when it died last

    @property
    def ready(self) -> bool:
        return self.welcomed and self.state not in _NOT_READY

    @property
    def dies_too_often(self) -> bool:
        return len(self.deaths) == DEATHS and self.deaths[-1] - self.deaths[0] < DEATHS_SECONDS


@dataclass(slots=True, eq=False)
class _Run:
    """An operation under way: the batch it waits for."""

    operation: Operation
    future: Future[None]
    exclusive: bool
    mends: bool = False
    begun: bool = False
    requests: Sequence[Request] = ()
    answers: list[Packet] = field(default_factory=list)
    # by place: whom was asked, under which id; None: a device that is being restarted, and is asked then
    open: dict[int, tuple[Link | None, int]] = field(default_factory=dict)
    deadline: float = 0.0


class Supervisor:
    """The life of one machine, from `start` to the exit status that `run` returns."""

    def __init__(
        self,
        machine: Machine,
        commands: Sequence[ServiceCommand],
        settings: Settings,
        keeper: Keeper | None,
        log: Log,
        output: Output,
        addresses: Addresses,
    ) -> None:
        self.machine = machine
        self.addresses = addresses
        self.attached = keeper is None  # somebody else starts the services, and their next lives
        self.state = gateway_pb2.MACHINE_STARTING
        self.failure = ""
        self.board = _board(commands)
        self.services: dict[str, Service] = {}
        self.events = EventHub()
        self.actions = settings.actions
        self.stop: Stop | None = None
        self.lost = ""  # why guest memory is lost, for good
        self.warnings = Warnings(self.events, log)
        self.loop = Loop()
        self.loop.failed = self._unforeseen
        self.launched = False  # whether the harts have ever run
        self.reset_due = False  # the guest has asked for a reset
        self._reset_to_run = False  # as it did before it was paused for the reset, which must not be yet
        self.powered_off = False  # by the guest, and paused since, as `actions` says
        self.at_end: set[Callable[[], None]] = set()  # called when the loop has ended
        self.open_gateway: Callable[[], None] = lambda: None
        self.on_hart_stop: Callable[[common_pb2.HartStop], None] = lambda stop: None
        self.tell_health: Callable[[Mapping[str, bool]], None] = lambda health: None
        self.on_phase: Callable[[str], None] = lambda phase: None
        self.on_redirected: Callable[[str, str], None] = lambda console, place: None
        self._commands = commands
        self._settings = settings
        self._keeper = keeper
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._log = log
        self._output = output
        self._began = time.monotonic()
        self._created = time.time()
        self._recorded: MachineRecord | None = None
        self._loop = self.loop
        self._ticked = self._began
        self._gateway_opened = False
        self._inbox = Inbox(self.loop)
        self._runs: list[_Run] = []
        self._waiting: deque[_Run] = deque()
        self.migration = Migration(self, keeper, log, output, settings.incoming)
        self.exit_status = 0  # of the machine, once it is known
        self._end_deadline = float("inf")
        self._to_shut_down: deque[tuple[str, ...]] = deque()
        self._shutting_down: tuple[str, ...] = ()

    @property
    def uptime(self) -> float:
        return time.monotonic() - self._began

    def start(self, lifeline: int) -> None:
        """Fork every service, `lifeline` in hand, then connect to them. Call before any thread runs."""
        children = []
        assert self._keeper is not None
        # All wait for memory, and it not for our connection: a pipe says which processes the others are.
        heard, told = os.pipe()
        for command in self._commands:
            # Memory outlives the others, to remove the directory: nothing but its lifeline ends it, and it does not
            # hold the lock, since it waits for the lock to learn that the others are gone.
            last = command.name == self.board.memory
            keep = [heard] if last else [self.machine.lock_fd]
            death_signal = 0 if last else signal.SIGKILL
            more = ["--monitor", str(os.getpid()), *(["--processes", str(heard)] if last else [])]
            child = start_service(command, lifeline=lifeline, more=more, keep=keep, death_signal=death_signal)
            children.append(child)
            os.write(told, f"{command.name} {_process(command, child)}\n".encode())
        os.close(heard)
        os.close(told)
        self._keeper.start(lifeline)
        self.on_phase("services forked")
        self._context = zmq.Context()
        for command, child in zip(self._commands, children, strict=True):
            service = Service(command, child, self._link(command.name), time.monotonic())
            self.services[command.name] = service
            self._meet(service)
        self.tell_processes()
        self.watch(self._keeper.socket.fileno(), self._keeper.receive)
        self.watch(self._keeper.child.pidfd, self._keeper_dead)
        self._keeper.failed = lambda failure: self.end(1, failure)
        self._keeper.amiss = self._console_amiss
        self.migration.prepare()
        self._keeper.redirected = self.on_redirected

    def attach(self) -> None:
        """Meet services that somebody else starts: another process, a container engine; in any order."""
        self._context = zmq.Context()
        for command in self._commands:
            service = Service(command, Child(0, -1), self._link(command.name), time.monotonic(), alive=False)
            self.services[command.name] = service
            self._meet(service)

    def _link(self, name: str) -> Link:
        assert self._context is not None
        return Link(self._context, self.addresses, name, partial(self._notice, name), partial(self._broke, name))

    def _meet(self, service: Service) -> None:
        """A process of a service has been started, or somebody else will: watch it, and say Hello."""
        if not self.attached:
            self.watch(service.child.pidfd, partial(self._dead, service))
            self.watch(service.child.output, partial(self._drain, service))
        service.link.watch(self._loop)
        if self.attached:
            service.link.watch_loss(self._loop, partial(self._lost, service))
        service.link.hello(partial(self._welcome, service))

    def connect(self, name: str, unasked: Answered) -> Link:
        """A connection to a service that is not one of the board's; its packets are received in the loop."""
        assert self._context is not None
        link = Link(self._context, self.addresses, name, unasked, partial(self._broke, name))
        link.watch(self._loop)
        return link

    def disconnect(self, link: Link) -> None:
        link.close()

    def tell_processes(self) -> None:
        """Tell each service which processes the others are, and so who may say what to it."""
        if self.attached or self.failure:  # they are not ours, nor known here; or all go
            return
        there = [service for service in self.services.values() if service.alive]
        known = {service.command.name: _process(service.command, service.child) for service in there}
        if self.migration.process:
            known[MIGRATION] = self.migration.process
        for service in there:
            with suppress(PeerError):  # it will be found hung
                service.link.tell(lifecycle_pb2.Processes(processes=known))

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Call `ready` in the loop whenever `fd` is readable, until `unwatch`."""
        self._loop.watch(fd, read=ready)

    def unwatch(self, fd: int) -> None:
        self._loop.watch(fd)

    def run(self) -> int:
        """Loop until no service is left. Returns the exit status of the machine."""
        self._tick()
        self._loop.run()
        for end in self.at_end:
            with suppress(Exception):  # the machine has ended: whatever one cannot do, the others can
                end()
        return self.exit_status

    def submit(self, operation: Operation, *, exclusive: bool, mends: bool = False) -> Future[None]:
        """From any thread: carry out an operation. Exclusive ones follow each other, once the machine has started;
        while a device is broken only those that may mend it are begun.

        The future fails with RequestError or StateError.
        """
        run = _Run(operation, Future(), exclusive, mends)
        self.call(lambda: self._begin(run))
        return run.future

    def call(self, work: Callable[[], None]) -> None:
        """From any thread: have `work` done in the loop."""
        self._inbox.call(work)

    def ask(self, work: Callable[[], Found]) -> Future[Found]:
        """From any thread: what `work` gives, called in the loop; what it raises is the future's."""
        found: Future[Found] = Future()

        def call() -> None:
            try:
                answer = work()
            except Exception as error:
                found.set_exception(self.as_failure(error))
            else:
                found.set_result(answer)

        self.call(call)
        return found

    def as_failure(self, error: Exception) -> Exception:
        """How an operation that has raised `error` has failed: what was not foreseen is in the log, too."""
        if isinstance(error, RequestError | StateError):
            return error
        reason = said(error)
        write = (
            self._log.info if isinstance(reason, HostLimit) else self._log.error
        )  # the host refuses, or we are wrong
        write("an operation failed in a way that was not foreseen", reason=reason, error=repr(error))
        return RequestError(one_line(str(reason)))

    def _unforeseen(self, error: Exception) -> None:
        """The loop's boundary."""
        self._log.error("unforeseen", reason=said(error), error=repr(error))
        self.warnings.warn("monitor", one_line(str(said(error))))

    def end(self, status: int, failure: str = "", *, reason: str = "host-qmp-quit") -> None:
        """End the machine with this exit status, for a failure if there is one. Only the first call counts.

        `reason` is QEMU's ShutdownCause (qapi/run-state.json).
        """
        if self.state == gateway_pb2.MACHINE_ENDING:
            return
        reason = "host-error" if failure else reason
        self.exit_status = status
        self.events.publish("SHUTDOWN", {"guest": reason.startswith("guest-"), "reason": reason})
        self.state = gateway_pb2.MACHINE_ENDING
        self.failure = failure
        self._end_deadline = time.monotonic() + (FAILED_END_LIMIT if failure else END_LIMIT)
        self._log.info("ending", status=status, failure=failure)
        error = StateError(f"the machine ends{f': {failure}' if failure else ''}")
        for run in [*self._runs, *self._waiting]:
            self._finish(run, error)
        self._waiting.clear()
        self.migration.close()
        self._to_shut_down.extend(self.board.shutdown_order())
        self._shut_down()

    @property
    def paused(self) -> bool:
        return self.state == gateway_pb2.MACHINE_PAUSED

    def reset(self, *, reason: str = "host-qmp-system-reset", run: bool = False) -> Operation:
        """The reset operation: a machine that is paused when it begins stays so, unless it is to `run`.

        `reason` is QEMU's ShutdownCause.
        """
        self.migration.check(Act.RESET)
        yield from operations.reset(self.board, stay_paused=self.paused and not run)
        self.powered_off = self.reset_due = self._reset_to_run = False
        self.stop = None
        self.migration.was_reset()
        self.events.publish("RESET", {"guest": reason.startswith("guest-"), "reason": reason})

    def pause(self) -> Operation:
        """The pause operation. What stands still already does so whatever becomes of it, and afterwards."""
        self.migration.stay_paused()
        if self.stop is not None:
            self.stop = replace(self.stop, ran=False)
        if self.broken or (self.lost and self.paused):
            yield []
        else:
            yield from (operations.stop if self.paused else operations.pause)(self.board)

    def write_memory(self, request: cpu_pb2.WriteMemory) -> Operation:
        """As operations.write_memory."""
        self.migration.check(Act.WRITE)
        yield from operations.write_memory(self.board, request)

    def write_registers(self, request: cpu_pb2.WriteRegisters) -> Operation:
        """As operations.write_registers; a machine that is paused stays so."""
        self.migration.check(Act.WRITE)
        yield from operations.write_registers(self.board, request, stay_paused=self.paused)

    def resume(self) -> Operation:
        """The resume operation, unless a migration has the machine."""
        self.migration.check(Act.RESUME)
        if self._reset_to_run:
            raise RequestError("the guest has asked for a reset, which waits for its pages", callers_fault=True)
        if self.powered_off:
            raise RequestError("Resetting the Virtual Machine is required", callers_fault=True)
        yield from self._mend()
        yield from operations.resume(self.board)
        self.mended()
        self.migration.resumed()

    @property
    def run_state(self) -> str:
        """QEMU's RunState."""
        if self.lost and self.paused:
            return "internal-error"
        if self.migration.run_state:
            return self.migration.run_state
        if self.powered_off or self.state == gateway_pb2.MACHINE_ENDING:
            return "shutdown"
        if self.state == gateway_pb2.MACHINE_RUNNING:
            return "running"
        if self.stop is not None:
            return self.stop.run_state
        return "paused" if self.launched else "prelaunch"

    def mirror_warnings(self, on: bool) -> None:
        """Whether the services' warnings are copied to stderr."""
        self._output.mirror = Stderr() if on else None

    @property
    def other_processes(self) -> dict[str, int]:
        """The pids of those that are no services: this one, and its keeper."""
        return {"monitor": os.getpid()} | ({"keeper": self._keeper.child.pid} if self._keeper else {})

    def machine_status(self) -> gateway_pb2.MachineStatus:
        """All that is known here without asking the services."""
        status = gateway_pb2.MachineStatus(
            name=self.machine.name,
            state=self.state,
            uptime_seconds=self.uptime,
            last_error=self.failure or self.lost or (self.stop.why if self.stop else ""),
            run_state=self.run_state,
            warnings=self.warnings.lines,
        )
        now = time.monotonic()
        for service in self.services.values():
            status.services.add(
                name=service.command.name,
                kind=service.command.kind,
                pid=service.child.pid,
                epoch=service.epoch,
                state=service.state,
                last_error=service.last_error,
                counters=service.counters,
                complaints=self._complaints_about(service.command.name),
                owes_seconds=now - service.asked_at if service.asked_at is not None else 0.0,
            )
            if waiting := service.console.unread(now):
                status.warnings.append(f"the console of {service.command.name} is not read: {waiting:,} bytes wait")
        return status

    def _complaints_about(self, name: str) -> dict[str, int]:
        total: Counter[str] = Counter()
        for service in self.services.values():
            total.update(service.complaints.get(name, {}))
        return total

    # What comes from the services

    def _welcome(self, service: Service, packet: Packet) -> None:
        if packet.WhichOneof("body") != "welcome":
            refused = packet.refused
            reason = f"expected {refused.expected}, got {refused.got}" if refused.expected else refused.reason
            how = f"refused the monitor: {one_line(reason) or 'no reason given'}"
            if service.on_trial:
                self._give_up(service, how)
            else:
                self._fail(service, how)
            return
        if service.child.pidfd >= 0 and not service.alive:
            return  # it has ended since it said so
        service.welcomed = service.alive = True
        if not self._is_life(service, packet.welcome.epoch):
            return
        self.on_phase(f"{service.command.name} answers")
        if self.state == gateway_pb2.MACHINE_ENDING and service.command.name in self._shutting_down:
            self._ask_to_end(service)
            return
        if service.was_ready and (self._stopped or not self.attached):  # one that was started here waits for this
            go_on = lifecycle_pb2.Pause() if self._stopped else lifecycle_pb2.Resume()
            with suppress(PeerError):  # it will then be found hung
                service.link.ask(go_on, partial(self._told_to_go_on, service))
        self._ask_health(service)
        if self.state == gateway_pb2.MACHINE_ENDING:
            self._shut_down()

    def _told_to_go_on(self, service: Service, packet: Packet) -> None:
        """A next life that cannot do as it is told, since its disk is in use for one, is none."""
        if packet.WhichOneof("body") in ("error", "refused") and service.alive:
            why = str(from_message(packet.error)) if packet.HasField("error") else packet.refused.reason
            self._hung(service, one_line(why))

    def _report(self, service: Service, packet: Packet) -> None:
        service.asked_at = None
        if service.state == "hung" and not self.attached:  # what it has said before it is ended does not make it well
            return
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
        for complaint in report.complaints:
            service.complaints.setdefault(complaint.service, {})[one_line(complaint.what)] = complaint.count
        service.ask_at = time.monotonic() + (self._settings.health_interval if service.ready else 0.0)
        if service.command.name not in self.board.devices:
            for name, causes in service.complaints.items():
                if causes.get(BROKEN, 0) > former.get(name, {}).get(BROKEN, 0):
                    self._broke(name, f"as {service.command.name} says")
        if service.ready and not was_ready:
            self.on_phase(f"{service.command.name} {service.state}")
            if service.was_ready or service.on_trial:
                self._back(service)
            service.was_ready = True
            self._maybe_started()

    def _is_life(self, service: Service, epoch: int) -> bool:
        """Take the life that a service says it is; a number far from the one that it was given costs it its life.

        Attached, it was given none: it counts in its machine directory, which may be another one than before.
        """
        first = 1 if self.attached else service.epoch
        if first <= epoch <= service.epoch + MOST_LIVES:
            service.epoch = epoch
            return True
        self._broke(service.command.name, f"it says it is life {epoch}, and is {service.epoch}")
        return False

    def _broke(self, name: str, how: str) -> None:
        """A service has said what no message may say. A device is ended, as one that hangs; others are of this project,
        and their own loops have refused it."""
        self._log.warning("broke the protocol", cause=f"{name} {BROKEN}", service=name, how=how)
        service = self.services.get(name)
        if name in self.board.devices and service is not None and service.alive and service.state != "hung":
            self._hung(service, f"{BROKEN}: {how}")

    def _maybe_started(self) -> None:
        if self.state != gateway_pb2.MACHINE_STARTING or not all(service.ready for service in self.services.values()):
            return
        self._observe_state()
        self.on_phase("machine " + _MACHINE_STATES[self.state])
        self.migration.machine_started()
        self.migration.when_reachable(self._open_gateway)
        self._next_exclusive()

    def _open_gateway(self) -> None:
        """Once, when the machine runs, or takes long to: to open it earlier would cost the start."""
        if not self._gateway_opened:
            self._gateway_opened = True
            self.open_gateway()

    def _observe_state(self) -> None:
        paused = bool(self.board.cpu) and self.services[self.board.cpu].state == "paused"
        former, self.state = self.state, gateway_pb2.MACHINE_PAUSED if paused else gateway_pb2.MACHINE_RUNNING
        self.launched |= not paused
        if self.state != former and self.launched:
            self.events.publish("STOP" if paused else "RESUME")

    def _notice(self, name: str, packet: Packet) -> None:
        if packet.WhichOneof("body") != "notice":
            return
        notice = packet.notice
        self._log.info("notice", service=name, kind=notice.WhichOneof("event") or "", text=notice.text)
        if notice.severity == common_pb2.SEVERITY_ERROR:
            self.services[name].last_error = one_line(notice.text)
        if self.services[name].on_trial:  # the machine does not depend on it yet
            if notice.HasField("fault"):
                self._give_up(self.services[name], one_line(notice.fault.reason or notice.text))
            return
        match notice.WhichOneof("event"):
            case "hart_stop" if name == self.board.cpu:
                self.on_hart_stop(notice.hart_stop)
            case "disk_error":
                told = {
                    "device": name,
                    "operation": "write" if notice.disk_error.write else "read",
                    "action": "report",
                    "nospace": notice.disk_error.no_space,
                    "reason": one_line(notice.disk_error.reason),
                }
                self.events.publish("BLOCK_IO_ERROR", told)
            case "power_off" if self.powered_off:
                pass  # another hart, before the pause reached it
            case "power_off" if self.actions.shutdown == "pause":
                self.powered_off = True
                self.exit_status = min(notice.power_off.exit_code, 255)
                self.events.publish("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
                self.submit(self.pause(), exclusive=True)
            case "power_off":
                self.end(min(notice.power_off.exit_code, 255), reason="guest-shutdown")
            case "reset_request" if self.actions.reboot == "shutdown":
                self.end(0, reason="guest-reset")
            case "reset_request":
                self.reset_for_guest()
            case "stop_request" if name not in self.board.devices:
                self.end(0, reason="host-signal")
            case "fault":
                self._fault(name, notice.fault, one_line(notice.fault.reason or notice.text))
            case "hart_stop" | "stop_request":
                self._broke(name, f"a notice that is not a device's to give: {notice.WhichOneof('event')}")

    def _fault(self, name: str, fault: common_pb2.Fault, reason: str) -> None:
        """A service cannot go on, or the cpu or memory saw a device misbehave. A device speaks of itself only."""
        about = fault.service or name
        text = f"service '{one_line(about)}': {reason}"
        if name in self.board.devices and about != name:
            self._broke(name, f"it blames '{one_line(about)}': {reason}")
        elif fault.lost and name in self.board.devices:
            self._broke(name, "it says that guest memory is lost, and would have ended")
        elif fault.lost:
            self._lose(name, f"guest memory is lost: {reason}")
        elif fault.stops:
            self._stop_for(name, text, "internal-error")
        elif about in self.board.devices and self.services[about].was_ready:
            self._hung(self.services[about], reason)
        else:
            self.end(1, text)

    def reset_for_guest(self) -> None:
        """The guest has asked for a reset. If that must not be now, it stands still until it may: `try_reset`."""
        self.reset_due = True
        self.try_reset()

    def try_reset(self) -> None:
        """A reset that the guest waits for may be possible by now."""
        if self.reset_due:
            self.submit(self._reset_for_guest(), exclusive=True).add_done_callback(self._reset_done)

    def _reset_for_guest(self) -> Operation:
        if not self.reset_due:
            return  # another hart had asked, too
        if not run_states.refusal(self.migration.stage, Act.RESET):
            yield from self.reset(reason="guest-reset", run=self._reset_to_run)
        elif not self.paused:
            self._reset_to_run = True
            yield from operations.pause(self.board)

    def came_in(self) -> None:
        """The machine is another one, by a migration or from a snapshot."""
        self.launched = True
        self.powered_off = self.reset_due = self._reset_to_run = False

    def _reset_done(self, future: Future[None]) -> None:
        if isinstance(error := future.exception(), RequestError):
            self.end(1, f"the reset that the guest asked for failed: {error}")

    def _drain(self, service: Service) -> None:
        self._output.drain(service.command.name, service.child.output)

    def _dead(self, service: Service) -> None:
        _, status = os.waitpid(service.child.pid, 0)
        service.finished |= status == 0
        self._drain(service)
        self.unwatch(service.child.pidfd)
        self.unwatch(service.child.output)
        os.close(service.child.pidfd)
        os.close(service.child.output)
        self._ended(service, service.last_error if service.state == "hung" else describe_exit(status))

    def _lost(self, service: Service) -> None:
        """The connection to a service that somebody else has started is gone, and so is the service.

        Without a Welcome that was no life of it: a process that is killed listens a little longer than it talks. The
        limit for the service to come goes on.
        """
        service.link.close()
        if service.welcomed or self.state == gateway_pb2.MACHINE_ENDING:
            self._ended(service, "is gone")
        else:
            self._loop.call_in(f"dial {service.command.name}", _TICK, partial(self._dial, service))

    def _dial(self, service: Service) -> None:
        """Meet whoever listens in the place of a service that somebody else starts."""
        try:
            service.link = self._link(service.command.name)
            self._meet(service)
        except Exception as error:  # no descriptors
            self._spawned(service, None, str(said(error)))

    def _ended(self, service: Service, how: str) -> None:
        service.alive = False
        service.state = "dead"
        self._log.info("service ended", service=service.command.name, how=how)
        self.tell_processes()
        if self.state == gateway_pb2.MACHINE_ENDING:
            if self._has_more(service):
                service.deaths.append(time.monotonic())
                self._start_life(service, how)
            self._shut_down()
        elif service.leaving:
            self._remove(service)
        elif service.broken:
            pass
        elif service.successor is not None:
            self._succeed(service)
        elif service.on_trial:
            self._failed_trial(service, how)
        elif self._may_return(service):
            self._restart(service, how)
        else:
            self._fail(service, how)
        self._maybe_ended()

    def _maybe_ended(self) -> None:
        if any(map(self._is_there, self.services.values())):
            return
        if self._keeper is None:
            if self.state == gateway_pb2.MACHINE_ENDING:
                self._loop.stop()
        elif not self._keeper.busy:
            self._keeper.close()  # its end is the machine's
            self._loop.call_in("keeper", END_LIMIT, self._keeper.kill)

    def _console_amiss(self, console: str, text: str) -> None:
        about = f"console of {console}"
        if text:
            self.warnings.warn(about, text)
        else:
            self.warnings.end(about)

    def _keeper_dead(self) -> None:
        assert self._keeper is not None
        _, status = os.waitpid(self._keeper.child.pid, 0)
        self.unwatch(self._keeper.child.pidfd)
        if any(service.alive for service in self.services.values()):
            self.end(1, f"the keeper (pid {self._keeper.child.pid}) {describe_exit(status)}")
            self._kill_all()
        self._loop.stop()

    def _fail(self, service: Service, how: str) -> None:
        """The machine ends because of `service`."""
        service.last_error = how
        self.end(1, self._described(service, how))

    def _described(self, service: Service, how: str) -> str:
        """One line that says which service, how it has ended, and what it said last."""
        name = service.command.name
        text = f"service '{name}' {how}" if self.attached else f"service '{name}' (pid {service.child.pid}) {how}"
        last = self._output.last_line(name)
        return f"{text}; its last words: {last}" if last else text

    # Stopped, to be mended

    @property
    def broken(self) -> list[Service]:
        """The devices that have died too often, and are not there before they are mended."""
        return [service for service in self.services.values() if service.broken]

    def _break(self, service: Service, how: str) -> None:
        """A device does not come back: the machine stops, as QEMU does with werror=stop, until somebody lets it go on,
        which starts the device's next life, or puts another program in its place."""
        text = self._described(service, how)
        if self.state in (gateway_pb2.MACHINE_STARTING, gateway_pb2.MACHINE_ENDING):
            self._fail(service, how)
            return
        service.state, service.last_error, service.broken = "dead", how, True
        for run in [run for run in self._runs if self._waits_for(run, service)]:
            self._advance(run, RequestError(text))
        if self.lost:
            self.submit(self._halt(), exclusive=True, mends=True)
        else:
            self._stop_for(service.command.name, text, "io-error")

    def _lose(self, name: str, why: str) -> None:
        """Guest memory is lost. The machine stops, for whoever wants to look at it, and can only be ended."""
        if self.state == gateway_pb2.MACHINE_STARTING:
            self.end(1, why)
        elif not self.lost and self.state != gateway_pb2.MACHINE_ENDING:  # else another service has seen it, too
            self.lost = why
            self.stop = None
            self._stop_for(name, why, "internal-error")

    @property
    def _way_on(self) -> str:
        """What can be done about a machine that is stopped."""
        if self.lost:
            return "the machine can be looked at and ended, no more"
        return "`vmesh resume` tries again, `vmesh swap` puts another program in its place"

    def _stop_for(self, name: str, why: str, run_state: str) -> None:
        """The machine stops because of a service, or ends, if that is what was asked for."""
        stops = self.actions.failure == "pause"
        told = {"service": name, "reason": why, "action": "stop" if stops else "exit"}
        self.events.publish("__org.vmesh_SERVICE_FAILED", told)
        if not stops:
            self.end(1, why)
            return
        self.warnings.warn(name, f"{why}; {self._way_on}")
        if self.stop is None:
            self.stop = Stop(run_state, why, ran=self.state == gateway_pb2.MACHINE_RUNNING)
        self.submit(self._halt(), exclusive=True, mends=True)

    def _halt(self) -> Operation:
        return operations.halt(self.board, {service.command.name for service in self.broken})

    def _mend(self) -> Operation:
        """Give each broken device a next life; its deaths are counted afresh. RequestError if one is not there then."""
        names = [service.command.name for service in self.broken]
        for service in self.broken:
            service.broken = False
            service.deaths.clear()
            self._start_life(service, "is mended")
        if names:
            yield [Request(name, lifecycle_pb2.Health()) for name in names]

    def mended(self) -> None:
        """What the machine was stopped for is no more, if it is."""
        if not self.broken:
            self.stop = None

    def go_on_when_mended(self) -> None:
        """It ran before something else had it stand still."""
        if self.stop is not None:
            self.stop = replace(self.stop, ran=True)

    def goes_on_when_mended(self) -> bool:
        """Whether a machine that stands still does so only for what has just been mended."""
        return self.stop is not None and self.stop.ran and not self.broken

    def put_back(self, name: str, command: ServiceCommand) -> None:
        """What was to mend a broken device has not: it is as broken as before, and `command` is its program again."""
        service = self.services[name]
        service.command, service.on_trial, service.broken, service.successor = command, False, True, None
        service.state = "dead"
        if service.alive:
            _kill(service)

    def _waits_for(self, run: _Run, service: Service) -> bool:
        return any(run.requests[place].service == service.command.name for place in run.open)

    # A device's next life

    @property
    def _stopped(self) -> bool:
        """Whether the machine is paused, or may be so in the midst of an operation, or has yet to come in."""
        awaited = self.migration.stage in (Stage.AWAITED, Stage.LOADING)
        return self.paused or awaited or any(run.exclusive for run in self._runs)

    def _may_return(self, service: Service) -> bool:
        """Whether a service that has ended may have another life: a device, and whoever has done nothing yet if it was
        somebody else that started it."""
        if self.attached and not service.was_ready:
            return True
        return service.was_ready and service.command.name in self.board.devices

    def _restart(self, service: Service, how: str) -> None:
        """Start the next life of a device, unless it dies again and again."""
        service.deaths.append(time.monotonic())
        last = self._output.last_line(service.command.name)
        told = f"{how}; its last words: {last}" if last else how
        if self.lost:  # what it needs is not there
            self._break(service, how)
            service.last_error = told
            return
        if service.dies_too_often:
            self._break(service, f"{how}, for the {DEATHS}th time within {DEATHS_SECONDS:g} s")
            return
        service.last_error = told
        self._start_life(service, how)

    def _start_life(self, service: Service, how: str) -> None:
        """Start the process of the next epoch; `how` the former one ended."""
        service.state, service.welcomed, service.asked_at = "restarting", False, None
        service.finished = False  # what a life before has left in order, as it went by itself, is not the machine's end
        if self.state == gateway_pb2.MACHINE_ENDING:
            self._end_deadline = max(self._end_deadline, time.monotonic() + END_LIMIT)
        self._output.forget(service.command.name)  # the last words are one life's
        service.began = time.monotonic()
        if not self.attached:  # else its lives are counted where they are started
            service.epoch += 1
        try:
            former, service.link = service.link, self._link(service.command.name)
            former.close()
        except Exception as error:  # no descriptors
            self._spawned(service, None, str(said(error)))
            return
        if self._keeper is None:
            self._log.info("waiting for the next life", service=service.command.name, how=how)
            self._meet(service)
            return
        self._log.info("starting", service=service.command.name, how=how, epoch=service.epoch)
        # Memory hears first which life it is: what the former one has called itself is not to be believed.
        expected = memory_pb2.ExpectLife(name=service.command.name, epoch=service.epoch)
        try:
            self.services[self.board.memory].link.ask(expected, lambda packet: self._spawn(service))
        except PeerError as error:
            self._spawned(service, None, str(error))

    def _spawn(self, service: Service) -> None:
        assert self._keeper is not None
        if self.state == gateway_pb2.MACHINE_ENDING and not self._is_there(service):
            return  # the keeper may have ended
        more = ["--epoch", str(service.epoch)]
        if self.migration.stage in AWAY and service.command.module != EXTERNAL:
            more.append("--away")
        self._keeper.spawn(service.command, more, partial(self._spawned, service))

    def _spawned(self, service: Service, child: Child | None, failure: str) -> None:
        if child is None and (service.on_trial or service.leaving):
            service.state = "dead"
            self._remove(service) if service.leaving else self._failed_trial(service, failure)
            return
        if child is None:
            self._break(service, f"cannot be started again: {failure}")
            if self.state == gateway_pb2.MACHINE_ENDING:
                service.state = "dead"
                self._shut_down()
            self._maybe_ended()
            return
        if service.broken or self.services.get(service.command.name) is not service:
            self._reap(child)  # it is not waited for any more
            return
        awaited = self._is_there(service)
        service.child, service.alive = child, True
        try:
            self._meet(service)
        except Exception as error:  # no descriptors, and its end is one of its deaths
            self._unforeseen(error)
            _kill(service)
        self.tell_processes()
        ends = self.state == gateway_pb2.MACHINE_ENDING and not awaited
        if ends or service.successor is not None or service.leaving:
            _kill(service)

    def _reap(self, child: Child) -> None:
        """Have a process end that is nobody's."""

        def ended() -> None:
            os.waitpid(child.pid, 0)
            self.unwatch(child.pidfd)
            os.close(child.pidfd)

        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        os.close(child.output)
        self.watch(child.pidfd, ended)

    def _back(self, service: Service) -> None:
        """The next life is ready: what its former one was asked and had not answered is asked again."""
        took = f"{(time.monotonic() - service.began) * 1e3:.0f}"
        self._log.info("restarted", service=service.command.name, pid=service.child.pid, epoch=service.epoch, ms=took)
        self.events.publish(
            "__org.vmesh_SERVICE_RESTARTED",
            {"service": service.command.name, "epoch": service.epoch, "reason": service.last_error},
        )
        self.warnings.end(service.command.name)
        for run in list(self._runs):
            for place, (link, _) in list(run.open.items()):
                if run.requests[place].service == service.command.name and link is not service.link:
                    error = self._ask(run, place)
                    if error is not None:
                        self._advance(run, error)
                        break
        self._next_exclusive()

    # Another program in a device's place

    def put_in_place(self, name: str, successor: Successor, *, on_trial: bool) -> None:
        """End the process of a device, and start another program as its next life.

        On trial, the end of the new process fails what it was asked (RequestError), and no next life follows it.
        """
        service = self.services[name]
        service.successor, service.on_trial, service.broken = successor, on_trial, False
        service.deaths.clear()
        if service.alive:
            _kill(service)
        elif service.state == "dead":
            self._succeed(service)

    def accept(self, name: str) -> None:
        """The program on trial is the device from now on."""
        service = self.services[name]
        service.on_trial = False
        service.deaths.clear()  # they were another program's

    def add(self, command: ServiceCommand) -> None:
        """Start a device more, on trial: until `accept`, its end fails what it was asked."""
        service = Service(command, Child(-1, -1), self._link(command.name), time.monotonic(), epoch=0)
        service.on_trial, service.alive = True, False
        self.services[command.name] = service
        self.board = replace(self.board, devices=(*self.board.devices, command.name))
        self._output.forget(command.name)
        self._start_life(service, "is new")

    def remove(self, name: str) -> None:
        """Take a device out of the machine. It ends when it has brought out what the guest has written."""
        service = self.services[name]
        self.board = replace(self.board, devices=tuple(each for each in self.board.devices if each != name))
        service.leaving = True
        if service.state == "dead":
            self._remove(service)
            return
        if not service.alive:
            return  # its next life is being forked: killed when it is there
        if service.ready and not service.on_trial:
            with suppress(PeerError):
                service.link.ask(lifecycle_pb2.Shutdown(), lambda packet: None)
        else:
            _kill(service)
        self._loop.call_in(f"leaving {name}", END_LIMIT, lambda: _kill(service) if service.alive else None)

    def _remove(self, service: Service) -> None:
        """It has ended: forget it, and what it has left in the machine directory."""
        name = service.command.name
        self._loop.cancel(f"leaving {name}")
        service.link.close()
        self.services.pop(name, None)
        if self._keeper is not None:
            self._keeper.forget(name)
        elsewhere.remove(self.machine.elsewhere(name))
        for left in self.machine.device_files(name):
            with suppress(OSError):
                left.unlink()
        if not service.on_trial:
            self.events.publish("DEVICE_DELETED", {"device": name, "path": f"/machine/peripheral/{name}"})
        self._next_exclusive()

    def has(self, name: str) -> bool:
        """Whether a device is in the machine."""
        return name in self.board.devices

    def devices_refusal(self) -> str:
        """Why no device can come, go or be replaced now; empty if it can."""
        if self.attached:
            return "somebody else starts this machine's services"
        return run_states.refusal(self.migration.stage, Act.CHANGE_DEVICES)

    def last_words(self, name: str) -> str:
        """What the process of a service said last; empty if nothing."""
        return self._output.last_line(name)

    def _succeed(self, service: Service) -> None:
        assert service.successor is not None
        try:
            service.successor.prepare()
        except OSError as error:
            service.successor = None
            self._break(service, f"cannot be started again: {error}")
            return
        service.command, service.successor = service.successor.command, None
        self._output.forget(service.command.name)
        self._start_life(service, "was replaced")

    def _give_up(self, service: Service, how: str) -> None:
        """End a process on trial; `how` it has failed."""
        service.state, service.last_error = "hung", how
        _kill(service)

    def _failed_trial(self, service: Service, how: str) -> None:
        """It has ended, or was never there."""
        name = service.command.name
        service.state, service.last_error = "dead", how
        error = RequestError(": ".join(filter(None, (how, self.last_words(name)))))
        for run in [run for run in self._runs if self._waits_for(run, service)]:
            self._advance(run, error)

    # Time

    def _tick(self) -> None:
        """Some times a second, more often while the machine starts or ends."""
        settled = self.state in (gateway_pb2.MACHINE_RUNNING, gateway_pb2.MACHINE_PAUSED)
        again = min(_TICK, self._settings.health_interval) if settled else _QUICK_TICK
        self._loop.call_in("tick", again, self._tick)  # first, so that nothing keeps it from coming
        self._look()

    def _look(self) -> None:
        """At all deadlines."""
        now = time.monotonic()
        interval, limit = self._settings.health_interval, self._settings.health_limit
        if (lost := now - self._ticked) > max(1.0, min(2 * max(interval, 1.0), limit / 2)):
            self._forgive(lost)  # this process was stopped: the services owe nothing for that time
        self._ticked = now
        if self.state == gateway_pb2.MACHINE_ENDING:
            if now >= self._end_deadline:
                self._kill_all()
        else:
            self._check(now)
            if self.attached or self.uptime > _GATEWAY_DELAY:
                self._open_gateway()
        self._record()
        self.tell_health(self._health())

    def _health(self) -> dict[str, bool]:
        """Whether each service does what it is for, by name; those that nobody asks show it by their pulse."""
        health = {name: service.ready and service.alive for name, service in self.services.items()}
        for name in (KEEPER, MIGRATION) if self.attached else ():
            with suppress(OSError):
                health[name] = time.time() - self.machine.pulse(name).stat().st_mtime < _PULSE_SECONDS
        return health

    def _check(self, now: float) -> None:
        for run in [run for run in self._runs if now >= run.deadline]:
            names = [run.requests[place].service for place in run.open]
            self._advance(run, RequestError(f"no answer from {', '.join(names)} for {self._settings.health_limit:g} s"))
        # The cpu waits for all others to start: it is the last to blame.
        there = [service for service in self.services.values() if not service.broken]
        for service in sorted(there, key=lambda each: each.command.name == self.board.cpu):
            if self.attached:
                limit = self._settings.absence_limit if service.was_ready else self._settings.start_limit
                if not service.ready and now - service.began > limit:
                    self._fail(service, f"{service.last_error or 'did not come'}, for {limit:g} s")
                    return
            limit = self._settings.health_limit if service.was_ready else self._settings.start_limit
            if (
                not self.attached
                and service.state == "restarting"
                and not service.alive
                and now - service.began > limit
            ):
                self._spawned(service, None, f"the keeper has not started it within {limit:g} s")
                return
            if not self.attached and service.alive and not service.ready and now - service.began > limit:
                self._hung(service, f"is not ready {limit:g} s after its start")
                return
            if service.asked_at is not None and now - service.asked_at > self._settings.health_limit:
                self._hung(service, f"hangs: it owes an answer for {self._settings.health_limit:g} s")
                return
            if service.welcomed and service.asked_at is None and now >= service.ask_at:
                self._ask_health(service)

    def _ask_health(self, service: Service) -> None:
        service.asked_at = time.monotonic()
        with suppress(PeerError):  # the answer will then be missed
            service.link.ask(lifecycle_pb2.Health(), partial(self._report, service))

    def _hung(self, service: Service, how: str) -> None:
        if self.attached:  # it is not ours to kill: it may go on, or somebody else ends it
            service.state, service.last_error, service.asked_at = "hung", how, None
            service.ask_at, service.began = time.monotonic(), time.monotonic()
            return
        if service.leaving:
            pass
        elif service.command.name in self.board.devices and (service.was_ready or service.on_trial):
            self._log.info("killed", service=service.command.name, pid=service.child.pid, how=how)
            service.last_error, service.asked_at = how, None
            service.began = time.monotonic()
        else:
            self._fail(service, how)
        service.state = "hung"
        _kill(service)

    def _forgive(self, seconds: float) -> None:
        self._end_deadline += seconds
        for service in self.services.values():
            if service.asked_at is not None:
                service.asked_at += seconds
            service.began += seconds
        for run in self._runs:
            run.deadline += seconds

    # Operations

    def _begin(self, run: _Run) -> None:
        if self.state == gateway_pb2.MACHINE_ENDING:
            self._finish(run, StateError("the machine ends"))
        elif run.exclusive:
            self._waiting.append(run)
            self._next_exclusive()
        else:
            self._runs.append(run)
            self._advance(run, None)

    def _next_exclusive(self) -> None:
        if self.state == gateway_pb2.MACHINE_STARTING or any(run.exclusive for run in self._runs):
            return
        if not all(service.ready or service.broken for service in self.services.values()):
            return  # a device comes back first
        if not self._waiting:
            return
        run = self._waiting.popleft()
        if self.broken and not run.mends:
            why = self.lost or (self.stop.why if self.stop else "a device is broken")
            way = self._way_on if self.lost else "`vmesh resume` or `vmesh swap` comes first"
            self._finish(run, StateError(f"the machine is stopped: {why}; {way}"))
        else:
            self._runs.append(run)
            self._advance(run, None)

    def _advance(self, run: _Run, error: RequestError | None) -> None:
        """Step the operation with the answers it waited for, or with the error that one of them was."""
        self._forget(run)
        try:
            if error is not None:
                run.requests = run.operation.throw(error)
            elif run.begun:
                run.requests = run.operation.send(run.answers)
            else:
                run.requests = next(run.operation)
        except StopIteration:
            self._finish(run, None)
            return
        except Exception as failed:
            self._finish(run, self.as_failure(failed))
            return
        run.begun = True
        run.answers = [Packet()] * len(run.requests)
        run.deadline = time.monotonic() + self._settings.health_limit
        # All are asked, whoever cannot be: those that can are to go on, for instance.
        errors = [error for place in range(len(run.requests)) if (error := self._ask(run, place)) is not None]
        if errors or not run.requests:
            self._advance(run, errors[0] if errors else None)

    def _ask(self, run: _Run, place: int) -> RequestError | None:
        """Ask one service its part of a batch; gives why it cannot be."""
        request = run.requests[place]
        service = self.services[request.service]
        if service.on_trial and service.state == "dead" and service.successor is None:
            how = ": ".join(filter(None, (service.last_error, self.last_words(request.service))))
            return RequestError(f"it has ended: {how}")
        comes = (service.was_ready or service.on_trial) and not service.broken
        if comes and not service.ready and service.command.name in self.board.devices:
            run.open[place] = (None, 0)  # asked when it is back
            return None
        if not service.welcomed or not service.alive:
            return RequestError(f"service '{request.service}' is {service.state}")
        try:
            number = service.link.ask(request.body, partial(self._answered, run, place))
        except Exception as error:
            return RequestError(str(said(error)))
        run.open[place] = (service.link, number)
        return None

    def _answered(self, run: _Run, place: int, packet: Packet) -> None:
        run.open.pop(place, None)
        name = run.requests[place].service
        match packet.WhichOneof("body"):
            case "error":
                text = f"service '{name}': {one_line(str(from_message(packet.error)))}"
                bad_request = packet.error.code == common_pb2.ERROR_BAD_REQUEST
                self._advance(run, RequestError(text, callers_fault=bad_request))
                return
            case "refused":
                self._advance(run, RequestError(f"service '{name}' refused: {one_line(packet.refused.reason)}"))
                return
            case "health_report":
                self._report(self.services[name], packet)
        run.answers[place] = packet
        if not run.open:
            self._advance(run, None)

    def _forget(self, run: _Run) -> None:
        for link, number in run.open.values():
            if link is not None:
                link.forget(number)
        run.open.clear()

    def _finish(self, run: _Run, error: Exception | None) -> None:
        self._forget(run)
        if run in self._runs:
            self._runs.remove(run)
        if run.exclusive and self.state not in (gateway_pb2.MACHINE_STARTING, gateway_pb2.MACHINE_ENDING):
            self._observe_state()
            self._record()  # `vmesh ps` sees what was done as soon as whoever asked for it is told
            self._resume_strays()
        if error is None:
            run.future.set_result(None)
        else:
            run.future.set_exception(error)
        self._next_exclusive()

    def _resume_strays(self) -> None:
        """A device that was restarted in the midst of a resume was paused, and may have missed it."""
        for service in self.services.values():
            if self.state == gateway_pb2.MACHINE_RUNNING and service.ready and service.state == "paused":
                with suppress(PeerError):
                    service.link.ask(lifecycle_pb2.Resume(), lambda packet: None)

    # The end

    def _shut_down(self) -> None:
        """Ask the next group to end once all of the one before it are gone: the first once all devices are there."""
        if not self._shutting_down and any(map(self._comes_back, self.services.values())):
            return
        while self._to_shut_down and not any(self._is_there(self.services[name]) for name in self._shutting_down):
            self._shutting_down = self._to_shut_down.popleft()
            if not self.failure:
                self._end_deadline = max(self._end_deadline, time.monotonic() + END_LIMIT)
            for service in (self.services[name] for name in self._shutting_down):
                if service.alive and service.welcomed:
                    self._ask_to_end(service)
                elif service.alive and not (service.was_ready and self._has_more(service)):
                    _kill(service)  # it waits for others to start, and has nothing to bring to an end

    def _ask_to_end(self, service: Service) -> None:
        with suppress(PeerError):  # it will then be killed
            service.link.ask(lifecycle_pb2.Shutdown(), partial(self._shut, service))

    def _has_more(self, service: Service) -> bool:
        """Whether a device that has died while the machine ends has another life, which brings out what the former one
        has left in its slot, and handles what harts have written since."""
        return (
            self._keeper is not None
            and not self.failure
            and not self.lost
            and self._end_deadline < float("inf")
            and self._may_return(service)
            and not (service.finished or service.broken or service.leaving or service.on_trial)
            and not service.dies_too_often
        )

    def _is_there(self, service: Service) -> bool:
        """Whether somebody's end is waited for: a process', or at the machine's end that of a device's next life."""
        return service.alive or self._comes_back(service)

    def _comes_back(self, service: Service) -> bool:
        """Whether the machine ends, and waits for the next life of a device."""
        ending = self.state == gateway_pb2.MACHINE_ENDING
        return ending and service.state == "restarting" and not service.welcomed and self._has_more(service)

    def _shut(self, service: Service, packet: Packet) -> None:
        """It has brought out what the guest has written. Its end is not seen where it is on another host."""
        service.finished |= packet.WhichOneof("body") == "done"
        if service.link.remote and service.alive:
            service.link.close()
            self._ended(service, "has ended")

    def _kill_all(self) -> None:
        self._end_deadline = float("inf")
        for service in self.services.values():
            if service.alive:
                self._log.info("killed, as it did not end in time", service=service.command.name)
                _kill(service)
        if self.attached:
            self._loop.stop()

    def _record(self) -> None:
        services = tuple(
            ServiceRecord(s.command.name, s.command.kind, s.child.pid, s.epoch, s.state) for s in self.services.values()
        )
        record = MachineRecord(self.machine.name, os.getpid(), self._created, _MACHINE_STATES[self.state], services)
        if record == self._recorded:
            return
        try:
            self.machine.write_record(record)
        except OSError as error:  # `vmesh ps` shows the former one; written when there is room: each tick tries
            self.warnings.warn(RECORD, f"cannot be written: {error.strerror}")
        else:
            self._recorded = record
            self.warnings.end(RECORD)


def _board(commands: Sequence[ServiceCommand]) -> Board:
    kinds = {command.kind: command.name for command in commands}
    devices = tuple(command.name for command in commands if command.kind not in ("memory", "cpu", "cache"))
    return Board(kinds["memory"], kinds.get("cpu", ""), devices, kinds.get("cache", ""))


def by_hand(command: ServiceCommand) -> bool:
    """Whether somebody else starts what this command only waits for."""
    return command.module == EXTERNAL and "--command" not in command.arguments


def _process(command: ServiceCommand, child: Child) -> int:
    """The process that is a service; 0: one that is started by hand, and `child` only waits for it."""
    return 0 if by_hand(command) else child.pid


def _kill(service: Service) -> None:
    if service.child.pidfd < 0:  # somebody else's
        return
    signal.pidfd_send_signal(service.child.pidfd, signal.SIGKILL)
