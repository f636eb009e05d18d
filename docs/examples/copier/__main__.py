"""A device in one page, the copier: it moves up to 1 MiB of guest memory and gives its CRC-32 (zlib's)."""

import zlib

from google.protobuf.message import Message

from vmesh import device, errors, service
from vmesh.v1.bus_pb2 import READ_SHADOW, WRITE_POSTED, Line, Region, Register
from vmesh.v1.devices_pb2 import CopierState

REGISTERS = ("source", "target", "length", "status", "crc")  # 8 bytes each, from offset 0
STATUS, CRC = 0x18, 0x20
IDLE, DONE, FAILED = range(3)  # what status reads; writing 1 to it starts the copier, 0 acknowledges
LIMIT = 1 << 20


class Copier(device.Device):
    kind = "copier"
    state = CopierState  # what a restart or a migration needs: any protobuf message
    dma = True

    def __init__(self, runtime: service.Runtime, base: int, irq: int) -> None:
        super().__init__(runtime)
        # The guest need not wait until its arguments have come, and reads the results from a copy that the cpu has.
        arguments = Register(name="arguments", offset=0, size=8, count=3, write=WRITE_POSTED)
        results = Register(name="results", offset=STATUS, size=8, count=2, read=READ_SHADOW)
        self.regions = [Region(name="registers", base=base, size=40, access_sizes=8, registers=[arguments, results])]
        self.lines = [Line(name="done", irq=irq)]

    def read(self, region: int, offset: int, size: int) -> int:
        return int(getattr(self._state, REGISTERS[offset // 8]))

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        if offset < STATUS:
            setattr(self._state, REGISTERS[offset // 8], value)
        elif offset == STATUS:
            self._state.status = self._copy() if value else IDLE
            self.load(self._state)

    def _copy(self) -> int:
        if self._state.length > LIMIT:
            return FAILED
        try:
            data = self.memory.read(self._state.source, self._state.length)
            self.memory.write(self._state.target, data)
        except errors.OutsideGrant:  # the guest named memory that is not there: nothing was touched
            return FAILED
        self._state.crc = zlib.crc32(data)
        return DONE

    def save(self) -> Message:
        return self._state

    def check(self, state: Message, version: int) -> None:
        if not isinstance(state, CopierState) or state.status > FAILED:
            raise errors.BadState("state of a copier", expected=f"a status up to {FAILED}")

    def load(self, state: Message) -> None:
        assert isinstance(state, CopierState)
        self._state = state
        self.wires.set_line(0, state.status != IDLE)
        self.wires.set_shadow(0, STATUS, 8, state.status)
        self.wires.set_shadow(0, CRC, 8, state.crc)


if __name__ == "__main__":
    device.main("copier", Copier)
