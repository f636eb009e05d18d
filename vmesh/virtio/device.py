"""A virtio device (virtio 1.2, 2.1 to 2.4): features, status, queues, configuration, whatever leads to it.

A model is a `VirtioDevice`. How a driver reaches it is its `Transport`: registers on MMIO (mmio.py), later PCI. The
transport calls what is under "What a transport calls"; the device tells it of interrupts and of its status.

Queues are served when the turn of the loop ends, so that one turn, and one interrupt, is for all that the driver has
made available until then; a ring for a queue that was looked at already costs nothing. What a life of the device was
rung for and did not look at, its successor finds in the queues.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from google.protobuf.message import Message

from vmesh import errors
from vmesh.device import Device
from vmesh.service import Runtime
from vmesh.slot import MARKS
from vmesh.v1.bus_pb2 import Line, Region
from vmesh.v1.common_pb2 import SEVERITY_WARNING
from vmesh.v1.devices_pb2 import VirtioQueueState, VirtioState
from vmesh.virtio.packed import WRAP, PackedQueue
from vmesh.virtio.queue import MAX_SIZE, Areas, Chain, Malformed, Queue
from vmesh.virtio.split import SplitQueue

F_INDIRECT_DESC, F_EVENT_IDX, F_VERSION_1, F_RING_PACKED = 1 << 28, 1 << 29, 1 << 32, 1 << 34
# 6 (reserved feature bits) says what is always offered; a packed ring only where it is asked for, as in QEMU.
RING_FEATURES = F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
USED_BUFFER, CONFIG_CHANGED = 1, 2  # why a device interrupts, as transports have it


_MASK32 = (1 << 32) - 1
_STATUS_BITS = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED
_TURN_NS = 1_000_000  # how long queues are served before what is done is told, and registers are looked at again


Area = Literal["descriptors", "driver", "device"]  # of a queue (2.6, 2.8)


class Transport(ABC):
    """How a driver reaches a device: what is on the board, and the registers there."""

    regions: list[Region]
    lines: list[Line]

    @abstractmethod
    def bind(self, device: VirtioDevice) -> None:
        """This is the device, once; it is not on the board yet."""

    @abstractmethod
    def reset(self) -> None:
        """The device is as after power-on."""

    @abstractmethod
    def interrupt(self, bits: int) -> None:
        """The device has more to tell, USED_BUFFER or CONFIG_CHANGED or both."""

    @abstractmethod
    def forget_interrupts(self) -> None:
        """None is pending, whatever was before."""

    @abstractmethod
    def show_status(self, status: int) -> None:
        """The device's status, when it may have changed."""

    @abstractmethod
    def read(self, region: int, offset: int, size: int) -> int:
        """An access of the driver."""

    @abstractmethod
    def write(self, region: int, offset: int, size: int, value: int) -> None:
        """An access of the driver."""


class NotYet(Exception):
    """Raised by `request`: what the chain asks for has not been done yet. It is asked again when the queue is rung."""


class VirtioDevice(Device):
    """A virtio device. A model sets `device_id`, `queue_sizes` (a size each, a power of two) and `features`, overrides
    `request` (or `serve`), and `config` if it has a configuration.

    `state` is a message whose field `virtio` is a VirtioState; what else there is, is the model's own (`save_device`,
    `check_device`, `load_device`).
    """

    device_id: ClassVar[int]
    dma = True

    def __init__(
        self,
        runtime: Runtime,
        transport: Transport,
        *,
        queue_sizes: Sequence[int],
        features: int = 0,
        packed: bool = False,
    ) -> None:
        super().__init__(runtime)
        self._transport = transport
        self.regions, self.lines = transport.regions, transport.lines
        if 2 * len(queue_sizes) > MARKS or not all(0 < size <= MAX_SIZE for size in queue_sizes):
            raise errors.ConfigError(f"expected at most {MARKS // 2} queues of at most {MAX_SIZE} entries")
        self.offered = features | RING_FEATURES | (F_RING_PACKED if packed else 0)
        self.queues: list[Queue | None] = [None] * len(queue_sizes)  # those that the driver has made ready
        self.paused = False
        self._attached = False
        self._queue_sizes = tuple(queue_sizes)
        self._rung = 0  # a bit for each queue that is to be looked at
        self._chains = 0
        self._state = self._power_on()
        transport.bind(self)

    # What a model overrides.

    def request(self, queue: Queue, chain: Chain) -> int:
        """Do what `chain` asks for; gives how many bytes were written to its writable buffers. May raise NotYet."""
        raise NotImplementedError

    def serve(self, queue: Queue) -> bool:
        """The queue may have something. Gives whether it is to be called again, soon, for what is left.

        This one is for requests that are done at once, each with `request`. Another one pops as much as it wants, and
        calls `ring` when it can go on.
        """
        until = time.perf_counter_ns() + _TURN_NS
        while (chain := queue.pop()) is not None:
            try:
                written = self.request(queue, chain)
            except NotYet:
                queue.put_back(chain)
                return False
            self._chains += 1
            queue.push(chain, written)
            if time.perf_counter_ns() >= until:
                return True
        return False

    def config(self) -> bytes:
        """The device's configuration as it is now."""
        return b""

    def write_config(self, offset: int, size: int, value: int) -> None:
        """The driver writes to the configuration, inside of it."""

    def driver_ready(self) -> None:
        """The driver has set DRIVER_OK, or a state with it was loaded: `negotiated` holds."""

    def reset_device(self) -> None:
        """Back to the state after power-on, what is the model's own."""

    def save_device(self, state: Message) -> None:
        """Put what is the model's own into `state`."""

    def check_device(self, state: Message) -> None:
        """Raises BadState."""

    def load_device(self, state: Message) -> None:
        """Take what `check_device` has passed."""

    # What a model calls.

    @property
    def live(self) -> bool:
        """Whether the driver is there, and the device may take requests."""
        return self._state.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK and not self.paused

    def negotiated(self, feature: int) -> bool:
        return bool(self._state.driver_features & self.offered & feature)

    def ring(self, index: int) -> None:
        """Serve a queue when this turn of the loop ends; from a callback of the loop."""
        self._rung |= 1 << index

    def config_changed(self) -> None:
        """What `config` gives is different from now on."""
        self._state.config_generation = self._state.config_generation + 1 & _MASK32
        if self._state.status & DRIVER_OK:
            self._interrupt(CONFIG_CHANGED)
        self._drive()

    def needs_reset(self, reason: str) -> None:
        """What the driver did cannot be followed (2.1.2): nothing more is taken from it until it resets the device."""
        if self._state.status & NEEDS_RESET:
            return
        self._state.status |= NEEDS_RESET
        if self._state.status & DRIVER_OK:
            self._interrupt(CONFIG_CHANGED)
        self._drive()
        self.runtime.notify(SEVERITY_WARNING, f"the guest's driver has to reset the device: {reason}")

    # What the SDK calls.

    def attached(self) -> None:
        self._attached = True
        self._make_queues()

    def recover(self) -> None:
        for queue in self.queues:
            if queue is not None:
                queue.recover()
        if self._state.status & DRIVER_OK:
            self._interrupt(USED_BUFFER)
        self._drive()
        self._ring_all()

    def settle(self) -> None:
        if not self.live:
            return
        if self._rung:
            rung, self._rung = self._rung, 0
            for index, queue in enumerate(self.queues):
                if rung >> index & 1 and queue is not None and self.live and self.serve(queue):
                    self.ring(index)
            if self._rung:
                self.runtime.loop.call_in("virtio", 0.0, _nothing)
        interrupt = False
        for queue in self.queues:
            if queue is not None and queue.wants_interrupt():
                interrupt = True
        if interrupt:
            self._interrupt(USED_BUFFER)
            self._drive()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._ring_all()

    def reset(self) -> None:
        self._state = self._power_on()
        self.queues = [None] * len(self._queue_sizes)
        self._rung = 0
        self.reset_device()
        self._transport.reset()
        self._transport.forget_interrupts()
        self._drive()

    def save(self) -> Message:
        for queue, state in zip(self.queues, self._state.queues, strict=True):
            if queue is not None:
                state.position = queue.position
        message = self.state()
        message.virtio.CopyFrom(self._state)  # type: ignore[attr-defined]
        self.save_device(message)
        return message

    def check(self, state: Message, version: int) -> None:
        virtio: VirtioState = state.virtio  # type: ignore[attr-defined]
        name = f"virtio device {self.device_id}"
        if virtio.status & ~(_STATUS_BITS | NEEDS_RESET) or virtio.interrupt_status & ~3:
            raise errors.BadState(f"{name}: status {virtio.status:#x}, interrupts {virtio.interrupt_status:#x}")
        if virtio.driver_features & ~self.offered and virtio.status & FEATURES_OK:
            raise errors.BadState(
                f"features of {name}", expected=f"of {self.offered:#x}", got=f"{virtio.driver_features:#x}"
            )
        if len(virtio.queues) != len(self._queue_sizes):
            raise errors.BadState(
                f"queues of {name}", expected=str(len(self._queue_sizes)), got=str(len(virtio.queues))
            )
        packed = bool(virtio.driver_features & F_RING_PACKED)
        for index, queue in enumerate(virtio.queues):
            if queue.ready and not virtio.status & FEATURES_OK:
                raise errors.BadState(f"queue {index} of {name}: ready before the features are accepted")
            if queue.ready and (reason := self._size_error(index, queue.size, packed)):
                raise errors.BadState(f"queue {index} of {name}: {reason}")
            if queue.position > 0xFFFF or (packed and queue.ready and queue.position & ~WRAP >= queue.size):
                raise errors.BadState(f"queue {index} of {name}: position {queue.position:#x}")
        self.check_device(state)

    def load(self, state: Message) -> None:
        self._state = VirtioState.FromString(state.virtio.SerializeToString())  # type: ignore[attr-defined]
        self._rung = 0
        self.load_device(state)
        if self._attached:  # else from the slot, and `recover` follows
            for index in range(len(self.marks)):
                self.marks[index] = 0
            self._make_queues()
        self._transport.forget_interrupts()
        if self._state.interrupt_status:  # what of it the guest has seen is not known: once more does no harm
            self._interrupt(self._state.interrupt_status)
        if self._state.status & DRIVER_OK:
            self.driver_ready()
        self._drive()

    def counters(self) -> dict[str, int]:
        return {"requests": self._chains}

    def read(self, region: int, offset: int, size: int) -> int:
        return self._transport.read(region, offset, size)

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        self._transport.write(region, offset, size, value)

    # What a transport calls. What a driver must not do changes nothing, as on QEMU's board.

    @property
    def transport_state(self) -> VirtioState:
        """Where the driver's selectors, which are a transport's own, are kept; the rest is this class's."""
        return self._state

    def features(self, word: int) -> int:
        """The 32 bits `word` of the features that are offered."""
        return self.offered >> 32 * word & _MASK32 if word < 2 else 0

    def accept_features(self, word: int, value: int) -> None:
        """The driver takes these of word `word`."""
        state = self._state
        if state.status & FEATURES_OK or word >= 2:
            return  # 3.1.1: settled; or bits that nobody has
        state.driver_features = state.driver_features & ~(_MASK32 << 32 * word) | value << 32 * word

    def set_status(self, value: int) -> None:
        state = self._state
        if not value:
            self.reset()
            return
        # A driver sets bits; only a reset clears them (2.1.1).
        added = value & _STATUS_BITS & ~state.status
        # A driver without VERSION_1 is taken (6.1 permits it): some know no features, and QEMU takes them.
        if added & FEATURES_OK and state.driver_features & ~self.offered:
            added &= ~FEATURES_OK  # 2.2.2: the driver reads that they are not accepted
        state.status |= added
        if added & DRIVER_OK:
            self.driver_ready()
            self._ring_all()
        self._drive()

    def most_entries(self, index: int) -> int:
        """Of the queue; 0: there is none."""
        return self._queue_sizes[index] if index < len(self._queue_sizes) else 0

    def is_ready(self, index: int) -> bool:
        return index < len(self._queue_sizes) and self._state.queues[index].ready

    def size_queue(self, index: int, entries: int) -> None:
        if index < len(self._queue_sizes) and not self.is_ready(index):
            self._state.queues[index].size = entries

    def place_queue(self, index: int, area: Area, half: int, value: int) -> None:
        """Half 0 of the area's guest physical address, the low one, or half 1."""
        if index < len(self._queue_sizes) and not self.is_ready(index):
            queue = self._state.queues[index]
            setattr(queue, area, getattr(queue, area) & ~(_MASK32 << 32 * half) | value << 32 * half)

    def set_ready(self, index: int, ready: bool) -> None:
        if index >= len(self._queue_sizes):
            return
        queue = self._state.queues[index]
        if not ready:
            queue.ready = False
            self.queues[index] = None
        elif not queue.ready and self._state.status & FEATURES_OK:
            packed = self.negotiated(F_RING_PACKED)
            if reason := self._size_error(index, queue.size, packed):
                self.needs_reset(f"queue {index}: {reason}")
                return
            queue.ready = True
            queue.position = WRAP if packed else 0  # 2.8.1: the wrap counter begins as 1
            self.marks[2 * index] = 0
            self._make_queue(index)

    def notify(self, index: int) -> None:
        """The driver has made something available in the queue."""
        if index < len(self.queues):
            self._rung |= 1 << index

    # The rest is this class's own.

    def _power_on(self) -> VirtioState:
        return VirtioState(queues=[VirtioQueueState(size=size) for size in self._queue_sizes])

    def _interrupt(self, bits: int) -> None:
        self._state.interrupt_status |= bits
        self._transport.interrupt(bits)

    def _drive(self) -> None:
        self._transport.show_status(self._state.status)

    def _size_error(self, index: int, size: int, packed: bool) -> str:
        if 0 < size <= self._queue_sizes[index] and (packed or not size & size - 1):
            return ""
        kind = "a number" if packed else "a power of two"
        return f"expected {kind} of entries up to {self._queue_sizes[index]}, got {size}"

    def _make_queues(self) -> None:
        for index, queue in enumerate(self._state.queues):
            self.queues[index] = None
            if queue.ready:
                self._make_queue(index)

    def _make_queue(self, index: int) -> None:
        state = self._state.queues[index]
        kind = PackedQueue if self.negotiated(F_RING_PACKED) else SplitQueue
        try:
            self.queues[index] = kind(
                index,
                Areas(state.size, state.descriptors, state.driver, state.device),
                self.memory,
                position=state.position,
                indirect=self.negotiated(F_INDIRECT_DESC),
                event_index=self.negotiated(F_EVENT_IDX),
                marks=self.marks,
                broken=self.needs_reset,
            )
        except Malformed as error:
            self.needs_reset(f"queue {index}: {error}")

    def _ring_all(self) -> None:
        self._rung = (1 << len(self.queues)) - 1
        self.runtime.loop.call_in("virtio", 0.0, _nothing)  # the end of that turn serves them


def _nothing() -> None:
    pass
