"""The migration service itself: takes the monitor's requests, and runs one job at a time."""

from __future__ import annotations

import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Sequence

from google.protobuf.message import Message

from vmesh import errors, wire
from vmesh.migration.outcome import ENDED
from vmesh.service import Runtime, Service
from vmesh.slot import Slot
from vmesh.v1 import common_pb2, cpu_pb2, memory_pb2
from vmesh.v1 import migration_pb2 as messages
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.migration.incoming import Incoming
from vmesh_services.migration.job import Context, Job
from vmesh_services.migration.machine import MachineActions
from vmesh_services.migration.outgoing import Outgoing
from vmesh_services.migration.pager import Pager
from vmesh_services.migration.ram import GuestRam
from vmesh_services.migration.snapshot import Load, Save
from vmesh_services.migration.status import Status

_GREETING_SECONDS = 30.0
_ANSWER_SECONDS = 30.0
_SWITCH_INTERVAL = 0.0002  # seconds: a page that is waited for comes between two pieces of the background
_REPORT_SECONDS = 0.1  # between two reports of a job under way


class Migration(Service):
    """Runs jobs for the monitor."""

    kind = "migration"

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._machine = MachineActions(lambda body: self._call(lambda: self._tell(body)))
        self._cpu: wire.Peer | None = None  # the jobs' thread's
        self._job: Job | None = None
        self._status = Status()
        self._parameters = messages.MigrationParameters()
        self._capabilities = messages.MigrationCapabilities()
        self._slot = Slot(runtime.machine.path / f"{runtime.name}.slot", fresh=runtime.epoch == 1)
        self._record = messages.MigrationRecord.FromString(self._slot.read() or b"")
        # what the job's threads want done in this one
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def start(self) -> None:
        sys.setswitchinterval(_SWITCH_INTERVAL)
        memory = self._runtime.dial("memory", common_pb2.ROLE_MIGRATION)
        memory.greet(_GREETING_SECONDS)
        answer = memory.request(memory_pb2.MapRequest(), _GREETING_SECONDS)
        if not isinstance(answer, memory_pb2.AddressMap):
            raise wire.mismatch(memory.address, "AddressMap", answer)
        self._memory = memory
        self._ram = GuestRam(answer.segments)
        self._pager = Pager(self._ram, self._call, self._mark_absent, self._serve_pages, self._tell_present)
        self._runtime.loop.watch(self._wake, read=self._run_calls)

    def handle(self, client: wire.Client, packet: Packet) -> Message | None:
        match packet.WhichOneof("body"):
            case "migration_request":
                self._request(packet.migration_request)
                return common_pb2.Done()
            case "machine_answer":
                answer = messages.MachineAnswer()
                answer.CopyFrom(packet.machine_answer)
                self._machine.answered(answer)
                return common_pb2.Done()
            case _:
                return super().handle(client, packet)

    def shutdown(self) -> None:
        self.orphaned()

    def orphaned(self) -> None:
        if self._job is not None:
            self._job.close()

    def _request(self, request: messages.MigrationRequest) -> None:
        self._parameters.CopyFrom(request.parameters)
        self._capabilities.CopyFrom(request.capabilities)
        job = self._job
        match request.WhichOneof("request"):
            case "outgoing" | "incoming" | "save" | "load" | "take_over" if job is not None:
                state = messages.MigrationState.Name(self._status.state)
                raise errors.BadRequest("migration", expected="none under way", got=state)
            case "outgoing":
                self._begin(Outgoing(self._context(request.machine), request.outgoing))
            case "incoming":
                self._begin(Incoming(self._context(request.machine), request.incoming))
            case "save":
                self._begin(Save(self._context(request.machine), request.save))
            case "load":
                self._begin(Load(self._context(request.machine), request.load))
            case "take_over":
                self._take_over(request.machine)
            case "adjust":
                pass
            case "start_postcopy" | "cancel" if job is None and self._status.state in ENDED:
                pass  # whoever asks could not know that it has ended
            case other if job is None:
                raise errors.BadRequest(f"migration {other}", expected="a migration under way")
            case "cancel":
                job.cancel()
            case "start_postcopy":
                job.start_postcopy()
            case "pause":
                job.pause()
            case "recover":
                job.recover(request.recover)
            case "resume":
                job.resume(request.resume)
            case other:
                raise errors.BadRequest("MigrationRequest", expected="a request", got=str(other))

    def _take_over(self, machine: messages.Configuration) -> None:
        """Go on with what the former life of this service did."""
        record, context = self._record, self._context(machine)
        if record.snapshot:
            self._begin(Load(context, record.snapshot, record), record)
        elif not record.session:
            raise errors.BadRequest("TakeOver", expected="a migration that can go on", got="none")
        elif record.incoming:
            self._begin(Incoming(context, "", record.session), record)
        else:
            self._begin(Outgoing(context, "", record), record)

    def _context(self, machine: messages.Configuration) -> Context:
        configuration = messages.Configuration()
        configuration.CopyFrom(machine)
        del configuration.segments[:]
        configuration.segments.extend(self._ram.identity())
        return Context(
            self._machine,
            self._ram,
            configuration,
            self._parameters,
            self._capabilities,
            self._runtime.log,
            lambda status: self._call(lambda: self._tell(messages.MigrationReport(status=status))),
            lambda: self._ask_cpu(cpu_pb2.ShootDown()),
            lambda percent: self._ask_cpu(cpu_pb2.Throttle(percent=percent)),
            lambda why: self._call(lambda: self._fault(why)),
            self._pager,
            lambda record: self._slot.write(record.SerializeToString()),
        )

    def _fault(self, why: str) -> None:
        fault = common_pb2.Fault(service=self._runtime.name, reason=why)
        self._runtime.notify(common_pb2.SEVERITY_ERROR, why, fault)

    def _ask_cpu(self, request: Message) -> None:
        """In the job's thread."""
        if self._cpu is None:
            self._cpu = self._runtime.dial("cpu", common_pb2.ROLE_MIGRATION)
            self._cpu.greet(_ANSWER_SECONDS)
        self._cpu.request(request, _ANSWER_SECONDS)

    def _mark_absent(self) -> None:
        """All pages are absent; nothing runs."""
        self._memory.request(memory_pb2.MarkPages(present=False), _ANSWER_SECONDS)

    def _serve_pages(self) -> None:
        """From now on memory sends those who need pages here."""
        self._memory.request(memory_pb2.ServePages(), _ANSWER_SECONDS)
        self._runtime.loop.watch(self._memory.socket, read=self._from_memory)
        self._from_memory()

    def _from_memory(self) -> None:
        memory = self._memory
        while (packet := memory.unasked.popleft() if memory.unasked else memory.receive()) is not None:
            if packet.WhichOneof("body") == "pages_wanted":
                self._pager.wanted(packet.pages_wanted.addresses)

    def _tell_present(self, addresses: Sequence[int]) -> None:
        """Pages that memory asked for are there."""
        self._memory.send_packet(wire.make(memory_pb2.PagesPresent(addresses=addresses)))

    def _begin(self, job: Job, record: messages.MigrationRecord | None = None) -> None:
        """`record` is that of a former life, if it goes on with what that one did."""
        self._slot.write((record or messages.MigrationRecord()).SerializeToString())
        self._job, self._status = job, job.status
        threading.Thread(target=self._run, args=(job,), name="migration", daemon=True).start()
        self._report_now_and_then()

    def _run(self, job: Job) -> None:
        """In the job's thread."""
        failed = messages.MIGRATION_FAILED
        try:
            job.run()
        except (errors.VmeshError, OSError) as error:
            job.status.error = str(error)
            job.enter(messages.MIGRATION_CANCELLED if job.cancelled else failed)
        except Exception as error:  # whatever ends the thread must be heard of
            traceback.print_exc()
            job.status.error = f"{type(error).__name__}: {error}"
            job.enter(failed)
        if self._cpu is not None:
            self._cpu.abandon()
            self._cpu = None
        self._call(self._ended)

    def _ended(self) -> None:
        self._job = None
        self._report()

    def _report_now_and_then(self) -> None:
        self._report()
        if self._job is not None:
            self._runtime.loop.call_in("report", _REPORT_SECONDS, self._report_now_and_then)

    def _report(self) -> None:
        self._tell(messages.MigrationReport(status=self._status.message()))

    def _tell(self, body: Message) -> None:
        server = self._runtime.server
        for client in [each for each in server.clients.values() if each.role == common_pb2.ROLE_MONITOR]:
            server.send(client, body)

    def _call(self, function: Callable[[], None]) -> None:
        self._calls.put(function)
        os.eventfd_write(self._wake, 1)

    def _run_calls(self) -> None:
        os.eventfd_read(self._wake)
        while not self._calls.empty():
            self._calls.get()()
