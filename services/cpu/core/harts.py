"""The machine's harts in this process: their records, TLBs and code pages, and the native functions that run them."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Sequence
from typing import Any

from vmesh import errors
from vmesh.doorbell import RING_BYTES
from vmesh.time import host_ns

from ..engine import HostSegment, address_of
from ..isa.interface import Isa
from ..isa.registers import registers_of
from ..native.blob import Blob
from ..native.view import view
from .controllers import Controllers
from .image import CoreImage
from .lookup import AbsentPage, check_present, read_word, segment_at
from .state import (
    ABSENT,
    ATTENTION_STOP,
    CODE_HASH,
    CODE_KEPT,
    CODE_PAGE_STRIDE,
    CONTEXTS,
    DEVICE_CONTROLLER,
    DOORBELL_VALUES,
    LATCHES,
    MODES,
    NOWHERE,
    PAGE_SLOTS,
    RAISE_WORDS,
    REGIONS,
    SEGMENTS,
    Machine,
    PageUse,
    Tlb,
)  # fmt: skip
from .tlb import PAGE, SPACES

_libc = ctypes.CDLL(None)
#: Code pages that a hart keeps decoded (64 KiB of address space each, touched as used).
CODE_PAGES = 4096
#: The interrupt source that does not exist: to drive it drives what controllers put out anew.
NO_SOURCE = 0
NEVER = (1 << 64) - 1


class Harts:
    """All harts of a machine.

    Devices are added by ``add_region`` before the first ``run``. ``machine`` and ``hart[i]`` are the records, shared
    with native code.
    """

    def __init__(
        self,
        core: CoreImage,
        isa: Isa,
        controllers: Controllers,
        count: int,
        features: frozenset[str],
        segments: Sequence[HostSegment],
    ) -> None:
        self.isa = isa
        self.features = features
        self.controllers = controllers
        self.blob = Blob(core.image, core.symbols)
        self._records = mmap.mmap(-1, Machine.size + count * isa.hart.size)
        self._memory: list[mmap.mmap] = []
        self._withheld: dict[tuple[int, int], tuple[int, int]] = {}  # by device and region: kinds, doorbell's size
        self.machine: Any = view(Machine, self._records)
        for number, address in enumerate(controllers.records()):
            self.machine.controllers[number] = address
        self.machine.time_base = host_ns()
        self.machine.features = sum(1 << isa.features.index(name) for name in features)
        self._name_host_functions()
        self._name_handlers(core)
        self._take_native_functions()
        self._place_memory(segments)
        self.hart: list[Any] = []
        self.address: list[int] = []
        self._make_harts(count)

    def _name_host_functions(self) -> None:
        """What native code calls of C's library."""
        for name in ("clock_gettime", "syscall", "read", "write", "poll"):
            setattr(self.machine, name, ctypes.cast(getattr(_libc, name), ctypes.c_void_p).value)

    def _name_handlers(self, core: CoreImage) -> None:
        """Where instructions and functions are in the blob, by their numbers."""
        machine, blob = self.machine, self.blob
        for number, name in enumerate(core.handlers):
            machine.handlers[number] = blob.address(name) if name else 0
            slow = f"{name}_slow"
            machine.slow_handlers[number] = blob.address(slow) if slow in core.symbols else machine.handlers[number]
        for number, name in enumerate(core.functions):
            machine.functions[number] = blob.address(name)
        machine.core, machine.core_size = blob.base, len(core.image)
        for name in ("attention", "go", "decode", "page_end", "breakpoint", "straddle"):
            setattr(machine, f"{name}_handler", blob.address(f"op_{name}"))

    def _take_native_functions(self) -> None:
        """What Python calls of the blob."""
        function = self.blob.function
        self._run = function("run", 1)
        self._reset_tlbs = function("reset_tlbs", 1, result=False)
        self._raise_attention = function("raise_attention", 2, result=False)
        self._install = function("install", 8, result=False)
        self._code_written = function("code_written", 3, result=False)
        self._debug_changed = function("debug_changed", 1, result=False)
        self._read_control = function("read_control", 2)
        self._take_message = function("take_message", 3)
        self._write_control = function("write_control", 3, result=False)
        self._executed = function("executed", 3, result=False)
        self._shoot_down = function("shoot_down", 1)
        self._await_shot = function("await_shot", 3)
        self._set_level = function("set_level", 3, result=False)
        self._latch_set = function("latch_set", 4, result=False)
        self._latch_raise = function("latch_raise", 4, result=False)
        self._latch_begin = function("latch_begin", 2, result=False)
        self._listener_begin = function("listener_begin", 3, result=False)
        self._listener_records = function("listener_records", 3, result=False)
        self._take_raises = function("take_raises", 2)
        self._listen = function("listen", 1)

    def _place_memory(self, segments: Sequence[HostSegment]) -> None:
        """Guest memory. Raises ValueError for too many segments."""
        machine = self.machine
        if len(segments) > SEGMENTS:
            raise ValueError(f"expected at most {SEGMENTS} memory segments, got {len(segments)}")
        for number, each in enumerate(segments):
            segment = machine.segments[number]
            segment.base, segment.size, segment.host, segment.writable = each.base, each.size, each.host, each.writable
            segment.dirty, segment.present, segment.code, segment.news = each.dirty, each.present, each.code, each.news
            if each.writable:
                pages = each.size // PAGE
                uses = mmap.mmap(-1, pages * (PageUse.size + 1))
                self._memory.append(uses)
                segment.uses = address_of(uses)
                segment.code = each.code or segment.uses + pages * PageUse.size
        machine.segment_count = len(segments)

    def _make_harts(self, count: int) -> None:
        """Their records, and what those point to."""
        self.machine.hart_count = count
        for number in range(count):
            offset = Machine.size + number * self.isa.hart.size
            hart = view(self.isa.hart, self._records, offset)
            address = address_of(self._records) + offset
            self.hart.append(hart)
            self.address.append(address)
            self.machine.harts[number] = address
            self._memory += self._furnish(hart)
            hart.number = number

    def _furnish(self, hart: Any) -> tuple[mmap.mmap, ...]:
        """What a hart's record points to: its own memory, which is given back, and the machine."""
        tlbs = mmap.mmap(-1, (SPACES + CONTEXTS * MODES) * Tlb.size)
        pool = mmap.mmap(-1, (CODE_PAGES + 1) * CODE_PAGE_STRIDE)
        table = mmap.mmap(-1, CODE_HASH * 8)
        hart.machine = self.machine_address
        hart.tlbs = address_of(tlbs)
        hart.code_pool = -(-address_of(pool) // CODE_PAGE_STRIDE) * CODE_PAGE_STRIDE
        hart.code_pages = CODE_PAGES
        hart.code_kept = CODE_KEPT
        hart.code_hash = address_of(table)
        return tlbs, pool, table

    def spare(self) -> SpareHart:
        """A hart as these are that never runs, to see what its control registers make of values."""
        return SpareHart(self)

    def add_region(self, base: int | None, size: int, device: int, index: int, kinds: int = 0, shadow: int = 0) -> None:
        """A range of guest physical addresses that device number ``device`` answers as its region ``index``; without
        ``base`` it is nowhere yet.

        ``kinds`` and ``shadow`` are host addresses of ``size`` bytes each (see ``state.Region``), or 0 for all
        synchronous.
        """
        machine = self.machine
        place = machine.region_count  # behind those that came before: who overlaps is found in this order
        if place == REGIONS:
            raise ValueError(f"expected at most {REGIONS} device regions")
        region = machine.regions[place]
        ctypes.memset(ctypes.addressof(region), 0, ctypes.sizeof(region))
        region.base = ABSENT if base is None else base
        region.size, region.device, region.index = size, device, index
        region.kinds, region.shadow = kinds, shadow
        machine.region_count = place + 1

    def remove_device(self, device: int) -> None:
        """Nobody answers for a device's regions any more; its latches and their lines are low, and free. No hart is in
        native code."""
        machine = self.machine
        for region in machine.regions[: machine.region_count]:
            if region.device != device or not region.size:
                continue
            for number in range(region.first_latch, region.first_latch + region.latch_count):
                self.latch_set(number, NEVER, 0)
                ctypes.memset(ctypes.addressof(machine.latches[number]), 0, ctypes.sizeof(machine.latches[number]))
            region.size = region.latch_count = 0
        size = ctypes.sizeof(machine.regions[0])
        there = [bytes(region) for region in machine.regions[: machine.region_count] if region.size]
        for place, kept in enumerate(there):
            ctypes.memmove(ctypes.addressof(machine.regions[place]), kept, size)
        machine.region_count = len(there)

    def move_region(self, device: int, index: int, base: int | None) -> None:
        """A device's region is at ``base`` from now on, or nowhere, for every hart, while they run: one store."""
        self._region(device, index).base = ABSENT if base is None else base

    def add_doorbell(self, device: int, index: int, offset: int, size: int, file: int) -> None:
        """Writes of small values to that register of a device's region ring ``file``."""
        region = self._region(device, index)
        region.doorbell_offset, region.doorbell_size, region.doorbell_file = offset, size, file
        region.doorbell_record = RING_BYTES

    def set_doorbell_record(self, device: int, index: int, *, timed: bool) -> None:
        """Whether guest time is in what a doorbell is rung with, or nothing but the value, in one byte."""
        self._region(device, index).doorbell_record = RING_BYTES if timed else 1

    def leave_to_python(self, device: int) -> None:
        """From now on native code leaves every access to a device, but to latches' clearing, to Python."""
        for region in self._regions(device):
            if (key := (device, region.index)) not in self._withheld:
                self._withheld[key] = region.kinds, region.doorbell_size
                region.kinds = region.doorbell_size = 0

    def leave_to_native(self, device: int) -> None:
        """The end of `leave_to_python`."""
        for region in self._regions(device):
            if (withheld := self._withheld.pop((device, region.index), None)) is not None:
                region.kinds, size = withheld
                region.doorbell_size = region.doorbell_size or size

    def _regions(self, device: int) -> list[Any]:
        regions = [self.machine.regions[number] for number in range(self.machine.region_count)]
        return [region for region in regions if region.device == device]

    def rung(self, device: int, index: int) -> list[int]:
        """The values that a doorbell has been rung with."""
        rung = self._region(device, index).rung
        return [value for value in range(DOORBELL_VALUES) if rung >> value & 1]

    def add_latch(self, device: int, index: int, offset: int, source: int, clears: tuple[int, int]) -> int:
        """A register of a device's region is a latch that drives ``source``; ``clears`` is offset and size of the one
        that clears its bits. Those of a region, and of a device, are added one after the other. Gives its number."""
        machine, region = self.machine, self._region(device, index)
        free = (number for number in range(machine.latch_count) if not machine.latches[number].value)
        number = next(free, machine.latch_count)
        if region.latch_count and number != region.first_latch + region.latch_count:
            number = machine.latch_count
        if number == LATCHES or (region.latch_count and number != region.first_latch + region.latch_count):
            raise ValueError(f"expected at most {LATCHES} latches")
        latch = machine.latches[number]
        latch.value, latch.kind, latch.source = region.shadow + offset, region.kinds + offset, source
        latch.clears_offset, latch.clears_size = clears
        machine.latch_count = max(machine.latch_count, number + 1)
        if not region.latch_count:
            region.first_latch = number
        region.latch_count += 1
        return number

    def set_listener(self, number: int, file: int, epoch: int, first_latch: int, latch_count: int) -> None:
        """Listener ``number`` is a device's, which raises its latches through ``file`` in its life ``epoch``."""
        listener = self.machine.listeners[number]
        listener.file, listener.epoch, listener.sequence, listener.words = file, epoch, 0, RAISE_WORDS
        listener.first_latch, listener.latch_count = first_latch, latch_count

    def _region(self, device: int, index: int) -> Any:
        for number in range(self.machine.region_count):
            region = self.machine.regions[number]
            if region.size and (region.device, region.index) == (device, index):
                return region
        raise ValueError(f"device {device} has no region {index}")

    def add_controllers(self) -> None:
        """Places the registers of the interrupt controllers."""
        for number, (base, size) in enumerate(self.controllers.ranges()):
            self.add_region(base, size, DEVICE_CONTROLLER + number, 0)

    def reset(self, pc: int) -> None:
        """All harts as at power-on, about to run at ``pc``, and the interrupt controllers."""
        self.controllers.reset(len(self.hart), self.isa.lines)
        for hart in self.hart:
            self._reset_hart(hart, pc)
        self.machine.time_base, self.machine.counter_offset = host_ns(), 0

    def _reset_hart(self, hart: Any, pc: int) -> None:
        for name, register in registers_of(self.isa.hart).items():
            if register.array is None:
                setattr(hart, name, register.reset_value(self.features, hart.number))
            else:
                values = getattr(hart, name)
                ctypes.memset(ctypes.addressof(values), 0, ctypes.sizeof(values))
        for name in (
            "retired", "stop_at", "attention", "waiting", "exit_reason", "cause", "trap_value", "pending", "changed",
            "lines", "timers", "reserved_value", "left_at", "access_state", "ring_count", "ring_since", "code_used",
            "debug_reason", "step", "stepping", "watch_hit",
        ):  # fmt: skip
            setattr(hart, name, 0)
        ctypes.memset(hart.code_hash, 0, CODE_HASH * 8)
        hart.pc = pc
        hart.passing = NOWHERE
        hart.deadline = hart.reserved_address = NEVER
        self._reset_tlbs(ctypes.addressof(hart))

    def state_loaded(self) -> None:
        """The records of harts and controllers were changed by Python: frees what was derived from them, and drives the
        controllers' outputs anew."""
        for address in self.address:
            self._reset_tlbs(address)
        self.set_level(NO_SOURCE, False)

    def debug_changed(self) -> None:
        """Breakpoints or watchpoints in the machine's record are others. All harts are at the gate."""
        for address in self.address:
            self._debug_changed(address)

    def read_control(self, number: int, register: int) -> int:
        """A control register of a hart, whatever its privilege."""
        return self._read_control(self.address[number], register)  # type: ignore[no-any-return]

    def write_control(self, number: int, register: int, value: int) -> None:
        """Writes a control register of a hart that is at the gate, as an instruction would, whatever its privilege."""
        self._write_control(self.address[number], register, value)

    def translate(self, hart: Any, address: int) -> int | None:
        """The physical address of a virtual one for a hart's loads, or None if it is not mapped. Raises AbsentPage."""
        return self.isa.look_up(hart, address, lambda physical: read_word(self.machine, physical))

    def run(self, number: int) -> int:
        """Runs a hart in this thread until it wants Python; gives why (``state.EXIT_*``)."""
        return self._run(self.address[number])  # type: ignore[no-any-return]

    def stop(self) -> None:
        """Asks all harts to leave native code; each ``run`` gives EXIT_STOP once."""
        for address in self.address:
            self._raise_attention(address, ATTENTION_STOP)

    def is_present(self, physical: int) -> bool:
        """Whether a page's content is here."""
        segment = segment_at(self.machine, physical)
        try:
            if segment is not None:
                check_present(segment, physical)
        except AbsentPage:
            return False
        return True

    def shoot_down(self) -> int:
        """Asks all harts to drop their write TLBs, while they run; gives the number for ``await_shot``."""
        return self._shoot_down(self.machine_address)  # type: ignore[no-any-return]

    def await_shot(self, number: int, patience: int = 1) -> bool:
        """Whether all harts have answered a shoot-down; waits for each at most ``patience`` half milliseconds. For one
        thread at a time."""
        return bool(self._await_shot(self.machine_address, number, patience))

    def raise_attention(self, number: int, bits: int) -> None:
        """Makes a hart look at ``bits`` (``state.ATTENTION_*``) soon."""
        self._raise_attention(self.address[number], bits)

    def code_written(self, physical: int, size: int) -> None:
        """RAM was written by somebody in this process who is no hart: fetches see it."""
        self._code_written(self.machine_address, physical, size)

    def record(self, number: int) -> Any:
        """The record of a hart that somebody asks for. Raises BadRequest if it is not there."""
        if number >= len(self.hart):
            raise errors.BadRequest("hart", expected=f"0 to {len(self.hart) - 1}", got=str(number))
        return self.hart[number]

    def install(
        self,
        number: int,
        page: int,
        version: int,
        steps: Any,
        step_count: int,
        entries: Any,
        entry_count: int,
        code: int,
    ) -> None:
        """Puts a region into a decoded page of a hart that is not in native code, if the page has not changed since
        that ``version`` (see ``execution.install``)."""
        first, second = ctypes.addressof(steps), ctypes.addressof(entries)
        self._install(self.address[number], page, version, first, step_count, second, entry_count, code)

    def executed(self, number: int, page: int) -> bytes:
        """Which slots of a decoded page of a hart have been run (see ``execution.executed``)."""
        bitmap = (ctypes.c_uint8 * (PAGE_SLOTS // 8))()
        self._executed(self.address[number], page, ctypes.addressof(bitmap))
        return bytes(bitmap)

    def set_level(self, source: int, level: bool) -> None:
        """Drives an interrupt source."""
        self._set_level(self.machine_address, source, int(level))

    def take_message(self, address: int, data: int) -> bool:
        """An interrupt that is a message: a store of 32 bits. Whether an interrupt controller takes it there."""
        return bool(self._take_message(self.machine_address, address, data))

    def latch_set(self, latch: int, sequence: int, value: int) -> None:
        """Update ``sequence`` of the device says all of a latch."""
        self._latch_set(self.machine_address, latch, sequence, value)

    def latch_raise(self, latch: int, sequence: int, bits: int) -> None:
        """Update ``sequence`` of the device raises bits of a latch."""
        self._latch_raise(self.machine_address, latch, sequence, bits)

    def latch_begin(self, latch: int) -> None:
        """The device counts its updates anew."""
        self._latch_begin(self.machine_address, latch)

    def set_raise_record(self, listener: int, *, timed: bool) -> None:
        """Whether guest time is in what a device raises its latches with."""
        self._listener_records(self.machine_address, listener, RAISE_WORDS if timed else RAISE_WORDS - 1)

    def listener_begin(self, listener: int, epoch: int) -> None:
        """The device has another life, whose raises alone count."""
        self._listener_begin(self.machine_address, listener, epoch)

    def take_raises(self, listener: int) -> bool:
        """Takes some of what has come through a device's FIFO; whether there was something."""
        return bool(self._take_raises(self.machine_address, listener))

    def listen(self) -> int:
        """Takes all that comes, until Python is wanted (see ``latch.listen``)."""
        return self._listen(self.machine_address)  # type: ignore[no-any-return]

    @property
    def machine_address(self) -> int:
        return ctypes.addressof(self.machine)

    @property
    def instruction_alignment(self) -> int:
        """Bytes to a multiple of which every pc is."""
        return self.isa.alignment(self.features)


class SpareHart:
    """A hart's record that belongs to no machine's list of harts."""

    def __init__(self, harts: Harts) -> None:
        self._harts = harts
        self._record = mmap.mmap(-1, harts.isa.hart.size)
        self._hart: Any = view(harts.isa.hart, self._record)
        self._memory = harts._furnish(self._hart)

    def after(self, writes: Iterable[tuple[int, int]]) -> Any:
        """The record after a reset and these writes of control registers, each a number and a value; until the next
        call."""
        self._harts._reset_hart(self._hart, 0)
        address = ctypes.addressof(self._hart)
        for register, value in writes:
            self._harts._write_control(address, register, value)
        return self._hart
