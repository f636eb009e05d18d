"""A device whose second region moves as the guest says, whose third is a port, and whose interrupts are messages.

Offset 0 of the first region: where the second one is (0: nowhere). Offset 8: an address that a message goes to, with 1.
"""

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import UInt64Value

from vmesh import device, service
from vmesh.v1.bus_pb2 import READ_SHADOW, SPACE_IO, Region, Register

CONTROL, MOVING, PORT = range(3)
PLACE, MESSAGE = 0, 8
APERTURE, APERTURE_SIZE, SIZE = 0x5000_0000, 0x10_0000, 0x1000
PORT_NUMBER = 0x60
SIGN = 0x1234  # plus the offset: what a read of the second region gives; at offset 8 it is a shadow
PORT_SIGN = 0x5678


class Moving(device.Device):
    kind = "moving"
    state = UInt64Value

    def __init__(self, runtime: service.Runtime, base: int, irq: int) -> None:
        super().__init__(runtime)
        shadow = Register(name="shadow", offset=8, size=8, read=READ_SHADOW)
        moving = Region(name="moving", size=SIZE, access_sizes=15, registers=[shadow], absent=True)
        moving.aperture_base, moving.aperture_size = APERTURE, APERTURE_SIZE
        self.regions = [
            Region(name="control", base=base, size=16, access_sizes=8),
            moving,
            Region(name="port", base=PORT_NUMBER, size=4, access_sizes=15, space=SPACE_IO),
        ]

    def read(self, region: int, offset: int, size: int) -> int:
        match region:
            case 0:
                return self._state.value
            case 1:
                return SIGN + offset
        return PORT_SIGN

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        if region == CONTROL and offset == PLACE:
            self.load(UInt64Value(value=value))
        elif region == CONTROL:
            self.wires.send_message(value, 1)

    def save(self) -> Message:
        return self._state

    def load(self, state: Message) -> None:
        assert isinstance(state, UInt64Value)
        self._state = state
        self.wires.place(MOVING, state.value or None)
        self.wires.set_shadow(MOVING, 8, 8, SIGN + 8)


if __name__ == "__main__":
    device.main("moving", Moving)
