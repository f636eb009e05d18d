"""The model of sifive-test: one write-only register, whose commands become notices to the monitor."""

from __future__ import annotations

from vmesh.device import Device
from vmesh.service import Runtime
from vmesh.time import NEVER_NS
from vmesh.v1.bus_pb2 import Region
from vmesh.v1.common_pb2 import SEVERITY_INFO, PowerOff, ResetRequest
from vmesh.v1.devices_pb2 import SifiveTestState

SIZE = 0x1000


class Command:
    """The low half of what is written; the high half is the code of FAIL."""

    FAIL = 0x3333
    PASS = 0x5555
    RESET = 0x7777


class SifiveTest(Device):
    """Power-off and reset."""

    kind = "sifive-test"
    state = SifiveTestState

    def __init__(self, runtime: Runtime, base: int) -> None:
        super().__init__(runtime)
        self.regions = [Region(name="registers", base=base, size=SIZE, access_sizes=2 | 4)]

    def quiet_until_ns(self) -> int:
        return NEVER_NS

    def read(self, region: int, offset: int, size: int) -> int:
        return 0

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        if offset != 0:
            return
        notify = self.runtime.notify
        command, code = value & 0xFFFF, value >> 16
        match command:
            case Command.PASS:
                notify(SEVERITY_INFO, "the guest powers off", PowerOff(exit_code=0))
            case Command.FAIL:
                notify(SEVERITY_INFO, f"the guest powers off with failure code {code}", PowerOff(exit_code=code))
            case Command.RESET:
                notify(SEVERITY_INFO, "the guest asks for a reset", ResetRequest())
            case _:
                self.runtime.log.info("unknown command", value=hex(value))
