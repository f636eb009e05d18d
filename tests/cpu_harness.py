"""Harts in this process, for tests: machine code and registers in, registers and memory out.

A run ends at ``END_WORD``: a load from an address where no memory is. It can be a program's last instruction, and it
lies where mtvec points after ``reset``, so that a trap ends the run too. Other accesses outside of RAM are asked of
``Cpu.device``; without one they are bus errors, hence access faults in the guest.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.models.tiers import BOTH, INTERPRET, EagerHarts, default_mode
from tests.waiting import LIMIT
from vmesh.guest_memory import barrier
from vmesh.segment import CODE_FREE, CODE_WRITTEN
from vmesh_services.cpu.controllers.virt import NATIVE, VirtControllers
from vmesh_services.cpu.core.image import CoreImage, load_core
from vmesh_services.cpu.core.state import ACCESS_DONE, ACCESS_FAILED, ACCESS_NONE, EXIT_ACCESS, EXIT_PAGE, EXIT_STOP
from vmesh_services.cpu.engine import HostSegment
from vmesh_services.cpu.isa.riscv.definition import ISA
from vmesh_services.cpu.isa.riscv.encoding import encode
from vmesh_services.cpu.isa.riscv.features import FEATURES
from vmesh_services.cpu.isa.riscv.state import SINK

BASE = 0x8000_0000
#: Where the board's interrupt controllers are, if a machine has them (``Harts.add_controllers``).
ACLINT, PLIC = 0x200_0000, 0xC00_0000
#: An address that no program under test loads from.
END = (1 << 64) - 1999
END_WORD = encode("lb", imm=-1999)
FS_DIRTY = 3 << 13


@cache
def core() -> CoreImage:
    """The native core, loaded or built once per test process."""
    return load_core(ISA, NATIVE)


@dataclass(frozen=True, slots=True)
class Access:
    """An access that no memory answers. ``device`` and ``region`` are those of ``Harts.add_region``."""

    device: int
    region: int
    offset: int
    size: int
    write: bool
    value: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run ended: ``end``, ``trapped`` (pc, cause, value: mepc, mcause, mtval) or ``timeout``; and where."""

    why: str
    pc: int
    cause: int = 0
    value: int = 0


class Cpu:
    """``count`` harts over ``size`` bytes of RAM at ``base``; the trap handler that ends a run is in the first 16.

    ``mode``: see ``models.tiers``; ``flags``: with page flags, all pages present.
    """

    def __init__(
        self,
        size: int = 1 << 20,
        features: set[str] | None = None,
        count: int = 1,
        base: int = BASE,
        mode: str | None = None,
        flags: bool = False,
    ) -> None:
        self.base, self.size = base, size
        self.ram = mmap.mmap(-1, size)
        host = ctypes.addressof(ctypes.c_char.from_buffer(self.ram))
        known = frozenset(FEATURES if features is None else features)
        self.mode = mode or default_mode()
        #: the flags dirty and present of each page, if asked for
        self.dirty = mmap.mmap(-1, size >> 12) if flags else None
        self.present = mmap.mmap(-1, size >> 12) if flags else None
        #: what the cpu and devices say of pages of code (memory.proto: Segment)
        self.holds_code, self.code_news = mmap.mmap(-1, size >> 12), mmap.mmap(-1, 8)
        places = [
            ctypes.addressof(ctypes.c_char.from_buffer(each)) if each else 0
            for each in (self.dirty, self.present, self.holds_code, self.code_news)
        ]
        if self.present:
            self.present[:] = b"\x01" * len(self.present)
        self.controllers = VirtControllers(ACLINT, PLIC)
        self.harts = EagerHarts(
            core(), ISA, self.controllers, count, known, [HostSegment(base, size, host, True, *places)]
        )
        if self.mode != INTERPRET:
            self.harts.be_eager(mixed=self.mode == BOTH)
        self.hart: Any = self.harts.hart[0]
        #: Answers accesses outside of RAM: gives the value read, or None for a bus error.
        self.device: Callable[[Access], int | None] = lambda access: None
        #: Is asked to make a page present, by its physical address.
        self.page: Callable[[int], None] = lambda address: None
        self._deadlines: dict[int, float] = {}
        _watched.add(self)
        _watchdog()
        self.reset()

    # memory

    def write(self, address: int, data: bytes) -> None:
        """Writes guest memory behind the harts' backs; fetches see it."""
        self.ram[address - self.base : address - self.base + len(data)] = data
        self.harts.code_written(address, len(data))

    def dma(self, address: int, data: bytes) -> None:
        """Writes guest memory as a device does that maps it, in other processes too (memory.proto: Segment)."""
        start = address - self.base
        self.ram[start : start + len(data)] = data
        barrier()
        for page in range(start >> 12, (start + len(data) - 1 >> 12) + 1):
            if self.holds_code[page] not in (CODE_FREE, CODE_WRITTEN):
                self.holds_code[page] = CODE_WRITTEN
                self.code_news[:] = os.urandom(8)

    def read(self, address: int, size: int) -> bytes:
        return self.ram[address - self.base : address - self.base + size]

    def place(self, address: int, *words: int) -> int:
        """Writes 32-bit instructions; gives the address behind them."""
        self.write(address, struct.pack(f"<{len(words)}I", *words))
        return address + 4 * len(words)

    def forget_code(self) -> None:
        """``ram`` was written: fetches see it."""
        self.harts.code_written(self.base, self.size)

    def forget(self) -> None:
        """Empties all TLBs: after satp, PMP or page tables were changed from Python."""
        for address in self.harts.address:
            self.harts._reset_tlbs(address)

    # state

    def reset(self, pc: int | None = None) -> None:
        """All harts as at power-on, floating point on, traps to machine mode going to the handler that ends a run."""
        self.harts.reset(self.base + 16 if pc is None else pc)
        self.place(self.base, END_WORD)
        for hart in self.harts.hart:
            hart.mtvec = self.base
            hart.mstatus |= FS_DIRTY

    def set(
        self, pc: int, x: Mapping[int, int] | None = None, f: Mapping[int, int] | None = None, **fields: int
    ) -> None:
        """Sets pc, some registers and some fields of hart 0's record."""
        hart = self.hart
        for number, value in (x or {}).items():
            if number:
                hart.x[number] = value
        for number, value in (f or {}).items():
            hart.f[number] = value
        for name, value in fields.items():
            setattr(hart, name, value)
        hart.pc = pc

    def x(self, number: int = 0) -> list[int]:
        """The integer registers of a hart."""
        return [0, *self.harts.hart[number].x[1:SINK]]

    def f(self, number: int = 0) -> list[int]:
        """The raw bits of a hart's floating-point registers."""
        return list(self.harts.hart[number].f)

    # running

    def run(self, number: int = 0, seconds: float = LIMIT) -> Stop:
        """Runs a hart in this thread until it ends or traps, or for ``seconds`` of real time."""
        hart = self.harts.hart[number]
        self._deadlines[number] = time.monotonic() + seconds
        try:
            while True:
                reason = self.harts.run(number)
                if reason == EXIT_ACCESS:
                    stop = self._access(hart)
                    if stop is not None:
                        return stop
                elif reason == EXIT_PAGE:
                    self.page(hart.absent_page)
                elif reason == EXIT_STOP and time.monotonic() >= self._deadlines[number]:
                    return Stop("timeout", hart.pc)
        finally:
            del self._deadlines[number]

    def _access(self, hart: Any) -> Stop | None:
        access = Access(
            hart.access_device,
            hart.access_region,
            hart.access_offset,
            hart.access_size,
            bool(hart.access_write),
            hart.access_value,
        )
        if access.size == 1 and not access.write and access.offset == END:
            hart.access_state = ACCESS_NONE
            if hart.pc != self.base:
                return Stop("end", hart.pc)
            return Stop("trapped", hart.mepc, hart.mcause, hart.mtval)
        answer = self.device(access)
        hart.access_state = ACCESS_FAILED if answer is None else ACCESS_DONE
        if answer is not None:
            hart.access_value = answer
        return None


_watched: weakref.WeakSet[Cpu] = weakref.WeakSet()


@cache
def _watchdog() -> threading.Thread:
    """The thread that stops harts which run for too long."""

    def watch() -> None:
        while True:
            time.sleep(0.05)
            for cpu in list(_watched):
                if any(time.monotonic() >= deadline for deadline in list(cpu._deadlines.values())):
                    cpu.harts.stop()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread
