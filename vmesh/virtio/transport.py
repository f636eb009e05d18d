"""A virtio device on MMIO (virtio 1.2, 2.1 to 2.4 and 4.2): registers, feature negotiation, status, queues, interrupts.

What an access costs (docs/protocol.md), and why it is right:

* QueueNotify is a doorbell: it only says that there may be something in a queue, and what a life of the device was
  rung for and did not look at, its successor finds in the queues. Queues are served when the turn of the loop ends, so
  that one turn, and one interrupt, is for all that the driver has made available until then; a ring for a queue that
  was looked at already costs nothing.
* InterruptStatus is a latch, and InterruptACK clears it: neither is a message. The driver acknowledges before it looks
  into the ring, and we raise the bit after we have pushed, so that whatever it does not find comes with another raise.
* Status is a shadow.
* All else is for setting up and is sync.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from google.protobuf.message import Message

from vmesh import errors
from vmesh.device import Device
from vmesh.service import Runtime
from vmesh.slot import MARKS
from vmesh.v1.bus_pb2 import READ_LATCH, READ_SHADOW, WRITE_CLEARS, WRITE_DOORBELL, Line, Region, Register
from vmesh.v1.common_pb2 import SEVERITY_WARNING
from vmesh.v1.devices_pb2 import VirtioQueueState, VirtioState
from vmesh.virtio.packed import WRAP, PackedQueue
from vmesh.virtio.queue import MAX_SIZE, Areas, Chain, Malformed, Queue
from vmesh.virtio.split import SplitQueue

SIZE = 0x1000  # of the region on the board
CONFIG = 0x100  # where the device's own configuration begins
MAGIC = 0x7472_6976
VERSION = 2
VENDOR = 0x554D_4551  # "QEMU": 4.2.2 leaves it to the vendor; xv6 and others take a disk for theirs by it

F_INDIRECT_DESC, F_EVENT_IDX, F_VERSION_1, F_RING_PACKED = 1 << 28, 1 << 29, 1 << 32, 1 << 34
# 3 to 6 (feature bits) say what is always offered; a packed ring only where it is asked for, as in QEMU.
TRANSPORT_FEATURES = F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
USED_BUFFER, CONFIG_CHANGED = 1, 2  # of InterruptStatus


class Offset:
    """The registers (4.2.2), of 32 bits each."""

    MAGIC_VALUE = 0x00
    VERSION = 0x04
    DEVICE_ID = 0x08
    VENDOR_ID = 0x0C
    DEVICE_FEATURES = 0x10
    DEVICE_FEATURES_SEL = 0x14
    DRIVER_FEATURES = 0x20
    DRIVER_FEATURES_SEL = 0x24
    QUEUE_SEL = 0x30
    QUEUE_NUM_MAX = 0x34
    QUEUE_NUM = 0x38
    QUEUE_READY = 0x44
    QUEUE_NOTIFY = 0x50
    INTERRUPT_STATUS = 0x60
    INTERRUPT_ACK = 0x64
    STATUS = 0x70
    QUEUE_DESC_LOW = 0x80
    QUEUE_DESC_HIGH = 0x84
    QUEUE_DRIVER_LOW = 0x90
    QUEUE_DRIVER_HIGH = 0x94
    QUEUE_DEVICE_LOW = 0xA0
    QUEUE_DEVICE_HIGH = 0xA4
    SHM_LEN_LOW = 0xB0
    SHM_BASE_HIGH = 0xBC
    CONFIG_GENERATION = 0xFC


_MASK32 = (1 << 32) - 1
_STATUS_BITS = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED
_ADDRESSES = {
    Offset.QUEUE_DESC_LOW: "descriptors",
    Offset.QUEUE_DRIVER_LOW: "driver",
    Offset.QUEUE_DEVICE_LOW: "device",
}
_REGISTERS = (
    Register(name="MagicValue, Version, DeviceID, VendorID", offset=0, size=4, count=4, read=READ_SHADOW),
    Register(name="InterruptStatus", offset=Offset.INTERRUPT_STATUS, size=4, read=READ_LATCH, line=0),
    Register(
        name="InterruptACK", offset=Offset.INTERRUPT_ACK, size=4, write=WRITE_CLEARS, latch=Offset.INTERRUPT_STATUS
    ),
    Register(name="Status", offset=Offset.STATUS, size=4, read=READ_SHADOW),
    Register(name="QueueNotify", offset=Offset.QUEUE_NOTIFY, size=4, write=WRITE_DOORBELL),
)
_TURN_NS = 1_000_000  # how long queues are served before what is done is told, and registers are looked at again


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
        base: int,
        irq: int,
        *,
        queue_sizes: Sequence[int],
        features: int = 0,
        packed: bool = False,
    ) -> None:
        super().__init__(runtime)
        self.regions = [Region(name="virtio-mmio", base=base, size=SIZE, access_sizes=7, registers=_REGISTERS)]
        self.lines = [Line(name="interrupt", irq=irq)]
        if 2 * len(queue_sizes) > MARKS or not all(0 < size <= MAX_SIZE for size in queue_sizes):
            raise errors.ConfigError(f"expected at most {MARKS // 2} queues of at most {MAX_SIZE} entries")
        self.offered = features | TRANSPORT_FEATURES | (F_RING_PACKED if packed else 0)
        self.queues: list[Queue | None] = [None] * len(queue_sizes)  # those that the driver has made ready
        self.paused = False
        self._attached = False
        self._queue_sizes = tuple(queue_sizes)
        self._rung = 0  # a bit for each queue that is to be looked at
        self._chains = 0
        self._state = self._power_on()

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
        for index, value in enumerate((MAGIC, VERSION, self.device_id, VENDOR)):
            self.wires.set_shadow(0, 4 * index, 4, value)
        self.wires.clear_latch(0, Offset.INTERRUPT_STATUS, 4)
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
        self.wires.clear_latch(0, Offset.INTERRUPT_STATUS, 4)
        if self._state.interrupt_status:  # what of it the guest has seen is not known: once more does no harm
            self._interrupt(self._state.interrupt_status)
        if self._state.status & DRIVER_OK:
            self.driver_ready()
        self._drive()

    def counters(self) -> dict[str, int]:
        return {"requests": self._chains}

    def read(self, region: int, offset: int, size: int) -> int:
        if offset >= CONFIG:
            return int.from_bytes(self.config()[offset - CONFIG : offset - CONFIG + size], "little")
        if size != 4:
            return 0  # 4.2.2.2: the driver must not; as on QEMU's board
        state = self._state
        queue = self._selected()
        match offset:
            case Offset.MAGIC_VALUE:
                return MAGIC
            case Offset.VERSION:
                return VERSION
            case Offset.DEVICE_ID:
                return self.device_id
            case Offset.VENDOR_ID:
                return VENDOR
            case Offset.DEVICE_FEATURES:
                return self.offered >> 32 * state.device_features_sel & _MASK32 if state.device_features_sel < 2 else 0
            case Offset.QUEUE_NUM_MAX:
                return self._queue_sizes[state.queue_sel] if queue is not None else 0
            case Offset.QUEUE_READY:
                return int(queue is not None and queue.ready)
            case Offset.INTERRUPT_STATUS:
                return state.interrupt_status
            case Offset.STATUS:
                return state.status
            case Offset.CONFIG_GENERATION:
                return state.config_generation
            case _ if Offset.SHM_LEN_LOW <= offset <= Offset.SHM_BASE_HIGH:
                return _MASK32  # 4.2.2: there is no such shared memory region
            case _:
                return 0

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        if offset == Offset.QUEUE_NOTIFY and size == 4:
            if value < len(self.queues):
                self._rung |= 1 << value
            return
        if offset >= CONFIG:
            if offset - CONFIG + size <= len(self.config()):
                self.write_config(offset - CONFIG, size, value)
            return
        if size != 4:
            return
        state = self._state
        match offset:
            case Offset.STATUS:
                self._write_status(value)
            case Offset.DEVICE_FEATURES_SEL:
                state.device_features_sel = value
            case Offset.DRIVER_FEATURES_SEL:
                state.driver_features_sel = value
            case Offset.DRIVER_FEATURES:
                self._write_features(value)
            case Offset.QUEUE_SEL:
                state.queue_sel = value
            case _:
                self._write_queue(offset, value)
        self._drive()

    # The rest is this class's own.

    def _power_on(self) -> VirtioState:
        return VirtioState(queues=[VirtioQueueState(size=size) for size in self._queue_sizes])

    def _interrupt(self, bits: int) -> None:
        self._state.interrupt_status |= bits
        self.wires.raise_latch(0, Offset.INTERRUPT_STATUS, 4, bits)

    def _drive(self) -> None:
        state, wires = self._state, self.wires
        wires.set_shadow(0, Offset.STATUS, 4, state.status)

    def _write_status(self, value: int) -> None:
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

    def _write_features(self, value: int) -> None:
        state = self._state
        if state.status & FEATURES_OK or state.driver_features_sel >= 2:
            return  # 3.1.1: settled; or bits that nobody has
        shift = 32 * state.driver_features_sel
        state.driver_features = state.driver_features & ~(_MASK32 << shift) | value << shift

    def _selected(self) -> VirtioQueueState | None:
        queues = self._state.queues
        return queues[self._state.queue_sel] if self._state.queue_sel < len(queues) else None

    def _write_queue(self, offset: int, value: int) -> None:
        queue = self._selected()
        if queue is None:
            return
        if offset == Offset.QUEUE_READY:
            self._write_ready(queue, value)
            return
        if queue.ready:
            return  # 4.2.2.2: the driver must not
        if offset == Offset.QUEUE_NUM:
            queue.size = value
        elif name := _ADDRESSES.get(offset):
            setattr(queue, name, getattr(queue, name) & ~_MASK32 | value)
        elif name := _ADDRESSES.get(offset - 4):
            setattr(queue, name, getattr(queue, name) & _MASK32 | value << 32)

    def _write_ready(self, queue: VirtioQueueState, value: int) -> None:
        index = self._state.queue_sel
        if value != 1:
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
