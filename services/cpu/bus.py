"""The cpu's side of the bus: what it knows of each device, and each hart's link to it (proto/vmesh/v1/bus.proto)."""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import zmq

from vmesh import errors, limits, wire
from vmesh.loop import Loop
from vmesh.time import Clock
from vmesh.v1 import bus_pb2 as messages
from vmesh.v1 import common_pb2 as common
from vmesh.v1.packet_pb2 import Packet

from .spaces import Spaces

#: Larger regions are reached by round trips only.
LARGEST_TABLE = 1 << 20
LARGEST_WINDOW = 1 << 16
_LATCH_SIZE = 4
_MASK32 = (1 << 32) - 1
#: How long a hart waits before it looks whether the machine is ending, and says Hello again, in seconds.
PATIENCE = 0.1
_OTHER_LIFE_SECONDS = 0.005
GREETING_LIMIT = 30.0
#: A device that sends more in this time is not listened to for as long: the cpu has other things to do. What a packet
#: costs, in values that it may have.
FLOOD_VALUES, FLOOD_SECONDS, _PACKET_VALUES = 8000, 0.1, 4
_AT_ONCE = 64
NO_WINDOWS = Spaces()
TIMED_MINOR = 1  # of the protocol, from which on records in FIFOs have guest time
REDIAL_SECONDS = 0.01  # between the loss of a connection and the next: for who accepts and hangs up


class RegisterTable:
    """A region's register kinds and shadow values, one byte an offset, read by native code (``state.Region``)."""

    def __init__(self, region: messages.Region) -> None:
        self._shadow_kinds: set[tuple[int, int]] = set()
        size = region.size if region.size <= LARGEST_TABLE else 0
        self._kinds = (ctypes.c_uint8 * size)()
        self._values = (ctypes.c_uint8 * (size + 8))()
        if not size:
            return
        for register in region.registers:
            for index in range(register.count or 1):
                offset = register.offset + index * register.size
                if register.size not in (1, 2, 4, 8) or offset + register.size > size:
                    raise errors.BadRequest(
                        f"register {register.name} of {region.name}", expected=f"inside {size:#x} bytes"
                    )
                if register.write in (messages.WRITE_POSTED, messages.WRITE_DOORBELL):
                    self._kinds[offset] |= register.size
                if register.read == messages.READ_SHADOW:
                    self._shadow_kinds.add((offset, register.size))

    @property
    def kinds(self) -> int:
        return ctypes.addressof(self._kinds) if len(self._kinds) else 0

    @property
    def values(self) -> int:
        return ctypes.addressof(self._values)

    def kinds_of(self, offset: int) -> int:
        """As native code finds it there."""
        return self._kinds[offset] if offset < len(self._kinds) else 0

    def value(self, offset: int, size: int) -> int:
        """The shadow value of a register."""
        return int.from_bytes(bytes(self._values[offset : offset + size]), "little")

    def has(self, offset: int, size: int) -> bool:
        """Whether the description calls that a shadow."""
        return (offset, size) in self._shadow_kinds

    def set(self, offset: int, size: int, value: int | None) -> None:
        """Takes a shadow value, or withdraws it; what the description does not call a shadow is ignored."""
        if not self.has(offset, size):
            return
        if value is None:
            self._kinds[offset] &= ~(size << 4)
            return
        raw = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        self._values[offset : offset + size] = list(raw)
        self._kinds[offset] |= size << 4

    def withdraw(self) -> None:
        """No shadow is known any more; latches are the cpu's own."""
        for offset, size in self._shadow_kinds:
            self._kinds[offset] &= ~(size << 4)


class Lines(Protocol):
    """Where devices drive their lines and latches, send messages, and move (`harts.Harts`)."""

    def set_level(self, source: int, level: bool) -> None: ...

    def take_message(self, address: int, data: int) -> bool: ...

    def move_region(self, device: int, index: int, base: int | None) -> None: ...

    def add_latch(self, device: int, index: int, offset: int, source: int, clears: tuple[int, int]) -> int: ...

    def latch_set(self, latch: int, sequence: int, value: int) -> None: ...

    def latch_raise(self, latch: int, sequence: int, bits: int) -> None: ...

    def latch_begin(self, latch: int) -> None: ...

    def listener_begin(self, listener: int, epoch: int) -> None: ...


class BusDevice:
    """A device on the bus: its description, and the lines and shadows as it last drove them.

    Updates come by the harts' links and by the irqchip's connection; each value keeps the sequence number that set it.
    Latches are the irqchip's. `epoch` is that of the life that the irqchip has met last: its connection is one pipe, so
    the last Welcome in it is of the last life, whatever number that says. Links that are of another connect anew. Its
    regions are on the board before it.
    """

    def __init__(
        self,
        number: int,
        description: messages.Description,
        irqchip: Lines,
        tables: list[RegisterTable],
        spaces: Spaces = NO_WINDOWS,
    ) -> None:
        """Raises BadRequest for registers that cannot be."""
        self.number = number
        self.description = description
        self.name = description.name
        self.tables = tables
        self.last_update = 0
        self.epoch = description.epoch
        self.timed = True  # guest time is in what goes through its FIFOs: since 1.1
        self.seen: Callable[[BusDevice, messages.DeviceUpdate], None] | None = None  # gets each update that is taken
        self.complain: Callable[[str, str], None] = lambda what, text: None
        self._irqchip, self._spaces = irqchip, spaces
        self._seen: dict[tuple[int | str, ...], int] = {}
        rows = _latches(description)
        self.latches = [
            irqchip.add_latch(number, row.region, row.offset, description.lines[row.line].irq, row.clears)
            for row in rows
        ]
        self._latch_at = {(row.region, row.offset): latch for row, latch in zip(rows, self.latches, strict=True)}
        self._latch_lines = {row.line for row in rows}
        self.doorbell = _doorbell(description)
        self.listener = -1  # its number at the irqchip, if the device may raise latches through a FIFO
        self._lock = threading.Lock()

    def begin(self, welcome: common.Welcome) -> None:
        """The device has said Welcome to the irqchip. Of another life the shadows are not known yet."""
        with self._lock:
            self.timed = welcome.minor >= TIMED_MINOR
            self._begin(welcome.epoch)

    def apply(self, update: messages.DeviceUpdate) -> None:
        """Takes what is newer than what is known: shadows first, so that a hart that takes the interrupt reads them."""
        with self._lock:
            if update.epoch != self.epoch:  # of a former life
                return
            if self.seen is not None:
                self.seen(self, update)
            sequence = update.sequence
            for shadow in sorted(update.shadows, key=self._is_latch):
                latch = self._latch_at.get((shadow.region, shadow.offset))
                if latch is not None:
                    change = self._irqchip.latch_raise if shadow.raised else self._irqchip.latch_set
                    change(latch, sequence, shadow.value & _MASK32)
                elif self._is_shadow(shadow) and self._newer((shadow.region, shadow.offset), sequence):
                    value = None if shadow.withdrawn else shadow.value
                    self.tables[shadow.region].set(shadow.offset, shadow.size, value)
            for place in update.places:
                if self._newer(("place", place.region), sequence):
                    self._move(place)
            for line in update.lines:
                if line.line in self._latch_lines:
                    continue
                if line.line < len(self.description.lines) and self._newer((line.line,), sequence):
                    self._irqchip.set_level(self.description.lines[line.line].irq, line.level)
            for message in update.messages:
                if not self._irqchip.take_message(message.address, message.data):
                    self.complain("a message to no interrupt controller", f"to {message.address:#x}")
            self.last_update = max(self.last_update, sequence)

    def _move(self, place: messages.RegionPlace) -> None:
        regions = self.description.regions
        region = regions[place.region] if place.region < len(regions) else messages.Region()
        end = region.aperture_base + region.aperture_size
        inside = region.aperture_base <= place.base and place.base + region.size <= end and place.base % 4 == 0
        if not region.aperture_size or not (place.absent or inside):
            self.complain(limits.BROKEN, f"region {place.region} cannot be at {place.base:#x}")
            return
        base = None if place.absent else self._spaces.address(region, place.base)
        self._irqchip.move_region(self.number, place.region, base)

    def _is_latch(self, shadow: messages.ShadowValue) -> bool:
        return (shadow.region, shadow.offset) in self._latch_at

    def _is_shadow(self, value: messages.ShadowValue) -> bool:
        return value.region < len(self.tables) and self.tables[value.region].has(value.offset, value.size)

    def _begin(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch = epoch
            self._seen.clear()
            self.last_update = 0
            for latch in self.latches:
                self._irqchip.latch_begin(latch)
            if self.listener >= 0:
                self._irqchip.listener_begin(self.listener, epoch)
            for table in self.tables:
                table.withdraw()

    def _newer(self, key: tuple[int | str, ...], sequence: int) -> bool:
        if self._seen.get(key, 0) > sequence:
            return False
        self._seen[key] = sequence
        return True


@dataclass(frozen=True, slots=True)
class _LatchRow:
    """A latch of a description: `clears` is offset and size of the register that clears its bits (0 and 0: none)."""

    region: int
    offset: int
    line: int
    clears: tuple[int, int]


def _latches(description: messages.Description) -> list[_LatchRow]:
    """The latches in the order in which the description has them."""
    rows = []
    for number, region in enumerate(description.regions):
        clearing = {
            register.latch: register for register in region.registers if register.write == messages.WRITE_CLEARS
        }
        for register in region.registers:
            if register.read != messages.READ_LATCH:
                continue
            if register.size != _LATCH_SIZE or register.line >= len(description.lines) or region.size > LARGEST_TABLE:
                expected = f"{_LATCH_SIZE} bytes and a line"
                raise errors.BadRequest(f"latch {register.name} of {description.name}", expected=expected)
            clears = clearing.pop(register.offset, None)
            place = (0, 0) if clears is None else (clears.offset, clears.size)
            rows.append(_LatchRow(number, register.offset, register.line, place))
        for offset, register in clearing.items():
            name = f"register {register.name} of {description.name}"
            raise errors.BadRequest(name, expected="a latch", got=hex(offset))
    return rows


def _doorbell(description: messages.Description) -> tuple[int, int, int] | None:
    """Region, offset and size of the doorbell, if the device has one."""
    found = [
        (number, register.offset, register.size)
        for number, region in enumerate(description.regions)
        for register in region.registers
        if register.write == messages.WRITE_DOORBELL
        for _ in range(register.count or 1)
    ]
    if len(found) > 1:
        raise errors.BadRequest(f"doorbells of {description.name}", expected="at most one", got=str(len(found)))
    return found[0] if found else None


@dataclass(slots=True)
class Counters:
    """What one hart did on the bus beyond what native code counts."""

    batches: int = 0
    round_trips: int = 0
    faults: int = 0
    rejoins: int = 0
    timeouts: int = 0


class Ending(Exception):
    """The machine ends while a hart waits for a device."""


class NoAnswer(Exception):
    """The device has given no sign of life for so long that the hart goes on without its answer."""


@dataclass(slots=True)
class _Entry:
    """An access that is not acknowledged; `waits` tells that the device takes it only as the last of a batch."""

    access: messages.Access
    waits: bool


class Link:
    """One hart's connection to one device. Belongs to the hart's thread.

    Accesses are kept until the device acknowledges them. When the device has another epoch, or does not know this
    connection any more, the link says Hello again, learns from Welcome what was done, and sends the rest. `dial` makes
    a connection; a device that says nothing for `limit` seconds while something waits for it raises NoAnswer, and
    PeerTimeout if it is on another host: that says more of the network than of the device, and the guest is not to see
    it. While the machine `halts` nobody's patience ends. `complain` is told of what a device should not do. While the
    hart is `wanted_still`, a device that holds accesses back, because its output is full, is told to take them.
    """

    def __init__(
        self,
        dial: Callable[[], wire.Peer],
        device: BusDevice,
        counters: Counters,
        ending: threading.Event,
        limit: float,
        complain: Callable[[str, str], None],
        halts: Callable[[], bool] = lambda: False,
        wanted_still: Callable[[], bool] = lambda: False,
    ) -> None:
        self._dial = dial
        self.device = self._device = device
        self._counters = counters
        self._ending = ending
        self._limit = limit
        self._complain = complain
        self._halts = halts
        self._wanted_still = wanted_still
        self._held = False  # the device has said that it holds back what it was sent
        self._epoch = 0
        self._done = 0  # sequence number of the last access acknowledged
        self._window = 1
        self._kept: deque[_Entry] = deque()  # from sequence number _done + 1 on
        self._sent = 0  # so many of them were sent on this connection
        self._awaited = False  # the last one kept is waited for, so its answer is needed
        self._time_ns = 0
        self._packet_id = 0
        self._heard = time.monotonic()  # the last sign of life, or when waiting began
        self._silent = False  # given up: until the next sign of life nobody waits
        self._retry = 0.0
        self._joined = False
        self._peer = dial()
        self._hello = self._peer.say_hello()

    @property
    def next_sequence(self) -> int:
        """The number of the next access."""
        return self._done + 1 + len(self._kept)

    def connect(self) -> None:
        """Waits until the device has answered the Hello. Raises NoAnswer, Ending."""
        self._wait(lambda: self._joined)

    def post(self, accesses: Sequence[messages.Access], time_ns: int) -> None:
        """Sends writes that need no answer, at guest time ``time_ns``; waits only while the device gives no credits.

        Raises NoAnswer; what has no room then is lost.
        """
        self._time_ns = time_ns
        while self._step(wait=False):
            pass
        if self._silent and len(self._kept) + len(accesses) > self._window:
            raise NoAnswer
        self._keep(accesses)
        self._send()
        self._wait(lambda: self._sent == len(self._kept))

    def access(self, posted: Sequence[messages.Access], access: messages.Access, time_ns: int) -> messages.BatchDone:
        """Makes an access that waits, after the posted ones before it; gives the device's answer. Raises NoAnswer."""
        if self._silent:
            self.post(posted, time_ns)
            posted = ()
            if self._silent:
                raise NoAnswer
        self._time_ns = time_ns
        self._counters.round_trips += 1
        self._keep(posted)
        self._kept.append(_Entry(access, waits=True))
        self._awaited = True
        self._send()
        try:
            answer = None
            since = time.monotonic()
            while self._kept:
                answer = self._step(wait=True, since=since) or answer
            assert answer is not None
            return answer
        finally:
            self._awaited = False

    def look(self) -> None:
        """Says Hello to a device that has come back meanwhile: what was lost with its former life is sent again."""
        if self._peer.remote:  # or lost its connection, or has answered the Hello on the next one
            while self._step(wait=False):
                pass
        if self._epoch != self._device.epoch:
            self._wait(lambda: self._joined and self._epoch == self._device.epoch)

    def settle(self) -> None:
        """Waits until the device has handled everything. Raises NoAnswer."""
        self._wait(lambda: not self._kept)

    def close(self) -> None:
        self._peer.close()

    def _keep(self, accesses: Sequence[messages.Access]) -> None:
        self._kept.extend(_Entry(access, waits=False) for access in accesses)

    def _wait(self, met: Callable[[], bool]) -> None:
        since = time.monotonic()
        while not met():
            if self._silent and not self._heard_again():
                raise NoAnswer
            self._step(wait=True, since=since)

    def _heard_again(self) -> bool:
        """Whether a silent device has given a sign of life meanwhile."""
        while self._step(wait=False):
            pass
        return not self._silent

    def _send(self) -> None:
        """Sends what the device gives credits for, in batches of which only the last access waits."""
        while self._joined and self._epoch == self._device.epoch and self._sent < len(self._kept):
            room = self._window - self._sent
            if room <= 0:
                return
            accesses = []
            for entry in islice(self._kept, self._sent, self._sent + room):
                accesses.append(entry.access)
                if entry.waits:
                    break
            first = self._done + 1 + self._sent
            batch = messages.AccessBatch(epoch=self._epoch, sequence=first, time_ns=self._time_ns, accesses=accesses)
            self._packet_id += 1
            try:
                self._peer.send_packet(Packet(id=self._packet_id, access_batch=batch))
            except errors.PeerError:  # it does not read its socket: begin anew when it does
                self._leave()
                return
            self._sent += len(accesses)
            self._counters.batches += 1

    def _step(self, wait: bool, since: float = 0.0) -> messages.BatchDone | None:
        """Takes what comes next, if anything; gives a BatchDone that has come, applied."""
        if self._joined and self._epoch != self._device.epoch:
            self._leave()
            self._retry = 0.0
        if not self._joined and self._hello == 0 and time.monotonic() >= self._retry:
            self._rejoin()
        try:
            # between two connections nothing comes: say Hello again as soon as that is due
            between = not self._joined and not self._hello
            patience = min(PATIENCE, max(0.0, self._retry - time.monotonic())) if between else PATIENCE
            packet = self._peer.receive(patience if wait else 0.0)
        except errors.PeerLost:
            self._leave()
            return None
        except errors.PeerError as error:
            self._complain(_cause(error), str(error))
            return None
        if packet is None:
            if self._ending.is_set():
                raise Ending
            self._press()
            if wait:
                self._nothing_came(since)
            return None
        kind = packet.WhichOneof("body")
        if kind == "welcome" and packet.id == self._hello:
            self._welcomed(packet.welcome)
        elif kind == "batch_done" and self._joined:
            return self._acknowledged(packet.batch_done)
        elif kind in ("error", "refused"):
            self._refused(packet)
        return None

    def _nothing_came(self, since: float) -> None:
        now = time.monotonic()
        if self._halts():
            self._heard = now
        if now - max(self._heard, since) > self._limit:
            self._silent = True
            self._counters.timeouts += 1
            self._complain("no answer", f"no sign of life for {self._limit:g} s while a hart waits")
            if self._peer.remote:
                raise errors.PeerTimeout(
                    f"no sign of life from {self.device.name} at {self._peer.address} for {self._limit:g} s"
                )
            raise NoAnswer
        if not self._joined and self._hello and not self._peer.remote:
            self._hello = self._peer.say_hello()  # it may have died with the last one unread

    def _acknowledged(self, done: messages.BatchDone) -> messages.BatchDone | None:
        count = done.done - self._done
        if done.epoch != self._epoch or not 0 <= count <= self._sent:
            expected = f"epoch {self._epoch}, {self._done} to {self._done + self._sent}"
            self._complain("nonsense", f"acknowledged epoch {done.epoch}, {done.done}; expected {expected}")
            return None
        self._heard, self._silent = time.monotonic(), False
        for _ in range(count):
            self._kept.popleft()
        self._done = done.done
        self._sent -= count
        self._window = max(1, min(done.credits, LARGEST_WINDOW))
        self._held = done.held
        self._press()
        if done.HasField("update") and done.update.epoch != done.epoch:
            self._complain(limits.BROKEN, f"an update of epoch {done.update.epoch} in an answer of {done.epoch}")
        elif done.HasField("update"):
            self._device.apply(done.update)
        self._send()
        return done

    def _press(self) -> None:
        """Has a device that holds back what it was sent take it, if the hart is to stand still."""
        if self._held and self._joined and self._wanted_still():
            self._held = False
            try:
                self._peer.send_packet(Packet(take_accesses=messages.TakeAccesses()))
            except errors.PeerError:
                self._leave()

    def _refused(self, packet: Packet) -> None:
        """The device does not know this connection, or not what came on it: begin anew, not too often."""
        if packet.WhichOneof("body") == "error":
            error = errors.from_message(packet.error)
            if not isinstance(error, errors.StaleEpoch):
                self._complain("refused an access", str(error))
        elif packet.id == self._hello:
            self._complain("refused Hello", packet.refused.reason)
        self._leave()

    def _leave(self) -> None:
        self._joined = False
        self._hello = 0

    def _rejoin(self) -> None:
        self._retry = time.monotonic() + PATIENCE
        try:
            peer = self._dial()
        except zmq.ZMQError:  # no descriptors: tried again
            return
        self._peer.abandon()
        self._peer = peer
        self._hello = self._peer.say_hello()
        self._counters.rejoins += 1

    def _welcomed(self, welcome: common.Welcome) -> None:
        if welcome.epoch != self._device.epoch:  # a life that has ended, or the irqchip has yet to meet the next one
            self._leave()
            self._retry = time.monotonic() + _OTHER_LIFE_SECONDS
            return
        if welcome.epoch != self._epoch:
            self._epoch = welcome.epoch
            self._heard, self._silent = time.monotonic(), False
            self._retry = 0.0
        self._window = max(1, min(welcome.window, LARGEST_WINDOW))
        count = welcome.done - self._done
        if 0 <= count <= len(self._kept):
            # The last one, if it is waited for, is sent again all the same: the device remembers its answer.
            count = min(count, len(self._kept) - 1) if self._awaited and self._kept else count
            for _ in range(count):
                self._kept.popleft()
            self._done += count
        else:  # a successor that does not go on where this one ended: it begins with what is not answered
            self._done = welcome.done
        self._sent = 0
        self._held = False
        self._hello = 0
        self._joined = True
        self._send()


class Irqchip:
    """The irqchip's connection to one device: takes its updates, tells it guest time, and finds it again after its
    death.

    Belongs to the service's thread. `revived` is called when the device was met anew, `complain` as for `Link`.
    """

    def __init__(
        self,
        peer: wire.Peer,
        device: BusDevice,
        clock: Clock,
        loop: Loop,
        revived: Callable[[], None],
        complain: Callable[[str, str], None],
    ) -> None:
        self._peer = peer
        self._device = device
        self._clock = clock
        self._loop = loop
        self._revived = revived
        self._complain = complain
        self._window = 0.0  # when the present one began
        self._taken = 0  # packets and values in it
        self._lost = 0  # the life in which a connection was lost that is not there again
        self._met = False  # it has answered the Hello of this connection
        self._owes_time = False
        self._watch()

    def wait(self, timeout: float) -> None:
        """Takes the next update, if one comes within so many seconds."""
        self._take(timeout)

    def tell_time(self) -> None:
        """Guest time is another one than the device thinks, or has begun to pass, or stands still."""
        self._owes_time = True
        if self._met:
            told = messages.GuestTime(now_ns=self._clock.now_ns(), passes=self._clock.passes)
            with suppress(errors.PeerError):  # it does not read now; it is told when it says something again
                self._peer.send_packet(Packet(guest_time=told))
                self._owes_time = False

    def close(self) -> None:
        """The device leaves the board."""
        self._loop.cancel(f"redial {self._device.name}")
        self._unwatch()
        self._peer.abandon()

    def _greet(self) -> None:
        """There is a connection, perhaps a new one: say who we are."""
        lost = False
        while (there := wire.is_there(self._connection)) is not None:
            lost, self._met = not there, False
            if there:
                self._hello = self._peer.say_hello()
        if lost:
            self._redial()

    def _redial(self) -> None:
        """ZeroMQ does so by itself, but not once it has cut the connection, as it does with what is too long. What was
        not read of it comes again, as all does after a Hello."""
        self._lost = 0 if self._peer.remote else self._device.epoch
        self._unwatch()
        self._loop.call_in(f"redial {self._device.name}", REDIAL_SECONDS, self._watch_anew)

    def _watch_anew(self) -> None:
        self._peer.redial()
        self._watch()

    def _watch(self) -> None:
        self._met = False
        self._connection = self._peer.watch_connection()
        self._hello = self._peer.say_hello()  # the first connection may have been there before the watch
        self._loop.watch(self._connection, read=self._greet)
        self._loop.watch(self._peer.socket, read=self._take_some)

    def _unwatch(self) -> None:
        self._loop.cancel(f"flood {self._device.name}")
        self._loop.watch(self._connection)
        self._loop.watch(self._peer.socket)
        self._peer.socket.disable_monitor()
        self._connection.close(0)

    def _take_some(self) -> None:
        now = time.monotonic()
        if now - self._window > FLOOD_SECONDS:
            self._window, self._taken = now, 0
        for _ in range(_AT_ONCE):
            if not self._take(0.0):
                return
            if self._taken > FLOOD_VALUES:
                break
        if self._taken > FLOOD_VALUES:
            self._complain("floods updates", f"{self._taken} values and more within {FLOOD_SECONDS:g} s")
            self._loop.watch(self._peer.socket)
            self._loop.call_in(f"flood {self._device.name}", FLOOD_SECONDS, self._listen)

    def _listen(self) -> None:
        self._loop.watch(self._peer.socket, read=self._take_some)

    def _take(self, timeout: float) -> bool:
        try:
            packet = self._peer.receive(timeout)
        except errors.PeerError as error:
            self._complain(_cause(error), str(error))
            self._taken += _PACKET_VALUES
            return True
        if packet is None:
            return False
        kind = packet.WhichOneof("body")
        self._taken += _PACKET_VALUES
        if kind == "device_update":
            update = packet.device_update
            self._taken += len(update.shadows) + len(update.lines) + len(update.places) + len(update.messages)
            if update.epoch > self._device.epoch:  # before the Welcome of that life, which comes by the same pipe
                self._complain(limits.BROKEN, f"an update of epoch {update.epoch}; its own is {self._device.epoch}")
            else:
                self._device.apply(update)
        elif kind == "welcome":
            if self._lost == packet.welcome.epoch:  # on one host nobody else ends one in the midst of a life
                self._complain(limits.BROKEN, f"its connection was cut: expected at most {wire.MAX_DEVICE_BYTES} bytes")
            self._lost = 0
            self._device.begin(packet.welcome)
            if packet.id == self._hello:
                self._met = self._owes_time = True
                self._revived()
        elif kind == "refused" and packet.id == self._hello:
            self._complain("refused Hello", packet.refused.reason)
        if self._owes_time:
            self.tell_time()
        return True


def _cause(error: errors.PeerError) -> str:
    return limits.BROKEN if isinstance(error, errors.OutsideLimits) else "nonsense"
