"""The interrupt controllers of the `virt` board: an ACLINT and a PLIC."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

from vmesh import errors
from vmesh.v1.cpu_pb2 import CpuState, PlicState

from ..core import provided
from ..core.attention import set_line
from ..core.controllers import Native
from ..core.state import Hart, Machine
from ..core.timers import NEVER
from ..isa.interface import Lines
from ..native.lang import Dispatch, inline, native, u64
from ..native.view import view
from . import aclint, plic_layout
from .aclint import MSIP_BASE, Aclint, aclint_of, aclint_read, aclint_write, hart_number, look_at_compare
from .plic import acquire, drive, plic_of, plic_read, plic_write, release
from .plic_layout import HART_CONTEXTS, MAX_PRIORITY, SOURCES, WORDS, Plic

#: What they save with a hart.
COMPARE, SOFTWARE = "mtimecmp", "software_interrupt"
_BOOLEAN = range(2)


@inline
def nothing_read(hart: Hart, offset: u64, size: u64) -> u64:
    return 0


@inline
def nothing_written(hart: Hart, offset: u64, size: u64, value: u64) -> None:
    return


_READ = Dispatch({aclint.NUMBER: aclint_read, plic_layout.NUMBER: plic_read}, nothing_read)
_WRITE = Dispatch({aclint.NUMBER: aclint_write, plic_layout.NUMBER: plic_write}, nothing_written)


@native
def controller_read(hart: Hart, number: u64, offset: u64, size: u64) -> u64:
    return _READ(number, hart, offset, size)  # type: ignore[no-any-return]


@native
def controller_write(hart: Hart, number: u64, offset: u64, size: u64, value: u64) -> None:
    _WRITE(number, hart, offset, size, value)


@native
def controller_message(machine: Machine, number: u64, offset: u64, data: u64) -> bool:
    """The ACLINT's MSWI takes messages (ACLINT 1.0, 3). To take an interrupt back is the hart's: one may come twice."""
    if number != aclint.NUMBER or offset & 3 != 0 or offset >= MSIP_BASE + 4 * machine.hart_count:
        return False
    if data & 1 != 0:
        set_line(hart_number(machine, offset >> 2), aclint_of(machine).software, True)
    return True


@native
def lock_sources(machine: Machine) -> None:
    acquire(plic_of(machine))


@inline
def unlock_sources(machine: Machine) -> None:
    release(plic_of(machine))


@native
def drive_source(machine: Machine, source: u64, level: u64) -> None:
    drive(machine, plic_of(machine), source, level)


NATIVE = Native(
    bindings={
        provided.controller_read: controller_read,
        provided.controller_write: controller_write,
        provided.controller_message: controller_message,
        provided.look_at_timers: look_at_compare,
        provided.lock_sources: lock_sources,
        provided.unlock_sources: unlock_sources,
        provided.drive_source: drive_source,
    }
)


class VirtControllers:
    """Those of one machine: their registers, shared with native code, at the addresses that the board gives them."""

    def __init__(self, aclint_base: int, plic_base: int) -> None:
        self._memory = mmap.mmap(-1, Aclint.size + Plic.size)
        self.aclint: Any = view(Aclint, self._memory)
        self.plic: Any = view(Plic, self._memory, Aclint.size)
        self._bases = aclint_base, plic_base
        self._harts = 0

    def ranges(self) -> list[tuple[int, int]]:
        """Base and size of each controller's registers, by its number."""
        return list(zip(self._bases, (aclint.SIZE, plic_layout.SIZE), strict=True))

    def records(self) -> list[int]:
        """The host addresses of their records, by number."""
        first = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        return [first, first + Aclint.size]

    def reset(self, harts: int, lines: Lines) -> None:
        """All as at power-on, for so many harts whose lines these are."""
        ctypes.memset(self.records()[0], 0, Aclint.size + Plic.size)
        self._harts = harts
        self.aclint.software, self.aclint.timer = lines.software, lines.timer
        self.aclint.compare[:] = [NEVER] * len(self.aclint.compare)
        self.plic.lines[:] = lines.external

    def save(self, state: CpuState, lines: Callable[[int], int]) -> None:
        """Adds what they are; ``lines`` gives what is driven of a hart."""
        for name in ("priority", "level", "pending", "claimed"):
            getattr(state.plic, name).extend(getattr(self.plic, name)[:])
        contexts = HART_CONTEXTS * self._harts
        state.plic.enable.extend(self.plic.enable[: contexts * WORDS])
        state.plic.threshold.extend(self.plic.threshold[:contexts])
        for number, record in enumerate(state.harts):
            record.values[COMPARE] = self.aclint.compare[number]
            record.values[SOFTWARE] = int(lines(number) & self.aclint.software != 0)

    def saved_values(self) -> tuple[str, ...]:
        """The names of what they save with each hart."""
        return COMPARE, SOFTWARE

    def check(self, state: CpuState) -> None:
        """Raises BadState for what they could never come to by themselves."""
        for number, record in enumerate(state.harts):
            if record.values[SOFTWARE] not in _BOOLEAN:
                got = hex(record.values[SOFTWARE])
                raise errors.BadState(f"state of hart {number}: {SOFTWARE}", expected="a legal value", got=got)
        _check_plic(state.plic, HART_CONTEXTS * self._harts)

    def load(self, state: CpuState) -> list[int]:
        """Takes a state that passed ``check``; gives what it drives of each hart but for sources' levels."""
        for name in ("priority", "level", "pending", "claimed", "enable", "threshold"):
            values = list(getattr(state.plic, name))
            getattr(self.plic, name)[: len(values)] = values
        for number, record in enumerate(state.harts):
            self.aclint.compare[number] = record.values[COMPARE]
        return [self.aclint.software if record.values[SOFTWARE] else 0 for record in state.harts]


def _check_plic(plic: PlicState, contexts: int) -> None:
    lengths = {
        "priority": SOURCES, "level": WORDS, "pending": WORDS, "claimed": WORDS,
        "enable": contexts * WORDS, "threshold": contexts,
    }  # fmt: skip
    for name, length in lengths.items():
        values = getattr(plic, name)
        if len(values) != length:
            raise errors.BadState(f"state of plic: {name}", expected=f"{length} values", got=str(len(values)))
        if name in ("priority", "threshold"):
            illegal = [value for value in values if value > MAX_PRIORITY] + [v for v in plic.priority[:1] if v]
        else:
            illegal = [value for value in values[::WORDS] if value & 1]  # source 0 does not exist
        if illegal:
            raise errors.BadState(f"state of plic: {name}", expected="a legal value", got=hex(illegal[0]))
