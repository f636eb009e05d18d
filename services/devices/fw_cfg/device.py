"""The model of fw_cfg: a selector, a window to the item that it selects, and copies of the item into guest memory."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from google.protobuf.message import Message

from vmesh import errors
from vmesh.device import BusError, Device
from vmesh.service import Runtime
from vmesh.time import NEVER_NS
from vmesh.v1.bus_pb2 import Region
from vmesh.v1.devices_pb2 import FwCfgState

SIZE = 0x18


class Offset:
    """The registers. All are big endian, and DATA is the item's bytes as they lie."""

    DATA = 0x00
    SELECTOR = 0x08
    DMA = 0x10
    DMA_LOW = 0x14


class Control:
    """Bits of a request's first word; with SELECT, the upper half is what is selected."""

    ERROR = 1 << 0
    READ = 1 << 1
    SKIP = 1 << 2
    SELECT = 1 << 3
    WRITE = 1 << 4


DMA_SIGNATURE = b"QEMU CFG"  # what the DMA register reads
MOST_ZEROS = 1 << 20  # that a read behind the end of an item brings; QEMU: 4 GiB
REQUEST = struct.Struct(">IIQ")  # control, length, address
_WRITE_MODE = 0x4000  # bit of a selector that has had no meaning since QEMU 2.4
_ANSWER = struct.Struct(">QQII")
_ANSWERED = 0  # of the marks: the number of the last request that was answered


@dataclass(frozen=True, slots=True)
class _Answer:
    """What becomes of the control word of a request: the number of the request, where it is, what it was, what it is
    to be."""

    number: int
    address: int
    asked: int
    answer: int


class FwCfg(Device):
    """The device; `items` by selector, whose `digest` tells them from another machine's.

    A request's answer goes out when the slot has what the request has changed, as a next life would find nothing to do
    in a request that is answered. The last one that was answered is in the marks: the guest may use its place anew.
    """

    kind = "fw-cfg"
    state = FwCfgState
    dma = True

    def __init__(self, runtime: Runtime, base: int, items: Mapping[int, bytes], digest: bytes) -> None:
        super().__init__(runtime)
        self.regions = [Region(name="registers", base=base, size=SIZE, access_sizes=1 | 2 | 4 | 8)]
        self._items = {selector: memoryview(content) for selector, content in items.items()}
        self._digest = digest
        self._state = FwCfgState(items=self._digest)
        self._answers: list[_Answer] = []
        self._asked = 0  # the number of the last request

    def read(self, region: int, offset: int, size: int) -> int:
        if offset == Offset.DATA:
            return int.from_bytes(self._take(size), "little")
        if offset >= Offset.DMA:
            return int.from_bytes(DMA_SIGNATURE[offset - Offset.DMA :][:size], "little")
        raise BusError

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        number = int.from_bytes(value.to_bytes(size, "little"), "big")
        match offset, size:
            case Offset.DATA, _:
                pass  # items are read-only
            case Offset.SELECTOR, 2:
                self._select(number)
            case Offset.DMA, 4:
                self._state.dma_high = number
            case Offset.DMA_LOW, 4:
                self._perform(self._state.dma_high << 32 | number)
            case Offset.DMA, 8:
                self._perform(number)
            case _:
                raise BusError

    def quiet_until_ns(self) -> int:
        return NEVER_NS

    def reset(self) -> None:
        self._state = FwCfgState(items=self._digest)

    def save(self) -> Message:
        return self._state

    def check(self, state: Message, version: int) -> None:
        assert isinstance(state, FwCfgState)
        if state.items != self._digest:
            raise errors.BadState(
                f"state of {self.kind}, of a machine with other items (-fw_cfg) or harts",
                expected=f"digest {self._digest.hex()}",
                got=state.items[: len(self._digest)].hex() or "none",
            )
        if state.selector > 0xFFFF or state.offset > len(self._item(state.selector)):
            raise errors.BadState(f"state of {self.kind}", expected="a place in an item")

    def load(self, state: Message) -> None:
        assert isinstance(state, FwCfgState)
        self._state = state

    def journal(self) -> bytes:
        return b"".join(_ANSWER.pack(each.number, each.address, each.asked, each.answer) for each in self._answers)

    def take_journal(self, journal: bytes) -> None:
        try:
            self._answers = [_Answer(*each) for each in _ANSWER.iter_unpack(journal)]
        except struct.error as error:
            raise errors.BadState(f"journal of {self.kind}: {error}") from error

    def recover(self) -> None:
        answered = self.marks[_ANSWERED]
        self._asked = max(answered, *(each.number for each in self._answers), 0)
        # Where another word is, it was answered, too, just before the end.
        self._answers = [
            each for each in self._answers if each.number > answered and self._control(each.address) == each.asked
        ]
        self.commit()

    def commit(self) -> None:
        answers, self._answers = self._answers, []
        for each in answers:
            with suppress(errors.OutsideGrant):  # QEMU says nothing either
                self.memory.write(each.address, each.answer.to_bytes(4, "big"))
            self.marks[_ANSWERED] = each.number

    def _item(self, selector: int) -> memoryview:
        return self._items.get(selector & ~_WRITE_MODE, memoryview(b""))

    def _select(self, selector: int) -> None:
        self._state.selector, self._state.offset = selector, 0

    def _take(self, length: int) -> memoryview:
        """The next bytes of the item, as many as there are."""
        state = self._state
        taken = self._item(state.selector)[state.offset : state.offset + length]
        state.offset += len(taken)
        return taken

    def _perform(self, address: int) -> None:
        """The request at this address ("Guest-side DMA Interface")."""
        self._state.dma_high = 0
        try:
            control, length, target = REQUEST.unpack(self.memory.read(address, REQUEST.size))
        except errors.OutsideGrant:  # of a request that is cut off, the first word may be there
            self._answer(address, self._control(address), Control.ERROR)
            return
        if control & Control.SELECT:
            self._select(control >> 16)
        failed = False
        if control & (Control.READ | Control.WRITE | Control.SKIP):
            data = self._take(length)
            if control & Control.READ:
                failed = not self._copy(data, target, length)
            elif control & Control.WRITE:
                failed = length > 0
        self._answer(address, control, Control.ERROR if failed else 0)

    def _answer(self, address: int, asked: int, answer: int) -> None:
        self._asked += 1
        self._answers.append(_Answer(self._asked, address, asked, answer))

    def _copy(self, data: memoryview, target: int, length: int) -> bool:
        """Into guest memory, with zeros behind it; whether all of it could be."""
        zeros = length - len(data)
        if not length:
            return True
        if zeros > MOST_ZEROS or not self.memory.covers(target, length, write=True):
            return False
        self.memory.write(target, data)
        self.memory.write(target + len(data), bytes(zeros))
        return True

    def _control(self, address: int) -> int:
        try:
            return int.from_bytes(self.memory.read(address, 4), "big")
        except errors.OutsideGrant:
            return 0
