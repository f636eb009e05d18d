"""A device as a service: attaching, batches and their order, replays, credits, updates, lifecycle, and the slot."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError, Message

from vmesh import errors, files, spaces, trace
from vmesh.board.virt import MAX_HARTS
from vmesh.device.model import BusError, Device
from vmesh.doorbell import Bell, Raiser
from vmesh.guest_memory import LocalGuestMemory, RemoteGuestMemory
from vmesh.service import Runtime, Service
from vmesh.slot import Slot
from vmesh.time import NEVER_NS, host_ns
from vmesh.trace import MemoryTrace, identity
from vmesh.v1 import bus_pb2 as messages
from vmesh.v1 import files_pb2, memory_pb2
from vmesh.v1 import lifecycle_pb2 as lifecycle
from vmesh.v1.common_pb2 import ROLE_DEVICE, ROLE_HART, ROLE_IRQCHIP, Done, Welcome
from vmesh.v1.packet_pb2 import Packet
from vmesh.v1.slot_pb2 import LinkRecord, SlotRecord
from vmesh.v1.trace_pb2 import TRACE_HANDLED, TRACE_SENT, TraceKind
from vmesh.wire import Client, Peer

WINDOW = 1024  # accesses of one hart that may be unacknowledged

#: Of a slot's record, beside the state and the journal: what is known of each hart's link.
_RECORD_BYTES = 512 + 32 * MAX_HARTS
_MEMORY = "memory"
_START_SECONDS = 30.0
_RETRY_SECONDS = 0.001
_LIFE_SECONDS = 1.0
_AHEAD_NS = 10**9  # of what a device knows of guest time: who rings it knows better, but not so much


@dataclass(slots=True, eq=False)
class _Link:
    """The connection with one hart. `done`, `value` and `bus_error` are the last access handled and its answer.

    The hart forgets what it is told is done, and the next life of the device knows what is in the slot: so no more than
    `stored` is ever told.
    """

    hart: int
    done: int = 0
    value: int = 0
    bus_error: bool = False
    identity: bytes = b""
    received: int = 0  # sequence number of the last access that came
    stored: int = 0  # `done` as the slot has it
    queue: deque[Packet] = field(default_factory=deque)  # batches that wait while the device is blocked


class DeviceService(Service):
    """Serves one `Device`."""

    undone_by_death = True

    def __init__(self, runtime: Runtime, device: Device) -> None:
        self.kind = device.kind
        self.begins_paused = runtime.begins_paused
        self._runtime = runtime
        self._device = device
        self._links: dict[int, _Link] = {}
        self._irqchip: Client | None = None
        self._shows_life = False
        self._update_sequence = 0
        self._accesses = self._batches = self._updates = self._bus_errors = 0
        self._sizes = [(region.size, region.access_sizes) for region in device.regions]
        self._posted = frozenset(_posted(device.regions))
        self._doorbell = _doorbell(device.regions)
        self._latches = _latches(device.regions)
        self._bell = Bell(runtime.machine.doorbell(runtime.name)) if self._doorbell else None
        self._raiser = Raiser(runtime.machine.interrupts(runtime.name)) if self._latches else None
        self._rings = self._page_waits = self._reconnects = 0
        self._memory: Peer | None = None
        room = device.slot_bytes + _RECORD_BYTES
        self._slot = Slot(runtime.machine.path / f"{runtime.name}.slot", fresh=runtime.epoch == 1, room=room)
        device.marks = self._slot.marks
        self._written = b""
        self._acting: _Link | None = None  # whose access was made last in this turn of the loop
        self._recorder = runtime.recorder
        self._memory_trace: MemoryTrace | None = None
        runtime.log.trace = self._trace_id
        self._owed: list[tuple[_Link, int]] = []  # answers, when the slot has what they say
        self._description = messages.Description(
            name=runtime.name,
            kind=device.kind,
            state_type=device.state.DESCRIPTOR.full_name,
            state_version=device.state_version,
            epoch=runtime.epoch,
            endpoint=runtime.endpoint,
            regions=device.regions,
            lines=device.lines,
            dma=device.dma,
            doorbell=runtime.machine.doorbell(runtime.name).name if self._bell else "",
            interrupts=runtime.machine.interrupts(runtime.name).name if self._raiser else "",
        )

    def start(self) -> None:
        former = self._read_slot()
        if former is not None:
            self._device.take_journal(former.journal)
        self._device.start()
        self._device.reset()
        if self.begins_paused:
            self._device.pause()
        if former is not None:
            self._recover(former)
        self._write_slot()
        memory = self._memory = self._runtime.dial(_MEMORY, ROLE_DEVICE, heed_loss=True)
        memory.greet(_START_SECONDS)
        answer = memory.request(memory_pb2.Attach(description=self._description), _START_SECONDS)
        if not isinstance(answer, memory_pb2.Attached):
            raise errors.PeerError("memory answered", expected="Attached", got=answer.DESCRIPTOR.name)
        if self._device.dma and answer.segments:
            self._device.memory = LocalGuestMemory(answer.segments, answer.grants, self._fetch, self._take_file)
        elif self._device.dma:
            self._device.memory = RemoteGuestMemory(memory, answer.grants, self._ask_memory)
        self._device.attached()
        if former is not None:
            self._device.recover()
        self._runtime.loop.settle = self._settle
        if self._bell is not None:
            self._runtime.loop.watch(self._bell.fd, read=self._answer_bell)

    def _fetch(self, addresses: list[int]) -> None:
        """Wait for pages."""
        self._page_waits += 1
        self._ask_memory([memory_pb2.NeedPages(addresses=addresses)])

    def _take_file(self, name: str) -> int:
        """A file of memory's that this process cannot open. Raises MemoryFailed."""
        (offered,) = self._ask_memory([files_pb2.TakeFiles(names=[name])])
        if not isinstance(offered, files_pb2.FilesOffered) or not files.is_name(offered.socket):
            raise errors.MemoryFailed("memory answered", expected="FilesOffered", got=offered.DESCRIPTOR.name)
        try:
            (fd,) = files.take(self._runtime.machine.path / offered.socket, offered.token, 1)
        except OSError as error:
            raise errors.MemoryFailed(f"memory does not give {name}: {error.strerror or error}") from error
        return fd

    def _ask_memory(self, requests: Sequence[Message]) -> list[Message]:
        """What was under way when the connection was lost is asked again: it does the same once more, and by the former
        connection nothing comes any more. Raises OutsideGrant; MemoryFailed for what else memory says, which ends this
        life of the device: what it had half done is in no slot."""
        assert self._memory is not None
        greeting: list[Message] = []
        while True:
            try:
                for each in greeting:
                    self._runtime.ask(self._memory, [each], self._keep_waiting)
                return self._runtime.ask(self._memory, requests, self._keep_waiting)
            except errors.PeerLost:
                self._reconnects += 1
                self._memory.redial()
                greeting = [self._memory.said, memory_pb2.Attach(description=self._description)]
            except (errors.OutsideGrant, errors.LifelineEnded):
                raise
            except errors.VmeshError as error:
                raise errors.MemoryFailed(f"memory: {error}") from error

    def _keep_waiting(self) -> None:
        """Harts are not to take the device for dead while it waits for memory."""
        for link in self._links.values():
            if link.identity:
                self._answer(link, 0, None)

    def welcome(self, client: Client) -> Welcome:
        if client.role != ROLE_HART:
            return Welcome()
        link = self._links.setdefault(client.hart, _Link(client.hart))
        # A new connection of the same hart: it replays what was not acknowledged.
        link.identity, link.received = client.identity, link.done
        link.queue.clear()
        return Welcome(window=WINDOW, done=link.stored)

    def greeted(self, client: Client) -> None:
        if client.role == ROLE_IRQCHIP:
            self._irqchip = client
            self._write_slot()
            self._send_update(everything=True)

    def handle(self, client: Client, packet: Packet) -> Message | None:
        kind = packet.WhichOneof("body")
        if kind == "guest_time":
            self._runtime.clock.hear(packet.guest_time.now_ns, passes=packet.guest_time.passes)
            self._device.time_told()
            return None
        if kind == "set_property":
            self._device.set_property(packet.set_property.name, packet.set_property.value)
            self._write_slot()
            return Done()
        if kind not in ("access_batch", "take_accesses"):
            return super().handle(client, packet)
        link = self._links[client.hart]
        if kind == "take_accesses":
            self._work(even_if_blocked=True)
            return None
        try:
            self._check_batch(client, link, packet)
        except errors.TooMany:
            self._runtime.server.clients.pop(client.identity, None)
            link.queue.clear()
            raise
        batch = packet.access_batch
        last = batch.sequence + len(batch.accesses) - 1
        if last <= link.done:
            # The answer may have been lost with its connection, and with it what it said of lines and shadows.
            self._write_slot()
            self._answer(link, packet.id, self._next_update(everything=True))
        elif self._device.blocked or link.queue:
            link.received = last
            link.queue.append(packet)
            self._say_held(link)
        else:
            link.received = last
            self._perform(link, packet)
        return None

    def pause(self) -> None:
        self._device.pause()

    def drain(self, updates: dict[str, int]) -> int:
        # The queues are bounded by the window, so a device that is blocked can take them all.
        self._work(even_if_blocked=True)
        self._answer_bell()
        self._settle()
        if self._irqchip is not None and self._device.wires.changed:
            raise errors.PeerError(f"{self._irqchip.name} does not read the updates of {self._runtime.name}")
        return self._update_sequence

    def save(self) -> lifecycle.ServiceState:
        return lifecycle.ServiceState(
            type=self._description.state_type,
            version=self._device.state_version,
            bytes=self._device.save().SerializeToString(),
        )

    def load(self, state: lifecycle.ServiceState, check_only: bool) -> None:
        if state.type != self._description.state_type:
            raise errors.BadState(
                f"state of {self._runtime.name}", expected=self._description.state_type, got=repr(state.type[:80])
            )
        loaded = self._parse_state(state.bytes, state.version)
        if not check_only:
            self._device.wires.forget_messages()
            self._device.load(loaded)

    def resume(self) -> None:
        self._device.resume()

    def hand_over(self) -> None:
        self._device.hand_over()

    def reset(self) -> None:
        self._device.wires.forget_messages()
        self._device.reset()

    def shutdown(self) -> None:
        self._work(even_if_blocked=True)
        self._answer_bell()
        self._write_slot()
        self._device.shutdown()

    def counters(self) -> dict[str, int]:
        return {
            "accesses": self._accesses,
            "batches": self._batches,
            "updates": self._updates,
            "bus_errors": self._bus_errors,
            "rings": self._rings,
            "page_waits": self._page_waits,
            "reconnects": self._reconnects,
            "batches_waiting": sum(len(link.queue) for link in self._links.values()),
            **self._device.counters(),
        }

    def trace(self, on: bool) -> None:
        if on and self._memory_trace is None:
            self._memory_trace = MemoryTrace(self._device.memory, self._record_dma)
        elif not on and self._memory_trace is not None:
            self._memory_trace.close()
            self._memory_trace = None

    def _trace_id(self) -> str:
        """Of the access that is being handled; empty if none is."""
        link = self._acting
        return identity(self._runtime.name, link.hart, link.done) if link is not None else ""

    def _record(self, kind: TraceKind.ValueType, time_ns: int, **fields: Any) -> None:
        if (link := self._acting) is not None:
            fields |= {"hart": link.hart, "sequence": link.done}
        self._recorder.add(kind, time_ns, device=self._runtime.name, **fields)

    def _record_dma(self, kind: TraceKind.ValueType, time_ns: int, address: int, size: int) -> None:
        self._record(kind, time_ns, value=address, size=size)

    def _check_batch(self, client: Client, link: _Link, packet: Packet) -> None:
        """Raises a VmeshError for a batch that cannot be taken; nothing of it was executed."""
        batch = packet.access_batch
        accesses = batch.accesses
        count = len(accesses)
        last = batch.sequence + count - 1
        if link.identity != client.identity:
            raise errors.NotAllowed(f"hart {link.hart} has connected anew")
        if batch.epoch != self._runtime.epoch:
            raise errors.StaleEpoch("AccessBatch", expected=f"epoch {self._runtime.epoch}", got=str(batch.epoch))
        if not packet.id or not count or not batch.sequence:
            raise errors.BadRequest("AccessBatch", expected="a packet id, a sequence number and accesses")
        if last > link.done:
            expected = link.received + 1
            # Without a queue nothing is in flight, and what was done already may come again.
            if batch.sequence > expected or (link.queue and batch.sequence < expected):
                raise errors.BadRequest("AccessBatch", expected=f"sequence {expected}", got=str(batch.sequence))
            if last - link.done > WINDOW:
                raise errors.TooMany(
                    "AccessBatch", expected=f"at most {WINDOW} unacknowledged", got=str(last - link.done)
                )
        posted = self._posted
        for index in range(count - 1):
            access = accesses[index]
            if not access.write or (access.region, access.offset, access.size) not in posted:
                kind = "write" if access.write else "read"
                raise errors.BadRequest(
                    "AccessBatch", expected="only posted writes before the last access", got=f"a {kind} that waits"
                )

    def _perform(self, link: _Link, packet: Packet) -> None:
        batch = packet.access_batch
        accesses = batch.accesses
        began = host_ns() if self._recorder.on else 0
        self._acting = link
        self._runtime.clock.hear(batch.time_ns)
        device, sizes = self._device, self._sizes
        value, bus_error = 0, False
        for index in range(max(0, link.done + 1 - batch.sequence), len(accesses)):
            access = accesses[index]
            region, offset, size = access.region, access.offset, access.size
            value, bus_error = 0, False
            try:
                if region >= len(sizes):
                    raise BusError
                length, allowed = sizes[region]
                if size not in (1, 2, 4, 8) or not size & allowed or offset % size or offset + size > length:
                    raise BusError
                if access.write:
                    device.write(region, offset, size, access.value & ((1 << 8 * size) - 1))
                else:
                    value = device.read(region, offset, size)
            except BusError:
                bus_error = True
                self._bus_errors += 1
        self._accesses += batch.sequence + len(accesses) - 1 - link.done
        self._batches += 1
        link.done = batch.sequence + len(accesses) - 1
        link.value, link.bus_error = value, bus_error
        device.flush()
        if began:
            self._record(TRACE_HANDLED, began, duration_ns=host_ns() - began, size=len(accesses))
        if access.write and (access.region, access.offset, access.size) in self._posted:
            # Nobody waits for the answer to posted writes: the end of the turn has time for it. What they changed goes
            # to the irqchip, which listens.
            self._owed.append((link, packet.id))
            return
        self._write_slot()
        self._answer(link, packet.id, self._next_update())

    def _answer(self, link: _Link, packet_id: int, update: messages.DeviceUpdate | None, *, held: bool = False) -> None:
        done = messages.BatchDone(
            epoch=self._runtime.epoch,
            done=link.stored,
            value=link.value,
            bus_error=link.bus_error,
            credits=WINDOW,
            update=update,
            held=held,
            time_ns=self._runtime.clock.now_ns(),
            quiet_until_ns=min(self._device.quiet_until_ns(), NEVER_NS),
        )
        sent = self._runtime.server.send_packet(link.identity, Packet(id=packet_id, batch_done=done))
        if not sent and update is not None:
            self._take_back(update)

    def _say_held(self, link: _Link) -> None:
        """Now, and then again and again while batches wait: harts are not to take a device that is blocked for dead."""
        self._answer(link, 0, None, held=True)
        if not self._shows_life:
            self._shows_life = True
            self._runtime.loop.call_in("life", _LIFE_SECONDS, self._say_alive)

    def _say_alive(self) -> None:
        self._shows_life = False
        for link in self._links.values():
            if link.queue:
                self._say_held(link)

    def _work(self, *, even_if_blocked: bool = False) -> None:
        """Go on with the batches that wait."""
        for link in self._links.values():
            while link.queue and (even_if_blocked or not self._device.blocked):
                self._perform(link, link.queue.popleft())

    def _answer_bell(self) -> None:
        """Harts have rung: as writes of the values, each once."""
        if self._bell is None or self._doorbell is None:
            return
        region, offset, size = self._doorbell
        values, time_ns = self._bell.rung()
        clock = self._runtime.clock
        # Harts ring until they have stopped, which is a little later than guest time; and any process of ours can.
        if clock.passes and time_ns - clock.now_ns() < _AHEAD_NS:
            clock.hear(time_ns)
        for value in sorted(values):
            self._rings += 1
            try:
                self._device.write(region, offset, size, value)
            except BusError:
                self._bus_errors += 1
        self._device.flush()

    def _settle(self) -> None:
        """After each turn of the loop: what came from outside becomes state in the slot, then lines and shadows."""
        self._work()
        self._device.settle()
        self._write_slot()
        if self._device.wires.changed:
            self._send_raises()
            self._send_update()
        owed, self._owed = self._owed, []
        for link, packet_id in owed:
            self._answer(link, packet_id, None)
        self._acting = None

    def _send_raises(self) -> None:
        """What is nothing but a raise goes to the irqchip straight, if that listens."""
        if self._raiser is None or self._irqchip is None:
            return
        for key, bits in self._device.wires.take_raises():
            sequence, time_ns = self._update_sequence + 1, self._runtime.clock.now_ns()
            if self._raiser.send(self._runtime.epoch, sequence, self._latches.index(key), bits, time_ns):
                self._update_sequence = sequence
                self._updates += 1
                if self._recorder.on:
                    self._record(TRACE_SENT, host_ns(), update=sequence, text=f"raise {key[1]:#x} bits {bits:#x}")
            else:
                self._device.wires.raise_latch(*key, bits)

    def _send_update(self, *, everything: bool = False) -> None:
        if self._irqchip is None:
            return
        update = self._next_update(everything=everything)
        while update is not None and self._runtime.server.send(self._irqchip, update):
            update = self._next_update()  # one has room for so many messages
        if update is None:
            return
        self._take_back(update)
        if self._irqchip.identity not in self._runtime.server.clients:
            self._irqchip = None
        else:
            self._runtime.loop.call_in("update", _RETRY_SECONDS, lambda: None)  # the turn after it settles again

    def _next_update(self, *, everything: bool = False) -> messages.DeviceUpdate | None:
        if not everything and not self._device.wires.changed:
            return None
        self._update_sequence += 1
        self._updates += 1
        update = messages.DeviceUpdate(
            epoch=self._runtime.epoch,
            sequence=self._update_sequence,
            time_ns=self._runtime.clock.now_ns(),
            quiet_until_ns=min(self._device.quiet_until_ns(), NEVER_NS),
        )
        self._device.wires.fill(update, everything=everything)
        for place in update.places:  # a guest may want one where the bus does not lead
            region = self._device.regions[place.region]
            if region.aperture_size and not place.absent and not spaces.can_be_at(region, place.base):
                place.absent, place.base = True, 0
        if self._recorder.on:
            text = trace.describe(update, self._device.regions)
            self._record(TRACE_SENT, host_ns(), update=update.sequence, text=text)
        return update

    def _take_back(self, update: messages.DeviceUpdate) -> None:
        """`update`, the last one made, has not gone out: neither has its number, which Drained must not name."""
        self._device.wires.put_back(update)
        self._update_sequence -= 1
        self._updates -= 1

    def _write_slot(self) -> None:
        record = SlotRecord(
            epoch=self._runtime.epoch,
            state_version=self._device.state_version,
            state_type=self._description.state_type,
            state=self._device.slot_state().SerializeToString(),
            journal=self._device.journal(),
            links=[
                LinkRecord(hart=link.hart, done=link.done, value=link.value, bus_error=link.bus_error)
                for link in self._links.values()
            ],
        ).SerializeToString()
        if record != self._written:
            self._slot.write(record)
            self._written = record
            for link in self._links.values():
                link.stored = link.done
        self._device.commit()

    def _read_slot(self) -> SlotRecord | None:
        """What the epoch before has left, if there was one."""
        written = self._slot.read()
        if written is None:
            return None
        try:
            record = SlotRecord.FromString(written)
        except DecodeError as error:
            raise errors.BadState(f"slot of {self._runtime.name} cannot be parsed") from error
        if record.state_type != self._description.state_type:
            name, wanted = f"slot of {self._runtime.name}", self._description.state_type
            raise errors.BadState(name, expected=wanted, got=repr(record.state_type[:80]))
        return record

    def _recover(self, record: SlotRecord) -> None:
        """Take over from the epoch before."""
        self._device.load(self._parse_state(record.state, record.state_version))
        for link in record.links:
            self._links[link.hart] = _Link(
                link.hart, link.done, link.value, link.bus_error, received=link.done, stored=link.done
            )
        self._runtime.log.info("recovered", epoch=self._runtime.epoch, before=record.epoch)

    def _parse_state(self, data: bytes, version: int) -> Message:
        name = f"state of {self._runtime.name}"
        if not 1 <= version <= self._device.state_version:
            raise errors.BadState(name, expected=f"version 1 to {self._device.state_version}", got=str(version))
        try:
            state = self._device.state.FromString(data)
        except DecodeError as error:
            raise errors.BadState(f"{name} cannot be parsed: {error}") from error
        self._device.check(state, version)
        return state


def _posted(regions: Sequence[messages.Region]) -> list[tuple[int, int, int]]:
    """Region, offset and size of every register whose writes nobody waits for."""
    return [
        (number, register.offset + index * register.size, register.size)
        for number, region in enumerate(regions)
        for register in region.registers
        if register.write in (messages.WRITE_POSTED, messages.WRITE_DOORBELL)
        for index in range(max(1, register.count))
    ]


def _doorbell(regions: Sequence[messages.Region]) -> tuple[int, int, int] | None:
    """Region, offset and size of the doorbell, if the device has one."""
    for number, region in enumerate(regions):
        for register in region.registers:
            if register.write == messages.WRITE_DOORBELL:
                return number, register.offset, register.size
    return None


def _latches(regions: Sequence[messages.Region]) -> list[tuple[int, int, int]]:
    """Region, offset and size of each latch."""
    return [
        (number, register.offset, register.size)
        for number, region in enumerate(regions)
        for register in region.registers
        if register.read == messages.READ_LATCH
    ]
