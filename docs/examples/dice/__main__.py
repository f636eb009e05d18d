"""A device in one page: dice. Reading ROLL gives a number from 1 to SIDES.

python -m docs.examples.dice --machine DIR --base 0x4000000
"""

import secrets
import sys

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import UInt32Value

from vmesh import device, service
from vmesh.v1.bus_pb2 import READ_SHADOW, Region, Register

ROLL, SIDES = 0, 4  # offsets


class Dice(device.Device):
    kind = "dice"
    state = UInt32Value  # what a restart or a migration needs: any protobuf message

    def __init__(self, runtime: service.Runtime, base: int) -> None:
        super().__init__(runtime)
        # Reading SIDES has no side effect: the cpu answers from its copy. All else is a round trip to this process.
        registers = [Register(name="SIDES", offset=SIDES, size=4, read=READ_SHADOW)]
        self.regions = [Region(name="registers", base=base, size=8, access_sizes=4, registers=registers)]

    def read(self, region: int, offset: int, size: int) -> int:
        return 1 + secrets.randbelow(self._sides.value) if offset == ROLL else self._sides.value

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        if offset == SIDES and value:
            self.load(UInt32Value(value=value))

    def reset(self) -> None:
        self.load(UInt32Value(value=6))

    def save(self) -> Message:
        return self._sides

    def load(self, state: Message) -> None:
        assert isinstance(state, UInt32Value)
        self._sides = state
        self.wires.set_shadow(0, SIDES, 4, state.value)


def main(argv: list[str]) -> int:
    parser = service.parser("dice", "Rolls dice for a guest.")
    parser.add_argument("--base", type=service.number, required=True, metavar="ADDRESS")
    options = parser.parse_args(argv)
    return device.run(options, lambda runtime: Dice(runtime, options.base))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
