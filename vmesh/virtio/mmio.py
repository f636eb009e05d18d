"""The transport on MMIO (virtio 1.2, 4.2): registers at a place of the board, and one wire.

    VirtioRng(runtime, Mmio(base=0x1000_8000, irq=8))

What an access costs (docs/protocol.md), and why it is right:

* QueueNotify is a doorbell: it only says that there may be something in a queue.
* InterruptStatus is a latch, and InterruptACK clears it: neither is a message. The driver acknowledges before it looks
  into the ring, and the device raises the bit after it has pushed, so that whatever it does not find comes with another
  raise.
* Status is a shadow.
* All else is for setting up and is sync.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmesh import device, service
from vmesh.v1.bus_pb2 import READ_LATCH, READ_SHADOW, WRITE_CLEARS, WRITE_DOORBELL, Line, Region, Register
from vmesh.virtio.device import Area, Transport, VirtioDevice

SIZE = 0x1000  # of the region on the board
CONFIG = 0x100  # where the device's own configuration begins
MAGIC = 0x7472_6976
VERSION = 2
VENDOR = 0x554D_4551  # "QEMU": 4.2.2 leaves it to the vendor; xv6 and others take a disk for theirs by it


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
_AREAS: Mapping[int, tuple[Area, int]] = {  # and which half of its address
    Offset.QUEUE_DESC_LOW: ("descriptors", 0),
    Offset.QUEUE_DESC_HIGH: ("descriptors", 1),
    Offset.QUEUE_DRIVER_LOW: ("driver", 0),
    Offset.QUEUE_DRIVER_HIGH: ("driver", 1),
    Offset.QUEUE_DEVICE_LOW: ("device", 0),
    Offset.QUEUE_DEVICE_HIGH: ("device", 1),
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


def parser(kind: str, description: str) -> service.Parser:
    """As `device.parser`, with what every virtio device has."""
    made = device.parser(kind, description)
    made.add_argument("--packed", action="store_true", help="offer the packed ring")
    return made


class Mmio(Transport):
    """The registers at `base`, a guest physical address; `irq` is the wire."""

    def __init__(self, base: int, irq: int) -> None:
        self.regions = [Region(name="virtio-mmio", base=base, size=SIZE, access_sizes=7, registers=_REGISTERS)]
        self.lines = [Line(name="interrupt", irq=irq)]

    def bind(self, device: VirtioDevice) -> None:
        self._device = device

    def reset(self) -> None:
        for index, value in enumerate((MAGIC, VERSION, self._device.device_id, VENDOR)):
            self._device.wires.set_shadow(0, 4 * index, 4, value)

    def interrupt(self, bits: int) -> None:
        self._device.wires.raise_latch(0, Offset.INTERRUPT_STATUS, 4, bits)

    def forget_interrupts(self) -> None:
        self._device.wires.clear_latch(0, Offset.INTERRUPT_STATUS, 4)

    def show_status(self, status: int) -> None:
        self._device.wires.set_shadow(0, Offset.STATUS, 4, status)

    def read(self, region: int, offset: int, size: int) -> int:
        device = self._device
        if offset >= CONFIG:
            return int.from_bytes(device.config()[offset - CONFIG : offset - CONFIG + size], "little")
        if size != 4:
            return 0  # 4.2.2.2: the driver must not; as on QEMU's board
        state = device.transport_state
        match offset:
            case Offset.MAGIC_VALUE:
                return MAGIC
            case Offset.VERSION:
                return VERSION
            case Offset.DEVICE_ID:
                return device.device_id
            case Offset.VENDOR_ID:
                return VENDOR
            case Offset.DEVICE_FEATURES:
                return device.features(state.device_features_sel)
            case Offset.QUEUE_NUM_MAX:
                return device.most_entries(state.queue_sel)
            case Offset.QUEUE_READY:
                return int(device.is_ready(state.queue_sel))
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
        device = self._device
        if offset == Offset.QUEUE_NOTIFY and size == 4:
            device.notify(value)
            return
        if offset >= CONFIG:
            if offset - CONFIG + size <= len(device.config()):
                device.write_config(offset - CONFIG, size, value)
            return
        if size != 4:
            return
        state = device.transport_state
        match offset:
            case Offset.STATUS:
                device.set_status(value)
            case Offset.DEVICE_FEATURES_SEL:
                state.device_features_sel = value
            case Offset.DRIVER_FEATURES_SEL:
                state.driver_features_sel = value
            case Offset.DRIVER_FEATURES:
                device.accept_features(state.driver_features_sel, value)
            case Offset.QUEUE_SEL:
                state.queue_sel = value
            case Offset.QUEUE_NUM:
                device.size_queue(state.queue_sel, value)
            case Offset.QUEUE_READY:
                device.set_ready(state.queue_sel, value == 1)
            case _ if offset in _AREAS:
                device.place_queue(state.queue_sel, *_AREAS[offset], value)
