"""What the author of a device writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from google.protobuf.message import Message

from vmesh import errors
from vmesh.device.wires import Wires
from vmesh.guest_memory import GuestMemory, LocalGuestMemory
from vmesh.service import Runtime
from vmesh.slot import MARKS
from vmesh.v1 import bus_pb2 as messages


class BusError(Exception):
    """Raised by a device's `read` or `write`: there is no such register. The guest gets an access fault."""


class Device:
    """A device model. Override what applies; every method is called in the one thread of the service.

    `state` is the type of the protobuf message that `save` gives and `load` takes, `state_version` its version.
    """

    kind: ClassVar[str]
    state: ClassVar[type[Message]]
    state_version: ClassVar[int] = 1
    regions: Sequence[messages.Region] = ()
    lines: Sequence[messages.Line] = ()
    dma: ClassVar[bool] = False
    #: Bytes of `slot_state` and `journal` together, at most: the slot has room for them from the start, so that a file
    #: system that fills up does not end the device. Only where they may be more than 8 KiB.
    slot_bytes: ClassVar[int] = 8 << 10

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime  # its loop, log and notify
        self.wires = Wires()
        self.memory: GuestMemory = LocalGuestMemory((), ())  # the guest's with `dma`, from `attached` on
        self.marks = memoryview(bytearray(8 * MARKS)).cast("Q")  # see Slot.marks: they survive the process at once

    def take_journal(self, journal: bytes) -> None:
        """Before `start`, in the next life of a device that was killed: what its `journal` gave last."""

    def start(self) -> None:
        """Open what the device stands on. Raise a VmeshError to end the service."""

    def attached(self) -> None:
        """The device is on the address map."""

    def recover(self) -> None:
        """After `attached`: this life has taken over, by `load`, from one that was killed at any instruction."""

    def read(self, region: int, offset: int, size: int) -> int:
        """A read of a register; `offset` and `size` were checked against the region. May raise BusError."""
        raise BusError

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        """A write of a register; `value` fits into `size` bytes. May raise BusError."""
        raise BusError

    def flush(self) -> None:
        """The accesses of a batch have been made."""

    def settle(self) -> None:
        """A turn of the loop ends: the state is about to go into the slot, then lines and shadows to the cpu."""

    def journal(self) -> bytes:
        """What the next life needs beside the state: what is under way to the outside. It is in the slot only."""
        return b""

    def commit(self) -> None:
        """State and journal are in the slot: what must happen once, even if the process is killed, can begin now."""

    @property
    def blocked(self) -> bool:
        """Whether the device cannot take more accesses now; when that ends, the next turn of the loop goes on."""
        return False

    def reset(self) -> None:
        """Back to the state after power-on, lines and shadows included. Also called before the device is attached."""
        self.load(self.state())

    def save(self) -> Message:
        """The state, as a message of type `state`."""
        return self.state()

    def slot_state(self) -> Message:
        """The state for the slot. Without what the device keeps elsewhere by itself, and finds again in `recover`."""
        return self.save()

    def check(self, state: Message, version: int) -> None:
        """Raises BadState for what `load` cannot take. `version` is at most `state_version`."""

    def load(self, state: Message) -> None:
        """Take a state that `check` has passed, and drive lines and shadows accordingly."""

    def pause(self) -> None:
        """Take nothing from outside until `resume`."""

    def resume(self) -> None:
        """Go on after `pause`."""

    def hand_over(self) -> None:
        """Another machine is about to run with the state saved: bring out what the guest has written, and let go of
        what only one of them may hold. `resume` takes it again."""

    def shutdown(self) -> None:
        """Bring out what the guest has written."""

    def set_property(self, name: str, value: int) -> None:
        """The monitor changes a value of the device's own, at any time, also while paused. Raises BadRequest for a name
        or a value that there is not, and has changed nothing then."""
        raise errors.BadRequest(f"a {self.kind} has no property '{name}' that can be set")

    def time_told(self) -> None:
        """Guest time may be another one than it was, earlier too: timers that were set by it are to be set anew."""

    def quiet_until_ns(self) -> int:
        """A promise: before that guest time the device does by itself nothing that the guest could see. 0: it promises
        nothing, since something may come from outside; `vmesh.time.NEVER_NS`: it only answers accesses."""
        return 0

    def counters(self) -> dict[str, int]:
        return {}
