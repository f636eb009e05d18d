"""The harts of a machine in native code: an interpreter, and regions that are compiled while it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from google.protobuf.message import Message

from vmesh import errors
from vmesh.latencies import Latencies
from vmesh.v1 import common_pb2, cpu_pb2

from ..bus.device import BusDevice
from ..bus.irqchip import FLOOD_SECONDS
from ..bus.link import Counters, Link
from ..engine import HostSegment, Manner, Surroundings
from ..isa.interface import Isa
from . import inspection, saved
from .controllers import Controllers, Native
from .debugger import Debugger
from .doorbell import Doorbell, Listener
from .hart_thread import Gate, HartThread
from .harts import Harts
from .image import load_core
from .perf_map import PerfMap
from .region_store import RegionStore, store_path
from .regions import Regions, Translation
from .registers import Registers
from .trace import Tracer
from .translator_process import TranslatorProcess

#: A Python thread that wants the interpreter gets it this soon, in seconds: harts in Python code are rare and short.
SWITCH_INTERVAL = 0.0002
#: For devices to end their waits and threads theirs when the machine ends, in seconds each.
_END_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the harts are. ``hot_samples``: how often the clock must find code before it is translated; 0: never.
    ``bus_limit``: seconds without a sign of life from a device that a hart waits for."""

    isa: Isa
    controllers: Controllers
    native: Native
    harts: int
    features: frozenset[str]
    reset_pc: int
    hot_samples: int = 0
    cache: bool = True
    perf_map: bool = False
    bus_limit: float = 20.0


class Emulator:
    """Executes harts; an `engine.Cpu`."""

    def __init__(self, options: Options, around: Surroundings) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._options, self._around = options, around
        self._core = load_core(options.isa, options.native)
        self._gate = Gate(options.harts, closed=not around.clock.passes)
        self._threads: list[HartThread] = []
        self._devices: dict[int, BusDevice] = {}
        self._doorbells: dict[int, Doorbell] = {}
        self._briefly = False  # harts were stopped for a moment, and by nobody in the service's thread since
        self._ordered = False  # the debugger has said how the harts run next
        self._told = False  # why the harts stand, if it is for the debugger
        self._regions: Regions | None = None
        self._translator: TranslatorProcess | None = None
        self._perf_map = PerfMap() if options.perf_map else None
        if options.hot_samples:
            self._store = RegionStore(store_path(options.isa.name) if options.cache else None)
            start = partial(around.call, self._start_translator)
            isa, features = options.isa.name, options.features
            self._translator = TranslatorProcess(isa, features, self._add_region, options.cache, start)
            if not len(self._store):  # else most of what will be hot has been translated
                self._translator.start()

    def _start_translator(self) -> None:
        if self._translator is not None:
            self._translator.start()

    def _add_region(self, digest: bytes, translation: Translation, microseconds: int) -> None:
        if self._regions is not None:
            self._regions.add(digest, translation, microseconds)

    # the machine

    @property
    def lines(self) -> Harts:
        return self._harts

    def place(self, segments: Sequence[HostSegment]) -> None:
        options, around = self._options, self._around
        harts = Harts(self._core, options.isa, options.controllers, options.harts, options.features, segments)
        self._harts = harts
        harts.add_controllers()
        harts.reset(options.reset_pc)
        around.clock.drive(harts.machine)
        self._debugger, self._registers = Debugger(harts), Registers(harts)
        self._tracer = Tracer(around.recorder, harts)
        if self._perf_map is not None:
            self._perf_map.core(harts.blob.base, len(self._core.image), self._core.symbols)
        if self._translator is not None:
            self._regions = Regions(harts, self._translator, self._store, options.hot_samples, self._perf_map)
        self._listener = Listener(harts, around.folder, self._complain_of_flood)

    def attach(self, device: BusDevice) -> None:
        self._devices[device.number] = device
        if device.description.doorbell and device.doorbell is not None:
            self._doorbells[device.number] = Doorbell(self._harts, device, self._around.folder)
        if device.description.interrupts and device.latches:
            self._listener.add(device)

    def detach(self, device: BusDevice) -> None:
        for thread in self._threads:
            thread.forget(device.number)
        self._listener.remove(device)
        self._harts.remove_device(device.number)
        if device.number in self._doorbells:
            self._doorbells.pop(device.number).close()
        for line in device.description.lines:
            self._harts.set_level(line.irq, False)
        del self._devices[device.number]

    def revive(self, device: BusDevice) -> None:
        try:
            if device.number in self._doorbells:
                self._doorbells[device.number].open()
            if device.listener >= 0:
                self._listener.open(device)
        except errors.BadRequest as error:
            self._around.complain(device.name, "nonsense", str(error))
        self._call_out()

    def raised(self, device: BusDevice) -> int:
        if device.listener < 0:
            return 0
        while self._harts.take_raises(device.listener):
            pass
        return int(self._harts.machine.listeners[device.listener].sequence)

    def look(self) -> None:
        self._harts.stop()

    def _complain_of_flood(self, device: str, what: str, text: str) -> None:
        """The listener has muted a device, for a while. From its thread."""
        self._around.complain(device, what, text)
        later = partial(self._around.call_in, f"raises {device}", FLOOD_SECONDS, self._listener.unmute)
        self._around.call(later)

    # its harts

    def start(self) -> None:
        self._listener.start()
        for number in range(self._options.harts):
            stopped = partial(self._around.call, partial(self._stopped, number))
            connect = partial(self._connect, number)
            devices = tuple(self._devices)
            around, regions, tracer = self._around, self._regions, self._tracer
            thread = HartThread(self._harts, number, self._gate, connect, stopped, regions, devices, tracer, around)
            self._threads.append(thread)
            thread.start()

    def _connect(self, hart: int, device: int, counters: Counters, wake: int) -> Link:
        around, target, gate = self._around, self._devices[device], self._gate
        connection = partial(around.dial_device, target, hart, wake)
        complain = partial(around.complain, target.name)
        limit = self._options.bus_limit
        return Link(
            connection, target, counters, gate.ending, limit, complain, lambda: gate.halts, lambda: gate.settling
        )

    def order(self, request: cpu_pb2.RunHarts) -> None:
        self._debugger.order(request)
        self._gate.hold(request.held)
        self._ordered = True

    def run(self) -> common_pb2.HartStop | None:
        if not self._ordered:
            self._debugger.pass_breakpoints()
            self._gate.hold(())
        if stop := self._debugger.due():
            self._forget_order()
            return stop
        self._told = self._briefly = False
        self._around.clock.go()
        self._gate.open()
        return None

    def go_on(self) -> None:
        if self._briefly:
            self._briefly = False
            self._gate.open()

    def stop(self, manner: Manner, seconds: float = 0.0) -> bool:
        self._briefly = manner is Manner.BRIEFLY
        self._gate.close(at_once=manner is Manner.AT_ONCE, settling=manner is Manner.SETTLED)
        if not self._threads:
            return False
        if manner is Manner.BRIEFLY:
            self._harts.stop()
        else:
            self._call_out()
        if manner is Manner.AT_ONCE:
            return self._gate.wait_parked(seconds, lambda: sum(bool(each.waits_for) for each in self._threads))
        stands = self._gate.wait_parked(seconds)
        if stands and manner is Manner.SETTLED:
            self._forget_order()
        return stands

    def stands(self, seconds: float) -> bool:
        # Those that were stopped where they are do not come to the gate.
        return self._gate.wait_parked(0.0 if self._gate.halts else seconds)

    def _forget_order(self) -> None:
        self._debugger.cancel()
        self._ordered = False

    def _call_out(self) -> None:
        """Has harts come out of native code, and of waits for devices and pages."""
        if self._threads:
            self._harts.stop()
        for thread in self._threads:
            thread.wake()

    def _stopped(self, number: int) -> None:
        """A hart has stopped for the debugger: all do."""
        stop = self._debugger.take(number)
        if stop is None:
            return
        if self._told:
            self._debugger.keep(stop)
            return
        self._told = True
        self._around.stopped(stop)

    def reset(self) -> None:
        self._harts.reset(self._options.reset_pc)
        self._debugger.forget()
        self._around.clock.restart()

    def end(self) -> None:
        self._gate.end()
        self._call_out()
        if self._threads:
            self._listener.end()
            self._listener.join(_END_SECONDS)
        for thread in self._threads:
            thread.join(_END_SECONDS)
        if self._translator is not None:
            self._translator.close()

    # what it is

    def save(self) -> cpu_pb2.CpuState:
        return saved.save(self._harts, self._around.clock.now_ns())

    def load(self, state: cpu_pb2.CpuState, version: int, check_only: bool) -> None:
        saved.upgrade(self._harts, state, version)
        saved.check(self._harts, state)
        if not check_only:
            self._around.clock.load(saved.load(self._harts, state))

    def answer(self, request: Message) -> Message:
        harts, registers = self._harts, self._registers
        match request:
            case cpu_pb2.ReadMemory():
                return inspection.read(harts, request)
            case cpu_pb2.WriteMemory():
                inspection.write(harts, request)
            case cpu_pb2.DescribeRegisters():
                return registers.describe()
            case cpu_pb2.HartRegistersRequest():
                return registers.all(request.hart)
            case cpu_pb2.ReadRegisters():
                return registers.read(request)
            case cpu_pb2.WriteRegisters():
                registers.write(request)
            case cpu_pb2.SetBreakpoints():
                self._debugger.set(request)
            case _:
                raise errors.BadRequest("cpu", expected="what inspects harts", got=request.DESCRIPTOR.name)
        return common_pb2.Done()

    def shoot_down(self) -> Callable[[], bool]:
        return partial(self._harts.await_shot, self._harts.shoot_down())

    def trace(self, on: bool) -> None:
        self._tracer.switch(self._devices.values(), on)

    def status(self) -> cpu_pb2.CpuStatus:
        status = cpu_pb2.CpuStatus(bus=self._bus_counters())
        for number, thread in enumerate(self._threads):
            hart = self._harts.hart[number]
            doing = cpu_pb2.HART_RUNNING
            if self._gate.closed:
                doing = cpu_pb2.HART_PAUSED
            elif thread.waits_for_page:
                doing = cpu_pb2.HART_PAGE
            elif thread.waits_for:
                doing = cpu_pb2.HART_BUS
            elif hart.waiting:
                doing = cpu_pb2.HART_WAITING
            device = self._devices.get(int(thread.waits_for or -1))
            status.harts.add(
                hart=number,
                state=doing,
                pc=hart.pc,
                privilege=self._registers.privilege(number),
                retired=hart.retired,
                waits_for=device.name if device is not None else "",
            )
        return status

    def _bus_counters(self) -> cpu_pb2.BusCounters:
        counters = cpu_pb2.BusCounters()
        for thread in self._threads:
            counters.sync_round_trips += thread.counters.round_trips
            counters.batches += thread.counters.batches
            counters.faults += thread.counters.faults
            counters.rejoins += thread.counters.rejoins
            counters.timeouts += thread.counters.timeouts
        for hart in self._harts.hart if self._threads else ():
            counters.posted_accesses += hart.count_posted
            counters.doorbells += hart.count_doorbell
            counters.shadow_reads += hart.count_shadow
            counters.local_accesses += hart.count_local
        return counters

    def counters(self) -> dict[str, int]:
        bus = self._bus_counters()
        harts = self._harts.hart if self._threads else ()
        return {
            **{name.name: getattr(bus, name.name) for name in bus.DESCRIPTOR.fields},
            "shoot_downs": sum(hart.count_shoot_downs for hart in harts),
            "tlb_fills": sum(hart.count_tlb_fills for hart in harts),
            **Latencies.together(thread.pages.latencies for thread in self._threads).counters("page_faults"),
            **({} if self._regions is None else self._regions.counters()),
        }
