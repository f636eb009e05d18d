"""The runtime under every service: command line, log, ROUTER, lifeline, lifecycle requests, signals, exit status.

A service is a class with the interface `Service` and a `main` that parses its command line and calls `run`. Exit
status: 0 after Shutdown, SIGTERM or the end of the lifeline; 1 after an error, which is one line on stderr; 2 for a bad
command line.

What fails without having been foreseen fails one request, which is answered with an Error; what nobody has asked for is
logged and told to the monitor; and the service goes on. A service with `undone_by_death` ends instead: what it had
half done is in no slot, and its next life begins with what is.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import NoReturn

import zmq
from google.protobuf.message import Message

from vmesh import addresses, curve, errors, lifeline, limits, mapping, privileges, stdio, wire
from vmesh.answers import Answers
from vmesh.files import FileServer
from vmesh.log import Log
from vmesh.loop import Inbox, Loop
from vmesh.machine import MachineDirectory, MachineError
from vmesh.privileges import Capability
from vmesh.time import Clock, HostClock
from vmesh.trace import Recorder
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import lifecycle_pb2 as lifecycle
from vmesh.v1.common_pb2 import Notice, Role, Severity, Welcome
from vmesh.v1.files_pb2 import FilesOffered
from vmesh.v1.packet_pb2 import Packet

_KEPT_NOTICES = 64
_ONLY_READ = ("health", "save", "trace_take")
_NEEDS_MEMORY = ("save", "load", "hand_over", "resume", "reset")
_MEANWHILE_SECONDS, _DEFERRED = 0.2, 4096
_SAID_CHARACTERS = 200  # of a complaint's text
_END_SECONDS = 8.0  # for the monitor to end the machine, once a vital service was asked to
_LOOK_SECONDS = 1.0  # between two looks whether the machine is still there, without a lifeline


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message}\n")
        sys.exit(2)


def epoch(options: argparse.Namespace, machine: MachineDirectory) -> int:
    """Which life of the service this is: as whoever started it says, else the first, if somebody holds its lifeline and
    counts, else one more than the machine directory has counted."""
    counted: int = options.epoch
    return counted or (1 if options.lifeline >= 0 else machine.next_epoch(options.name))


def parser(kind: str, description: str | None) -> Parser:
    """The options that every service has; `kind` names it in errors."""
    made = Parser(prog=f"vmesh-{kind}", description=description, allow_abbrev=False)
    made.add_argument("--machine", type=Path, required=True, metavar="DIR", help="the machine directory")
    made.add_argument("--name", default=kind, help="the name of this service in the machine (default: %(default)s)")
    made.add_argument("--epoch", type=positive, default=0, metavar="N", help="the count of its lives, from 1")
    made.add_argument("--incoming", action="store_true", help="begin paused: the machine's state is to come")
    made.add_argument("--away", action="store_true", help="a later life: the machine is not here")
    for name, text in (("--listen", "be there for other hosts, with --keys"), ("--endpoint", "where they find it")):
        made.add_argument(name, type=addresses.tcp, metavar=addresses.TCP, help=text)
    addresses.add_options(made)
    made.add_argument("--monitor", type=int, default=0, metavar="PID", help="the one process that is the monitor")
    made.add_argument("--processes", type=int, default=-1, metavar="FD", help="a pipe that says who is whom at first")
    made.add_argument("--lifeline", type=int, default=-1, metavar="FD", help="a pipe at whose end this process ends")
    return made


def number(text: str) -> int:
    """An address or number, in any base that Python knows: 0x10000000."""
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no number: expected e.g. 4096 or 0x1000") from None


def positive(text: str) -> int:
    """A number above 0."""
    if (value := number(text)) <= 0:
        raise argparse.ArgumentTypeError(f"'{text}': expected a number above 0")
    return value


def size(text: str) -> int:
    """A size in bytes, with K, M, G or T for powers of 1024: 512M."""
    unit = {"K": 10, "M": 20, "G": 30, "T": 40}.get(text[-1:].upper())
    try:
        value = int(text, 0) if unit is None else int(text[:-1], 0) << unit
    except ValueError:
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no size: expected e.g. 65536, 0x10000, 512M or 2G")
    return value


class Service:
    """What the runtime asks of a service. A method that raises a VmeshError answers the request with it."""

    kind = "service"
    vital = False  # there is no machine without it: asked to end by somebody else than the monitor, it has all end
    begins_paused = False  # as after `pause`, until the monitor says Resume
    undone_by_death = False  # what fails without being foreseen ends this life; but for requests that only read

    def start(self) -> None:
        """The ROUTER listens: connect to others, attach. An error ends the service."""

    def welcome(self, client: wire.Client) -> Welcome:
        """The answer to a Hello; raise to refuse."""
        return Welcome()

    def greeted(self, client: wire.Client) -> None:
        """The client has been sent its Welcome."""

    def handle(self, client: wire.Client, packet: Packet) -> Message | None:
        """A request other than those of the lifecycle; the answer, or None if it is sent later or was sent already."""
        raise errors.BadRequest(f"{packet.WhichOneof('body')} is not served by a {self.kind}")

    def pause(self) -> None:
        """Begin nothing new."""

    def halt(self) -> None:
        """As `pause`, but at once, whoever is waited for."""
        self.pause()

    def drain(self, updates: dict[str, int]) -> int:
        """Finish what is in flight; gives the sequence number of the last update sent (devices)."""
        return 0

    def save(self) -> lifecycle.ServiceState:
        raise errors.BadRequest(f"a {self.kind} has no state to save")

    def hand_over(self) -> None:
        """Let go of what only one machine may hold: another is about to run with the state saved. `resume` takes it."""

    def load(self, state: lifecycle.ServiceState, check_only: bool) -> None:
        raise errors.BadState(f"a {self.kind} has no state to load")

    def resume(self) -> None:
        """Go on after `pause`."""

    def reset(self) -> None:
        """Back to the state after power-on."""

    def shutdown(self) -> None:
        """Bring out what the guest has written; the process ends next."""

    def orphaned(self) -> None:
        """The lifeline has ended; the process ends next. Do not wait for anybody."""

    def lost_memory(self) -> None:
        """Guest memory is lost (`Runtime.outlive_loss`): do no harm until the monitor says Pause."""

    def trace(self, on: bool) -> None:
        """Record in `Runtime.recorder` what happens on the bus, or no more. It may be on already."""

    def counters(self) -> dict[str, int]:
        """For HealthReport, beside those of the connections."""
        return {}


class Runtime:
    """One running service: who it is, and what it may use.

    Raises VmeshError if it cannot listen in the machine directory.
    """

    def __init__(self, options: argparse.Namespace, unread: int = wire.QUEUE_MESSAGES) -> None:
        self.machine = MachineDirectory(options.machine.absolute())
        self.name: str = options.name
        self.lifeline: int = options.lifeline
        if not self.machine.path.is_dir():
            raise errors.ConfigError("--machine", expected="a machine directory", got=str(self.machine.path))
        self._claimed = -1
        if self.lifeline < 0:
            try:
                self._claimed = self.machine.claim(self.name)
            except MachineError as error:
                raise errors.ConfigError(str(error)) from error
        self.epoch = epoch(options, self.machine)
        self._asked_to_end = False
        # What only one machine may hold at a time, the lock on a disk for one, is another's, or may be.
        self.away: bool = options.away or (options.incoming and self.epoch == 1)
        # A later life that the monitor has started does nothing before that says Resume: the machine may stand still,
        # be half loaded, or run elsewhere by now. Others begin at once: they may have no monitor, and go on without.
        self.begins_paused: bool = self.away or (self.epoch > 1 and self.lifeline >= 0)
        self.phase = lifecycle.SERVICE_STARTING
        self.clock: Clock = HostClock(passes=False)  # nobody has said yet what guest time is
        self.loop = Loop(self.clock)
        self.log = Log(self.name, self.machine.log)
        self.recorder = Recorder(self.name)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._notices: deque[Notice] = deque(maxlen=_KEPT_NOTICES)
        self._deferred: deque[tuple[wire.Client, Packet]] = deque()  # requests that came during `ask`
        self._next_look = 0.0  # during `ask`: when others are to be heard again, in seconds of the monotonic clock
        self._files: FileServer | None = None  # what others of this host are given descriptors by
        self._drained = False
        self._complaints: Counter[tuple[str, str]] = Counter()
        self._last_complaints: dict[tuple[str, str], str] = {}  # how it was, for each of these
        self._lost = ""  # why guest memory is lost
        self._service = Service()
        self.addresses = addresses.of_options(options, self.machine, self.name)
        keys = self.addresses.keys
        self._authenticator = curve.authenticate(self.context, keys) if keys and options.listen else None
        self._endpoint: str = options.endpoint or options.listen or ""
        self.server = wire.Server(
            self.context,
            self.machine.socket(self.name),
            self.name,
            self.log,
            self._greet,
            self._greeted,
            address=options.listen or "",
            keys=keys,
            broken=self._broken,
            answer=self._answer,
            unread=unread,
            monitor=options.monitor,
        )

        if options.processes >= 0:
            self._watch_processes(options.processes)
        self._answers = Answers(self.server, self.loop, self.complain)

    @property
    def endpoint(self) -> str:
        """Where others find this service."""
        return self._endpoint or wire.endpoint(self.machine.socket(self.name))

    def dial(
        self,
        service: str,
        role: Role.ValueType,
        *,
        address: str = "",
        hart: int = 0,
        wake: int = -1,
        heed_loss: bool = False,
    ) -> wire.Peer:
        """A connection to another service of this machine, which may have said its `address`; `greet` it next."""
        said = wire.hello(role, self.name, machine=self.machine.name, hart=hart)
        return self.addresses.dial(
            self.context,
            service,
            said,
            address=address,
            lifeline=self.lifeline,
            wake=wake,
            heed_loss=heed_loss,
        )

    def ask(self, peer: wire.Peer, bodies: Sequence[Message], alive: Callable[[], None]) -> list[Message]:
        """As `peer.request`, for several requests at once, and answers that may be long in coming: meanwhile Health is
        answered and `alive` called now and then, however much the peer says; all other requests wait. Raises the
        VmeshError that an Error stands for."""
        answers: dict[int, Message | None] = dict.fromkeys(map(peer.send, bodies))
        missing = len(answers)
        while missing:
            packet = peer.receive(_MEANWHILE_SECONDS)
            if packet is None or time.monotonic() >= self._next_look:
                self._meanwhile()
                alive()
                self._next_look = time.monotonic() + _MEANWHILE_SECONDS
            if packet is None:
                continue
            if packet.id in answers and answers[packet.id] is None:
                answer = wire.body_of(packet)
                if isinstance(answer, common.Error):
                    raise errors.from_message(answer)
                if answer is None or isinstance(answer, common.Refused):
                    raise wire.mismatch(peer.address, "an answer", answer)
                answers[packet.id] = answer
                missing -= 1
        return [answer for answer in answers.values() if answer is not None]

    def _meanwhile(self) -> None:
        while len(self._deferred) < _DEFERRED:
            received = self.server.receive()
            if received is None:
                break
            client, packet = received
            if packet.WhichOneof("body") == "health":
                self.answer(client, packet.id, self._health)
            else:
                self._deferred.append((client, packet))
        if self._deferred:
            self.loop.call_in("deferred", 0.0, self._receive)

    def notify(
        self,
        severity: Severity.ValueType,
        text: str,
        event: common.PowerOff
        | common.ResetRequest
        | common.Fault
        | common.HartStop
        | common.DiskError
        | common.StopRequest
        | common.BalloonChange
        | None = None,
    ) -> None:
        """Tell the monitor, and the log."""
        notice = Notice(severity=severity, service=self.name, text=text)
        if isinstance(event, common.PowerOff):
            notice.power_off.CopyFrom(event)
            notice.power_off.SetInParent()
        elif isinstance(event, common.ResetRequest):
            notice.reset_request.SetInParent()
        elif isinstance(event, common.Fault):
            notice.fault.CopyFrom(event)
        elif isinstance(event, common.HartStop):
            notice.hart_stop.CopyFrom(event)
        elif isinstance(event, common.DiskError):
            notice.disk_error.CopyFrom(event)
        elif isinstance(event, common.StopRequest):
            notice.stop_request.SetInParent()
        elif isinstance(event, common.BalloonChange):
            notice.balloon_change.CopyFrom(event)
            notice.balloon_change.SetInParent()
        write = {common.SEVERITY_WARNING: self.log.warning, common.SEVERITY_ERROR: self.log.error}
        write.get(severity, self.log.info)("notice", text=text)
        monitors = [client for client in self.server.clients.values() if client.role == common.ROLE_MONITOR]
        told = [self.server.send(client, notice) for client in monitors]
        if not any(told):
            self._notices.append(notice)

    def _broken(self, client: wire.Client, how: str) -> None:
        if client.role == common.ROLE_DEVICE:
            self.complain(client.name, limits.BROKEN, how)

    def answer(self, client: wire.Client, packet_id: int, make: Callable[[], Message]) -> None:
        """Answer a request, unless it wants none (`packet_id` is 0), as soon as the client has room (`Answers`)."""
        if packet_id:
            self._answer(client, packet_id, make)

    def _answer(self, client: wire.Client, packet_id: int, make: Callable[[], Message]) -> None:
        self._answers.send(client, packet_id, make)

    def outlive_loss(self) -> None:
        """For a service without which there is no machine, before it maps anything: if a file that it has mapped is cut
        short, it does not end (`mapping`). The monitor is told to stop the machine, and from then on it neither goes on
        nor gives its state away."""
        calls = Inbox(self.loop)

        def lost(cause: str) -> None:
            if not self._lost:
                self._lost = cause
                calls.call(self._tell_loss)

        mapping.outlive(lost)

    def _tell_loss(self) -> None:
        self.notify(common.SEVERITY_ERROR, self._lost, common.Fault(service=self.name, reason=self._lost, lost=True))
        self._service.lost_memory()

    def complain(self, about: str, what: str, text: str) -> None:
        """Another service did what it should not: count it for the monitor, and log it.

        `what` is the cause, from a bounded set.
        """
        count = self._complaints[about, what] = self._complaints[about, what] + 1
        self._last_complaints[about, what] = text[:_SAID_CHARACTERS].encode(errors="replace").decode()
        self.log.warning("complaint", cause=f"{about} {what}", count=count, text=text)

    def serve(self, service: Service) -> None:
        """Run until the service is to end."""
        self._service = service
        self._watch_signals()
        if self.lifeline >= 0:
            lifeline.watch(self.loop, self.lifeline, self._orphaned)
        else:
            self._bound = self.machine.socket(self.name).stat()
            self.loop.call_in("socket", 0.0, self._watch_socket)
        self.loop.watch(self.server.socket, read=self._receive)
        if not service.undone_by_death:
            self.loop.failed = self._failed
        try:
            service.start()
            self.phase = lifecycle.SERVICE_PAUSED if service.begins_paused else lifecycle.SERVICE_RUNNING
            self.log.info("started", kind=service.kind, epoch=self.epoch, pid=os.getpid())
            self.loop.run()
            self.log.info("counted", **self._counters())
        except errors.LifelineEnded:
            self._orphaned()

    def close(self) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()
        self.server.close()
        self.context.destroy(wire.LINGER_MS)
        self.log.info("ended")
        self.log.close()
        if self._claimed >= 0:
            os.close(self._claimed)

    def _greet(self, client: wire.Client) -> Welcome:
        welcome = self._service.welcome(client)
        welcome.kind, welcome.epoch = self._service.kind, self.epoch
        return welcome

    def _greeted(self, client: wire.Client) -> None:
        if client.role == common.ROLE_MONITOR:
            while self._notices and self.server.send(client, self._notices[0]):
                self._notices.popleft()
        self._service.greeted(client)

    def _receive(self) -> None:
        # A bounded number, so that a flood does not keep the loop from the lifeline.
        for _ in range(64):
            received = self._deferred.popleft() if self._deferred else self.server.receive()
            if received is None:
                return
            client, packet = received
            try:
                answer = self._dispatch(client, packet)
            except (errors.LifelineEnded, errors.MemoryFailed):
                raise
            except Exception as error:
                kind = packet.WhichOneof("body")
                foreseen = isinstance(error, errors.VmeshError)
                if not foreseen and self._service.undone_by_death and kind not in _ONLY_READ:
                    raise
                self.server.fail(client, packet.id, f"{kind}: {type(error).__name__}", errors.said(error))
                continue
            if answer is not None:
                self.answer(client, packet.id, _as_it_is(answer))
        if self._deferred:
            self.loop.call_in("deferred", 0.0, self._receive)

    def _failed(self, error: Exception) -> None:
        """The loop's boundary."""
        if isinstance(error, errors.LifelineEnded):
            raise error
        if self.log.error("unforeseen", reason=errors.said(error)):
            self.notify(common.SEVERITY_ERROR, str(errors.said(error)))

    def _dispatch(self, client: wire.Client, packet: Packet) -> Message | None:
        service = self._service
        kind = packet.WhichOneof("body")
        if self._lost and kind in _NEEDS_MEMORY:
            raise errors.BadState(self._lost)
        match kind:
            case "health":
                return self._health()
            case "pause":
                if packet.pause.at_once:
                    service.halt()
                else:
                    service.pause()
                self.phase = lifecycle.SERVICE_PAUSED
            case "drain":
                self._need(self.phase == lifecycle.SERVICE_PAUSED, "Drain", "Pause")
                sequence = service.drain(dict(packet.drain.updates))
                self._drained = True
                return lifecycle.Drained(update_sequence=sequence)
            case "save":
                self._need(self._drained, "Save", "Drain")
                state = service.save()
                if (size := len(state.bytes)) > wire.MAX_STATE_BYTES:
                    raise errors.HostLimit("state", expected=f"at most {wire.MAX_STATE_BYTES} bytes", got=str(size))
                return state
            case "load":
                if not packet.load.check_only:
                    self._need(self.phase == lifecycle.SERVICE_PAUSED, "Load", "Pause")
                service.load(packet.load.state, packet.load.check_only)
            case "hand_over":
                self._need(self._drained, "HandOver", "Drain")
                service.hand_over()
            case "resume":
                service.resume()
                self.phase, self._drained = lifecycle.SERVICE_RUNNING, False
            case "reset":
                service.reset()
            case "shutdown":
                self._end()
            case "trace_control":
                self.recorder.switch(packet.trace_control.on)
                service.trace(packet.trace_control.on)
            case "trace_take":
                return self.recorder.take()
            case _:
                return service.handle(client, packet)
        return common.Done()

    def _need(self, met: bool, request: str, before: str) -> None:
        if not met:
            raise errors.BadRequest(f"{request} to {self.name}", expected=f"{before} before it")

    def _health(self) -> lifecycle.HealthReport:
        return lifecycle.HealthReport(
            phase=self.phase,
            name=self.name,
            kind=self._service.kind,
            epoch=self.epoch,
            pid=os.getpid(),
            counters=self._counters(),
            complaints=[
                lifecycle.Complaint(
                    service=about, what=what, count=count, last=self._last_complaints.get((about, what), "")
                )
                for (about, what), count in self._complaints.items()
            ],
        )

    def _counters(self) -> dict[str, int]:
        return {**self.server.counters, **self._service.counters()}

    def _end(self) -> None:
        self.phase = lifecycle.SERVICE_STOPPING
        self.machine.pulse(self.name).unlink(missing_ok=True)  # whoever looks sees that it has ended in order
        self.loop.stop()
        self._service.shutdown()

    def _orphaned(self, why: str = "the machine is gone") -> None:
        self.log.warning(why)
        self.loop.stop()
        self._service.orphaned()

    def offer_files(self, paths: Sequence[Path], client: wire.Client) -> FilesOffered:
        """Descriptors of these, for reading and writing, to whoever has the token, once. Raises HostLimit, TooMany."""
        try:
            if self._files is None:
                self._files = FileServer(self.machine.files(self.name), self.loop)
            token = self._files.offer(paths, client.name)
        except OSError as error:
            raise errors.HostLimit(f"cannot give files: {error.strerror}") from error
        return FilesOffered(socket=self.machine.files(self.name).name, token=token)

    def _watch_processes(self, pipe: int) -> None:
        """Hear which process is which service as each is started, before the monitor can say it on its connection: in
        lines of a name and a number, as in lifecycle.Processes."""
        known: dict[str, int] = {}
        said = b""

        def read() -> None:
            nonlocal said
            piece = os.read(pipe, 1 << 16)
            *lines, said = (said + piece).split(b"\n")
            for name, process in map(bytes.split, lines):
                known[name.decode()] = int(process)
            if piece:
                self.server.tell(known)
            else:
                self.loop.watch(pipe)
                os.close(pipe)

        self.loop.watch(pipe, read=read)

    def _watch_socket(self) -> None:
        """Started by somebody else, without a lifeline: end when the machine directory is gone, or another is in our
        place; else show whoever looks that the loop runs."""
        try:
            if os.path.samestat(self.machine.socket(self.name).stat(), self._bound):
                self.machine.pulse(self.name).touch(0o600)
                self.loop.call_in("socket", _LOOK_SECONDS, self._watch_socket)
            else:
                self._orphaned("another service is in this one's place")
        except OSError:
            self._orphaned()

    def _watch_signals(self) -> None:
        """SIGTERM and SIGINT end the service in order, at the next turn of the loop; or the machine, if it is vital."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer)
        for number_ in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number_, lambda _number, _frame: None)

        def signalled() -> None:
            os.read(reader, 64)
            if self._service.vital and self.lifeline < 0 and not self._asked_to_end:
                self._asked_to_end = True
                self.notify(common.SEVERITY_INFO, "asked to end from outside", common.StopRequest())
                self.loop.call_in("end", _END_SECONDS, self._end)
            else:
                self._end()

        self.loop.watch(reader, read=signalled)


def _as_it_is(answer: Message) -> Callable[[], Message]:
    return lambda: answer


def run(
    options: argparse.Namespace,
    build: Callable[[Runtime], Service],
    *,
    unread: int = wire.QUEUE_MESSAGES,
    capabilities: Set[Capability] | None = None,
) -> int:
    """Run the service that `build` makes, to its end; gives the exit status.

    `unread`: see `wire.Server`. `capabilities` are those that it needs where root starts it: all others are given up,
    unless this is None.
    """
    if capabilities is not None:
        privileges.drop(capabilities)
    stdio.open_closed()
    os.umask(0o077)
    began = time.monotonic()
    try:
        runtime = Runtime(options, unread)
    except Exception as error:
        Log(options.name).error("cannot start", reason=errors.said(error))
        return 1
    try:
        runtime.serve(build(runtime))
    except Exception as error:
        if not isinstance(error, errors.VmeshError):
            traceback.print_exc()
        runtime.log.error("failed", reason=errors.said(error), after=f"{time.monotonic() - began:.1f}s")
        return 1
    finally:
        runtime.close()
    return 0
