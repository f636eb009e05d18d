"""What the service asks of whatever executes harts (`engine.Cpu`), of the emulator in each of its modes: an interpreter
alone, code that is translated before it is run, both by turns, and as machines have it, with a translator beside it.

The test is the service: its thread is the service's thread. `emulated` makes what is tested; another engine is one more
name in `ENGINES`, and a maker beside it. The last test is of the emulator alone.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import queue
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from google.protobuf.message import Message

from tests.models.tiers import BOTH, INTERPRET, TRANSLATE, EagerHarts
from tests.waiting import wait_for
from vmesh import errors, wire
from vmesh.trace import Recorder
from vmesh.v1 import cpu_pb2
from vmesh.v1.bus_pb2 import WRITE_POSTED, BatchDone, Description, Line, Region, Register
from vmesh.v1.common_pb2 import ROLE_HART, STOP_BREAKPOINT, STOP_STEP, STOP_WRITE, HartStop, Welcome
from vmesh.v1.packet_pb2 import Packet
from vmesh.v1.trace_pb2 import TRACE_POSTED, TRACE_SYNC
from vmesh_services.cpu.bus.device import BusDevice, RegisterTable
from vmesh_services.cpu.clock import CpuClock
from vmesh_services.cpu.controllers.virt import NATIVE, VirtControllers
from vmesh_services.cpu.core import emulator
from vmesh_services.cpu.core.emulator import Emulator, Options
from vmesh_services.cpu.engine import STATE_VERSION, Cpu, HostSegment, Manner, Surroundings
from vmesh_services.cpu.isa.riscv.definition import ISA
from vmesh_services.cpu.isa.riscv.encoding import encode
from vmesh_services.cpu.isa.riscv.features import FEATURES

BASE, SIZE = 0x8000_0000, 1 << 20
DATA = BASE + 0x1_0000
ACLINT, PLIC, DEVICE, NOTHING = 0x200_0000, 0xC00_0000, 0x1000_0000, 0x3000_0000
POSTED = 0x10  # the register of the device whose writes need no answer
SECONDS = 60.0
T0, T1, T2, A0, A1 = 5, 6, 7, 10, 11
BEQ_AGAIN = encode("beq", rs1=0, rs2=0, imm=0)  # to itself


def li(rd: int, value: int) -> list[int]:
    """A register becomes a number below 2^31 whose lowest 12 bits are below 2^11."""
    assert value % 0x1000 < 0x800
    return [encode("lui", rd=rd, imm=value & ~0xFFF), encode("addi", rd=rd, rs1=rd, imm=value % 0x1000)]


def address(rd: int, value: int) -> list[int]:
    """An address of RAM: lui would extend its sign."""
    return [*li(rd, value >> 1), encode("slli", rd=rd, rs1=rd, imm=1)]


#: Counts in t0 for ever, and puts it where t1 points.
COUNT = [
    *address(T1, DATA),
    encode("addi", rd=T0, rs1=T0, imm=1),
    encode("sd", rs1=T1, rs2=T0, imm=0),
    encode("jal", rd=0, imm=-8),
]
LOOP, STORE = BASE + 12, BASE + 16
#: The same for each hart, eight bytes apart.
COUNT_EACH = [
    *address(T1, DATA),
    encode("csrrs", rd=T2, csr=0xF14, rs1=0),
    encode("slli", rd=T2, rs1=T2, imm=3),
    encode("add", rd=T1, rs1=T1, rs2=T2),
    encode("addi", rd=T0, rs1=T0, imm=1),
    encode("sd", rs1=T1, rs2=T0, imm=0),
    encode("jal", rd=0, imm=-8),
]


class Played(threading.Thread):
    """A device that does what it is sent: reads give what was written last, and one. While `mute`, it says nothing."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: Path) -> None:
        super().__init__(daemon=True)
        self.endpoint = f"ipc://{path}"
        self.mute = threading.Event()
        self.ending = threading.Event()
        self.seen: list[tuple[int, int | None]] = []
        self._router = context.socket(zmq.ROUTER)
        self._router.bind(self.endpoint)
        self._done = self._last = 0
        self._epoch, self._forget = 1, threading.Event()

    def next_life(self) -> None:
        """What was sent is forgotten; what was done is not. While it is mute."""
        self._epoch += 1
        self._forget.set()

    def run(self) -> None:
        waiting: list[tuple[bytes, Packet]] = []
        while not self.ending.is_set():
            if self._router.poll(10):
                sender, frame = self._router.recv_multipart()
                waiting.append((sender, Packet.FromString(frame)))
            if self._forget.is_set():
                waiting.clear()
                self._forget.clear()
            if not self.mute.is_set():
                for sender, packet in waiting:
                    self._do(sender, packet)
                waiting.clear()
        self._router.close(0)

    def _do(self, sender: bytes, packet: Packet) -> None:
        answer: Welcome | BatchDone
        if packet.WhichOneof("body") == "hello":
            answer = Welcome(major=1, epoch=self._epoch, window=64, done=self._done)
        else:
            batch = packet.access_batch
            for number, access in enumerate(batch.accesses, batch.sequence):
                if number > self._done:
                    self._done = number
                    self._last = access.value if access.write else self._last
                    self.seen.append((access.offset, access.value if access.write else None))
            answer = BatchDone(epoch=self._epoch, done=self._done, value=self._last + 1, credits=64)
        self._router.send_multipart([sender, wire.make(answer, packet.id).SerializeToString()])


class Machine:
    """An engine with RAM and, perhaps, a device; and the service that it needs."""

    def __init__(self, path: Path, make: Callable[[Surroundings], Cpu]) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.clock = CpuClock(passes=False)
        self.recorder = Recorder("cpu")
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.stops: list[HartStop] = []
        self.said: list[str] = []  # what went wrong
        self.nothing: int | None = None  # what there is where nothing is
        self.faults: list[tuple[int, int, bool]] = []
        self.devices: list[Played] = []
        self.path = path
        self.cpu = make(
            Surroundings(
                clock=self.clock,
                recorder=self.recorder,
                folder=path,
                dial_device=lambda device, hart, wake: wire.Peer(
                    self.context, device.description.endpoint, wire.hello(ROLE_HART, "cpu"), wake=wake
                ),
                dial_memory=lambda hart, wake: pytest.fail("no page is absent"),
                unmapped=self._unmapped,
                failed=self.said.append,
                stumbled=self.said.append,
                stopped=self._stopped,
                complain=lambda device, what, text: self.said.append(f"{device}: {what}: {text}"),
                call=self.calls.put,
                call_in=lambda name, seconds, function: None,
            )
        )
        self.ram, self.dirty = mmap.mmap(-1, SIZE), mmap.mmap(-1, SIZE >> 12)
        places = [ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in (self.ram, self.dirty)]
        self.cpu.place([HostSegment(BASE, SIZE, places[0], dirty=places[1])])

    def _unmapped(self, address: int, size: int, pc: int, write: bool) -> int | None:
        self.faults.append((address, size, write))
        return self.nothing

    def _stopped(self, stop: HartStop) -> None:
        self.stops.append(stop)
        self.clock.stop()

    def add(self) -> tuple[BusDevice, Played]:
        played = Played(self.context, self.path / "device.sock")
        played.start()
        self.devices.append(played)
        register = Register(name="posted", offset=POSTED, size=4, write=WRITE_POSTED)
        region = Region(name="r", base=DEVICE, size=0x100, access_sizes=4, registers=[register])
        described = Description(
            name="device", epoch=1, endpoint=played.endpoint, regions=[region], lines=[Line(name="l", irq=3)]
        )
        table = RegisterTable(region)
        self.cpu.lines.add_region(DEVICE, 0x100, 1, 0, table.kinds, table.values)
        device = BusDevice(1, described, self.cpu.lines, [table])
        self.cpu.attach(device)
        return device, played

    def place(self, at: int, *words: int) -> None:
        data = struct.pack(f"<{len(words)}I", *words)
        self.cpu.answer(cpu_pb2.WriteMemory(physical=True, address=at, data=data))

    def ask(self, request: Message) -> Any:
        """The answer, whose type the request says."""
        return self.cpu.answer(request)

    def word(self, at: int) -> int:
        return int.from_bytes(self.ram[at - BASE : at - BASE + 8], "little")

    def register(self, name: str) -> int:
        (found,) = self.ask(cpu_pb2.ReadRegisters(names=[name])).registers
        return int(found.value)

    def write(self, name: str, value: int) -> None:
        request = cpu_pb2.WriteRegisters()
        request.registers.add(name=name, value=value)
        self.cpu.answer(request)

    def serve(self) -> bool:
        """Do what is asked of the service's thread; gives True, for those who wait."""
        while not self.calls.empty():
            self.calls.get()()
        return True

    def wait(self, condition: Callable[[], object], what: str) -> None:
        wait_for(lambda: self.serve() and condition(), lambda: f"{what}; said {self.said}")

    def run(self) -> None:
        assert self.cpu.run() is None

    def stop(self) -> None:
        """As a pause."""
        self.clock.stop()
        assert self.cpu.stop(Manner.SETTLED, SECONDS)
        self.serve()

    def run_until(self, at: int) -> None:
        """The harts run until one is in an endless jump to itself at that address."""
        self.run()
        self.wait(lambda: self.cpu.status().harts[0].pc == at, f"a hart to come to {at:#x}")
        self.stop()

    def end(self) -> None:
        self.cpu.end()
        for played in self.devices:
            played.ending.set()
            played.join()
        self.context.destroy(0)


def emulated(mode: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[Surroundings], Cpu]]:
    class Harts(EagerHarts):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            if mode in (TRANSLATE, BOTH):
                self.be_eager(mixed=mode == BOTH)

    if mode != BESIDE:
        monkeypatch.setattr(emulator, "Harts", Harts)

    def make(features: frozenset[str] = frozenset(FEATURES), harts: int = 1) -> Callable[[Surroundings], Cpu]:
        options = Options(
            isa=ISA,
            controllers=VirtControllers(ACLINT, PLIC),
            native=NATIVE,
            harts=harts,
            features=features,
            reset_pc=BASE,
            hot_samples=int(mode == BESIDE),
            cache=False,
        )
        return lambda around: Emulator(options, around)

    return make


BESIDE = "translator"
ENGINES = (INTERPRET, TRANSLATE, BOTH, BESIDE)


class Maker:
    """Makes machines, and ends them."""

    def __init__(self, path: Path, make: Callable[..., Callable[[Surroundings], Cpu]]) -> None:
        self._path, self._make = path, make
        self._made: list[Machine] = []

    def __call__(self, *, start: bool = True, **options: Any) -> Machine:
        machine = Machine(self._path, self._make(**options))
        self._made.append(machine)
        if start:
            machine.cpu.start()
        return machine

    def end(self) -> None:
        for machine in self._made:
            machine.end()


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Maker]:
    maker = Maker(tmp_path, emulated(request.param, monkeypatch))
    yield maker
    maker.end()


@pytest.fixture
def machine(make: Maker) -> Machine:
    return make()


def counting(machine: Machine) -> None:
    """A hart counts, and does not stop."""
    machine.place(BASE, *COUNT)
    machine.run()
    machine.wait(lambda: machine.word(DATA) > 1000, "a hart to count")


def test_harts_stand_until_they_are_let_go_of(machine: Machine) -> None:
    machine.place(BASE, *COUNT)
    assert machine.cpu.stands(SECONDS)
    (hart,) = machine.cpu.status().harts
    assert (hart.pc, hart.retired, hart.state) == (BASE, 0, cpu_pb2.HART_PAUSED)
    assert machine.clock.now_ns() == 0
    machine.run()
    machine.wait(lambda: machine.word(DATA) > 1000, "a hart to count")
    assert machine.clock.passes


def test_a_stop_is_between_two_instructions_and_they_go_on_from_there(machine: Machine) -> None:
    counting(machine)
    for _ in range(5):
        machine.stop()
        before = machine.register("t0"), machine.register("pc"), machine.cpu.status().harts[0].retired
        time.sleep(0.005)
        assert before == (machine.register("t0"), machine.register("pc"), machine.cpu.status().harts[0].retired)
        stored = machine.word(DATA)
        assert before[0] in (stored, stored + 1)
        assert (before[0] == stored + 1) == (before[1] == STORE)
        machine.run()
        machine.wait(lambda stored=stored: machine.word(DATA) > stored, "a hart to go on")  # type: ignore[misc]


def test_for_a_moment_they_stand_and_go_on_as_they_were(make: Maker) -> None:
    """Nothing that the debugger has ordered is forgotten, nor does guest time stand."""
    machine = make(harts=2)
    machine.place(BASE, *COUNT_EACH)
    machine.cpu.order(cpu_pb2.RunHarts(held=[1]))
    machine.run()
    machine.wait(lambda: machine.word(DATA) > 1000, "hart 0 to count")
    for _ in range(3):
        machine.cpu.stop(Manner.BRIEFLY)
        assert machine.cpu.stands(SECONDS)
        assert machine.clock.passes
        count = machine.word(DATA)
        machine.cpu.go_on()
        machine.wait(lambda count=count: machine.word(DATA) > count, "hart 0 to go on")  # type: ignore[misc]
    assert machine.word(DATA + 8) == 0, "hart 1 is held"
    machine.stop()
    count = machine.word(DATA)
    machine.cpu.go_on()
    time.sleep(0.01)
    assert machine.word(DATA) == count, "somebody has stopped them since"
    machine.run()
    machine.wait(lambda: machine.word(DATA + 8) > 1000, "hart 1, which nobody holds any more")


def test_a_stop_for_the_debugger_in_such_a_moment_is_one(machine: Machine) -> None:
    machine.place(BASE, *COUNT)
    watchpoint = cpu_pb2.Watchpoint(address=DATA, size=8, kind=cpu_pb2.WATCH_WRITE)
    machine.cpu.answer(cpu_pb2.SetBreakpoints(watchpoints=[watchpoint]))
    for turn in range(1, 6):
        machine.run()
        machine.cpu.stop(Manner.BRIEFLY)
        machine.cpu.go_on()
        machine.wait(lambda turn=turn: len(machine.stops) == turn, "the watchpoint")  # type: ignore[misc]
        machine.cpu.stop(Manner.BRIEFLY)
        assert machine.cpu.stands(SECONDS)
        assert machine.word(DATA) == turn


def test_of_two_stops_the_other_one_is_told_before_they_run_again(make: Maker) -> None:
    machine = make(harts=2)
    machine.place(BASE, *COUNT_EACH)
    both = [cpu_pb2.Watchpoint(address=DATA + 8 * hart, size=8, kind=cpu_pb2.WATCH_WRITE) for hart in (0, 1)]
    told: dict[int, int] = {}
    for _ in range(200):
        machine.cpu.answer(cpu_pb2.SetBreakpoints(watchpoints=both))
        stop = machine.cpu.run()
        if stop is None:
            count = len(machine.stops)
            machine.wait(lambda count=count: len(machine.stops) > count, "a watchpoint")  # type: ignore[misc]
            machine.stop()
            stop = machine.stops[-1]
        else:
            machine.clock.stop()
        told[stop.address] = told.get(stop.address, 0) + 1
    behind = sorted(machine.word(DATA + 8 * hart) - told[DATA + 8 * hart] for hart in (0, 1))
    assert behind in ([0, 0], [0, 1]), "each store is told of once, the last one perhaps not yet"


def test_a_reset_begins_anew_and_leaves_memory(machine: Machine) -> None:
    counting(machine)
    machine.stop()
    count = machine.word(DATA)
    machine.cpu.reset()
    assert (machine.register("pc"), machine.register("t0"), machine.clock.now_ns()) == (BASE, 0, 0)
    assert machine.word(DATA) == count
    machine.run()
    machine.wait(lambda: 0 < machine.word(DATA) < count or machine.word(DATA) > count, "it to count anew")


def test_a_saved_state_goes_on_in_another_machine(make: Maker) -> None:
    first, second = make(), make()
    counting(first)
    first.stop()
    state = first.cpu.save()
    second.ram[:] = first.ram[:]
    second.cpu.load(state, STATE_VERSION, check_only=True)
    assert second.register("t0") == 0, "it was only to be looked at"
    second.cpu.load(state, STATE_VERSION, check_only=False)
    for name in ("pc", "t0", "t1", "mstatus"):
        assert second.register(name) == first.register(name)
    assert second.cpu.save() == state
    second.run()
    second.wait(lambda: second.word(DATA) > first.word(DATA) + 1000, "it to go on")


def test_a_state_that_does_not_fit_changes_nothing(make: Maker) -> None:
    first, second = make(), make(features=frozenset(FEATURES) - {"zba"})
    counting(first)
    first.stop()
    before = second.cpu.save()
    wrong = first.cpu.save()
    with pytest.raises(errors.BadState):
        second.cpu.load(wrong, STATE_VERSION, check_only=False)
    odd = second.cpu.save()
    odd.harts[0].values["pc"] = 1
    with pytest.raises(errors.BadState, match="pc"):
        second.cpu.load(odd, STATE_VERSION, check_only=False)
    assert second.cpu.save() == before


def test_registers_can_be_seen_and_written(machine: Machine) -> None:
    known = machine.ask(cpu_pb2.DescribeRegisters())
    assert {"pc", "t0", "mstatus"} <= {each.name for each in known.registers}
    machine.write("t0", 41)
    machine.place(BASE, encode("addi", rd=T0, rs1=T0, imm=1), BEQ_AGAIN)
    machine.run_until(BASE + 4)
    assert machine.register("t0") == 42
    everything = machine.ask(cpu_pb2.HartRegistersRequest(hart=0))
    assert {each.name: each.value for each in everything.registers}["t0"] == 42
    with pytest.raises(errors.BadRequest):
        machine.register("nothing")
    with pytest.raises(errors.BadRequest):
        machine.cpu.answer(cpu_pb2.HartRegistersRequest(hart=1))


def test_code_that_is_written_is_the_code_that_runs(machine: Machine) -> None:
    counting(machine)
    machine.stop()
    machine.place(LOOP, encode("addi", rd=T0, rs1=T0, imm=0), encode("sd", rs1=T1, rs2=0, imm=0))
    machine.run()
    machine.wait(lambda: machine.word(DATA) == 0, "the new code to run")


def test_memory_is_read_where_it_is_and_nothing_is_written_where_it_is_not(machine: Machine) -> None:
    machine.place(DATA, 0x1234_5678)
    found = machine.ask(cpu_pb2.ReadMemory(physical=True, address=DATA, size=4))
    assert found.data == bytes.fromhex("78563412")
    end = machine.ask(cpu_pb2.ReadMemory(physical=True, address=BASE + SIZE - 4, size=64))
    assert len(end.data) == 4
    with pytest.raises(errors.BadRequest):
        machine.cpu.answer(cpu_pb2.WriteMemory(physical=True, address=BASE + SIZE - 2, data=b"abcd"))
    assert machine.ram[-2:] == bytes(2)


def test_a_breakpoint_a_step_and_a_watchpoint(machine: Machine) -> None:
    machine.place(BASE, *COUNT)
    machine.cpu.answer(cpu_pb2.SetBreakpoints(addresses=[STORE]))
    for turn in (1, 2):
        machine.run()
        machine.wait(lambda turn=turn: len(machine.stops) == turn, "the breakpoint")  # type: ignore[misc]
        machine.stop()
        stop = machine.stops[-1]
        assert (stop.reason, stop.address, machine.register("pc")) == (STOP_BREAKPOINT, STORE, STORE)
        assert machine.register("t0") == machine.word(DATA) + 1 == turn
    machine.cpu.answer(cpu_pb2.SetBreakpoints())
    machine.cpu.order(cpu_pb2.RunHarts(step=cpu_pb2.Step(hart=0)))
    machine.run()
    machine.wait(lambda: len(machine.stops) == 3, "the step")
    machine.stop()
    assert (machine.stops[-1].reason, machine.register("pc")) == (STOP_STEP, STORE + 4)
    watchpoint = cpu_pb2.Watchpoint(address=DATA, size=8, kind=cpu_pb2.WATCH_WRITE)
    machine.cpu.answer(cpu_pb2.SetBreakpoints(watchpoints=[watchpoint]))
    machine.run()
    machine.wait(lambda: len(machine.stops) == 4, "the watchpoint")
    machine.stop()
    assert (machine.stops[-1].reason, machine.word(DATA)) == (STOP_WRITE, 3)
    with pytest.raises(errors.BadRequest):
        machine.cpu.order(cpu_pb2.RunHarts(held=[1]))


def test_a_hart_that_is_held_stands(machine: Machine) -> None:
    counting(machine)
    machine.stop()
    count = machine.word(DATA)
    machine.cpu.order(cpu_pb2.RunHarts(held=[0]))
    machine.run()
    time.sleep(0.01)
    assert machine.word(DATA) == count
    machine.stop()
    machine.run()
    machine.wait(lambda: machine.word(DATA) > count, "it to go on without an order")


def with_device(make: Maker) -> tuple[Machine, BusDevice, Played]:
    machine = make(start=False)
    device, played = machine.add()
    machine.cpu.start()
    assert machine.cpu.stands(SECONDS), "who starts meets the devices first"
    return machine, device, played


def test_what_is_posted_to_a_device_comes_before_what_waits(make: Maker) -> None:
    machine, _, played = with_device(make)
    machine.place(
        BASE,
        *li(T1, DEVICE),
        encode("addi", rd=T0, rs1=0, imm=7),
        encode("sw", rs1=T1, rs2=T0, imm=POSTED),
        encode("lw", rd=A0, rs1=T1, imm=4),
        encode("sw", rs1=T1, rs2=A0, imm=8),
        BEQ_AGAIN,
    )
    machine.run_until(BASE + 24)
    assert machine.register("a0") == 8
    assert played.seen == [(POSTED, 7), (4, None), (8, 8)]
    counters = machine.cpu.counters()
    assert (counters["sync_round_trips"], counters["posted_accesses"], counters["faults"]) == (2, 1, 0)
    assert not machine.said


def test_when_they_stand_settled_the_device_has_all_that_was_posted(make: Maker) -> None:
    machine, _, played = with_device(make)
    machine.place(
        BASE, *li(T1, DEVICE), encode("addi", rd=T0, rs1=0, imm=7), encode("sw", rs1=T1, rs2=T0, imm=POSTED), BEQ_AGAIN
    )
    machine.run_until(BASE + 16)
    assert played.seen == [(POSTED, 7)]


def test_who_waits_for_a_device_is_stopped_where_it_is(make: Maker) -> None:
    machine, _, played = with_device(make)
    machine.place(BASE, *li(T1, DEVICE), encode("lw", rd=A0, rs1=T1, imm=4), BEQ_AGAIN)
    played.mute.set()
    machine.run()
    machine.wait(lambda: machine.cpu.status().harts[0].waits_for == "device", "it to wait for the device")
    machine.clock.stop()
    assert machine.cpu.stop(Manner.AT_ONCE, SECONDS)
    assert not machine.cpu.stands(0.0), "it is in the middle of an instruction"
    played.mute.clear()
    machine.run_until(BASE + 12)
    assert machine.register("a0") == 1


def test_a_device_that_has_left_is_not_there(make: Maker) -> None:
    machine, device, played = with_device(make)
    machine.place(BASE, *li(T1, DEVICE), encode("lw", rd=A0, rs1=T1, imm=4), BEQ_AGAIN)
    machine.cpu.detach(device)
    machine.nothing = 0x5A
    machine.run_until(BASE + 12)
    assert machine.register("a0") == 0x5A
    assert machine.faults == [(DEVICE + 4, 4, False)]
    assert not played.seen
    assert not machine.cpu.raised(device)


def test_where_nothing_is_an_access_is_a_fault(machine: Machine) -> None:
    handler = BASE + 0x100
    machine.place(BASE, *li(T1, NOTHING), encode("lw", rd=A0, rs1=T1, imm=0), BEQ_AGAIN)
    machine.place(handler, BEQ_AGAIN)
    machine.write("mtvec", handler)
    machine.run_until(handler)
    assert (machine.register("mcause"), machine.register("mtval")) == (5, NOTHING)
    assert machine.cpu.counters()["faults"] == 1


def test_an_interrupt_wakes_who_waits_for_one(machine: Machine) -> None:
    machine.place(BASE, encode("wfi"), encode("addi", rd=T0, rs1=0, imm=1), BEQ_AGAIN)
    machine.write("mie", 1 << 3)
    machine.run()
    machine.wait(lambda: machine.cpu.status().harts[0].state == cpu_pb2.HART_WAITING, "it to wait")
    assert machine.cpu.lines.take_message(ACLINT, 1)
    assert not machine.cpu.lines.take_message(DEVICE, 1)
    machine.wait(lambda: machine.cpu.status().harts[0].pc == BASE + 8, "it to wake")
    machine.stop()
    assert machine.register("t0") == 1
    assert machine.register("mip") == 1 << 3


def test_behind_a_shoot_down_every_store_is_seen(machine: Machine) -> None:
    counting(machine)
    page = (DATA - BASE) >> 12
    for _ in range(5):
        machine.dirty[page] = 0
        shot = machine.cpu.shoot_down()
        machine.wait(shot, "all harts to have seen it")
        machine.wait(lambda: machine.dirty[page], "the next store to say so")


def test_each_access_is_recorded_while_it_is_traced(make: Maker) -> None:
    machine, _, played = with_device(make)
    machine.place(
        BASE,
        *li(T1, DEVICE),
        encode("sw", rs1=T1, rs2=T1, imm=POSTED),
        encode("lw", rd=A0, rs1=T1, imm=4),
        BEQ_AGAIN,
    )
    machine.recorder.switch(True)
    machine.cpu.trace(True)
    machine.run_until(BASE + 16)
    kinds = [record.kind for record in machine.recorder.take().records if record.kind in (TRACE_POSTED, TRACE_SYNC)]
    assert kinds == [TRACE_POSTED, TRACE_SYNC]
    machine.cpu.trace(False)
    machine.cpu.reset()
    machine.run_until(BASE + 16)
    assert [offset for offset, _ in played.seen] == [POSTED, 4, POSTED, 4]
    assert not [each for each in machine.recorder.take().records if each.kind == TRACE_POSTED], "native code made it"


def test_a_hart_that_waits_looks_when_its_device_lives_again(make: Maker) -> None:
    """A device that has forgotten its harts: they say Hello again when it is there, and make the access then."""
    machine, device, played = with_device(make)
    machine.place(BASE, *li(T1, DEVICE), encode("lw", rd=A0, rs1=T1, imm=4), BEQ_AGAIN)
    played.mute.set()
    machine.run()
    machine.wait(lambda: machine.cpu.status().harts[0].waits_for == "device", "it to wait for the device")
    played.next_life()
    device.begin(Welcome(epoch=2))
    machine.cpu.revive(device)
    played.mute.clear()
    machine.run_until(BASE + 12)
    assert played.seen == [(4, None)]
    assert machine.cpu.counters()["rejoins"] == 1
    machine.cpu.look()
    assert machine.cpu.stands(SECONDS)


def test_what_cannot_be_asked_is_refused(machine: Machine) -> None:
    with pytest.raises(errors.BadRequest, match="inspects"):
        machine.cpu.answer(HartStop())


def test_at_the_end_no_hart_is_left(make: Maker) -> None:
    machine = make()
    counting(machine)
    machine.cpu.end()
    count = machine.word(DATA)
    time.sleep(0.01)
    assert not [each for each in threading.enumerate() if each.name.startswith("hart ")]
    assert machine.word(DATA) == count


def test_an_engine_that_nobody_has_any_more_has_no_descriptors(make: Maker, tmp_path: Path) -> None:
    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    maker = Maker(tmp_path, make._make)
    counting(maker())
    maker.end()
    del maker
    wait_for(lambda: descriptors() <= before, lambda: f"{descriptors()} descriptors to be {before}")


def test_the_modes_are_what_they_are_called(make: Maker, request: pytest.FixtureRequest) -> None:
    machine = make()
    counting(machine)
    if request.node.callspec.params["make"] == BESIDE:
        machine.wait(lambda: machine.cpu.counters()["regions_installed"], "a region to be translated")
    else:
        harts: Any = machine.cpu.lines
        assert bool(harts.installed) == (request.node.callspec.params["make"] != INTERPRET)
