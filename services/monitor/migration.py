"""The monitor's side of migration: the process that carries the stream, its requests, and what is known of it.

The process is forked by the keeper when it is first needed. It asks for what it cannot do by itself (pause, save, load,
go on), which becomes operations of the supervisor. All of this is in the supervisor's thread but `request`.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from vmesh import listening, slot
from vmesh.errors import PeerError, from_message, said
from vmesh.log import Log
from vmesh.migration.outcome import ENDED
from vmesh.migration.states import in_messages
from vmesh.spawn import Child, ServiceCommand, describe_exit
from vmesh.v1 import cpu_pb2, gateway_pb2, lifecycle_pb2, migration_pb2
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.monitor import operations, run_states
from vmesh_services.monitor.custody import MIGRATION as NAME
from vmesh_services.monitor.custody import Held
from vmesh_services.monitor.keeper import Keeper
from vmesh_services.monitor.link import Link
from vmesh_services.monitor.operations import Operation, Request, RequestError
from vmesh_services.monitor.output import Output, one_line
from vmesh_services.monitor.run_states import Act
from vmesh_services.monitor.supervisor.supervisor import Supervisor

DEATHS, DEATHS_SECONDS = 5, 10.0  # a process that dies so often within so long is started again only when asked for
DEFER = "defer"
_END_MS = 1000  # for a process that was killed to end
_START_SECONDS = 30.0
DEFAULT_PARAMETERS = migration_pb2.MigrationParameters(
    max_bandwidth=128 << 20,
    downtime_limit_ms=300,
    max_postcopy_bandwidth=0,
    max_package_bytes=(1 << 32) - 1,
    cpu_throttle_initial=20,
    cpu_throttle_increment=10,
    max_cpu_throttle=99,
    zstd_level=0,
)
DEFAULT_CAPABILITIES = migration_pb2.MigrationCapabilities(
    postcopy_ram=False, auto_converge=False, return_path=True, postcopy_preempt=True, events=False
)


def state_name(state: migration_pb2.MigrationState.ValueType) -> str:
    """QEMU's name of a MigrationStatus."""
    return migration_pb2.MigrationState.Name(state).removeprefix("MIGRATION_").lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class IncomingOptions:
    """What the command line says: where to listen (or `defer`), or which snapshot to load, then not to run."""

    incoming: str = ""
    load: str = ""
    stay_paused: bool = False


_NO_ERRORS = ("start_postcopy", "cancel")  # behind the end of a migration, as whoever asks cannot know that it has come
_SEEN = ("--base", "--irq", "--harts", "--features")  # options whose values the guest can see
_ACTS = {"outgoing": Act.LEAVE, "incoming": Act.COME_IN, "save": Act.SAVE, "load": Act.LOAD}  # of MigrationRequest


class Migration:
    """Writes down in `custody` what it has of the machine."""

    def __init__(
        self, supervisor: Supervisor, keeper: Keeper | None, log: Log, output: Output, options: IncomingOptions
    ) -> None:
        self.parameters = migration_pb2.MigrationParameters()
        self.parameters.CopyFrom(DEFAULT_PARAMETERS)
        self.capabilities = migration_pb2.MigrationCapabilities()
        self.capabilities.CopyFrom(DEFAULT_CAPABILITIES)
        self.custody = custody = supervisor.condition.custody
        custody.run_state = "inmigrate" if options.incoming else "restore-vm" if options.load else ""
        custody.stays_paused = options.stay_paused
        self._supervisor, self._condition = supervisor, supervisor.condition
        self._keeper, self._log, self._output = keeper, log, output
        self._options = options
        self._child: Child | None = None
        self._link: Link | None = None
        self._epoch = 0
        self._spawning = self._welcomed = False
        self._waiting: list[tuple[migration_pb2.MigrationRequest, Future[None]]] = []
        self._open: set[Future[None]] = set()
        self._ended: list[Future[migration_pb2.MigrationStatus]] = []
        self._given: dict[str, lifecycle_pb2.ServiceState] = {}  # the states of the request under way
        self._first = bool(options.load or options.incoming not in ("", DEFER))  # without it the machine ends
        self._waiting_for_place: list[Callable[[], None]] | None = None  # until an incoming machine can be connected to
        if options.incoming not in ("", DEFER):
            self._waiting_for_place = []
        self._deaths: deque[float] = deque(maxlen=DEATHS)  # of the process
        supervisor.started = self._started
        supervisor.when_ending(self.close)

    @property
    def status(self) -> migration_pb2.MigrationStatus:
        return self.custody.status

    @property
    def under_way(self) -> bool:
        return self.custody.under_way

    def request(self, request: migration_pb2.MigrationRequest) -> Future[None]:
        """From any thread: ask the process for something. The future fails with RequestError."""
        asked: Future[None] = Future()
        self._supervisor.call(lambda: self._request(request, asked))
        return asked

    def request_to_end(self, request: migration_pb2.MigrationRequest) -> Future[migration_pb2.MigrationStatus]:
        """From any thread: ask for what is to end, such as a snapshot. The future has the status of its end."""
        ended: Future[migration_pb2.MigrationStatus] = Future()
        asked: Future[None] = Future()

        def begun(asked: Future[None]) -> None:
            if error := asked.exception():
                self._ended.remove(ended)
                ended.set_exception(error)

        def begin() -> None:
            self._ended.append(ended)
            asked.add_done_callback(begun)
            self._request(request, asked)

        self._supervisor.call(begin)
        return ended

    def set(self, settings: gateway_pb2.MigrateSettings) -> None:
        """Change parameters and capabilities; what is under way hears of it. Raises RequestError."""
        known = {field.name for field in self.parameters.DESCRIPTOR.fields}
        switches = {field.name for field in self.capabilities.DESCRIPTOR.fields}
        if unknown := set(settings.names) - known - switches:
            raise RequestError(f"no migration parameter or capability '{min(unknown)}'", callers_fault=True)
        listens = self.status.incoming and self.status.state == migration_pb2.MIGRATION_SETUP  # nobody has connected
        if self.under_way and not listens and switches & set(settings.names):
            raise RequestError("capabilities cannot change while a migration is under way", callers_fault=True)
        for name in settings.names:
            given = settings.parameters if name in known else settings.capabilities
            setattr(self.parameters if name in known else self.capabilities, name, getattr(given, name))
        if self._welcomed and self.under_way:
            request = migration_pb2.MigrationRequest(adjust=migration_pb2.AdjustMigration())
            self._request(request, Future())

    def information(self) -> gateway_pb2.MigrateInformation:
        return gateway_pb2.MigrateInformation(
            status=self.status, parameters=self.parameters, capabilities=self.capabilities
        )

    def prepare(self) -> None:
        """The services are being started: what the command line asks for will need the process soon."""
        if self._options.load or self._waiting_for_place is not None:
            self._spawn()

    def when_reachable(self, work: Callable[[], None]) -> None:
        """Call `work` now, or, of a machine that is told where to come in, as soon as it listens there."""
        if self._waiting_for_place is None:
            work()
        else:
            self._waiting_for_place.append(work)

    def _started(self) -> None:
        self.machine_started()
        self.when_reachable(self._supervisor.let_in)

    def machine_started(self) -> None:
        """Every service is there: what was on the command line begins."""
        options = self._options
        if options.load:
            request = migration_pb2.MigrationRequest(load=options.load)
            self.custody.held = Held(ran=not options.stay_paused, run_state="")
        elif options.incoming and options.incoming != DEFER:
            request = migration_pb2.MigrationRequest(incoming=options.incoming)
        else:
            return
        asked: Future[None] = Future()
        asked.add_done_callback(self._first_asked)
        self._request(request, asked, first=True)

    def close(self) -> None:
        """The machine ends."""
        if self._child is not None:
            signal.pidfd_send_signal(self._child.pidfd, signal.SIGKILL)
            if self.under_way and self.status.incoming and self.status.uri.startswith("unix:"):
                ended = select.poll()
                ended.register(self._child.pidfd, select.POLLIN)
                ended.poll(_END_MS)  # until then it listens
                with suppress(OSError):  # what was killed leaves its socket
                    listening.remove_stale(Path(self.status.uri.removeprefix("unix:")))

    # The process

    def _request(self, request: migration_pb2.MigrationRequest, asked: Future[None], *, first: bool = False) -> None:
        request.parameters.CopyFrom(self.parameters)
        request.capabilities.CopyFrom(self.capabilities)
        request.machine.CopyFrom(self._configuration())
        kind = request.WhichOneof("request")
        reason = run_states.refusal(self._condition.stage, _ACTS[kind]) if kind in _ACTS and not first else ""
        if kind in _ACTS and self._condition.roster.cache:
            reason = "a machine whose cpu is on another host than RAM cannot be moved or saved"
        if kind == "outgoing":
            reason = reason or self._temporary_disk()
            self.custody.hands_over = self.parameters.handover
        if kind == "start_postcopy" and not self.capabilities.postcopy_ram:
            reason = "start-postcopy: expected the capability postcopy-ram before the migration"
        if reason:
            asked.set_exception(RequestError(reason, callers_fault=True))
        elif kind in _NO_ERRORS and self.status.state in ENDED[1:] and not self.status.snapshot:
            asked.set_result(None)
        elif self._welcomed:
            self._ask(request, asked)
        elif self.under_way and self._child is None and not self._spawning and kind != "take_over":
            self._take_over()
            self._waiting.append((request, asked))
        else:
            self._waiting.append((request, asked))
            self._spawn()

    def _take_over(self) -> None:
        """Have another life of the process go on where the former one was killed."""
        self._request(migration_pb2.MigrationRequest(take_over=migration_pb2.TakeOver()), Future())

    def _temporary_disk(self) -> str:
        """Why the machine cannot leave this host's files, if so."""
        for service in self._condition.services.values():
            if service.command.kind == "virtio-blk" and "--snapshot" in service.command.arguments:
                return f"disk '{service.command.name}' is written to a temporary file (-snapshot), which does not move"
        return ""

    def _spawn(self) -> None:
        if self._spawning or self._child is not None:
            return
        self._spawning = True
        if self._keeper is None:  # somebody else starts it
            self._connect().watch_loss(self._supervisor.loop, lambda: self._gone("the migration service is gone"))
            return
        self._epoch += 1
        machine = self._supervisor.machine
        command = ServiceCommand(NAME, NAME, "vmesh_services.migration", ("--machine", str(machine.path)))
        self._supervisor.loop.call_in("migration starts", _START_SECONDS, self._late)
        self._keeper.spawn(command, ["--epoch", str(self._epoch)], self._spawned)

    def _late(self) -> None:
        """Whoever waits for the process has waited long enough."""
        if self._welcomed:
            return
        if self._child is not None:
            signal.pidfd_send_signal(self._child.pidfd, signal.SIGKILL)
        elif self._spawning:
            self._spawned(None, f"the keeper has not started it within {_START_SECONDS:g} s")

    def _spawned(self, child: Child | None, failure: str) -> None:
        self._spawning = False
        if child is None:
            self._fail_waiting(f"the migration service cannot be started: {failure}")
            return
        loop = self._supervisor.loop
        self._child = child
        loop.watch(child.pidfd, read=self._dead)
        loop.watch(child.output, read=partial(self._output.drain, NAME, child.output))
        self._supervisor.lives.introduce(NAME, child.pid)
        try:
            self._connect()
        except Exception as error:  # no descriptors: whoever waits for it hears of its end
            self._log.info("cannot connect", service=NAME, reason=said(error))
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        if self._condition.ending:
            self.close()

    def _connect(self) -> Link:
        self._link = link = self._supervisor.lives.connect(NAME, self._unasked)
        link.hello(self._welcome)
        return link

    def _welcome(self, packet: Packet) -> None:
        if packet.WhichOneof("body") != "welcome":
            self._fail_waiting("the migration service refuses the monitor")
            return
        self._welcomed = True
        waiting, self._waiting = self._waiting, []
        for request, asked in waiting:
            self._ask(request, asked)

    def _dead(self) -> None:
        child = self._child
        assert child is not None
        _, status = os.waitpid(child.pid, 0)
        self._output.drain(NAME, child.output)
        for fd in (child.pidfd, child.output):
            self._supervisor.loop.watch(fd)
            os.close(fd)
        self._child = None
        self._supervisor.lives.introduce(NAME, 0)
        how = f"the migration service {describe_exit(status)}"
        if last := self._output.last_line(NAME):
            how += f"; its last words: {last}"
        self._gone(how)

    def _gone(self, how: str) -> None:
        if self._link is not None:
            self._link.close()
        self._link, self._welcomed, self._spawning = None, False, False
        self._fail_waiting(how)
        if not self._condition.ending and self.under_way:
            self._died_under_way(how)

    def _died_under_way(self, how: str) -> None:
        """What becomes of the machine is for the record to say that the process wrote before each step of no return."""
        written = slot.stored(self._supervisor.machine.path / f"{NAME}.slot")
        record = migration_pb2.MigrationRecord.FromString(written or b"")
        status = migration_pb2.MigrationStatus()
        status.CopyFrom(self.status)
        status.error = how
        again = bool(record.session or record.snapshot)
        step = self._restore(None if status.snapshot else cpu_pb2.CatchUp(), outgoing=not status.incoming)
        if record.snapshot:
            step = self._restore() if record.loaded else self._stay_so()
        elif record.session:
            status.state = migration_pb2.MIGRATION_POSTCOPY_PAUSED
        elif record.running or (record.switched and record.incoming):
            status.state = migration_pb2.MIGRATION_COMPLETED
        else:
            status.state = migration_pb2.MIGRATION_FAILED
        if record.switched and record.incoming:
            step = self._stay() if record.stay_paused else self._go(0, cpu_pb2.CatchUp())
        elif record.switched:
            step = self._moved()
            if not record.running and not record.session:
                status.error += (
                    "; the destination may have been told to run the guest: it stays paused here, and if it does not "
                    "run there, `vmesh resume` lets it go on"
                )
        self._carry_out(step, lambda error: self._log.info("after its death", error=error), mends=True)
        self._take(status)
        now = time.monotonic()
        self._deaths.append(now)
        if again and (len(self._deaths) < DEATHS or now - self._deaths[0] > DEATHS_SECONDS):
            self._take_over()
        elif record.snapshot:
            self._supervisor.end(1, f"{how}, for the {DEATHS}th time within {DEATHS_SECONDS:g} s")

    def _fail_waiting(self, reason: str) -> None:
        failed = [asked for _, asked in self._waiting] + list(self._open)
        self._waiting.clear()
        self._open.clear()
        for asked in failed:
            asked.set_exception(RequestError(reason))

    def _ask(self, request: migration_pb2.MigrationRequest, asked: Future[None]) -> None:
        def answered(packet: Packet) -> None:
            self._open.discard(asked)
            if packet.WhichOneof("body") == "error":
                error = from_message(packet.error)
                asked.set_exception(RequestError(one_line(str(error)), callers_fault=True))
            else:
                asked.set_result(None)

        assert self._link is not None
        self._open.add(asked)
        try:
            self._link.ask(request, answered)
        except PeerError as error:
            self._open.discard(asked)
            asked.set_exception(RequestError(str(error)))

    def _configuration(self) -> migration_pb2.Configuration:
        made = migration_pb2.Configuration(board="virt", machine=self._supervisor.machine.name)
        for command in [service.command for service in self._condition.services.values()]:
            arguments = command.arguments
            seen = {option[2:]: value for option, value in pairwise(arguments) if option in _SEEN}
            made.services.add(name=command.name, kind=command.kind, seen=seen)
            if command.kind == "virtio-blk" and "--file" in arguments:
                path = arguments[arguments.index("--file") + 1]
                made.disks.add(service=command.name, path=path)
        return made

    # What it says

    def _unasked(self, packet: Packet) -> None:
        match packet.WhichOneof("body"):
            case "migration_report":
                self._take(packet.migration_report.status)
            case "machine_request":
                self._machine_request(packet.machine_request)
            case "notice":
                self._log.info("notice", service=NAME, text=packet.notice.text)
                if packet.notice.HasField("fault"):
                    self._supervisor.end(1, f"service '{NAME}': {one_line(packet.notice.fault.reason)}")

    def _take(self, status: migration_pb2.MigrationStatus) -> None:
        before = self.status.state
        self.status.CopyFrom(status)
        if status.state == before:
            return
        self._supervisor.events.publish("MIGRATION", {"status": state_name(status.state)})
        if status.state in ENDED:
            self._conclude(migration_pb2.MigrationStatus.FromString(status.SerializeToString()))

    def _conclude(self, status: migration_pb2.MigrationStatus) -> None:
        """It has ended. Whatever it has left, a machine that it held is as it was before."""
        failed = status.state != migration_pb2.MIGRATION_COMPLETED
        if failed and self._first:
            what = "-loadvm" if self._options.load else "the incoming migration failed"
            self._supervisor.end(1, f"{what}: {one_line(status.error)}")
        self._first = False
        ended, self._ended = self._ended, []

        def restored(error: str) -> None:
            if error and not self._condition.ending:
                self._log.warning("not as it was before the migration", error=error)
            self._supervisor.run_state.try_reset()
            for future in ended:
                future.set_result(status)

        self._carry_out(self._restore(), restored, mends=True)

    def _first_asked(self, asked: Future[None]) -> None:
        if error := asked.exception():
            self._supervisor.end(1, f"{'-loadvm' if self._options.load else '-incoming'}: {error}")
            return
        waiting, self._waiting_for_place = self._waiting_for_place or [], None
        for work in waiting:
            work()

    # What it wants done

    def _machine_request(self, request: migration_pb2.MachineRequest) -> None:
        self._given.update((each.service, each.state) for each in request.states)
        if request.more:
            return
        given, self._given = self._given, {}
        saved: dict[str, lifecycle_pb2.ServiceState] = {}
        roster = self._condition.roster
        match request.action:
            case migration_pb2.MACHINE_STOP:
                operation = self._stop(request.number, None)
            case migration_pb2.MACHINE_SAVE:
                operation = self._stop(request.number, saved)
            case migration_pb2.MACHINE_CHECK | migration_pb2.MACHINE_LOAD:
                operation = self._load(given, check_only=request.action == migration_pb2.MACHINE_CHECK)
            case migration_pb2.MACHINE_HAND_OVER:
                operation = operations.hand_over(roster)
            case migration_pb2.MACHINE_GO:
                operation = self._go(request.number, _catch_up(request), reset_due=request.reset_due)
            case migration_pb2.MACHINE_STAY:
                operation = self._stay(reset_due=request.reset_due)
            case migration_pb2.MACHINE_GO_ON:
                operation = self._restore(_catch_up(request))
            case migration_pb2.MACHINE_MOVED:
                operation = self._moved()
            case _:
                self._answer(request.number, "no such action")
                return
        mends = request.action in (migration_pb2.MACHINE_GO_ON, migration_pb2.MACHINE_MOVED)
        self._carry_out(operation, lambda error: self._answer(request.number, error, saved), mends=mends)

    def _carry_out(self, operation: Operation, done: Callable[[str], object], *, mends: bool = False) -> None:
        """`mends`: also while a device is broken, which is no reason to keep a machine in a migration's hands."""

        def finished(future: Future[None]) -> None:
            error = future.exception()
            done(one_line(str(error)) if error else "")

        self._supervisor.submit(operation, exclusive=True, mends=mends).add_done_callback(finished)

    def _answer(
        self,
        number: int,
        error: str,
        saved: dict[str, lifecycle_pb2.ServiceState] | None = None,
        stopped_ns: int = 0,
    ) -> None:
        if self._link is None:
            return
        ran = self.custody.held is not None and self.custody.held.ran
        try:
            for part, more in in_messages(saved if saved and not error else {}):
                answer = migration_pb2.MachineAnswer(
                    number=number, error=error, ran=ran, states=part, more=more, stopped_ns=stopped_ns,
                    reset_due=self._condition.reset_due,
                )  # fmt: skip
                self._link.ask(answer, lambda packet: None)
        except PeerError as failed:  # it hangs, and the user can cancel; or the states are too long
            with suppress(PeerError):
                answer = migration_pb2.MachineAnswer(number=number, error=error or one_line(str(failed)))
                self._link.ask(answer, lambda packet: None)

    def _stop(self, number: int, states: dict[str, lifecycle_pb2.ServiceState] | None) -> Operation:
        """For the switch. The answer is sent as soon as everything stands still."""
        if self.custody.held is None:
            self.custody.held = Held(self._condition.running, self.custody.run_state)
        if self.custody.run_state != "inmigrate":
            loads = "restore-vm" if self.status.incoming else "save-vm"
            self.custody.run_state = loads if self.status.snapshot else "finish-migrate"
        roster, status = self._condition.roster, cpu_pb2.CpuStatus()
        try:
            yield from operations.quiesce(roster, states, None if states is None else status)
        except RequestError:
            yield from self._restore()
            raise
        self._answer(number, "", states, status.stopped_ns)
        if states:
            states.clear()  # they are on their way
        yield operations.health(roster)

    def _load(self, states: Mapping[str, lifecycle_pb2.ServiceState], *, check_only: bool) -> Operation:
        yield from operations.load(self._condition.roster, states, check_only=check_only)
        if self.custody.held is not None and self.custody.run_state != "inmigrate":
            # What was checked is loaded next, its memory first.
            self.custody.held.changed = check_only
            if not check_only:
                self.custody.held.run_state = ""
                self._supervisor.run_state.came_in()

    def _go(self, number: int, catch_up: cpu_pb2.CatchUp | None, *, reset_due: bool = False) -> Operation:
        """An incoming machine goes, once. The answer is sent at once: the source counts the downtime to it."""
        if self.custody.run_state != "inmigrate":
            return
        if not self.custody.stays_paused:
            yield from operations.start(self._condition.roster, catch_up)
        self._come_in(reset_due=reset_due)
        self._answer(number, "")
        yield operations.health(self._condition.roster)

    def _stay(self, *, reset_due: bool = False) -> Operation:
        """An incoming machine has come in paused."""
        self._come_in(reset_due=reset_due)
        yield []

    def _come_in(self, *, reset_due: bool) -> None:
        self.custody.held, self.custody.run_state, self._first = None, "", False
        self._supervisor.run_state.came_in()
        if reset_due:
            self._supervisor.run_state.reset_for_guest()

    def _stay_so(self) -> Operation:
        """It is half one machine, half another, and goes nowhere before that is mended."""
        yield []

    def _restore(self, catch_up: cpu_pb2.CatchUp | None = None, *, outgoing: bool = False) -> Operation:
        """As before `_stop`, if it has not been let go since. `outgoing`: it may have been slowed down by who does not
        live to undo it."""
        roster = self._condition.roster
        if outgoing and roster.cpu:
            yield [Request(roster.cpu, cpu_pb2.Throttle(percent=0))]
        held, self.custody.held = self.custody.held, None
        if held is None:
            return
        self.custody.run_state = "internal-error" if held.changed else held.run_state
        if held.ran and not held.changed and self._condition.broken:
            self._supervisor.run_state.go_on_when_mended()
        elif held.ran and not held.changed:
            try:
                yield from operations.resume(roster, catch_up)
            except RequestError:
                yield from operations.go_on(roster)
                raise
        self._supervisor.run_state.try_reset()

    def _moved(self) -> Operation:
        self.custody.held, self.custody.run_state = None, "postmigrate"
        self._condition.reset_due = False  # it is the destination's to make
        yield []


def _catch_up(request: migration_pb2.MachineRequest) -> cpu_pb2.CatchUp | None:
    return request.catch_up if request.HasField("catch_up") else None
