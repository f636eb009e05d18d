"""The cpu service as the monitor meets it: pause, drain, save, load, reset, registers, and what it refuses."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import zmq
from google.protobuf.message import Message

from tests.contract.harness import PATIENCE, RAM_BASE, RAM_SIZE, Machine, Monitor
from tests.waiting import wait_for
from vmesh import errors, wire
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import cpu_pb2 as cpu
from vmesh.v1 import lifecycle_pb2 as lifecycle
from vmesh.v1.bus_pb2 import BatchDone, Description, Region
from vmesh.v1.packet_pb2 import Packet


@pytest.fixture
def monitor(machine: Machine) -> Monitor:
    machine.start_cpu()
    return machine.monitor("cpu")


def state_of(saved: lifecycle.ServiceState) -> cpu.CpuState:
    assert (saved.type, saved.version) == ("vmesh.v1.CpuState", 2)
    return cpu.CpuState.FromString(saved.bytes)


def registers(monitor: Monitor, hart: int = 0) -> dict[str, int]:
    answer = monitor.ask(cpu.HartRegistersRequest(hart=hart))
    assert isinstance(answer, cpu.HartRegisters)
    return {each.name: each.value for each in answer.registers}


def sleeping(monitor: Monitor) -> bool:
    status = monitor.ask(cpu.CpuStatusRequest())
    assert isinstance(status, cpu.CpuStatus)
    return all(hart.state == cpu.HART_WAITING for hart in status.harts)


def test_harts_run_and_sleep(monitor: Monitor) -> None:
    wait_for(lambda: sleeping(monitor), "both harts to sleep in WFI")
    assert registers(monitor)["t0"] == 1
    assert registers(monitor, 1)["mhartid"] == 1
    assert registers(monitor)["pc"] == RAM_BASE + 8


def test_a_hart_that_is_not_there(monitor: Monitor) -> None:
    with pytest.raises(errors.BadRequest, match="expected 0 to 1, got 7"):
        monitor.ask(cpu.HartRegistersRequest(hart=7))


def test_saved_state_is_loaded_whole(monitor: Monitor) -> None:
    wait_for(lambda: sleeping(monitor), "both harts to sleep in WFI")
    saved = monitor.save()
    state = state_of(saved)
    assert [record.x[5] for record in state.harts] == [1, 1]
    state.harts[1].x[5] = 1000
    state.harts[1].values["mscratch"] = 0xABCD
    state.harts[0].values["waiting"] = 0
    changed = lifecycle.ServiceState(type=saved.type, version=1, bytes=state.SerializeToString())

    monitor.ask(lifecycle.Load(state=changed, check_only=True))
    assert registers(monitor, 1)["t0"] == 1, "check_only must change nothing"
    monitor.ask(lifecycle.Load(state=changed))

    assert state_of(monitor.save()) == state
    monitor.ask(lifecycle.Resume())
    wait_for(lambda: registers(monitor)["t0"] == 2, "hart 0 to go on behind its WFI")
    assert registers(monitor, 1)["t0"] == 1000
    assert registers(monitor, 1)["mscratch"] == 0xABCD


def _no_harts(state: cpu.CpuState) -> None:
    del state.harts[1:]


def _feature(state: cpu.CpuState) -> None:
    state.features.append("zzz")


def _value(state: cpu.CpuState) -> None:
    del state.harts[1].values["mepc"]


def _registers(state: cpu.CpuState) -> None:
    del state.harts[1].x[5:]


def _privilege(state: cpu.CpuState) -> None:
    state.harts[1].values["privilege"] = 2


def _odd_mepc(state: cpu.CpuState) -> None:
    state.harts[1].values["mepc"] |= 1


def _plic(state: cpu.CpuState) -> None:
    state.plic.enable.append(1)


@pytest.mark.parametrize("damage", [_no_harts, _feature, _value, _registers, _privilege, _odd_mepc, _plic])
def test_a_state_that_does_not_fit_changes_nothing(monitor: Monitor, damage: Callable[[cpu.CpuState], None]) -> None:
    wait_for(lambda: sleeping(monitor), "both harts to sleep in WFI")
    saved = monitor.save()
    state = state_of(saved)
    state.harts[0].x[5] = 77
    damage(state)
    with pytest.raises(errors.BadState, match="expected"):
        monitor.ask(
            lifecycle.Load(state=lifecycle.ServiceState(type=saved.type, version=1, bytes=state.SerializeToString()))
        )
    assert monitor.save() == saved


@pytest.mark.parametrize(
    "state",
    [
        lifecycle.ServiceState(type="vmesh.v1.CpuState", version=2),
        lifecycle.ServiceState(type="vmesh.v1.MemoryState", version=1),
        lifecycle.ServiceState(type="vmesh.v1.CpuState", version=1, bytes=b"\xff\xff"),
    ],
)
def test_a_state_of_another_kind(monitor: Monitor, state: lifecycle.ServiceState) -> None:
    monitor.ask(lifecycle.Pause())
    with pytest.raises(errors.BadState):
        monitor.ask(lifecycle.Load(state=state))


def test_reset_needs_a_pause(monitor: Monitor) -> None:
    wait_for(lambda: sleeping(monitor), "both harts to sleep in WFI")
    with pytest.raises(errors.BadRequest, match="Pause before it"):
        monitor.ask(lifecycle.Reset())
    monitor.ask(lifecycle.Pause())
    monitor.ask(lifecycle.Drain())
    monitor.ask(lifecycle.Reset())
    assert registers(monitor)["t0"] == 0
    assert registers(monitor)["pc"] == RAM_BASE
    monitor.ask(lifecycle.Resume())
    wait_for(lambda: registers(monitor)["t0"] == 1, "hart 0 to run again")


def test_guest_time_stands_still_while_paused(monitor: Monitor) -> None:
    first = state_of(monitor.save()).time
    assert state_of(monitor.save()).time == first


def stopped(monitor: Monitor) -> cpu.CpuStatus:
    """The status of a cpu that was just paused."""
    monitor.ask(lifecycle.Pause())
    status = monitor.ask(cpu.CpuStatusRequest())
    assert isinstance(status, cpu.CpuStatus)
    return status


def test_guest_time_catches_up_as_if_it_had_stood_still_only_until_then(monitor: Monitor) -> None:
    first = stopped(monitor)
    before = -3_600 * 10**9  # the guest was stopped elsewhere, an hour before this host was switched on
    monitor.ask(cpu.CatchUp(since_ns=before))
    monitor.ask(lifecycle.Resume())
    second = stopped(monitor)
    assert second.time_ns - first.time_ns == second.stopped_ns - before
    monitor.ask(cpu.CatchUp())
    monitor.ask(lifecycle.Resume())
    third = stopped(monitor)
    assert third.time_ns - second.time_ns == third.stopped_ns - second.stopped_ns, "it never stood still"
    monitor.ask(lifecycle.Resume())
    fourth = stopped(monitor)
    assert fourth.time_ns - third.time_ns < fourth.stopped_ns - third.stopped_ns, "it stood still, as after a pause"


def test_guest_time_catches_up_neither_while_it_runs_nor_with_what_is_to_come(monitor: Monitor) -> None:
    stopped(monitor)
    with pytest.raises(errors.BadRequest, match="a time up to now"):
        monitor.ask(cpu.CatchUp(since_ns=time.monotonic_ns() + 10**9))
    monitor.ask(lifecycle.Resume())
    with pytest.raises(errors.BadRequest, match="Pause before it"):
        monitor.ask(cpu.CatchUp())


def test_memory_is_read_up_to_its_end_and_written_whole(monitor: Monitor) -> None:
    place = RAM_BASE + 0x1000
    monitor.ask(cpu.WriteMemory(physical=True, address=place, data=b"debugger"))

    content = monitor.ask(cpu.ReadMemory(address=place - 2, size=12))  # a hart in M-mode translates nothing
    assert isinstance(content, cpu.MemoryContent)
    assert content.data == b"\0\0debugger\0\0"
    end = RAM_BASE + RAM_SIZE
    content = monitor.ask(cpu.ReadMemory(physical=True, address=end - 4, size=100))
    assert isinstance(content, cpu.MemoryContent)
    assert content.data == bytes(4)
    with pytest.raises(errors.BadRequest, match="a virtual address that hart 0 maps to memory, got 0x30000000"):
        monitor.ask(cpu.ReadMemory(address=0x3000_0000, size=8))
    with pytest.raises(errors.BadRequest, match="expected a physical address where memory is"):
        monitor.ask(cpu.WriteMemory(physical=True, address=end - 4, data=b"12345678"))
    content = monitor.ask(cpu.ReadMemory(physical=True, address=end - 4, size=4))
    assert isinstance(content, cpu.MemoryContent)
    assert content.data == bytes(4), "what cannot be written whole is not written"


@pytest.mark.parametrize(
    "request_", [
        cpu.ReadMemory(physical=True, address=0x3000_0000, size=8),
        cpu.ReadMemory(hart=9, address=RAM_BASE, size=8),
        cpu.ReadMemory(physical=True, address=RAM_BASE, size=1 << 31),
        cpu.ReadMemory(physical=True, address=(1 << 64) - 4, size=8),
        cpu.WriteMemory(physical=True, address=0x1000_0000, data=b"1"),
    ],
)  # fmt: skip
def test_memory_that_cannot_be_had(monitor: Monitor, request_: cpu.ReadMemory | cpu.WriteMemory) -> None:
    with pytest.raises(errors.BadRequest, match="expected"):
        monitor.ask(request_)


def test_code_that_is_written_is_run(monitor: Monitor) -> None:
    wait_for(lambda: sleeping(monitor), "both harts to sleep in WFI")
    jump_to_itself = (0x6F).to_bytes(4, "little")
    monitor.ask(cpu.WriteMemory(physical=True, address=registers(monitor)["pc"], data=jump_to_itself))
    saved = monitor.save()
    state = state_of(saved)
    state.harts[0].values["waiting"] = 0
    monitor.ask(
        lifecycle.Load(state=lifecycle.ServiceState(type=saved.type, version=1, bytes=state.SerializeToString()))
    )
    before = registers(monitor)
    monitor.ask(lifecycle.Resume())

    status = monitor.ask(cpu.CpuStatusRequest())
    assert isinstance(status, cpu.CpuStatus)
    assert status.harts[0].state == cpu.HART_RUNNING
    assert (registers(monitor)["pc"], registers(monitor)["t0"]) == (before["pc"], before["t0"])


@pytest.mark.parametrize("state", ["asleep", "paused"])
def test_a_shoot_down_waits_for_nobody_who_does_not_run(machine: Machine, monitor: Monitor, state: str) -> None:
    wait_for(lambda: sleeping(monitor), "both harts to sleep in WFI")
    if state == "paused":
        monitor.ask(lifecycle.Pause())
    migration = machine.dial("cpu", common.ROLE_MIGRATION)
    for _ in range(3):
        assert isinstance(migration.request(cpu.ShootDown(), PATIENCE), common.Done)
    assert registers(monitor)["t0"] == 1
    with pytest.raises(errors.NotAllowed):
        monitor.ask(cpu.ShootDown())


def test_guest_time_begins_at_0_when_a_paused_machine_goes_on(machine: Machine) -> None:
    machine.start_cpu("--paused")
    monitor = machine.monitor("cpu")
    assert state_of(monitor.save()).time < 10_000_000, "less than a second of ticks"
    monitor.ask(lifecycle.Resume())
    monitor.ask(lifecycle.Pause())
    found = monitor.ask(cpu.ReadRegisters(names=["time"]))
    assert isinstance(found, cpu.HartRegisters)
    assert 0 < found.registers[0].value < 60 * 10_000_000


def test_a_device_is_told_guest_time(machine: Machine) -> None:
    """The test plays the device: told when it is met, and when guest time passes or stands still; each access says when
    it was made."""
    endpoint = f"ipc://{machine.path}/played.sock"
    router: zmq.Socket[bytes] = machine.context.socket(zmq.ROUTER)
    router.setsockopt(zmq.RCVTIMEO, int(PATIENCE * 1000))
    router.setsockopt(zmq.LINGER, 0)
    router.bind(endpoint)
    done, asked_for = 0, list[Packet]()

    def take() -> Packet:
        """What comes next; a Hello and an access are answered."""
        nonlocal done
        sender, frame = router.recv_multipart()
        packet = Packet.FromString(frame)
        answer: Message | None = None
        match packet.WhichOneof("body"):
            case "hello":
                answer = common.Welcome(major=1, epoch=1, window=1, done=done)
            case "access_batch":
                done = packet.access_batch.sequence
                answer = BatchDone(epoch=1, done=done, credits=1)
        if answer is not None:
            router.send_multipart([sender, wire.make(answer, packet.id).SerializeToString()])
        return packet

    def next_of(wanted: str) -> Packet:
        while (packet := take()).WhichOneof("body") != wanted:
            assert packet.WhichOneof("body") in ("hello", "access_batch"), packet
        return packet

    # lui t1, 0x4000; lw t0, 0(t1); j back: a hart reads the device all the time.
    machine.start_cpu("--paused", harts=1, code=(0x04000337, 0x00032283, 0xFFDFF06F))
    monitor = machine.monitor("cpu")

    def ask(body: Message) -> Message:
        """Of the cpu, whose hart may wait for an access meanwhile."""
        number = monitor.peer.send(body)
        while (answer := monitor.peer.receive(0.05)) is None or answer.id != number:
            while router.poll(0):
                asked_for.append(take())
        found = wire.body_of(answer)
        assert found is not None
        return found

    region = Region(name="r", base=0x400_0000, size=4096, access_sizes=15)
    described = Description(name="played", epoch=1, endpoint=endpoint, regions=[region])
    monitor.ask(cpu.AddDevice(description=described))
    first = next_of("guest_time").guest_time
    assert not first.passes
    assert first.now_ns == stopped(monitor).time_ns

    monitor.ask(lifecycle.Resume())
    went_on = next_of("guest_time").guest_time
    assert went_on.passes
    assert 0 <= went_on.now_ns - first.now_ns < 10**9 * PATIENCE
    times = [next_of("access_batch").access_batch.time_ns for _ in range(3)]
    assert went_on.now_ns <= times[0] < times[1] < times[2]

    asked_for.clear()
    assert isinstance(ask(lifecycle.Pause()), common.Done)
    told = [each.guest_time for each in asked_for if each.WhichOneof("body") == "guest_time"]
    stood = told[0] if told else next_of("guest_time").guest_time
    assert not stood.passes
    assert stood.now_ns > times[2]
    assert stopped(monitor).time_ns == stood.now_ns
    monitor.ask(lifecycle.Drain())
    monitor.ask(lifecycle.Reset())
    reset = next_of("guest_time").guest_time
    assert (reset.now_ns, reset.passes) == (0, False)


@pytest.mark.parametrize("endpoint", ["\0", "tcp://127.0.0.1:1", "ipc://" + "x" * 250])
def test_a_device_that_nobody_can_reach_is_refused(machine: Machine, endpoint: str) -> None:
    """It is not told as a failure of the cpu's: somebody else has said where the device is."""
    machine.start_cpu("--paused")
    monitor = machine.monitor("cpu")

    def add(endpoint: str) -> None:
        region = Region(name="r", base=0x400_0000, size=4096, access_sizes=15)
        described = Description(name="disk", epoch=1, endpoint=endpoint, regions=[region])
        monitor.ask(cpu.AddDevice(description=described))

    with pytest.raises(errors.BadRequest, match="cannot reach"):
        add(endpoint)
    add(f"ipc://{machine.path}/disk.sock")  # nothing was changed: its place is free
