"""The cpu service: its harts, its side of the bus, and what the monitor asks of it."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count

from google.protobuf.message import DecodeError, Message

from vmesh import errors, limits, segment, wire
from vmesh.latencies import Latencies
from vmesh.loop import Inbox
from vmesh.service import Runtime, Service
from vmesh.v1 import bus_pb2, common_pb2, cpu_pb2, lifecycle_pb2, memory_pb2
from vmesh.v1.packet_pb2 import Packet
from vmesh.wire import Client

from . import vacant
from .bus.device import BusDevice, RegisterTable
from .bus.irqchip import FLOOD_SECONDS, Irqchip
from .bus.link import Counters, Link
from .bus.spaces import NO_WINDOWS, Spaces
from .clock import CpuClock
from .controllers.virt import NATIVE, VirtControllers
from .core import inspection, saved
from .core.debugger import Debugger
from .core.doorbell import Doorbell, Listener
from .core.hart_thread import Gate, HartThread
from .core.harts import Harts, HostSegment
from .core.image import load_core
from .core.pages import GREETING_LIMIT
from .core.perf_map import PerfMap
from .core.region_store import RegionStore, store_path
from .core.regions import Regions, Translation
from .core.registers import Registers
from .core.trace import Tracer
from .core.translator_process import TranslatorProcess
from .isa.interface import Isa

#: A Python thread that wants the interpreter gets it this soon, in seconds: harts in Python code are rare and short.
SWITCH_INTERVAL = 0.0002
PAUSE_LIMIT = 10.0
#: Seconds in which what devices have sent is here: shorter than anybody waits to find this service hung.
DRAIN_LIMIT = 5.0
MAX_RUN = 2000  # milliseconds of RunHarts
#: For devices to take what harts have posted, one of which may be starting: shorter than the monitor waits for the end.
SHUTDOWN_LIMIT = 2.0
THROTTLE_SLICE = 0.01  # seconds that throttled harts run at a time
MAX_THROTTLE = 99
#: Until a hart is looked at again that has not dropped its TLB entries yet, in seconds: the host has not let it run.
SHOOT_DOWN_LOOK = 0.001
#: Between two looks at connections to devices on other hosts, in seconds.
ELSEWHERE_SECONDS = 1.0
_LOGGED_ADDRESSES = 256


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asks for; addresses are guest physical."""

    isa: Isa
    harts: int
    features: frozenset[str]
    reset_pc: int
    aclint: int
    plic: int
    paused: bool = False
    hot_samples: int = 0
    cache: bool = True
    perf_map: bool = False
    bus_limit: float = 20.0  # seconds
    memory: str = "memory"  # the service that has RAM on this host
    spaces: Spaces = NO_WINDOWS
    transports: tuple[range, ...] = ()  # addresses of the virtio-mmio transports: who has no device answers that


class Cpu(Service):
    """Runs the machine's harts."""

    kind = "cpu"
    vital = True

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self._runtime = runtime
        runtime.outlive_loss()
        self._settings = settings
        self.begins_paused = settings.paused
        self._gate = Gate(settings.harts, closed=settings.paused)
        self._core = load_core(settings.isa, NATIVE)
        self._mapped: list[mmap.mmap] = []
        self._devices: dict[int, BusDevice] = {}
        self._irqchip: dict[int, Irqchip] = {}
        self._numbers = count()  # of devices: of one that has left the board nothing is taken for another's
        self._doorbells: dict[int, Doorbell] = {}
        self._threads: list[HartThread] = []
        self._clock = CpuClock(passes=not settings.paused)
        self._throttled = 0
        self._shoot_downs: deque[tuple[Client, int, int]] = deque()
        self._ordered = False  # the debugger has said how the harts run next
        self._stop: common_pb2.HartStop | None = None  # why the harts stand, if it is for the debugger
        self._runner: tuple[Client, int] | None = None  # who waits for harts that run for a while, and the packet's id
        self._said: set[int] = set()
        self._regions: Regions | None = None
        self._translator: TranslatorProcess | None = None
        self._perf_map = PerfMap() if settings.perf_map else None
        self._calls = Inbox(runtime.loop)  # what hart threads want done in the service's thread

    def start(self) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL)
        if self._settings.hot_samples:
            store = RegionStore(store_path(self._settings.isa.name) if self._settings.cache else None)
            features, cache = self._settings.features, self._settings.cache
            start = partial(self._call, self._start_translator)
            self._translator = TranslatorProcess(self._settings.isa.name, features, self._regions_add, cache, start)
            if not len(store):  # else most of what will be hot has been translated
                self._translator.start()
        memory = self._runtime.dial(self._settings.memory, common_pb2.ROLE_CPU)
        memory.greet(GREETING_LIMIT)
        # The devices may be long in coming: the monitor decides how long the machine waits for them.
        answer = memory.request(memory_pb2.MapRequest(), math.inf)
        if not isinstance(answer, memory_pb2.AddressMap):
            raise wire.mismatch(memory.address, "AddressMap", answer)
        segments = [self._map(each) for each in answer.segments]
        settings = self._settings
        controllers = VirtControllers(settings.aclint, settings.plic)
        self._harts = Harts(self._core, settings.isa, controllers, settings.harts, settings.features, segments)
        self._harts.add_controllers()
        self._harts.reset(self._settings.reset_pc)
        self._clock.drive(self._harts.machine)
        self._clock.changed = self._tell_time
        self._debugger, self._registers = Debugger(self._harts), Registers(self._harts)
        self._tracer = Tracer(self._runtime.recorder, self._harts)
        if self._perf_map is not None:
            self._perf_map.core(self._harts.blob.base, len(self._core.image), self._core.symbols)
        if self._translator is not None:
            self._regions = Regions(self._harts, self._translator, store, self._settings.hot_samples, self._perf_map)
        self._listener = Listener(self._harts, self._runtime.machine.path, partial(self._call, self._complain_of_flood))
        for description in sorted(answer.devices, key=lambda each: each.name):  # who came first is chance
            self._add_device(description)
        self._listener.start()
        for number in range(self._settings.harts):
            thread = HartThread(
                self._harts,
                number,
                self._gate,
                partial(self._connect, number),
                partial(self._dial_memory, number),
                self._unmapped,
                partial(self._call, self._hart_failed),
                partial(self._call, self._hart_stopped, number),
                partial(self._call, self._hart_stumbled),
                self._regions,
                tuple(self._devices),
                self._tracer,
                self._clock,
            )
            self._threads.append(thread)
            thread.start()

    def _start_translator(self) -> None:
        if self._translator is not None:
            self._translator.start()

    def _regions_add(self, digest: bytes, translation: Translation, microseconds: int) -> None:
        if self._regions is not None:
            self._regions.add(digest, translation, microseconds)

    def handle(self, client: Client, packet: Packet) -> Message | None:
        match packet.WhichOneof("body"):
            case "cpu_status_request":
                return self._status()
            case "hart_registers_request":
                return self._registers.all(packet.hart_registers_request.hart)
            case "shoot_down":
                self._shoot_downs.append((client, packet.id, self._harts.shoot_down()))
                self._answer_shoot_downs()
                return None
            case "throttle":
                return self._throttle(packet.throttle.percent)
            case "catch_up":
                self._catch_up(packet.catch_up)
                return common_pb2.Done()
            case "add_device":
                self._need_paused("AddDevice")
                self._add_device(packet.add_device.description)
                return common_pb2.Done()
            case "remove_device":
                self._need_paused("RemoveDevice")
                self._remove_device(packet.remove_device.name)
                return common_pb2.Done()
            case "read_memory":
                return inspection.read(self._harts, packet.read_memory)
            case "write_memory":
                inspection.write(self._harts, packet.write_memory)
                return common_pb2.Done()
            case "describe_registers":
                return self._registers.describe()
            case "read_registers" | "write_registers" | "set_breakpoints":
                return self._debug(packet)
            case "run_harts":
                return self._run_harts(client, packet)
            case _:
                return super().handle(client, packet)

    def _answer_shoot_downs(self) -> None:
        """Answers the shoot-downs that every hart has done; looks again soon if there are others."""
        while self._shoot_downs and self._harts.await_shot(self._shoot_downs[0][2]):
            client, packet_id, _ = self._shoot_downs.popleft()
            self._runtime.answer(client, packet_id, common_pb2.Done)
        if self._shoot_downs:
            self._runtime.loop.call_in("shoot-downs", SHOOT_DOWN_LOOK, self._answer_shoot_downs)

    def pause(self) -> None:
        """Harts stop at an instruction, with nothing of theirs on the bus. Guest time stops too."""
        self._clock.stop()
        self._gate.close(settling=True)
        self._call_out()
        if not self._gate.wait_parked(PAUSE_LIMIT):
            waiting = [self._devices[int(t.waits_for)].name for t in self._threads if t.waits_for]
            raise errors.VmeshError(
                f"a hart did not stop within {PAUSE_LIMIT:g} s", got=f"it waits for {waiting or 'itself'}"
            )
        self._debugger.cancel()
        self._ordered = False

    def halt(self) -> None:
        """As `pause`, but harts that wait for a device stand still there. Nothing is drained."""
        self._clock.stop()
        self._gate.close(at_once=True)
        self._call_out()
        if not self._gate.wait_parked(PAUSE_LIMIT, lambda: sum(bool(each.waits_for) for each in self._threads)):
            raise errors.VmeshError(f"a hart did not stop within {PAUSE_LIMIT:g} s")

    def _throttle(self, percent: int) -> Message:
        if percent > MAX_THROTTLE:
            raise errors.BadRequest("Throttle", expected=f"at most {MAX_THROTTLE} percent", got=str(percent))
        self._throttled = percent
        self._runtime.loop.call_in("throttle", 0.0, self._stand_still)
        return common_pb2.Done()

    def _stand_still(self) -> None:
        if self._throttled and self._clock.passes:
            self._gate.close()  # a hart that waits for a device stands still too
            self._harts.stop()
        seconds = THROTTLE_SLICE * self._throttled / (100 - self._throttled)
        self._runtime.loop.call_in("throttle", seconds, self._move_on)

    def _move_on(self) -> None:
        if self._clock.passes:
            self._gate.open()
        if self._throttled:
            self._runtime.loop.call_in("throttle", THROTTLE_SLICE, self._stand_still)

    def drain(self, updates: dict[str, int]) -> int:
        deadline = time.monotonic() + DRAIN_LIMIT
        for number, device in self._devices.items():
            while self._last_update(device) < updates.get(device.name, 0):
                if time.monotonic() > deadline:
                    expected = f"update {updates[device.name]} of {device.name}"
                    self._complain(device.name, limits.BROKEN, f"says {expected}, which does not come")
                    raise errors.VmeshError("the bus did not drain", expected=expected, got=str(device.last_update))
                self._irqchip[number].wait(0.05)
        return 0

    def _last_update(self, device: BusDevice) -> int:
        """The number of the last one applied, whatever way it came."""
        if device.listener < 0:
            return device.last_update
        while self._harts.take_raises(device.listener):
            pass
        raised: int = self._harts.machine.listeners[device.listener].sequence
        return max(device.last_update, raised)

    def save(self) -> lifecycle_pb2.ServiceState:
        message = saved.save(self._harts, self._clock.now_ns())
        return lifecycle_pb2.ServiceState(
            type=message.DESCRIPTOR.full_name, version=saved.VERSION, bytes=message.SerializeToString()
        )

    def load(self, state: lifecycle_pb2.ServiceState, check_only: bool) -> None:
        wanted = cpu_pb2.CpuState.DESCRIPTOR.full_name
        if state.type != wanted or not 1 <= state.version <= saved.VERSION:
            got = f"{state.type[:80]} {state.version}"
            raise errors.BadState("state of cpu", expected=f"{wanted} {saved.VERSION}", got=got)
        try:
            message = cpu_pb2.CpuState.FromString(state.bytes)
        except DecodeError as error:
            raise errors.BadState("state of cpu cannot be parsed") from error
        saved.upgrade(self._harts, message, state.version)
        saved.check(self._harts, message)
        if not check_only:
            self._clock.load(saved.load(self._harts, message))

    def resume(self) -> None:
        if not self._ordered:
            self._debugger.pass_breakpoints()
            self._gate.hold(())
        if not self._clock.passes and (stop := self._debugger.due()):
            self._clock.stay()
            self._tell_stop(stop)
        else:
            self._go_on()

    def _go_on(self) -> None:
        self._clock.go()
        self._stop = None
        self._gate.open()

    def _catch_up(self, wanted: cpu_pb2.CatchUp) -> None:
        self._need_paused("CatchUp")
        self._clock.catch_up(wanted.since_ns if wanted.HasField("since_ns") else None)

    def _debug(self, packet: Packet) -> Message:
        """What the debugger does with harts that stand still. Guest time does too, also for CSRs that look at it."""
        kind = packet.WhichOneof("body")
        self._need_paused(str(kind))
        with self._clock.held():
            match kind:
                case "read_registers":
                    return self._registers.read(packet.read_registers)
                case "write_registers":
                    self._registers.write(packet.write_registers)
                case "set_breakpoints":
                    self._debugger.set(packet.set_breakpoints)
        return common_pb2.Done()

    def _run_harts(self, client: Client, packet: Packet) -> Message | None:
        """The harts' orders; with a time, they run now, and the answer comes when they have stopped."""
        self._need_paused("RunHarts")
        request = packet.run_harts
        if request.milliseconds > MAX_RUN:
            raise errors.BadRequest("RunHarts", expected=f"at most {MAX_RUN} ms", got=str(request.milliseconds))
        self._debugger.order(request)
        self._gate.hold(request.held)
        self._ordered = True
        if not request.milliseconds:
            return common_pb2.HartStop()
        if stop := self._debugger.due():
            self._debugger.cancel()
            return stop
        self._runner = client, packet.id
        self._runtime.loop.call_in("run harts", request.milliseconds / 1000, self._stop_run)
        self._go_on()
        return None

    def _stop_run(self) -> None:
        """The harts that run for a while have stopped, or are to."""
        self._runtime.loop.cancel("run harts")
        if self._runner is None:
            return
        (client, number), self._runner = self._runner, None
        try:
            self.pause()
            self._tell_time()  # a device that was met meanwhile thinks that it passes
            stop = self._stop or common_pb2.HartStop()
            self._runtime.answer(client, number, lambda: stop)
        except errors.VmeshError as error:
            self._runtime.server.fail(client, number, "run_harts", error)

    def _hart_stopped(self, number: int) -> None:
        """A hart has stopped for the debugger: all do, and guest time."""
        stop = self._debugger.take(number)
        if stop is None:
            return
        if self._stop is not None:
            self._debugger.keep(stop)
            return
        self._stop = stop
        self._clock.stop()
        if self._runner is not None:
            self._stop_run()
        else:
            self._tell_stop(stop)

    def _tell_stop(self, stop: common_pb2.HartStop) -> None:
        text = f"hart {stop.hart} stopped for the debugger at {stop.address:#x}"
        self._runtime.notify(common_pb2.SEVERITY_INFO, text, stop)

    def reset(self) -> None:
        if self._clock.passes:
            raise errors.BadRequest("Reset of a running cpu", expected="Pause before it")
        self._harts.reset(self._settings.reset_pc)
        self._debugger.forget()
        self._clock.restart()

    def shutdown(self) -> None:
        # Devices end next: what harts have written must have been handled, unless one of them does not answer.
        self._gate.close(settling=True)
        if self._threads:
            self._call_out()
            self._gate.wait_parked(SHUTDOWN_LIMIT)
        self.orphaned()

    def orphaned(self) -> None:
        self._gate.end()
        if self._threads:
            self._call_out()
            self._listener.end()
            self._listener.join(1.0)
        for thread in self._threads:
            thread.join(1.0)
        if self._translator is not None:
            self._translator.close()

    def lost_memory(self) -> None:
        self._gate.close(at_once=True)
        self._call_out()

    def _call_out(self) -> None:
        """Has harts come out of native code, and of waits for pages."""
        self._harts.stop()
        for thread in self._threads:
            thread.wake()

    def _dial_memory(self, hart: int, wake: int) -> wire.Peer:
        return self._runtime.dial(self._settings.memory, common_pb2.ROLE_CPU, hart=hart, wake=wake)

    def trace(self, on: bool) -> None:
        self._tracer.switch(self._devices.values(), on)

    def counters(self) -> dict[str, int]:
        bus = self._bus_counters()
        regions = {} if self._regions is None else self._regions.counters()
        faults = Latencies.together(thread.pages.latencies for thread in self._threads).counters("page_faults")
        harts = self._harts.hart if self._threads else ()
        return {
            **{name.name: getattr(bus, name.name) for name in bus.DESCRIPTOR.fields},
            "shoot_downs": sum(hart.count_shoot_downs for hart in harts),
            "tlb_fills": sum(hart.count_tlb_fills for hart in harts),
            **faults,
            **regions,
        }

    def _map(self, found: memory_pb2.Segment) -> HostSegment:
        memory, flags = segment.attach_all(found, folder=self._runtime.machine.path)
        places = dict[str, int]()
        if flags is not None:
            self._mapped.append(flags)
            arrays = {
                "dirty": segment.FLAG_DIRTY,
                "present": segment.FLAG_PRESENT,
                "code": segment.FLAG_HOLDS_CODE,
                "news": segment.CODE_NEWS,
            }
            places = {name: _address(flags) + array * found.flags_stride for name, array in arrays.items()}
        self._mapped.append(memory)
        return HostSegment(found.base, found.size, _address(memory), found.writable, **places)

    def _need_paused(self, request: str) -> None:
        # Those of a cpu that begins paused are on their way; one that was halted while it waits for a device is not.
        if self._clock.passes or not self._gate.wait_parked(0.0 if self._gate.halts else PAUSE_LIMIT):
            raise errors.BadRequest(f"{request} of a running cpu", expected="Pause before it")

    def _add_device(self, description: bus_pb2.Description) -> None:
        number = next(self._numbers)
        tables = [RegisterTable(region) for region in description.regions]
        try:
            peer = self._runtime.dial(description.name, common_pb2.ROLE_IRQCHIP, address=description.endpoint)
        except errors.ConfigError as error:  # somebody else has said where it is
            raise errors.BadRequest(f"device {description.name}: {error}") from error
        try:
            spaces = self._settings.spaces
            for index, (region, table) in enumerate(zip(description.regions, tables, strict=True)):
                base = None if region.absent else spaces.address(region, region.base)
                self._harts.add_region(base, region.size, number, index, table.kinds, table.values)
            device = BusDevice(number, description, self._harts, tables, spaces)
        except ValueError as error:
            peer.abandon()
            self._harts.remove_device(number)
            raise errors.HostLimit(f"device {description.name}: {error}") from error
        except errors.BadRequest:
            peer.abandon()
            self._harts.remove_device(number)
            raise
        self._devices[number] = device
        if description.doorbell and device.doorbell is not None:
            self._doorbells[number] = Doorbell(self._harts, device, self._runtime.machine.path)
        if description.interrupts and device.latches:
            self._listener.add(device)
        if peer.remote:
            self._runtime.loop.call_in("elsewhere", ELSEWHERE_SECONDS, self._look_elsewhere)
        device.complain = partial(self._call, self._complain, device.name)
        complain = partial(self._complain, device.name)
        revived = partial(self._revived, device)
        self._irqchip[number] = Irqchip(peer, device, self._clock, self._runtime.loop, revived, complain)

    def _remove_device(self, name: str) -> None:
        """Takes a device off the board, with its lines low. Without that name there is nothing to do."""
        device = next((device for device in self._devices.values() if device.name == name), None)
        if device is None:
            return
        for thread in self._threads:
            thread.forget(device.number)
        self._irqchip.pop(device.number).close()
        self._listener.remove(device)
        self._harts.remove_device(device.number)
        if device.number in self._doorbells:
            self._doorbells.pop(device.number).close()
        for line in device.description.lines:
            self._harts.set_level(line.irq, False)
        del self._devices[device.number]

    def _tell_time(self) -> None:
        """Devices follow guest time; but not the steps of a debugger, which are many and short."""
        if self._runner is None:
            for irqchip in self._irqchip.values():
                irqchip.tell_time()

    def _revived(self, device: BusDevice) -> None:
        """A device is there, perhaps again: harts that have something for it, or wait for it, look."""
        try:
            if device.number in self._doorbells:
                self._doorbells[device.number].open()
            if device.listener >= 0:
                self._listener.open(device)
        except errors.BadRequest as error:
            self._complain(device.name, "nonsense", str(error))
        for thread in self._threads:
            thread.wake()
        if self._threads:
            self._harts.stop()

    def _look_elsewhere(self) -> None:
        """Harts that wait for nothing do not hear of connections that were lost, and of what was lost with them."""
        self._harts.stop()
        self._runtime.loop.call_in("elsewhere", ELSEWHERE_SECONDS, self._look_elsewhere)

    def _complain_of_flood(self, device: str, what: str, text: str) -> None:
        """The listener has muted a device, for a while."""
        self._complain(device, what, text)
        self._runtime.loop.call_in(f"raises {device}", FLOOD_SECONDS, self._listener.unmute)

    def _complain(self, device: str, what: str, text: str) -> None:
        self._runtime.complain(device, what, text)

    def _connect(self, hart: int, device: int, counters: Counters, wake: int) -> Link:
        runtime, target = self._runtime, self._devices[device]
        connection = partial(
            runtime.dial,
            target.name,
            common_pb2.ROLE_HART,
            address=target.description.endpoint,
            hart=hart,
            wake=wake,
            heed_loss=True,
        )
        complain = partial(self._call, self._complain, target.name)
        gate, limit = self._gate, self._settings.bus_limit
        return Link(
            connection, target, counters, gate.ending, limit, complain, lambda: gate.halts, lambda: gate.settling
        )

    def _call(self, function: Callable[..., None], *args: object) -> None:
        self._calls.call(partial(function, *args))

    def _unmapped(self, address: int, size: int, pc: int, write: bool) -> int | None:
        """What an access to no memory and no device reads, or None for an access fault. From a hart's thread."""
        if (value := vacant.read(self._settings.transports, address, size)) is None:
            self._call(self._log_fault, address, size, pc, write)
        return value

    def _log_fault(self, address: int, size: int, pc: int, write: bool) -> None:
        """Once an address."""
        if address in self._said or len(self._said) == _LOGGED_ADDRESSES:
            return
        self._said.add(address)
        kind = "write" if write else "read"
        self._runtime.log.warning(
            "access fault: nothing is mapped there", access=kind, address=f"{address:#x}", size=size, pc=f"{pc:#x}"
        )

    def _hart_failed(self, reason: str) -> None:
        fault = common_pb2.Fault(service=self._runtime.name, reason=reason)
        self._runtime.notify(common_pb2.SEVERITY_ERROR, reason, fault)

    def _hart_stumbled(self, reason: str) -> None:
        """A hart stands, and so do all: the monitor pauses the machine."""
        self._runtime.notify(common_pb2.SEVERITY_ERROR, reason, common_pb2.Fault(reason=reason, stops=True))

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

    def _status(self) -> cpu_pb2.CpuStatus:
        clock = self._clock
        status = cpu_pb2.CpuStatus(bus=self._bus_counters(), time_ns=clock.now_ns(), stopped_ns=clock.stopped_ns)
        for number, (hart, thread) in enumerate(zip(self._harts.hart, self._threads, strict=True)):
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


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
