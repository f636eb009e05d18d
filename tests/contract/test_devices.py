"""What every device has to do, whatever it is: attach, access, replay, reset, save and load, kill and restart."""

from __future__ import annotations

import subprocess

import pytest

from tests.contract.cases import ALL, BALLOON, UART, WITH_STATE, Case
from tests.contract.harness import PATIENCE, ROOT, Hart, Irqchip, Machine
from tests.waiting import wait_for
from vmesh import errors
from vmesh.time import NEVER_NS
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import lifecycle_pb2 as lifecycle
from vmesh.v1.bus_pb2 import (
    READ_LATCH,
    WRITE_DOORBELL,
    WRITE_POSTED,
    Access,
    AccessBatch,
    BatchDone,
    Description,
    GuestTime,
)
from vmesh.v1.memory_pb2 import AddressMap, Attach, MapRequest
from vmesh.v1.packet_pb2 import Packet

every_device = pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
every_device_with_state = pytest.mark.parametrize("case", WITH_STATE, ids=lambda case: case.name)


def attach(machine: Machine, case: Case) -> Description:
    """Start memory and the device; gives what the cpu is told of it."""
    machine.start_memory("--expect", case.name)
    case.start(machine)
    answer = machine.dial("memory", common.ROLE_CPU, name="cpu").request(MapRequest(), PATIENCE)
    assert isinstance(answer, AddressMap)
    return answer.devices[0]


def store(hart: Hart, case: Case, value: int) -> BatchDone:
    return hart.write(case.offset, value, case.size)


def stored(hart: Hart, case: Case) -> int:
    return hart.read(case.offset, case.size)


@every_device
def test_attach(machine: Machine, case: Case) -> None:
    description = attach(machine, case)
    assert (description.name, description.kind, description.epoch) == (case.name, case.kind, 1)
    assert description.regions[0].base == case.base
    assert tuple(line.irq for line in description.lines) == case.irqs
    assert description.endpoint == f"ipc://{machine.path}/{case.name}.sock"
    assert description.state_type
    health = machine.monitor(case.name).health()
    assert (health.phase, health.kind) == (lifecycle.SERVICE_RUNNING, case.kind)


@every_device
def test_socket_is_its_owners_only(machine: Machine, case: Case) -> None:
    attach(machine, case)
    for entry in machine.path.iterdir():
        assert entry.stat().st_mode & 0o077 == 0, entry


@every_device
def test_irqchip_is_told_everything(machine: Machine, case: Case) -> None:
    description = attach(machine, case)
    irqchip = Irqchip(machine, case.name)
    irqchip.until(lambda: irqchip.sequence > 0, "the first update")
    latches = [register for register in description.regions[0].registers if register.read == READ_LATCH]
    assert irqchip.levels == dict.fromkeys(set(range(len(case.irqs))) - {latch.line for latch in latches}, False)
    for latch in latches:
        assert irqchip.shadows[0, latch.offset, latch.size] == 0


@every_device
def test_a_new_irqchip_is_told_everything_again(machine: Machine, case: Case) -> None:
    attach(machine, case)
    first = Irqchip(machine, case.name)
    first.until(lambda: first.sequence > 0, "the first update")
    first.peer.close()
    second = Irqchip(machine, case.name)
    second.until(lambda: second.sequence > first.sequence, "a later update")
    assert (second.levels, second.shadows) == (first.levels, first.shadows)


@every_device
def test_guest_time_is_followed(machine: Machine, case: Case) -> None:
    """As it is told, and forward as a batch mentions it; every answer says it, and until when the device is quiet."""
    attach(machine, case)
    hart, irqchip = machine.hart(case.name), Irqchip(machine, case.name)

    def told(now_ns: int, *, passes: bool) -> None:
        irqchip.peer.send_packet(Packet(guest_time=GuestTime(now_ns=now_ns, passes=passes)))

    def asked(time_ns: int = 0) -> BatchDone:
        batch = AccessBatch(epoch=1, sequence=hart.sequence, time_ns=time_ns, accesses=[Access(offset=0x20, size=4)])
        hart.sequence += 1
        return hart.send(batch)

    told(10**12, passes=False)
    wait_for(lambda: asked().time_ns == 10**12, "what was told")
    assert asked(10**12 + 5).time_ns == asked().time_ns == asked(7).time_ns == 10**12 + 5
    told(10**9, passes=True)
    wait_for(lambda: asked().time_ns < 10**12, "what was told then")
    before = asked().time_ns
    assert 10**9 <= before <= asked().time_ns
    assert asked().quiet_until_ns == (NEVER_NS if case.name in ("copier1", "rtc", "test", "fw_cfg") else 0)
    irqchip.until(lambda: irqchip.sequence > 0, "the first update")
    monitor = machine.monitor(case.name)
    with pytest.raises(errors.NotAllowed):
        monitor.ask(GuestTime(now_ns=5))


@every_device
def test_sizes_and_offsets(machine: Machine, case: Case) -> None:
    region = attach(machine, case).regions[0]
    hart = machine.hart(case.name)
    for write in (False, True):
        for size in (0, 1, 2, 3, 4, 8, 16, 0xFFFF_FFFF):
            for offset in (0, 1, 2, 3, 0x20, region.size - 4, region.size - 1, region.size, 1 << 63, (1 << 64) - 1):
                done = hart.batch(Access(offset=offset, size=size, write=write, value=0))
                fits = size in (1, 2, 4, 8) and size & region.access_sizes != 0
                fits = fits and offset % size == 0 and offset + size <= region.size
                fits = fits and not case.has_no_register(write, offset, size)
                assert done.bus_error is not fits, (write, hex(offset), size)
    assert hart.batch(Access(region=1, offset=0, size=4)).bus_error
    assert hart.batch(Access(region=0xFFFF_FFFF, offset=0, size=4)).bus_error


@every_device
def test_values_wider_than_the_access_are_cut(machine: Machine, case: Case) -> None:
    attach(machine, case)
    hart = machine.hart(case.name)
    offset, size = max(case.offset, 0x10), case.size if case.offset >= 0 else 4
    assert not hart.batch(Access(offset=offset, size=size, write=True, value=(1 << 64) - 1)).bus_error
    assert hart.read(offset, size) < 1 << 8 * size


@every_device_with_state
def test_replay_is_not_executed_twice(machine: Machine, case: Case) -> None:
    attach(machine, case)
    hart = machine.hart(case.name)
    first, second = case.values
    write = Access(offset=case.offset, size=case.size, write=True, value=first)
    old = AccessBatch(epoch=1, sequence=1, accesses=[write])
    assert hart.batch(write).done == 1
    store(hart, case, second)
    assert hart.send(old).done == 2
    assert stored(hart, case) == second


@every_device_with_state
def test_replay_gives_the_answer_again(machine: Machine, case: Case) -> None:
    attach(machine, case)
    hart = machine.hart(case.name)
    store(hart, case, case.values[0])
    read = AccessBatch(epoch=1, sequence=2, accesses=[Access(offset=case.offset, size=case.size)])
    first, again = hart.send(read), hart.send(read)
    assert first.value == again.value == case.values[0]
    assert first.done == again.done == 2


def test_replay_tells_lines_that_the_lost_answer_told(machine: Machine) -> None:
    attach(machine, UART)
    irqchip = Irqchip(machine, UART.name)
    irqchip.until(lambda: irqchip.levels == {0: False}, "the first update")
    enable = AccessBatch(epoch=1, sequence=1, accesses=[Access(offset=1, size=1, write=True, value=2)])
    machine.hart(UART.name).send(enable)  # what it says is lost with its connection
    irqchip.apply(machine.hart(UART.name).send(enable).update)
    assert irqchip.levels == {0: True}


@every_device_with_state
def test_a_hart_that_connects_anew_goes_on(machine: Machine, case: Case) -> None:
    attach(machine, case)
    store(machine.hart(case.name), case, case.values[0])
    again = machine.hart(case.name)
    assert again.sequence == 2
    assert stored(again, case) == case.values[0]
    assert machine.hart(case.name, hart=1).sequence == 1


@every_device
def test_bad_batches_are_refused_and_change_nothing(machine: Machine, case: Case) -> None:
    attach(machine, case)
    hart = machine.hart(case.name)
    read = Access(offset=0, size=4)
    bad = [
        AccessBatch(epoch=1, sequence=1),
        AccessBatch(epoch=1, sequence=0, accesses=[read]),
        AccessBatch(epoch=1, sequence=2, accesses=[read]),
        AccessBatch(epoch=1, sequence=(1 << 64) - 1, accesses=[read]),
        AccessBatch(epoch=1, sequence=1, accesses=[read, read]),
        AccessBatch(epoch=1, sequence=1, accesses=[Access(offset=8, size=4, write=True), read]),
    ]
    for batch in bad:
        with pytest.raises(errors.BadRequest):
            hart.send(batch)
    with pytest.raises(errors.StaleEpoch):
        hart.send(AccessBatch(epoch=2, sequence=1, accesses=[read]))
    hart.peer.send_packet(Packet(id=0, access_batch=AccessBatch(epoch=1, sequence=1, accesses=[read])))
    assert hart.batch(read).done == 1
    assert machine.monitor(case.name).health().counters["refused"] == len(bad) + 2


@every_device
def test_requests_of_another_role_are_refused(machine: Machine, case: Case) -> None:
    attach(machine, case)
    hart = machine.hart(case.name)
    with pytest.raises(errors.NotAllowed):
        hart.peer.request(lifecycle.Shutdown(), PATIENCE)
    with pytest.raises(errors.NotAllowed):
        machine.dial(case.name, common.ROLE_MONITOR).request(AccessBatch(), PATIENCE)
    with pytest.raises(errors.BadRequest):
        machine.dial(case.name, common.ROLE_CPU).request(MapRequest(), PATIENCE)


@every_device
def test_a_property_that_it_has_not_is_refused(machine: Machine, case: Case) -> None:
    attach(machine, case)
    monitor = machine.monitor(case.name)
    state = monitor.save()
    for name in ("", "no such property", "x" * 64):
        with pytest.raises(errors.BadRequest):
            monitor.ask(lifecycle.SetProperty(name=name, value=1))
    with pytest.raises((errors.NotAllowed, errors.BadRequest)):  # the latter from who does not know the message
        machine.hart(case.name).peer.request(lifecycle.SetProperty(name="pages", value=1), PATIENCE)
    assert monitor.ask(lifecycle.Save()) == state


def test_a_property_that_was_set_survives_a_kill(machine: Machine) -> None:
    attach(machine, BALLOON)
    irqchip = Irqchip(machine, BALLOON.name)
    irqchip.until(lambda: irqchip.sequence > 0, "the first update")
    machine.monitor(BALLOON.name).ask(lifecycle.SetProperty(name="pages", value=77))
    machine.kill(BALLOON.name)
    BALLOON.start(machine, epoch=2)
    monitor = machine.monitor(BALLOON.name)
    monitor.ask(lifecycle.Resume())
    assert machine.hart(BALLOON.name).read(0x100, 4) == 77
    assert monitor.health().counters["balloon_wanted"] == 77
    monitor.ask(lifecycle.Reset())
    assert monitor.health().counters["balloon_wanted"] == 77


@every_device_with_state
def test_reset(machine: Machine, case: Case) -> None:
    attach(machine, case)
    hart, monitor = machine.hart(case.name), machine.monitor(case.name)
    store(hart, case, case.values[0])
    monitor.ask(lifecycle.Reset())
    assert stored(hart, case) == case.initial


@every_device
def test_lifecycle_order(machine: Machine, case: Case) -> None:
    attach(machine, case)
    monitor = machine.monitor(case.name)
    for early in (lifecycle.Drain(), lifecycle.Save()):
        with pytest.raises(errors.BadRequest):
            monitor.ask(early)
    state = monitor.save()
    monitor.ask(lifecycle.Pause())
    assert monitor.health().phase == lifecycle.SERVICE_PAUSED
    monitor.ask(lifecycle.Load(state=state))
    monitor.ask(lifecycle.Resume())
    monitor.ask(lifecycle.Resume())
    assert monitor.health().phase == lifecycle.SERVICE_RUNNING
    with pytest.raises(errors.BadRequest):
        monitor.ask(lifecycle.Load(state=state))


@every_device_with_state
def test_save_and_load(machine: Machine, case: Case) -> None:
    attach(machine, case)
    hart, monitor = machine.hart(case.name), machine.monitor(case.name)
    store(hart, case, case.values[0])
    state = monitor.save()
    store(hart, case, case.values[1])
    monitor.ask(lifecycle.Load(state=state, check_only=True))
    assert stored(hart, case) == case.values[1]
    monitor.ask(lifecycle.Load(state=state))
    assert stored(hart, case) == case.values[0]
    assert monitor.ask(lifecycle.Save()) == state


@every_device
def test_bad_states_are_refused_and_change_nothing(machine: Machine, case: Case) -> None:
    attach(machine, case)
    monitor = machine.monitor(case.name)
    state = monitor.save()
    wrong = [
        lifecycle.ServiceState(type="vmesh.v1.Hello", version=state.version, bytes=state.bytes),
        lifecycle.ServiceState(type=state.type, version=state.version + 1, bytes=state.bytes),
        lifecycle.ServiceState(type=state.type, version=0, bytes=state.bytes),
        lifecycle.ServiceState(type=state.type, version=state.version, bytes=b"\xff" * 9),
    ]
    for each in wrong:
        for check_only in (True, False):
            with pytest.raises(errors.BadState):
                monitor.ask(lifecycle.Load(state=each, check_only=check_only))
    assert monitor.ask(lifecycle.Save()) == state


@every_device_with_state
def test_killed_and_started_again(machine: Machine, case: Case) -> None:
    attach(machine, case)
    hart = machine.hart(case.name)
    store(hart, case, case.values[0])
    machine.kill(case.name)
    case.start(machine, epoch=2)
    monitor = machine.monitor(case.name)
    wait_for(lambda: monitor.health().phase == lifecycle.SERVICE_PAUSED, "the second life, which is told to go on")
    monitor.ask(lifecycle.Resume())
    wait_for(lambda: monitor.health().phase == lifecycle.SERVICE_RUNNING, "the second life")
    again = machine.hart(case.name)
    assert (again.epoch, again.sequence) == (2, 2)
    assert stored(again, case) == case.values[0]
    with pytest.raises(errors.StaleEpoch):
        again.send(AccessBatch(epoch=1, sequence=3, accesses=[Access(offset=0, size=4)]))


@every_device_with_state
def test_killed_in_the_middle_of_a_batch(machine: Machine, case: Case) -> None:
    """What was answered is not executed again, what was not is, and each hart is told where to go on."""
    attach(machine, case)
    first, second = machine.hart(case.name, hart=0), machine.hart(case.name, hart=7)
    values = (*case.values, case.initial)
    for value in values:
        store(first, case, value)
    read = Access(offset=case.offset, size=case.size)
    assert second.batch(read).value == case.initial
    machine.kill(case.name)
    case.start(machine, epoch=2)
    first, second = machine.hart(case.name, hart=0), machine.hart(case.name, hart=7)
    assert (first.sequence, second.sequence) == (4, 2)
    assert machine.hart(case.name, hart=3).sequence == 1

    old = [Access(offset=case.offset, size=case.size, write=True, value=value) for value in values]
    for sequence in (1, 2, 3):
        done = first.send(AccessBatch(epoch=2, sequence=sequence, accesses=[old[sequence % 2]]))
        assert (done.done, done.bus_error) == (3, False)
    assert second.send(AccessBatch(epoch=2, sequence=1, accesses=[read])).value == case.initial
    assert stored(first, case) == case.initial
    with pytest.raises(errors.BadRequest, match="sequence"):
        second.send(AccessBatch(epoch=2, sequence=3, accesses=[read]))


@every_device_with_state
def test_the_answer_that_was_lost_is_given_by_the_next_life(machine: Machine, case: Case) -> None:
    attach(machine, case)
    hart = machine.hart(case.name)
    store(hart, case, case.values[0])
    assert stored(hart, case) == case.values[0]
    again = AccessBatch(epoch=2, sequence=2, accesses=[Access(offset=case.offset, size=case.size)])
    machine.kill(case.name)
    case.start(machine, epoch=2)
    store(machine.hart(case.name, hart=1), case, case.values[1])
    done = machine.hart(case.name).send(again)
    assert (done.done, done.value) == (2, case.values[0])


@every_device_with_state
def test_each_hart_has_its_own_numbers(machine: Machine, case: Case) -> None:
    attach(machine, case)
    first, second = machine.hart(case.name, hart=0), machine.hart(case.name, hart=4095)
    for value in case.values:
        assert store(first, case, value).done == first.sequence - 1
        assert stored(second, case) == value
    assert (first.sequence, second.sequence) == (3, 3)


@every_device
def test_paused_it_answers_and_drains(machine: Machine, case: Case) -> None:
    """Accesses that are under way when the machine stops are made, and counted."""
    attach(machine, case)
    hart, monitor = machine.hart(case.name), machine.monitor(case.name)
    monitor.ask(lifecycle.Pause())
    for count in (1, 2, 3):
        assert hart.batch(Access(offset=1 << 40, size=4)).done == count
    assert isinstance(monitor.ask(lifecycle.Drain()), lifecycle.Drained)
    counters = monitor.health().counters
    assert (counters["accesses"], counters["batches"], counters["bus_errors"]) == (3, 3, 3)


@every_device
def test_shutdown_ends_the_process(machine: Machine, case: Case) -> None:
    attach(machine, case)
    assert isinstance(machine.monitor(case.name).ask(lifecycle.Shutdown()), common.Done)
    assert machine.processes[case.name].wait(PATIENCE) == 0


@every_device
def test_terminate_ends_the_process(machine: Machine, case: Case) -> None:
    attach(machine, case)
    machine.monitor(case.name).health()
    machine.processes[case.name].terminate()
    assert machine.processes[case.name].wait(PATIENCE) == 0


@every_device
@pytest.mark.parametrize("left", ["nothing", "another"])
def test_started_by_hand_it_ends_with_the_machine(machine: Machine, case: Case, left: str) -> None:
    """Without a lifeline: when its socket is gone, or is that of a successor."""
    machine.start_memory()
    command = [*case.program(), "--machine", str(machine.path), "--name", case.name, "--base", hex(case.base)]
    process = subprocess.Popen([*command, *case.arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    machine.processes[case.name] = process
    machine.monitor(case.name).health()
    (machine.path / f"{case.name}.sock").unlink()
    if left == "another":
        (machine.path / f"{case.name}.sock").touch()
    assert process.wait(PATIENCE) == 0


def test_of_a_batch_that_overlaps_only_the_new_part_is_executed(machine: Machine) -> None:
    machine.start_memory()
    UART.start(machine, "--chardev", f"file:{machine.path}/out")
    hart = machine.hart("uart0")

    def text(sequence: int, written: bytes) -> AccessBatch:
        accesses = [Access(offset=0, size=1, write=True, value=byte) for byte in written]
        return AccessBatch(epoch=1, sequence=sequence, accesses=accesses)

    assert hart.send(text(1, b"abc")).done == 3
    assert hart.send(text(2, b"XYde")).done == 5
    assert hart.send(text(1, b"UVWXY")).done == 5
    assert hart.send(text(6, b"f")).done == 6
    assert (machine.path / "out").read_bytes() == b"abcdef"


def test_drained_names_the_last_update(machine: Machine) -> None:
    """The monitor hands this number to the cpu, which waits until it has applied it: it must have been sent."""
    attach(machine, UART)
    hart, irqchip, monitor = machine.hart("uart0"), Irqchip(machine, "uart0"), machine.monitor("uart0")
    irqchip.until(lambda: irqchip.sequence > 0, "the first update")
    for value in (2, 0, 2):
        irqchip.apply(hart.write(1, value).update)
    irqchip.peer.close()
    monitor.ask(lifecycle.Pause())
    for _ in range(3):
        monitor.ask(lifecycle.Reset())  # changes that nobody is there to hear
    drained = monitor.ask(lifecycle.Drain())
    assert isinstance(drained, lifecycle.Drained)
    assert machine.hart("uart0", hart=1).read(2)
    last = Irqchip(machine, "uart0")
    last.until(lambda: last.sequence > 0, "everything")
    assert drained.update_sequence < last.sequence <= drained.update_sequence + 2


@every_device
def test_more_than_the_window_is_refused(machine: Machine, case: Case) -> None:
    region = attach(machine, case).regions[0]
    posted = [register for register in region.registers if register.write in (WRITE_POSTED, WRITE_DOORBELL)]
    if not posted:
        pytest.skip(f"{case.kind} has no register whose writes are posted")
    hart = machine.hart(case.name)
    write = Access(offset=posted[0].offset, size=posted[0].size, write=True, value=65)
    with pytest.raises(errors.TooMany):
        hart.send(AccessBatch(epoch=1, sequence=1, accesses=[write] * (hart.window + 1)))
    with pytest.raises(errors.PeerError, match="Hello first"):
        hart.batch(write)
    assert machine.hart(case.name).batch(*[write] * hart.window).done == hart.window


@every_device
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--base", "0x80000000"), "RAM"),
        (("--base", "0x10000004"), "other registers"),
        (("--base", "0x10001001"), "multiple of 4"),
        (("--base", "0x10001000", "--irq", "9"), "other interrupt"),
        (("--base", "0x10001000", "--irq", "0"), "1 to 1023"),
    ],
)
def test_a_device_that_cannot_attach_ends_with_one_line(
    machine: Machine, case: Case, arguments: tuple[str, ...], named: str
) -> None:
    if "--irq" in arguments and not case.irqs:
        pytest.skip(f"{case.kind} has no line")
    machine.start_memory()
    other = Description(name="other", kind="test", epoch=1, endpoint="ipc:///nowhere")
    other.regions.add(name="registers", base=0x1000_0000, size=0x100, access_sizes=4)
    other.lines.add(name="interrupt", irq=9)
    machine.dial("memory", common.ROLE_DEVICE, name="other").request(Attach(description=other), PATIENCE)
    case.start(machine, *arguments)
    said = machine.failure(case.name)
    assert named in said, said
    assert case.name in said
