"""What the monitor's commands look at in the guest: memory, as cpu.proto's ReadMemory has it, and registers."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from vmesh.v1 import cpu_pb2
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.monitor import operations
from vmesh_services.monitor.control import Control
from vmesh_services.monitor.operations import Batch, RequestError

Content = Generator[Batch, Sequence[Packet], bytes]
Registers = Generator[Batch, Sequence[Packet], dict[str, int]]

_ADDRESSES = 1 << 64


def read(control: Control, address: int, size: int, *, hart: int | None) -> Content:
    """Up to `size` bytes, as many as there is memory for; virtual as `hart` sees it now, physical where it is None."""
    content = bytearray()
    if not 0 <= address < _ADDRESSES:
        return b""
    request = cpu_pb2.ReadMemory(
        physical=hart is None, hart=hart or 0, address=address, size=min(size, _ADDRESSES - address, (1 << 32) - 1)
    )
    try:
        yield from operations.read_memory(control.roster, request, content)
    except RequestError as error:
        if not error.callers_fault:
            raise
    return bytes(content)


def registers(control: Control, hart: int) -> Registers:
    """All registers of a hart by name, and its `privilege` as cpu.proto numbers it."""
    found = cpu_pb2.HartRegisters()
    yield from operations.registers(control.roster, hart, found)
    status = cpu_pb2.CpuStatus()
    yield from operations.cpu_status(control.roster, status)
    mode = next((each.privilege for each in status.harts if each.hart == hart), cpu_pb2.PRIVILEGE_MACHINE)
    return {register.name: register.value for register in found.registers} | {"privilege": int(mode)}
