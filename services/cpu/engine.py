"""What executes a machine's harts, as the service sees it, and the service, as that sees it.

`core.emulator.Emulator` is the one that is here; tests/contract/test_engine.py says what each has to do.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from google.protobuf.message import Message

from vmesh.trace import Recorder
from vmesh.v1.common_pb2 import HartStop
from vmesh.v1.cpu_pb2 import CpuState, CpuStatus, RunHarts
from vmesh.wire import Peer

from .bus.device import BusDevice, Lines
from .clock import CpuClock

#: Of CpuState. Those of before, from 1 on, are loaded.
STATE_VERSION = 2
#: Seconds that memory has to answer a Hello.
GREETING_LIMIT = 30.0


def address_of(memory: mmap.mmap) -> int:
    """The host address of a mapping."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@dataclass(frozen=True, slots=True)
class HostSegment:
    """Guest memory in this process: guest base and bytes, and the host addresses of the content and (or 0) of the page
    flags dirty, present and holds-code, and of what devices say of code (memory.proto: Segment)."""

    base: int
    size: int
    host: int
    writable: bool = True
    dirty: int = 0
    present: int = 0
    code: int = 0
    news: int = 0


class Manner(Enum):
    """How harts come to a stand: at an instruction, with all that they have posted taken by the devices; where they
    are, also if they wait for a device; at an instruction, for a moment, with nobody waiting for that."""

    SETTLED, AT_ONCE, BRIEFLY = range(3)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an engine asks of the service: `stopped` and `call_in` in the service's thread, all else in any."""

    #: guest time: the service stops it before the harts, which have it go on when they do
    clock: CpuClock
    recorder: Recorder
    #: the machine directory, where the FIFOs of devices are
    folder: Path
    #: makes a hart's connection to a device, whose waits an eventfd ends: device, hart, eventfd
    dial_device: Callable[[BusDevice, int, int], Peer]
    #: makes a hart's connection to memory, for pages that are absent: hart, eventfd
    dial_memory: Callable[[int, int], Peer]
    #: what an access where nothing is reads, or None for an access fault: address, size, pc, whether it is a write
    unmapped: Callable[[int, int, int, bool], int | None]
    #: a hart has ended: why, in one line
    failed: Callable[[str], None]
    #: a hart has stopped for what nobody foresaw, and all others with it; it tries again when they run again
    stumbled: Callable[[str], None]
    #: a hart has stopped for the debugger, and all others are on their way to a stand
    stopped: Callable[[HartStop], None]
    #: a device did what it should not: its name, the kind of fault, one line
    complain: Callable[[str, str, str], None]
    #: has a function called in the service's thread, and there after so many seconds, under a name that is its own
    call: Callable[[Callable[[], None]], None]
    call_in: Callable[[str, float, Callable[[], None]], None]


class Cpu(Protocol):
    """Executes the harts of one machine. Called in the service's thread.

    Harts stand from the beginning on if guest time does, and from a `stop` until `run`.
    """

    @property
    def lines(self) -> Lines:
        """What devices do to it."""
        ...

    # the machine

    def place(self, segments: Sequence[HostSegment]) -> None:
        """Guest memory; then devices may be attached. Guest time begins. Raises ValueError for too many segments."""
        ...

    def attach(self, device: BusDevice) -> None:
        """A device whose regions, latches and lines are there. Harts stand, or have not started."""
        ...

    def detach(self, device: BusDevice) -> None:
        """The device leaves the board, with its lines low. Harts stand."""
        ...

    def revive(self, device: BusDevice) -> None:
        """A life of the device has begun: harts that have something for it, or wait for it, look."""
        ...

    def raised(self, device: BusDevice) -> int:
        """The number of the last update that has come from the device past the service; all that has come is taken."""
        ...

    def look(self) -> None:
        """Harts look whether their connections are there."""
        ...

    # its harts

    def start(self) -> None:
        """The harts exist: they run, or stand."""
        ...

    def order(self, request: RunHarts) -> None:
        """How they run next: those that are held stand, and one may have a step to make. Harts stand. Raises
        BadRequest."""
        ...

    def run(self) -> HartStop | None:
        """Lets go of the harts, and guest time; or gives a stop that nobody was told yet, and then all stands."""
        ...

    def go_on(self) -> None:
        """After a `stop` that was BRIEFLY: they go on as they were, but for those that stand for another reason. Else
        nothing."""
        ...

    def stop(self, manner: Manner, seconds: float = 0.0) -> bool:
        """Has all harts come to a stand; gives whether they stand, within so many seconds."""
        ...

    def stands(self, seconds: float) -> bool:
        """Whether all harts stand at an instruction, within so many seconds if they are on their way there."""
        ...

    def reset(self) -> None:
        """As at power-on. Harts stand."""
        ...

    def end(self) -> None:
        """The machine ends; harts do not run again."""
        ...

    # what it is

    def save(self) -> CpuState:
        """Harts stand."""
        ...

    def load(self, state: CpuState, version: int, check_only: bool) -> None:
        """Takes a state of that version. Raises BadState, and then nothing is changed. Harts stand."""
        ...

    def answer(self, request: Message) -> Message:
        """Inspects harts: of cpu.proto ReadMemory, WriteMemory, DescribeRegisters, HartRegistersRequest, and while they
        stand ReadRegisters, WriteRegisters, SetBreakpoints. Raises BadRequest."""
        ...

    def shoot_down(self) -> Callable[[], bool]:
        """Has harts see that pages are clean, or absent, while they run; gives what says whether all have."""
        ...

    def trace(self, on: bool) -> None:
        """Whether each access to a device is recorded."""
        ...

    def status(self) -> CpuStatus:
        """What the harts do, and have done."""
        ...

    def counters(self) -> dict[str, int]:
        """By the names of the metrics."""
        ...
