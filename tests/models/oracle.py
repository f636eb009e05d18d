"""One list of cases (code, registers, a window of memory) and three machines: ours, QEMU's virt board, Unicorn.

A case's code lies in an area that is otherwise full of C.EBREAK, so whatever it does it soon traps; the state is
compared as of the first trap, with its cause. QEMU runs all cases in one start: a small runner in the guest loads each
state, goes to the code, and writes back what the trap handler finds.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import unicorn
from unicorn import riscv_const

from tests.cpu_harness import BASE, FS_DIRTY, Cpu
from vmesh_services.cpu.isa.riscv.encoding import encode
from vmesh_services.cpu.isa.riscv.state import SINK

from .assembler import assemble

MASK = (1 << 64) - 1
SIZE = 64 << 20
#: Code of cases; enough on both sides for the longest JAL.
CODE, CODE_SIZE = BASE + 0x20_0000, 0x80_0000
#: Memory that cases may access; a page boundary is in the middle of each case's window.
DATA, DATA_SIZE = BASE + 0x10_0000, 0x8_0000
WINDOW = 128
#: QEMU's records, and how far it may use RAM (its device tree is at the end).
RECORDS, RECORDS_END = BASE + 0xA0_0000, BASE + SIZE - (4 << 20)
EBREAK, ILLEGAL, BREAKPOINT = b"\x02\x90", 2, 3
FILL = EBREAK * (CODE_SIZE // 2)
_LAYOUT = struct.Struct(f"<32Q32Q5Q{WINDOW}s")
#: Offsets in a record behind x and f.
FCSR, PC, WINDOW_AT, CAUSE, VALUE, BYTES = range(512, 560, 8)


@dataclass(frozen=True, slots=True)
class Case:
    """Code at ``pc``, and the state it starts from. ``window`` is the memory around ``address``."""

    pc: int
    code: bytes
    x: Sequence[int] = (0,) * 32
    f: Sequence[int] = (0,) * 32
    fcsr: int = 0
    address: int = DATA + 0x1000 - WINDOW // 2
    window: bytes = bytes(WINDOW)


@dataclass(frozen=True, slots=True)
class State:
    """How a case ended: at its first trap."""

    x: tuple[int, ...]
    f: tuple[int, ...]
    fcsr: int
    pc: int
    cause: int
    value: int
    window: bytes = field(repr=False)
    #: Instructions that retired, where the machine tells.
    retired: int | None = None

    def differences(self, other: State) -> list[str]:
        """What differs, by name, with both values."""
        found = []
        for name in ("x", "f"):
            for number, (a, b) in enumerate(zip(getattr(self, name), getattr(other, name), strict=True)):
                if a != b:
                    found.append(f"{name}{number}: {a:#x} / {b:#x}")
        for name in ("fcsr", "pc", "cause", "value"):
            if (a := getattr(self, name)) != (b := getattr(other, name)):
                found.append(f"{name}: {a:#x} / {b:#x}")
        if self.window != other.window:
            found.append(f"memory: {self.window.hex()} / {other.window.hex()}")
        if None not in (self.retired, other.retired) and self.retired != other.retired:
            found.append(f"retired: {self.retired} / {other.retired}")
        return found


# ours


class Ours:
    """Runs cases on a hart in this process; ``mode``: see ``tiers``."""

    def __init__(self, mode: str | None = None) -> None:
        self.cpu = Cpu(SIZE, mode=mode)
        #: How many instructions each case of the last run took.
        self.retired: list[int] = []

    @property
    def memory(self) -> bytes:
        """The memory of all windows after a run."""
        return self.cpu.read(DATA, DATA_SIZE)

    def run(self, cases: Sequence[Case]) -> list[State]:
        cpu = self.cpu
        cpu.reset()
        cpu.write(CODE, FILL)
        cpu.write(DATA, bytes(DATA_SIZE))
        for case in cases:
            cpu.ram[case.pc - BASE : case.pc - BASE + len(case.code)] = case.code
        cpu.forget_code()
        self.retired = []
        return [self._run(case) for case in cases]

    def _run(self, case: Case) -> State:
        cpu, hart = self.cpu, self.cpu.hart
        hart.x[0:32] = case.x
        hart.f[0:32] = case.f
        hart.fflags, hart.frm = case.fcsr & 31, case.fcsr >> 5
        hart.mstatus |= FS_DIRTY
        hart.reserved_address = MASK
        start = case.address - BASE
        cpu.ram[start : start + WINDOW] = case.window
        hart.pc = case.pc
        before = hart.retired
        stop = cpu.run(seconds=60)  # translating all of it takes a second, on a busy host several
        self.retired.append(hart.retired - before)
        assert stop.why == "trapped", (stop, case)
        return State(
            (0, *hart.x[1:SINK]), tuple(hart.f), hart.frm << 5 | hart.fflags, stop.pc, stop.cause,
            _value(stop.cause, stop.value), bytes(cpu.ram[start : start + WINDOW]), self.retired[-1],
        )  # fmt: skip


# QEMU

_RUNNER = f"""
    la t0, handler
    csrw mtvec, t0
    csrw pmpcfg0, x0
next:
    csrr t6, mscratch
    ld ra, {PC}(t6)
    beqz ra, finish
    csrw mepc, ra
    li ra, 0x7800                         # FS dirty, MPP machine
    csrw mstatus, ra
    ld ra, {FCSR}(t6)
    csrw fcsr, ra
    ld gp, {WINDOW_AT}(t6)
    sc.d x0, x0, (gp)                     # no reservation is left
    {"; ".join(f"ld ra, {BYTES + i}(t6); sd ra, {i}(gp)" for i in range(0, WINDOW, 8))}
    .word {", ".join(str(encode("fld", rd=n, rs1=31, imm=256 + 8 * n)) for n in range(32))}
    {"; ".join(f"ld x{n}, {8 * n}(t6)" for n in range(1, 32))}
    mret
handler:
    csrrw t6, mscratch, t6
    {"; ".join(f"sd x{n}, {8 * n}(t6)" for n in range(1, 31))}
    csrr ra, mscratch
    sd ra, {8 * 31}(t6)
    li ra, 0x6000
    csrs mstatus, ra
    .word {", ".join(str(encode("fsd", rs2=n, rs1=31, imm=256 + 8 * n)) for n in range(32))}
    csrr ra, fcsr; sd ra, {FCSR}(t6)
    csrr ra, mepc; sd ra, {PC}(t6)
    csrr ra, mcause; sd ra, {CAUSE}(t6)
    csrr ra, mtval; sd ra, {VALUE}(t6)
    ld gp, {WINDOW_AT}(t6)
    {"; ".join(f"ld ra, {i}(gp); sd ra, {BYTES + i}(t6)" for i in range(0, WINDOW, 8))}
    addi t6, t6, {_LAYOUT.size}
    csrw mscratch, t6
    j next
finish:
    li t0, 0x100000
    li t1, 0x5555
    sw t1, 0(t0)
    j finish
"""


@cache
def qemu_image() -> bytes:
    """The guest program that runs all records."""
    head = assemble(f"li t6, {RECORDS}; csrw mscratch, t6; j {BASE + 0x100}", BASE).code
    return head.ljust(0x100, b"\0") + assemble(_RUNNER, BASE + 0x100).code


class Qemu:
    """Runs cases on QEMU's virt board (machine mode, no firmware); RAM is a file that both sides see."""

    PROGRAM = "qemu-system-riscv64"

    def __init__(self) -> None:
        version = subprocess.run([self.PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout
        # what we have and no more, as far as a version of QEMU knows the names
        newer = ",zawrs=off,zfa=off" if int(version.split("version ")[1].split(".")[0]) >= 8 else ""
        self.cpu = f"rv64,svinval=on,h=off{newer}"
        #: The memory of all windows after a run.
        self.memory = bytes(DATA_SIZE)

    def run(self, cases: Sequence[Case]) -> list[State]:
        most = (RECORDS_END - RECORDS) // _LAYOUT.size - 1
        self.memory = bytes(DATA_SIZE)
        return [s for i in range(0, len(cases), most) for s in self._run(cases[i : i + most], cases)]

    def _run(self, cases: Sequence[Case], placed: Sequence[Case]) -> list[State]:
        folder = "/dev/shm" if os.path.isdir("/dev/shm") else None
        with tempfile.NamedTemporaryFile(dir=folder, prefix="vmesh-oracle-") as file:
            file.truncate(SIZE)
            file.write(qemu_image())
            file.seek(CODE - BASE)
            file.write(FILL)
            file.seek(DATA - BASE)
            file.write(self.memory)
            for case in placed:
                file.seek(case.pc - BASE)
                file.write(case.code)
            file.seek(RECORDS - BASE)
            for case in cases:
                file.write(_LAYOUT.pack(*case.x, *case.f, case.fcsr, case.pc, case.address, 0, 0, case.window))
            file.flush()
            memory = f"memory-backend-file,id=ram,size={SIZE},share=on,mem-path={file.name}"
            command = [
                self.PROGRAM, "-machine", "virt,memory-backend=ram", "-object", memory, "-m", str(SIZE >> 20),
                "-cpu", self.cpu, "-bios", "none", "-display", "none", "-monitor", "none", "-serial", "none",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stderr
            file.seek(DATA - BASE)
            self.memory = file.read(DATA_SIZE)
            file.seek(RECORDS - BASE)
            return [_unpack(file.read(_LAYOUT.size)) for _ in cases]


def _unpack(record: bytes) -> State:
    values = _LAYOUT.unpack(record)
    fcsr, pc, _, cause, value = values[64:69]
    return State((0, *values[1:32]), values[32:64], fcsr, pc, cause, _value(cause, value), values[69])


def _value(cause: int, value: int) -> int:
    """mtval as it is compared: a breakpoint may give its address or 0 (privileged specification 3.1.16)."""
    return 0 if cause == BREAKPOINT else value


# Unicorn

#: An address that no case reaches.
NOWHERE = MASK - 1
_REGISTERS = tuple(
    [riscv_const.UC_RISCV_REG_X1 + n for n in range(31)]
    + [riscv_const.UC_RISCV_REG_F0 + n for n in range(32)]
    + [riscv_const.UC_RISCV_REG_FCSR]
)


class Unicorn:
    """Runs cases on Unicorn (QEMU 5.0): RV64GC in machine mode. Traps other than illegal have no result."""

    def __init__(self) -> None:
        self._cause = BREAKPOINT
        machine = self._machine = unicorn.Uc(unicorn.UC_ARCH_RISCV, unicorn.UC_MODE_RISCV64)
        machine.mem_map(CODE, CODE_SIZE)
        machine.mem_map(DATA, DATA_SIZE)
        machine.reg_write(riscv_const.UC_RISCV_REG_MSTATUS, FS_DIRTY)
        machine.hook_add(unicorn.UC_HOOK_INTR, self._trap)

    @property
    def memory(self) -> bytes:
        """The memory of all windows after a run."""
        return bytes(self._machine.mem_read(DATA, DATA_SIZE))

    def _trap(self, machine: Any, cause: int, data: object) -> None:
        self._cause = cause
        machine.emu_stop()

    def run(self, cases: Sequence[Case], ends: Sequence[int] | None = None) -> list[State | None]:
        """The states after one instruction of each case, or when it reaches its end."""
        self._machine.mem_write(CODE, FILL)
        self._machine.mem_write(DATA, bytes(DATA_SIZE))
        for case in cases:
            self._machine.mem_write(case.pc, case.code)
        self._machine.ctl_flush_tb()
        return [self._run(case, ends[n] if ends else None) for n, case in enumerate(cases)]

    def legal(self, cases: Sequence[Case]) -> list[bool]:
        """Whether each case's first instruction is one; the first case's registers serve all."""
        machine = self._machine
        self.run(cases[:1])
        for case in cases:
            machine.mem_write(case.pc, case.code)
        machine.ctl_flush_tb()
        found = []
        for case in cases:
            self._cause = BREAKPOINT
            with contextlib.suppress(unicorn.UcError):
                machine.emu_start(case.pc, NOWHERE, count=1)
            found.append(self._cause != ILLEGAL)
        return found

    def _run(self, case: Case, end: int | None) -> State | None:
        machine = self._machine
        machine.mem_write(case.address, case.window)
        machine.reg_write_batch(list(zip(_REGISTERS, (*case.x[1:], *case.f, case.fcsr), strict=True)))
        self._cause = BREAKPOINT
        try:
            machine.emu_start(case.pc, NOWHERE if end is None else end, count=1 if end is None else 0)
        except unicorn.UcError:
            return None
        values = machine.reg_read_batch([*_REGISTERS, riscv_const.UC_RISCV_REG_PC])
        x, f, fcsr, pc = (0, *values[:31]), tuple(values[31:63]), values[63], values[64]
        window = bytes(machine.mem_read(case.address, WINDOW))
        if self._cause == ILLEGAL:
            return State(x, f, fcsr, case.pc, ILLEGAL, int.from_bytes(case.code[:4], "little"), window)
        return None if self._cause != BREAKPOINT else State(x, f, fcsr, pc, BREAKPOINT, 0, window)
