"""The FIFOs of the devices that say they have some (bus.proto: Description.doorbell, Description.interrupts)."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest

from tests.contract.cases import ALL, Case
from tests.contract.harness import PATIENCE, Irqchip, Machine
from tests.waiting import wait_for
from vmesh import doorbell
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import lifecycle_pb2 as lifecycle
from vmesh.v1.bus_pb2 import WRITE_DOORBELL, Access, Description
from vmesh.v1.memory_pb2 import AddressMap, MapRequest

RINGS = 20_000
devices_with_one = pytest.mark.parametrize(
    "case", [case for case in ALL if case.kind.startswith("virtio-")], ids=lambda case: case.name
)


def start(machine: Machine, case: Case) -> Description:
    machine.start_memory("--expect", case.name)
    case.start(machine)
    answer = machine.dial("memory", common.ROLE_CPU).request(MapRequest(), PATIENCE)
    assert isinstance(answer, AddressMap)
    return answer.devices[0]


def fifos(machine: Machine, description: Description) -> list[Path]:
    return [machine.path / name for name in (description.doorbell, description.interrupts)]


@devices_with_one
def test_each_life_makes_its_own(machine: Machine, case: Case) -> None:
    description = start(machine, case)
    before = [path.stat() for path in fifos(machine, description)]
    assert [stat.filemode(found.st_mode) for found in before] == ["prw-------"] * 2
    machine.kill(case.name)
    kept = [os.open(path, os.O_RDWR | os.O_NONBLOCK) for path in fifos(machine, description)]  # so that numbers differ
    case.start(machine, epoch=2)
    machine.hart(case.name)
    after = [path.stat() for path in fifos(machine, description)]
    assert all(old.st_ino != new.st_ino for old, new in zip(before, after, strict=True))
    for fd in kept:
        os.close(fd)


@devices_with_one
def test_rings_do_no_harm(machine: Machine, case: Case) -> None:
    """Whatever is rung, before a driver is there: the device answers, and its state is what it was."""
    description = start(machine, case)
    monitor = machine.monitor(case.name)
    before = monitor.save()
    monitor.ask(lifecycle.Resume())
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    bell = os.open(machine.path / description.doorbell, os.O_WRONLY)
    for _ in range(RINGS // 1000):
        os.write(bell, chance.randbytes(1000))
    wait_for(lambda: monitor.health().counters["rings"] > 0, "the rings")
    assert monitor.save().bytes == before.bytes
    os.close(bell)
    wait_for(lambda: machine.monitor(case.name).health().counters["rings"] > 0, "an answer without anybody who rings")


@devices_with_one
def test_drain_takes_what_was_rung(machine: Machine, case: Case) -> None:
    description = start(machine, case)
    monitor = machine.monitor(case.name)
    monitor.ask(lifecycle.Pause())
    bell = os.open(machine.path / description.doorbell, os.O_WRONLY)
    os.write(bell, b"".join(doorbell.ring(value, 0) for value in (0, 1, 0)))
    monitor.ask(lifecycle.Drain())
    assert monitor.health().counters["rings"] == 2
    os.close(bell)


@devices_with_one
def test_the_doorbell_is_a_register_too(machine: Machine, case: Case) -> None:
    """For a cpu on another host, or a value that does not go through the FIFO."""
    description = start(machine, case)
    rows = [row for row in description.regions[0].registers if row.write == WRITE_DOORBELL]
    assert len(rows) == 1
    ring = Access(offset=rows[0].offset, size=rows[0].size, write=True, value=1)
    done = machine.hart(case.name).batch(ring, ring, Access(offset=0, size=4))
    assert (done.done, done.bus_error) == (3, False)


@devices_with_one
def test_nobody_reads_the_interrupts(machine: Machine, case: Case) -> None:
    """They are packets then: the irqchip here does not open the FIFO."""
    start(machine, case)
    irqchip = Irqchip(machine, case.name)
    irqchip.until(lambda: irqchip.sequence > 0, "the first update")
    hart = machine.hart(case.name)
    # ACKNOWLEDGE, DRIVER, DRIVER_OK, then a queue that no device has room for: it needs a reset, and says so
    for offset, value in ((0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x38, 3000), (0x70, 15)):
        hart.write(offset, value, 4)
    hart.write(0x44, 1, 4)
    assert hart.read(0x70, 4) & 64
    assert hart.read(0x60, 4) & 2
