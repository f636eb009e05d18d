"""A hart whose memory system is under test: places for code, tables and data, and a way to run one instruction
anywhere.

Code lies in one page, which every address space maps twice (for supervisor and for user mode) at fixed addresses, so
that the test may do anything with the rest. ``step`` runs one of the prepared instructions (``GADGETS``) and gives
how it ended.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from dataclasses import dataclass

from tests.cpu_harness import BASE, Cpu
from vmesh_services.cpu.core.state import ACCESS_FAILED, ACCESS_NONE, ATTENTION_STOP, EXIT_ACCESS, EXIT_STOP

from .assembler import Program, assemble
from .translation import LEVELS, U

SIZE = 8 << 20
#: Code and the tables that map it; page tables of the tests; pages of data (whole 2 MiB regions from ``DATA_2M`` on).
CODE, TABLES, DATA, DATA_2M, END = BASE, BASE + 0x10000, BASE + 0x100000, BASE + 0x200000, BASE + SIZE
ROM, ROM_SIZE = 0x1000, 0xF000
PMP_CODE = (CODE + 0x8000 - 1 - 0x4000) >> 2
#: Two compressed jumps to themselves, twice: what all data is until it is written.
SPIN = 0xA001
#: Index of the root's entry that maps the code.
CODE_INDEX = 256
NOWHERE = 0x4000_0000

GADGETS = {
    "lb": "lb a2, 0(a0)", "lhu": "lhu a2, 0(a0)", "lw": "lw a2, 0(a0)", "ld": "ld a2, 0(a0)",
    "sb": "sb a1, 0(a0)", "sh": "sh a1, 0(a0)", "sw": "sw a1, 0(a0)", "sd": "sd a1, 0(a0)",
    "lr.w": "lr.w a2, (a0)", "lr.d": "lr.d a2, (a0)", "sc.w": "sc.w a2, a1, (a0)", "sc.d": "sc.d a2, a1, (a0)",
    "amoadd.w": "amoadd.w a2, a1, (a0)", "amoswap.d": "amoswap.d a2, a1, (a0)", "jump": "jalr x0, 0(a0)",
    "satp": "csrw satp, a0", "sstatus": "csrw sstatus, a0", "fence": "sfence.vma", "fence.asid": "sfence.vma x0, a1",
    "fence.va": "sfence.vma a0, x0", "fence.both": "sfence.vma a0, a1", "sinval": "sinval.vma",
    "sinval.asid": "sinval.vma x0, a1", "sinval.va": "sinval.vma a0, x0", "sinval.both": "sinval.vma a0, a1",
    "ecall": "ecall", "nop": "nop",
}  # fmt: skip

SOURCE = """
    j handler
handler:
    j handler
enter:
    csrw menvcfg, t2
    csrw pmpcfg2, t4
    csrw satp, t0
    sfence.vma
switch:
    csrw mepc, t3
    csrw mstatus, t1
    bnez t5, direct
    mret
direct:
    jr t3
""" + "".join(f"gadget{n}: {code}\n j stop{n}\nstop{n}: j stop{n}\n" for n, code in enumerate(GADGETS.values()))


@dataclass(frozen=True, slots=True)
class Ended:
    """How an instruction ended: "done", "jumped" (to ``pc``), "trap" (mcause, mtval at ``pc``)."""

    how: str
    pc: int
    cause: int = 0
    value: int = 0


def sign_extend(address: int, bits: int) -> int:
    sign = 1 << (bits - 1)
    return ((address & (1 << bits) - 1) ^ sign) - sign & (1 << 64) - 1


class PagedHart:
    """One hart in this process."""

    def __init__(self) -> None:
        self.cpu = Cpu(SIZE)
        self.hart = self.cpu.hart
        self.ram = self.cpu.ram
        self.rom = mmap.mmap(-1, ROM_SIZE)
        segment = self.cpu.harts.machine.segments[1]
        segment.base, segment.size, segment.writable = ROM, ROM_SIZE, 0
        segment.host = ctypes.addressof(ctypes.c_char.from_buffer(self.rom))
        self.cpu.harts.machine.segment_count = 2
        self.program: Program = assemble(SOURCE, CODE)
        self.ram[DATA - BASE :] = struct.pack("<H", SPIN) * ((END - DATA) // 2)
        self.rom[:] = struct.pack("<H", SPIN) * (ROM_SIZE // 2)
        self.ram[: len(self.program.code)] = self.program.code
        # the tables of the code: chain[n] is the table of level n, which leads to the code's page
        self.chain = [CODE + 0x1000 * (n + 1) for n in range(5)]
        everything = 0xCF
        self.poke(self.chain[0], CODE >> 12 << 10 | everything)
        self.poke(self.chain[0] + 8, CODE >> 12 << 10 | everything | 1 << 4)
        for level in range(1, 5):
            self.poke(self.chain[level], self.chain[level - 1] >> 12 << 10 | 1)
        self.hart.mtvec = self.program.labels["handler"]
        self.gadget = {name: self.program.labels[f"gadget{n}"] for n, name in enumerate(GADGETS)}
        self.stops = {self.program.labels[f"stop{n}"] & 0xFFF for n in range(len(GADGETS))}
        self.code_offset = 0

    # memory

    def memory_at(self, physical: int) -> str | None:
        if BASE <= physical < END:
            return "ram"
        return "rom" if ROM <= physical < ROM + ROM_SIZE else None

    def peek(self, physical: int, size: int = 8) -> int:
        memory, base = (self.rom, ROM) if physical < BASE else (self.ram, BASE)
        return int.from_bytes(memory[physical - base : physical - base + size], "little")

    def poke(self, physical: int, value: int, size: int = 8) -> None:
        memory, base = (self.rom, ROM) if physical < BASE else (self.ram, BASE)
        memory[physical - base : physical - base + size] = value.to_bytes(size, "little")

    def code_at(self, mode: int, privilege: int) -> int:
        """The address of the code's page in an address space of satp.MODE ``mode``."""
        if mode == 0 or privilege == 3:
            return CODE
        bits = 12 + 9 * LEVELS[mode]
        return sign_extend(1 << (bits - 1), bits) + (0x1000 if privilege == U else 0)

    def map_code(self, root: int, mode: int) -> None:
        """Makes a root table lead to the code."""
        self.poke(root + 8 * CODE_INDEX, self.chain[LEVELS[mode] - 2] >> 12 << 10 | 1)

    # running

    def enter(
        self, *, satp: int, mstatus: int, menvcfg: int, pmpcfg2: int, pc: int, machine: bool, count: int
    ) -> Ended:
        """Runs machine-mode code that sets these CSRs, fences, goes to ``pc`` and runs on from there."""
        x = self.hart.x
        x[5], x[6], x[7], x[28], x[29], x[30] = satp, mstatus, menvcfg, pc, pmpcfg2, machine
        self.hart.privilege = 3
        self.hart.pc = self.program.labels["enter"]
        return self.run(pc, count)

    def switch(self, privilege: int, mstatus: int, satp: int | None = None) -> None:
        """Goes to a privilege (and address space) by instructions alone, without a fence: by ECALL, CSRs and MRET."""
        ended = self.step("ecall")
        assert (ended.how, ended.cause) in (("trap", 8), ("trap", 9), ("trap", 11)), ended
        if satp is not None:
            assert self.step("satp", satp).how == "done"
        mode = self.hart.satp >> 60
        start = self.code_at(mode, privilege) + (self.gadget["nop"] & 0xFFF)
        x = self.hart.x
        x[6], x[28], x[30] = mstatus | (privilege << 11 if privilege != 3 else 0), start, privilege == 3
        self.hart.pc = self.program.labels["switch"]
        assert self.run(start, 12).how == "done"
        assert self.hart.privilege == privilege

    def run(self, start: int, count: int) -> Ended:
        """Runs ``count`` instructions, of which the last ones spin."""
        hart = self.hart
        hart.attention = ATTENTION_STOP
        hart.stop_at = hart.retired + count
        reason = self.cpu.harts.run(0)
        while reason == EXIT_ACCESS:
            self.asked = (hart.access_offset, hart.access_size, hart.access_write)
            hart.access_state = ACCESS_FAILED
            reason = self.cpu.harts.run(0)
        assert reason == EXIT_STOP, reason
        assert hart.access_state == ACCESS_NONE
        pc = hart.pc
        if pc == hart.mtvec:
            return Ended("trap", hart.mepc, hart.mcause, hart.mtval)
        if pc >> 12 == start >> 12 and pc & 0xFFF in self.stops:
            return Ended("done", pc)
        return Ended("jumped", pc)

    def step(self, gadget: str, a0: int = 0, a1: int = 0) -> Ended:
        """Runs one prepared instruction where the hart is: its privilege and address space stay."""
        start = self.code_at(self.hart.satp >> 60, self.hart.privilege) + (self.gadget[gadget] & 0xFFF)
        self.hart.x[10], self.hart.x[11] = a0, a1
        self.hart.pc = start
        return self.run(start, 4)
