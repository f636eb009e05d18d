"""Harts that run translated code from the first instruction on: whatever is decoded is compiled before it is run.

Modes: ``interpret``; ``translate`` (all that can be in a region runs from one); ``both`` (about half of it, so that
control passes between the interpreter and regions all the time). ``VMESH_CPU_MODE`` chooses for a whole test run.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

from vmesh_services.cpu.core.harts import Harts
from vmesh_services.cpu.core.region import Region, RegionModule, emit, form
from vmesh_services.cpu.core.regions import Arena
from vmesh_services.cpu.core.state import CODE_PAGE_STRIDE, EXIT_REGIONS, CodePage
from vmesh_services.cpu.core.tlb import PAGE
from vmesh_services.cpu.isa.interface import Isa
from vmesh_services.cpu.native.build import build_region

INTERPRET, TRANSLATE, BOTH = MODES = ("interpret", "translate", "both")
#: Instructions in a region at most: short ones meet more of each other, and compile sooner.
LIMIT = 16
#: For those who try several.
LIMITS = (16, 3, 40, 100)
_COPY, _VERSION = CodePage.offset_of("copy"), CodePage.offset_of("version")
#: What all machines of a test run share: code is bound to its place in a page and to nothing else.
_arena = Arena()
_T = TypeVar("_T")
_compiled: dict[tuple[object, ...], int] = {}


@cache
def default_mode() -> str:
    """The mode of machines that do not ask for one."""
    mode = os.environ.get("VMESH_CPU_MODE", INTERPRET)
    if mode not in MODES:
        raise ValueError(f"VMESH_CPU_MODE: expected one of {', '.join(MODES)}, got '{mode}'")
    return mode


def portion(everything: Sequence[_T]) -> Sequence[_T]:
    """All cases, or each 37th in a mode that compiles all code before it runs, which takes a hundred times as long."""
    return everything if default_mode() == INTERPRET else everything[::37]


def compiled(isa: Isa, region: Region) -> int:
    """The host address of a region's code."""
    key = (
        isa.name,
        *region.entries,
        None,
        *sorted(region.joins),
        None,
        *((s.offset, s.bits) for s in region.steps.values()),
    )
    address = _compiled.get(key)
    if address is None:
        module = RegionModule(isa)
        emit(module, "r", region)
        address = _compiled[key] = _arena.add(build_region(module.text()).image)
    return address


class EagerHarts(Harts):
    """Harts that leave native code for each slot that is decoded, and go on with a region in it."""

    #: Regions installed; whether each second hot slot is left to the interpreter; instructions in a region at most.
    installed = 0
    mixed = False
    limit = LIMIT

    def be_eager(self, mixed: bool) -> None:
        self.machine.eager, self.mixed = 1, mixed

    def run(self, number: int) -> int:
        hart = self.hart[number]
        while True:
            reason = super().run(number)
            if not self.machine.eager:
                return reason
            for index in range(hart.hot_count):
                self._translate(number, hart.hot[index])
            hart.hot_count = 0
            if reason != EXIT_REGIONS:
                return reason

    def _translate(self, number: int, slot: int) -> None:
        page = slot & ~(CODE_PAGE_STRIDE - 1)
        offset = (slot - page) >> 3
        if self.mixed and (offset >> 1) * 0x9E37_79B1 >> 16 & 1:
            return
        version = ctypes.c_uint64.from_address(page + _VERSION).value
        region = form(self.isa, ctypes.string_at(page + _COPY, PAGE), offset, self.features, limit=self.limit, least=1)
        if region is None:
            return
        steps = (ctypes.c_uint16 * len(region.steps))(*region.steps)
        entries = (ctypes.c_uint16 * len(region.entries))(*region.entries)
        self.install(number, page, version, steps, len(steps), entries, len(entries), compiled(self.isa, region))
        self.installed += 1
