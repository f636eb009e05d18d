"""`info mem`: what a hart's page tables map (privileged specification, chapter 12), neighbours joined."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from vmesh.v1 import cpu_pb2
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.monitor.control import Control
from vmesh_services.monitor.guest import read, registers
from vmesh_services.monitor.operations import Batch

Mapping = tuple[int, int, int, str]  # virtual address, physical address, bytes, attributes
Walk = Generator[Batch, Sequence[Packet], None]

MAX_TABLES = 4096

_PAGE = 4096
_LEVELS = {8: 3, 9: 4, 10: 5}  # satp's mode: Sv39, Sv48, Sv57
_MODE_SHIFT, _PPN = 60, (1 << 44) - 1
_VALID = 1
_LEAF = 1 << 1 | 1 << 3  # readable or executable
_LETTERS = (("r", 1), ("w", 2), ("x", 3), ("u", 4), ("g", 5), ("a", 6), ("d", 7))


class Mappings:
    """What is mapped now. `levels` is 0 where addresses are not translated; `cut` tells that there is more."""

    def __init__(self) -> None:
        self.found: list[Mapping] = []
        self.levels = 0
        self.cut = False
        self._tables = 0

    def collect(self, control: Control, hart: int) -> Walk:
        """Follow the page tables of `hart`."""
        known = yield from registers(control, hart)
        if known["privilege"] == cpu_pb2.PRIVILEGE_MACHINE:
            return
        self.levels = _LEVELS.get(known.get("satp", 0) >> _MODE_SHIFT, 0)
        if self.levels:
            yield from self._walk(control, (known["satp"] & _PPN) * _PAGE, self.levels - 1, 0)

    def _walk(self, control: Control, table: int, level: int, above: int) -> Walk:
        self._tables += 1
        if self._tables > MAX_TABLES:
            self.cut = True
            return
        content = yield from read(control, table, _PAGE, hart=None)
        for number in range(len(content) // 8):
            entry = int.from_bytes(content[8 * number : 8 * number + 8], "little")
            if not entry & _VALID:
                continue
            address = above | number << 12 + 9 * level
            physical = (entry >> 10 & _PPN) * _PAGE
            if entry & _LEAF:
                attributes = "".join(letter if entry >> bit & 1 else "-" for letter, bit in _LETTERS)
                self._add(self._canonical(address), physical, _PAGE << 9 * level, attributes)
            elif level:
                yield from self._walk(control, physical, level - 1, address)

    def _add(self, address: int, physical: int, size: int, attributes: str) -> None:
        if self.found:
            before, its_physical, its_size, its_attributes = self.found[-1]
            if (before + its_size, its_physical + its_size, its_attributes) == (address, physical, attributes):
                self.found[-1] = (before, its_physical, its_size + size, attributes)
                return
        self.found.append((address, physical, size, attributes))

    def _canonical(self, address: int) -> int:
        bits = 12 + 9 * self.levels
        return address | (1 << 64) - (1 << bits) if address >> bits - 1 else address
