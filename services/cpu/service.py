"""The cpu service: its harts, its side of the bus, and what the monitor asks of it."""

from __future__ import annotations

import math
import mmap
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count

from google.protobuf.message import DecodeError, Message

from vmesh import errors, limits, segment, wire
from vmesh.loop import Inbox
from vmesh.service import Runtime, Service
from vmesh.v1 import bus_pb2, common_pb2, cpu_pb2, lifecycle_pb2, memory_pb2
from vmesh.v1.packet_pb2 import Packet
from vmesh.wire import Client

from . import vacant
from .bus.device import BusDevice, RegisterTable
from .bus.irqchip import Irqchip
from .bus.spaces import NO_WINDOWS, Spaces
from .clock import CpuClock
from .engine import GREETING_LIMIT, STATE_VERSION, Cpu, HostSegment, Manner, Surroundings, address_of

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
    """What the command line says of this service's surroundings; addresses are guest physical."""

    paused: bool = False
    memory: str = "memory"  # the service that has RAM on this host
    spaces: Spaces = NO_WINDOWS
    transports: tuple[range, ...] = ()  # addresses of the virtio-mmio transports: who has no device answers that


class CpuService(Service):
    """A `Cpu`, which `make` makes, as a service: its guest time, its side of the bus, and what the monitor asks."""

    kind = "cpu"
    vital = True

    def __init__(self, runtime: Runtime, settings: Settings, make: Callable[[Surroundings], Cpu]) -> None:
        self._runtime = runtime
        runtime.outlive_loss()
        self._settings = settings
        self.begins_paused = settings.paused
        self._mapped: list[mmap.mmap] = []
        self._devices: dict[int, BusDevice] = {}
        self._irqchip: dict[int, Irqchip] = {}
        self._numbers = count()  # of devices: of one that has left the board nothing is taken for another's
        self._clock = CpuClock(passes=not settings.paused)
        self._throttled = 0
        self._shoot_downs: deque[tuple[Client, int, Callable[[], bool]]] = deque()
        self._stop: common_pb2.HartStop | None = None  # why the harts stand, if it is for the debugger
        self._runner: tuple[Client, int] | None = None  # who waits for harts that run for a while, and the packet's id
        self._said: set[int] = set()
        self._calls = Inbox(runtime.loop)  # what other threads want done in the service's thread
        self._cpu = make(
            Surroundings(
                clock=self._clock,
                recorder=runtime.recorder,
                folder=runtime.machine.path,
                dial_device=self._dial_device,
                dial_memory=self._dial_memory,
                unmapped=self._unmapped,
                failed=partial(self._call, self._hart_failed),
                stumbled=partial(self._call, self._hart_stumbled),
                stopped=self._hart_stopped,
                complain=partial(self._call, self._complain),
                call=self._call,
                call_in=runtime.loop.call_in,
            )
        )

    def start(self) -> None:
        memory = self._runtime.dial(self._settings.memory, common_pb2.ROLE_CPU)
        memory.greet(GREETING_LIMIT)
        # The devices may be long in coming: the monitor decides how long the machine waits for them.
        answer = memory.request(memory_pb2.MapRequest(), math.inf)
        if not isinstance(answer, memory_pb2.AddressMap):
            raise wire.mismatch(memory.address, "AddressMap", answer)
        self._cpu.place([self._map(each) for each in answer.segments])
        self._clock.changed = self._tell_time
        for description in sorted(answer.devices, key=lambda each: each.name):  # who came first is chance
            self._add_device(description)
        self._cpu.start()

    def handle(self, client: Client, packet: Packet) -> Message | None:
        match packet.WhichOneof("body"):
            case "cpu_status_request":
                return self._status()
            case "shoot_down":
                self._shoot_downs.append((client, packet.id, self._cpu.shoot_down()))
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
            case "read_memory" | "write_memory" | "describe_registers" | "hart_registers_request":
                return self._answer(packet)
            case "read_registers" | "write_registers" | "set_breakpoints":
                return self._debug(packet)
            case "run_harts":
                return self._run_harts(client, packet)
            case _:
                return super().handle(client, packet)

    def _answer_shoot_downs(self) -> None:
        """Answers the shoot-downs that every hart has done; looks again soon if there are others."""
        while self._shoot_downs and self._shoot_downs[0][2]():
            client, packet_id, _ = self._shoot_downs.popleft()
            self._runtime.answer(client, packet_id, common_pb2.Done)
        if self._shoot_downs:
            self._runtime.loop.call_in("shoot-downs", SHOOT_DOWN_LOOK, self._answer_shoot_downs)

    def pause(self) -> None:
        """Harts stop at an instruction, with nothing of theirs on the bus. Guest time stops too."""
        self._clock.stop()
        if not self._cpu.stop(Manner.SETTLED, PAUSE_LIMIT):
            waiting = [each.waits_for for each in self._cpu.status().harts if each.waits_for]
            raise errors.VmeshError(
                f"a hart did not stop within {PAUSE_LIMIT:g} s", got=f"it waits for {waiting or 'itself'}"
            )

    def halt(self) -> None:
        """As `pause`, but harts that wait for a device stand still there. Nothing is drained."""
        self._clock.stop()
        if not self._cpu.stop(Manner.AT_ONCE, PAUSE_LIMIT):
            raise errors.VmeshError(f"a hart did not stop within {PAUSE_LIMIT:g} s")

    def _throttle(self, percent: int) -> Message:
        if percent > MAX_THROTTLE:
            raise errors.BadRequest("Throttle", expected=f"at most {MAX_THROTTLE} percent", got=str(percent))
        self._throttled = percent
        self._runtime.loop.call_in("throttle", 0.0, self._stand_still)
        return common_pb2.Done()

    def _stand_still(self) -> None:
        if self._throttled and self._clock.passes:
            self._cpu.stop(Manner.BRIEFLY)
        seconds = THROTTLE_SLICE * self._throttled / (100 - self._throttled)
        self._runtime.loop.call_in("throttle", seconds, self._move_on)

    def _move_on(self) -> None:
        if self._clock.passes:
            self._cpu.go_on()
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
        return max(device.last_update, self._cpu.raised(device))

    def save(self) -> lifecycle_pb2.ServiceState:
        message = self._cpu.save()
        return lifecycle_pb2.ServiceState(
            type=message.DESCRIPTOR.full_name, version=STATE_VERSION, bytes=message.SerializeToString()
        )

    def load(self, state: lifecycle_pb2.ServiceState, check_only: bool) -> None:
        wanted = cpu_pb2.CpuState.DESCRIPTOR.full_name
        if state.type != wanted or not 1 <= state.version <= STATE_VERSION:
            got = f"{state.type[:80]} {state.version}"
            raise errors.BadState("state of cpu", expected=f"{wanted} {STATE_VERSION}", got=got)
        try:
            message = cpu_pb2.CpuState.FromString(state.bytes)
        except DecodeError as error:
            raise errors.BadState("state of cpu cannot be parsed") from error
        self._cpu.load(message, state.version, check_only)

    def resume(self) -> None:
        if stop := self._go_on():
            self._clock.stay()
            self._tell_stop(stop)

    def _go_on(self) -> common_pb2.HartStop | None:
        """The harts run, and guest time passes; or there is a stop to be told of first."""
        stop = self._cpu.run()
        if stop is None:
            self._stop = None
        return stop

    def _answer(self, packet: Packet) -> Message:
        request = wire.body_of(packet)
        assert request is not None
        return self._cpu.answer(request)

    def _catch_up(self, wanted: cpu_pb2.CatchUp) -> None:
        self._need_paused("CatchUp")
        self._clock.catch_up(wanted.since_ns if wanted.HasField("since_ns") else None)

    def _debug(self, packet: Packet) -> Message:
        """What the debugger does with harts that stand still. Guest time does too, also for CSRs that look at it."""
        self._need_paused(str(packet.WhichOneof("body")))
        with self._clock.held():
            return self._answer(packet)

    def _run_harts(self, client: Client, packet: Packet) -> Message | None:
        """The harts' orders; with a time, they run now, and the answer comes when they have stopped."""
        self._need_paused("RunHarts")
        request = packet.run_harts
        if request.milliseconds > MAX_RUN:
            raise errors.BadRequest("RunHarts", expected=f"at most {MAX_RUN} ms", got=str(request.milliseconds))
        self._cpu.order(request)
        if not request.milliseconds:
            return common_pb2.HartStop()
        self._runner = client, packet.id
        if stop := self._go_on():
            self._runner = None
            return stop
        self._runtime.loop.call_in("run harts", request.milliseconds / 1000, self._stop_run)
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

    def _hart_stopped(self, stop: common_pb2.HartStop) -> None:
        """A hart has stopped for the debugger: all do, and guest time."""
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
        self._cpu.reset()

    def shutdown(self) -> None:
        # Devices end next: what harts have written must have been handled, unless one of them does not answer.
        self._cpu.stop(Manner.SETTLED, SHUTDOWN_LIMIT)
        self._cpu.end()

    def orphaned(self) -> None:
        self._cpu.end()

    def lost_memory(self) -> None:
        self._cpu.stop(Manner.AT_ONCE)

    def _dial_memory(self, hart: int, wake: int) -> wire.Peer:
        return self._runtime.dial(self._settings.memory, common_pb2.ROLE_CPU, hart=hart, wake=wake)

    def _dial_device(self, device: BusDevice, hart: int, wake: int) -> wire.Peer:
        return self._runtime.dial(
            device.name,
            common_pb2.ROLE_HART,
            address=device.description.endpoint,
            hart=hart,
            wake=wake,
            heed_loss=True,
        )

    def trace(self, on: bool) -> None:
        self._cpu.trace(on)

    def counters(self) -> dict[str, int]:
        return self._cpu.counters()

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
            places = {name: address_of(flags) + array * found.flags_stride for name, array in arrays.items()}
        self._mapped.append(memory)
        return HostSegment(found.base, found.size, address_of(memory), found.writable, **places)

    def _need_paused(self, request: str) -> None:
        # Those of a cpu that begins paused are on their way; one that was halted while it waits for a device is not.
        if self._clock.passes or not self._cpu.stands(PAUSE_LIMIT):
            raise errors.BadRequest(f"{request} of a running cpu", expected="Pause before it")

    def _add_device(self, description: bus_pb2.Description) -> None:
        number = next(self._numbers)
        tables = [RegisterTable(region) for region in description.regions]
        try:
            peer = self._runtime.dial(description.name, common_pb2.ROLE_IRQCHIP, address=description.endpoint)
        except errors.ConfigError as error:  # somebody else has said where it is
            raise errors.BadRequest(f"device {description.name}: {error}") from error
        lines, spaces = self._cpu.lines, self._settings.spaces
        try:
            for index, (region, table) in enumerate(zip(description.regions, tables, strict=True)):
                base = None if region.absent else spaces.address(region, region.base)
                lines.add_region(base, region.size, number, index, table.kinds, table.values)
            device = BusDevice(number, description, lines, tables, spaces)
        except ValueError as error:
            peer.abandon()
            lines.remove_device(number)
            raise errors.HostLimit(f"device {description.name}: {error}") from error
        except errors.BadRequest:
            peer.abandon()
            lines.remove_device(number)
            raise
        self._devices[number] = device
        self._cpu.attach(device)
        if peer.remote:
            self._runtime.loop.call_in("elsewhere", ELSEWHERE_SECONDS, self._look_elsewhere)
        device.complain = partial(self._call, self._complain, device.name)
        complain = partial(self._complain, device.name)
        revived = partial(self._cpu.revive, device)
        self._irqchip[number] = Irqchip(peer, device, self._clock, self._runtime.loop, revived, complain)

    def _remove_device(self, name: str) -> None:
        """Takes a device off the board, with its lines low. Without that name there is nothing to do."""
        device = next((device for device in self._devices.values() if device.name == name), None)
        if device is None:
            return
        self._irqchip.pop(device.number).close()
        self._cpu.detach(device)
        del self._devices[device.number]

    def _tell_time(self) -> None:
        """Devices follow guest time; but not the steps of a debugger, which are many and short."""
        if self._runner is None:
            for irqchip in self._irqchip.values():
                irqchip.tell_time()

    def _look_elsewhere(self) -> None:
        """Harts that wait for nothing do not hear of connections that were lost, and of what was lost with them."""
        self._cpu.look()
        self._runtime.loop.call_in("elsewhere", ELSEWHERE_SECONDS, self._look_elsewhere)

    def _complain(self, device: str, what: str, text: str) -> None:
        self._runtime.complain(device, what, text)

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

    def _status(self) -> cpu_pb2.CpuStatus:
        status = self._cpu.status()
        status.time_ns, status.stopped_ns = self._clock.now_ns(), self._clock.stopped_ns
        return status
