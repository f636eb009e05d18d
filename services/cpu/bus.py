"""The cpu's side of the bus: what it knows of each device, and each hart's link to it (proto/vmesh/v1/bus.proto)."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq

from vmesh import errors, wire
from vmesh.v1 import bus_pb2 as messages
from vmesh.v1 import common_pb2 as common
from vmesh.v1.packet_pb2 import Packet

#: Larger regions are reached by round trips only.
LARGEST_TABLE = 1 << 20
#: How long a hart waits before it looks whether the machine is ending, in seconds.
PATIENCE = 0.1
GREETING_LIMIT = 30.0


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
                if register.write == messages.WRITE_POSTED:
                    self._kinds[offset] |= register.size
                if register.read == messages.READ_SHADOW:
                    self._shadow_kinds.add((offset, register.size))

    @property
    def kinds(self) -> int:
        return ctypes.addressof(self._kinds) if len(self._kinds) else 0

    @property
    def values(self) -> int:
        return ctypes.addressof(self._values)

    def set(self, offset: int, size: int, value: int | None) -> None:
        """Takes a shadow value, or withdraws it; what the description does not call a shadow is ignored."""
        if (offset, size) not in self._shadow_kinds:
            return
        if value is None:
            self._kinds[offset] &= ~(size << 4)
            return
        raw = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        self._values[offset : offset + size] = list(raw)
        self._kinds[offset] |= size << 4


class Device:
    """A device on the bus: its description, and the lines and shadows as it last drove them.

    Updates come by the harts' links and by the irqchip's connection; each value keeps the sequence number that set it.
    """

    def __init__(self, number: int, description: messages.Description, set_level: Callable[[int, bool], None]) -> None:
        self.number = number
        self.description = description
        self.name = description.name
        self.tables = [RegisterTable(region) for region in description.regions]
        self.last_update = 0
        self._epoch = description.epoch
        self._set_level = set_level
        self._seen: dict[tuple[int, ...], int] = {}
        self._lock = threading.Lock()

    def apply(self, update: messages.DeviceUpdate) -> None:
        """Takes what is newer than what is known: shadows first, so that a hart that takes the interrupt reads them."""
        with self._lock:
            if update.epoch < self._epoch:
                return
            if update.epoch > self._epoch:
                self._epoch = update.epoch
                self._seen.clear()
                self.last_update = 0
            sequence = update.sequence
            for shadow in update.shadows:
                if shadow.region < len(self.tables) and self._newer((shadow.region, shadow.offset), sequence):
                    value = None if shadow.withdrawn else shadow.value
                    self.tables[shadow.region].set(shadow.offset, shadow.size, value)
            for line in update.lines:
                if line.line < len(self.description.lines) and self._newer((line.line,), sequence):
                    self._set_level(self.description.lines[line.line].irq, line.level)
            self.last_update = max(self.last_update, sequence)

    def _newer(self, key: tuple[int, ...], sequence: int) -> bool:
        if self._seen.get(key, 0) > sequence:
            return False
        self._seen[key] = sequence
        return True


@dataclass(slots=True)
class Counters:
    """What one hart did on the bus beyond what native code counts."""

    batches: int = 0
    round_trips: int = 0
    faults: int = 0


class Ending(Exception):
    """The machine ends while a hart waits for a device."""


class Link:
    """One hart's connection to one device. Belongs to the hart's thread."""

    def __init__(self, peer: wire.Peer, device: Device, counters: Counters, ending: threading.Event) -> None:
        welcome = peer.greet(GREETING_LIMIT)
        self._peer = peer
        self._device = device
        self._counters = counters
        self._ending = ending
        self._epoch = welcome.epoch
        self._next = welcome.done + 1
        self._done = welcome.done
        self._credits = max(1, welcome.window)
        self._packet_id = 0

    def post(self, accesses: Sequence[messages.Access], time_ns: int) -> None:
        """Sends writes that need no answer; waits only while the device gives no credits."""
        start = 0
        while start < len(accesses):
            while self._room() <= 0:
                self._take_answer(wait=True)
            count = min(self._room(), len(accesses) - start)
            self._send(accesses[start : start + count], time_ns)
            start += count
        while self._take_answer(wait=False) is not None:
            pass

    def access(self, posted: Sequence[messages.Access], access: messages.Access, time_ns: int) -> messages.BatchDone:
        """Makes an access that waits, after the posted ones before it; gives the device's answer."""
        if len(posted) >= self._room():
            self.post(posted, time_ns)
            posted = ()
            while self._room() <= 0:
                self._take_answer(wait=True)
        self._send([*posted, access], time_ns)
        self._counters.round_trips += 1
        last = self._next - 1
        while True:
            answer = self._take_answer(wait=True)
            if answer is not None and answer.done >= last:
                return answer

    def settle(self) -> None:
        """Waits until the device has handled everything."""
        while self._done < self._next - 1:
            self._take_answer(wait=True)

    def close(self) -> None:
        self._peer.close()

    def _room(self) -> int:
        return self._credits - (self._next - 1 - self._done)

    def _send(self, accesses: Sequence[messages.Access], time_ns: int) -> None:
        self._packet_id += 1
        batch = messages.AccessBatch(epoch=self._epoch, sequence=self._next, time_ns=time_ns, accesses=accesses)
        self._peer.send_packet(Packet(id=self._packet_id, access_batch=batch))
        self._next += len(accesses)
        self._counters.batches += 1

    def _take_answer(self, wait: bool) -> messages.BatchDone | None:
        """The next BatchDone, applied."""
        while True:
            packet = self._peer.receive(PATIENCE if wait else 0.0)
            if packet is None:
                if self._ending.is_set():
                    raise Ending
                if wait:
                    continue
                return None
            kind = packet.WhichOneof("body")
            if kind == "batch_done":
                break
            if kind == "error":
                raise errors.from_message(packet.error)
            if kind == "refused":
                raise errors.PeerError(f"{self._device.name} refused: {packet.refused.reason}")
        done = packet.batch_done
        if done.epoch != self._epoch or not self._done <= done.done < self._next:
            expected = f"epoch {self._epoch}, an access from {self._done} to {self._next - 1}"
            raise errors.PeerError(
                f"{self._device.name} acknowledged what was not sent",
                expected=expected,
                got=f"epoch {done.epoch}, {done.done}",
            )
        self._done = done.done
        self._credits = max(1, min(done.credits, 1 << 20))
        if done.HasField("update"):
            self._device.apply(done.update)
        return done


def dial(
    context: zmq.Context[zmq.Socket[bytes]],
    description: messages.Description,
    name: str,
    machine: str,
    lifeline: int,
    hart: int = -1,
) -> wire.Peer:
    """A connection to a device: of a hart, or of the irqchip when ``hart`` is -1."""
    role = common.ROLE_IRQCHIP if hart < 0 else common.ROLE_HART
    said = wire.hello(role, name, machine=machine, hart=max(hart, 0))
    return wire.Peer(context, description.endpoint, said, lifeline=lifeline)


def now_ns() -> int:
    return time.monotonic_ns()
