"""The state of every device, whatever was done to it: saved, loaded, reset, and back after kill -9."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from google.protobuf.message import Message

from tests.contract.cases import ALL, Case
from tests.contract.harness import PATIENCE, Hart, Irqchip, Machine, Monitor
from tests.waiting import wait_for
from vmesh import errors
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import devices_pb2
from vmesh.v1 import lifecycle_pb2 as lifecycle
from vmesh.v1.bus_pb2 import WRITE_POSTED, Access, Description
from vmesh.v1.memory_pb2 import AddressMap, MapRequest

ACCESSES = 400
MUTATIONS = 150
EDGES = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x5555, 0x8000_0000, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)

every_device = pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
Wires = tuple[dict[int, bool], dict[tuple[int, int, int], int | None]]


@dataclass
class Running:
    """A device that has attached."""

    machine: Machine
    case: Case
    description: Description
    hart: Hart
    monitor: Monitor

    def wires(self) -> Wires:
        """All lines and shadows, as a new irqchip is told."""
        irqchip = Irqchip(self.machine, self.case.name)
        irqchip.until(lambda: irqchip.sequence > 0, "the first update")
        irqchip.peer.close()
        return irqchip.levels, irqchip.shadows

    def save(self) -> lifecycle.ServiceState:
        state = self.monitor.save()
        self.monitor.ask(lifecycle.Resume())
        return state

    def load(self, state: lifecycle.ServiceState) -> None:
        self.monitor.ask(lifecycle.Pause())
        self.monitor.ask(lifecycle.Load(state=state))
        self.monitor.ask(lifecycle.Resume())

    def use(self, chance: random.Random, accesses: int = ACCESSES) -> None:
        """What a guest may do: accesses of any size at any place, some behind posted writes in one batch."""
        posted = [
            Access(region=region, offset=row.offset + place * row.size, size=row.size, write=True)
            for region, said in enumerate(self.description.regions)
            for row in said.registers
            if row.write == WRITE_POSTED
            for place in range(max(1, row.count))
        ]
        for _ in range(accesses):
            batch = [self.access(chance)]
            if posted and chance.random() < 0.2:
                batch = [*chance.choices(posted, k=chance.choice((1, 2, 20))), *batch]
            for access in batch:
                access.value = chance.choice((*EDGES, chance.getrandbits(64)))
            self.hart.batch(*batch)

    def access(self, chance: random.Random) -> Access:
        region = chance.randrange(len(self.description.regions))
        said = self.description.regions[region]
        size = chance.choice([size for size in (1, 2, 4, 8) if size & said.access_sizes] * 8 + [1, 2, 4, 8])
        near = min(said.size, chance.choice((0x30, 0x100, said.size)))
        offset = chance.randrange(near) // size * size
        return Access(region=region, offset=offset, size=size, write=chance.random() < 0.7)

    def look(self, *without: str) -> tuple[Message, Wires]:
        """State, lines and shadows, without these fields and without what changes as time passes."""
        state = self.save()
        message: Message = state
        if ignored := {*without, *self.case.timed}:
            message = getattr(devices_pb2, state.type.rpartition(".")[2]).FromString(state.bytes)
            for field in ignored:
                message.ClearField(field)
        return message, ({}, {}) if self.case.timed else self.wires()

    def settle(self) -> None:
        """Bring about what a kill changes, if that is anything."""
        if self.case.interrupts_after_kill:
            self.kill_and_restart()

    def kill_and_restart(self) -> None:
        epoch = self.hart.epoch + 1
        self.machine.kill(self.case.name)
        self.case.start(self.machine, epoch=epoch)
        self.monitor = self.machine.monitor(self.case.name)
        self.monitor.ask(lifecycle.Resume())
        wait_for(lambda: self.monitor.health().phase == lifecycle.SERVICE_RUNNING, "the next life")
        self.hart = self.machine.hart(self.case.name)
        assert self.hart.epoch == epoch


def start(machine: Machine, case: Case) -> Running:
    machine.start_memory("--expect", case.name)
    case.start(machine)
    answer = machine.dial("memory", common.ROLE_CPU, name="cpu").request(MapRequest(), PATIENCE)
    assert isinstance(answer, AddressMap)
    return Running(machine, case, answer.devices[0], machine.hart(case.name), machine.monitor(case.name))


def chance_for(case: Case) -> random.Random:
    seed = random.randrange(1 << 32)
    print(f"seed {seed} for {case.name}")
    return random.Random(seed)


@every_device
def test_whatever_a_guest_does_can_be_saved_and_loaded(machine: Machine, case: Case) -> None:
    running = start(machine, case)
    chance = chance_for(case)
    for _ in range(4):
        running.use(chance, ACCESSES // 4)
        state, seen = running.save(), running.look()
        running.use(chance, ACCESSES // 4)
        running.load(state)
        assert running.look() == seen


@every_device
def test_a_state_is_good_in_another_machine(machine: Machine, case: Case) -> None:
    running = start(machine, case)
    running.use(chance_for(case))
    state, seen = running.save(), running.look()
    other = Machine()
    try:
        there = start(other, case)
        there.load(state)
        assert there.look() == seen
    finally:
        other.close()


@every_device
def test_reset_is_power_on(machine: Machine, case: Case) -> None:
    running = start(machine, case)
    seen = running.look(*case.kept)
    running.use(chance_for(case))
    running.monitor.ask(lifecycle.Pause())
    running.monitor.ask(lifecycle.Reset())
    running.monitor.ask(lifecycle.Resume())
    assert running.look(*case.kept) == seen


@every_device
def test_killed_at_any_time_it_comes_back_as_it_was(machine: Machine, case: Case) -> None:
    running = start(machine, case)
    chance = chance_for(case)
    for _ in range(3):
        running.use(chance, ACCESSES // 4)
        running.settle()
        seen, sequence = running.look(), running.hart.sequence
        running.kill_and_restart()
        assert running.hart.sequence == sequence
        assert running.look() == seen


@every_device
def test_states_from_anywhere_are_refused_or_loaded(machine: Machine, case: Case) -> None:
    """Bytes that somebody has changed: what is taken once is taken again, what is refused has changed nothing."""
    running = start(machine, case)
    chance = chance_for(case)
    running.use(chance)
    good = running.monitor.save()
    for _ in range(MUTATIONS):
        before = running.monitor.ask(lifecycle.Save())
        data = bytearray(good.bytes or chance.randbytes(8))
        for _ in range(chance.choice((1, 1, 2, 5))):
            place = chance.randrange(len(data) + 1)
            data[place : place + chance.choice((0, 1, 1, 3))] = chance.randbytes(chance.choice((0, 1, 1, 10)))
        state = lifecycle.ServiceState(type=good.type, version=good.version, bytes=bytes(data))
        try:
            running.monitor.ask(lifecycle.Load(state=state))
        except errors.BadState:
            assert running.monitor.ask(lifecycle.Save()) == before, state
        else:
            again = running.monitor.ask(lifecycle.Save())
            assert isinstance(again, lifecycle.ServiceState)
            running.monitor.ask(lifecycle.Load(state=again))
    running.monitor.ask(lifecycle.Resume())
    running.settle()
    seen = running.look()
    running.kill_and_restart()
    assert running.look() == seen
