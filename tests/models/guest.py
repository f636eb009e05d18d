"""Small guest programs for tests: text in, the harness's ``Stop`` out; and a page table builder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.cpu_harness import ACLINT, BASE, END_WORD, PLIC, Cpu, Stop
from vmesh_services.cpu.core.state import ACCESS_FAILED, ATTENTION_STOP, EXIT_ACCESS, EXIT_STOP

from .assembler import Program, assemble

CODE, TABLES, DATA = BASE + 0x1000, BASE + 0x10000, BASE + 0x40000
U, S, M = 0, 1, 3
END = END_WORD
ALL = (1 << 64) - 1


def virt(count: int = 1, size: int = 1 << 20, mode: str | None = None) -> Cpu:
    """Harts with the ACLINT and the PLIC; ``mode``: see ``tiers``."""
    cpu = Cpu(size, count=count, mode=mode)
    cpu.harts.add_controllers()
    return cpu


def put(cpu: Cpu, text: str, at: int = CODE, **symbols: int) -> Program:
    """Assembles a program into memory; ``.word END`` ends a run (in machine mode; ECALL does elsewhere)."""
    program = assemble(text, at, END=END_WORD, DATA=DATA, CODE=CODE, ACLINT=ACLINT, PLIC=PLIC, **symbols)
    cpu.write(at, program.code)
    cpu.forget()
    return program


def open_pmp(hart: Any) -> None:
    """Lets supervisor and user mode use all of memory."""
    hart.pmpcfg[0], hart.pmpaddr[0] = 0x1F, (1 << 54) - 1


def run(cpu: Cpu, text: str, x: Mapping[int, int] | None = None, number: int = 0, **fields: int) -> Stop:
    """Resets the machine and runs a program on one hart; ``fields`` go into the hart's record (``privilege=S`` and
    so on)."""
    cpu.reset()
    hart = cpu.harts.hart[number]
    open_pmp(hart)
    put(cpu, text)
    for register, value in (x or {}).items():
        hart.x[register] = value
    for name, value in fields.items():
        setattr(hart, name, value)
    cpu.forget()
    hart.pc = CODE
    return cpu.run(number)


def spin(cpu: Cpu, count: int, number: int = 0) -> int:
    """Runs ``count`` instructions, the last of which must spin, and gives where that is. Accesses to nowhere fail."""
    hart = cpu.harts.hart[number]
    hart.attention = ATTENTION_STOP
    hart.stop_at = hart.retired + count
    while (reason := cpu.harts.run(number)) == EXIT_ACCESS:
        hart.access_state = ACCESS_FAILED
    assert reason == EXIT_STOP, reason
    return int(hart.pc)


class Space:
    """An Sv39 address space in a Cpu's memory, its tables from ``TABLES`` on. ``satp`` selects it."""

    def __init__(self, cpu: Cpu, first: int = TABLES, asid: int = 0) -> None:
        self.cpu, self.first, self.used = cpu, first, 0
        self.root = self._table()
        self.satp = 8 << 60 | asid << 44 | self.root >> 12

    def _table(self) -> int:
        self.used += 1
        at = self.first + (self.used - 1) * 0x1000
        self.cpu.write(at, bytes(0x1000))
        return at

    def entry(self, virtual: int) -> int:
        """The address of the last-level entry of a page; tables above it are made."""
        table = self.root
        for level in (2, 1):
            at = table + 8 * (virtual >> (12 + 9 * level) & 511)
            pte = int.from_bytes(self.cpu.read(at, 8), "little")
            if not pte & 1:
                pte = self._table() >> 12 << 10 | 1
                self.cpu.write(at, pte.to_bytes(8, "little"))
            table = pte >> 10 << 12
        return table + 8 * (virtual >> 12 & 511)

    def map(self, virtual: int, physical: int, flags: int) -> None:
        """Maps a page; ``flags`` as in the entry (0xCF: all for supervisor mode, 0xDF: for user mode, 0: not at
        all)."""
        self.cpu.write(self.entry(virtual), (physical >> 12 << 10 | flags).to_bytes(8, "little"))
