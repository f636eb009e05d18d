"""Guest memory as the monitor's commands look at it: physical addresses, and virtual ones as a hart sees them now.

RAM and ROM are read from the segments that memory names; registers of devices are not touched.
"""

from __future__ import annotations

import mmap
from collections.abc import Generator, Iterator, Mapping, Sequence

from services.monitor import operations
from services.monitor.control import Control, address_map
from services.monitor.operations import Batch
from services.monitor.qmp.errors import QmpError
from vmesh import segment
from vmesh.v1 import cpu_pb2
from vmesh.v1.packet_pb2 import Packet

Getting = Generator[Batch, Sequence[Packet], "Memory"]
Registers = Generator[Batch, Sequence[Packet], dict[str, int]]

PAGE = 4096
_LEVELS = {8: 3, 9: 4, 10: 5}  # satp's mode: Sv39, Sv48, Sv57 (privileged specification, 12.1.11)
_MODE_SHIFT, _PPN = 60, (1 << 44) - 1
_V, _R, _W, _X, _U, _G, _A, _D = (1 << bit for bit in range(8))
_LETTERS = (("r", _R), ("w", _W), ("x", _X), ("u", _U), ("g", _G), ("a", _A), ("d", _D))


class Memory:
    """Physical memory, and page tables in it."""

    def __init__(self, segments: Sequence[tuple[int, mmap.mmap]], registers: Mapping[str, int]) -> None:
        self._segments = segments
        satp = registers.get("satp", 0)
        translates = registers.get("privilege", 3) != cpu_pb2.PRIVILEGE_MACHINE
        self.levels = _LEVELS.get(satp >> _MODE_SHIFT, 0) if translates else 0
        self._root = (satp & _PPN) * PAGE

    def read(self, address: int, size: int, *, virtual: bool) -> bytes:
        """Raises QmpError where there is no memory, or no translation."""
        found = bytearray()
        while len(found) < size:
            at = address + len(found) & (1 << 64) - 1
            count = min(size - len(found), PAGE - at % PAGE)
            found += self._physical(self.translate(at) if virtual else at, count)
        return bytes(found)

    def translate(self, address: int) -> int:
        """The physical address behind a virtual one. Raises QmpError."""
        if not self.levels:
            return address
        bits = 12 + 9 * self.levels
        if (address >> bits - 1) not in (0, (1 << 65 - bits) - 1):
            raise QmpError("Cannot access memory")
        table = self._root
        for level in reversed(range(self.levels)):
            entry = self._entry(table, address >> 12 + 9 * level & 511)
            if not entry & _V:
                break
            base = (entry >> 10 & _PPN) * PAGE
            if entry & (_R | _X):
                mask = (1 << 12 + 9 * level) - 1
                if level == 0 and entry >> 63:  # Svnapot: 64 KiB
                    mask = 0xFFFF
                return base & ~mask | address & mask
            table = base
        raise QmpError("Cannot access memory")

    def mappings(self) -> Iterator[tuple[int, int, int, str]]:
        """Virtual address, physical address, size and attributes of what is mapped, neighbours joined."""
        run: tuple[int, int, int, str] | None = None
        for address, physical, size, attributes in self._walk(self._root, self.levels - 1, 0):
            if run and run[3] == attributes and run[0] + run[2] == address and run[1] + run[2] == physical:
                run = (run[0], run[1], run[2] + size, attributes)
                continue
            if run:
                yield run
            run = (address, physical, size, attributes)
        if run:
            yield run

    def _walk(self, table: int, level: int, above: int) -> Iterator[tuple[int, int, int, str]]:
        entries = memoryview(self._physical(table, PAGE)).cast("Q")
        for number, entry in enumerate(entries):
            if not entry & _V:
                continue
            address = above | number << 12 + 9 * level
            base = (entry >> 10 & _PPN) * PAGE
            if entry & (_R | _X):
                attributes = "".join(letter if entry & bit else "-" for letter, bit in _LETTERS)
                yield _canonical(address, self.levels), base, PAGE << 9 * level, attributes
            elif level:
                yield from self._walk(base, level - 1, address)

    def _entry(self, table: int, number: int) -> int:
        return int.from_bytes(self._physical(table + 8 * number, 8), "little")

    def _physical(self, address: int, size: int) -> bytes:
        for base, mapped in self._segments:
            if base <= address and address + size <= base + len(mapped):
                return mapped[address - base : address - base + size]
        raise QmpError("Cannot access memory")


def memory(control: Control, hart: int) -> Getting:
    """Memory as `hart` sees it at this moment."""
    found = yield from address_map(control.board)
    seen = yield from registers(control, hart) if control.board.cpu else _none()
    path = control.supervisor.machine.path
    return Memory([(each.base, segment.attach(path / each.path, writable=False)) for each in found.segments], seen)


def registers(control: Control, hart: int) -> Registers:
    """All registers of a hart by name, and its `privilege` as cpu.proto numbers it."""
    found = cpu_pb2.HartRegisters()
    yield from operations.registers(control.board, hart, found)
    status = cpu_pb2.CpuStatus()
    yield from operations.cpu_status(control.board, status)
    mode = next((each.privilege for each in status.harts if each.hart == hart), cpu_pb2.PRIVILEGE_MACHINE)
    return {register.name: register.value for register in found.registers} | {"privilege": int(mode)}


def _none() -> Registers:
    yield []
    return {}


def _canonical(address: int, levels: int) -> int:
    bits = 12 + 9 * levels
    return address | ((1 << 64) - (1 << bits)) if address >> bits - 1 else address
