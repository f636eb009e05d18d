"""Regions that move while harts run, other spaces than memory, and interrupts that are messages."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contract.harness import PATIENCE, RAM_BASE, Machine
from tests.contract.moving_device import APERTURE, APERTURE_SIZE, PORT_NUMBER, PORT_SIGN, SIGN, SIZE
from tests.models.assembler import assemble
from tests.waiting import wait_for
from vmesh import errors
from vmesh.v1 import common_pb2 as common
from vmesh.v1.bus_pb2 import SPACE_IO, SPACE_PCI_CONFIG, Description, Region
from vmesh.v1.memory_pb2 import AddressMap, Attach, Attached, MapRequest

CONTROL, RESULTS, COUNT, WINDOW = 0x1000_0000, RAM_BASE + 0x10000, RAM_BASE + 0x20000, 0x300_0000
ACLINT = 0x200_0000
FAULT = 0xFA
DEVICE = Path(__file__).with_name("moving_device.py")
#: Results are one behind the other; a load that faults leaves `FAULT`. Hart 1 counts all the time, without a device.
PROGRAM = f"""
        la t0, fault
        csrw mtvec, t0
        csrr t0, mhartid
        bnez t0, other
        li s0, {CONTROL}
        li s1, {RESULTS}
        li s2, {APERTURE}
        li s3, {APERTURE + 0x8000}
        ld a0, 0(s2)            # nowhere yet
        jal ra, keep
        li s4, -1
        lb a0, 0(s4)            # nor at any end of what a physical address can be
        jal ra, keep
        srli s4, s4, 1
        lb a0, 0(s4)
        jal ra, keep
        lb a0, 1(s4)
        jal ra, keep
        sd s2, 0(s0)
        ld a0, 16(s2)           # at once where it was put
        jal ra, keep
        ld a0, 8(s2)            # its shadow too
        jal ra, keep
        sd s3, 0(s0)
        ld a0, 24(s3)
        jal ra, keep
        ld a0, 16(s2)           # and no longer where it was
        jal ra, keep
        sd zero, 0(s0)
        ld a0, 24(s3)
        jal ra, keep
        li t0, {WINDOW + PORT_NUMBER}
        lw a0, 0(t0)            # a port, through its window
        jal ra, keep
        li t0, {ACLINT}
        sd t0, 8(s0)            # have it send a message: the software interrupt of this hart
        csrr a0, mip
        andi a0, a0, 8
        jal ra, keep
        li t0, {ACLINT + 0x4000}
        sd t0, 8(s0)            # where no controller takes one
        li t0, {APERTURE + APERTURE_SIZE}
        li a0, 1
        jal ra, keep
end:    wfi
        j end
keep:   sd a0, 0(s1)
        addi s1, s1, 8
        ret
other:  li s1, {COUNT}
count:  ld t0, 0(s1)
        addi t0, t0, 1
        sd t0, 0(s1)
        j count
fault:  csrr t0, mepc
        addi t0, t0, 4
        csrw mepc, t0
        li a0, {FAULT}
        mret
"""
EXPECTED = (FAULT, FAULT, FAULT, FAULT, SIGN + 16, SIGN + 8, SIGN + 24, FAULT, FAULT, PORT_SIGN, 8, 1)


def ram(machine: Machine, address: int, count: int) -> tuple[int, ...]:
    with open(machine.path / "ram.seg", "rb") as file:
        file.seek(address - RAM_BASE)
        return struct.unpack(f"<{count}Q", file.read(8 * count))


def launch(machine: Machine, epoch: int = 1) -> None:
    program = [sys.executable, "-P", str(DEVICE)]
    machine.launch(program, "moving", "--base", f"{CONTROL:#x}", "--irq", "5", epoch=epoch)


def start(machine: Machine, text: str) -> None:
    code = assemble(text, RAM_BASE).code
    window = ["--reserve", f"window={WINDOW:#x}:0x10000"]
    machine.start_cpu("--window", f"io={WINDOW:#x}:0x10000", code=code, memory=["--expect", "moving", *window])
    launch(machine)
    machine.dial("memory", common.ROLE_CPU, name="cpu").request(MapRequest(), PATIENCE)


def test_regions_move_and_messages_interrupt_while_other_harts_run(machine: Machine) -> None:
    start(machine, PROGRAM)
    wait_for(lambda: ram(machine, RESULTS + 8 * (len(EXPECTED) - 1), 1) == (1,), "the program's last result")
    assert ram(machine, RESULTS, len(EXPECTED)) == EXPECTED
    (counted,) = ram(machine, COUNT, 1)
    wait_for(lambda: ram(machine, COUNT, 1) > (counted,), "the other hart to go on")
    complaints = {each.service: each.what for each in machine.monitor("cpu").health().complaints}
    assert complaints == {"moving": "a message to no interrupt controller"}


def test_a_place_outside_of_the_aperture_is_nowhere(machine: Machine) -> None:
    """A guest may place a region where the bus does not lead: it costs the device nothing."""
    start(
        machine,
        f"""
        la t0, fault
        csrw mtvec, t0
        csrr t0, mhartid
        bnez t0, end
        li s0, {CONTROL}
        li s1, {RESULTS}
        li s2, {APERTURE + 0x1000}
        sd s2, 0(s0)
        ld a0, 16(s2)
        sd a0, 0(s1)
        li t0, {APERTURE + APERTURE_SIZE - SIZE + 4}
        sd t0, 0(s0)
        ld a0, 16(s2)
        sd a0, 8(s1)
        li t0, {APERTURE - SIZE}
        sd t0, 0(s0)
        ld a0, 16(s2)
        sd a0, 16(s1)
        sd s2, 0(s0)
        ld a0, 16(s2)
        sd a0, 24(s1)
        li a0, 1
        sd a0, 32(s1)
end:    wfi
        j end
fault:  csrr t0, mepc
        addi t0, t0, 4
        csrw mepc, t0
        li a0, {FAULT}
        mret
    """,
    )
    wait_for(lambda: ram(machine, RESULTS + 32, 1) == (1,), "the program's last result")
    assert ram(machine, RESULTS, 4) == (SIGN + 16, FAULT, FAULT, SIGN + 16)
    assert not machine.monitor("cpu").health().complaints


def test_the_next_life_of_a_device_is_where_the_former_one_was(machine: Machine) -> None:
    start(
        machine,
        f"""
        la t0, fault
        csrw mtvec, t0
        csrr t0, mhartid
        bnez t0, end
        li s0, {CONTROL}
        li s1, {RESULTS}
        li s2, {APERTURE + 0x1000}
        sd s2, 0(s0)
again:  ld t1, 16(s2)
        sd t1, 8(s1)
        ld t2, 0(s1)
        addi t2, t2, 1
        sd t2, 0(s1)
        j again
fault:  sd s0, 16(s1)
end:    wfi
        j end
    """,
    )
    wait_for(lambda: ram(machine, RESULTS, 1) > (10,), "the first life to be read")
    machine.kill("moving")
    (read,) = ram(machine, RESULTS, 1)
    launch(machine, epoch=2)
    wait_for(lambda: ram(machine, RESULTS, 1) > (read + 10,), "the next life to be read")
    assert ram(machine, RESULTS + 8, 2) == (SIGN + 16, 0)


def attach(machine: Machine, name: str, *regions: Region) -> None:
    """Raises what memory says against it."""
    described = Description(name=name, kind="test", state_type="t", epoch=1, endpoint="ipc:///x", regions=[*regions])
    peer = machine.dial("memory", common.ROLE_DEVICE, name=name)
    assert isinstance(peer.request(Attach(description=described), PATIENCE), Attached)


def region(base: int, **more: Any) -> Region:
    return Region(name="r", base=base, size=0x100, access_sizes=15, **more)


def moving(base: int, aperture: int, **more: Any) -> Region:
    return region(base, **{"aperture_base": aperture, "aperture_size": 0x1000, **more})


def test_each_space_has_its_own_addresses_and_apertures_are_shared(machine: Machine) -> None:
    machine.start_memory("--reserve", "aclint=0x2000000:0x10000")
    attach(machine, "fixed", region(0x1000), region(0x1000, space=SPACE_IO), region(0x1000, space=SPACE_PCI_CONFIG))
    attach(machine, "one", moving(0x8000, 0x8000))
    attach(machine, "two", moving(0x8000, 0x8000), moving(0, 0x8000, absent=True))
    answer = machine.dial("memory", common.ROLE_CPU, name="cpu").request(MapRequest(), PATIENCE)
    assert isinstance(answer, AddressMap)
    assert [device.name for device in answer.devices] == ["fixed", "one", "two"]


@pytest.mark.parametrize(
    ("described", "why"),
    [
        (region(0x1000, space=SPACE_IO), "overlap"),
        (region(0xFFFC, space=SPACE_IO), "a base that is a multiple of 4"),
        (region(0x1000_0000, space=SPACE_PCI_CONFIG), "a base that is a multiple of 4"),
        (region(0x3000, space=9), "a space"),
        (region(0x3000, absent=True), "an aperture"),
        (moving(0x8F04, 0x8000), "a place in its aperture"),
        (moving(0x3000, 0xFF0), "a place in its aperture"),
        (moving(0, 0x0F00, absent=True), "overlap"),
        (moving(0, (1 << 64) - 0x1000, absent=True), "inside its space"),
        (moving(0, RAM_BASE - 0xF00, absent=True), "overlap"),
        (moving(0, 0x200_0000, absent=True), "overlap"),
    ],
)
def test_what_cannot_be_anywhere_is_refused(machine: Machine, described: Region, why: str) -> None:
    machine.start_memory("--reserve", "aclint=0x2000000:0x10000")
    attach(machine, "fixed", region(0x1000), region(0x1000, space=SPACE_IO))
    with pytest.raises((errors.BadRequest, errors.Overlap), match=why):
        attach(machine, "other", described)


def test_a_device_from_outside_is_nowhere_but_in_the_place_that_was_promised_to_it(machine: Machine) -> None:
    machine.start_memory("--place", "other=@0x5000000:0x1000/0")
    for described, what, got in (
        (moving(0x500_0000, 0x500_0000, aperture_size=0x2000), "aperture of region r", "memory 0x5000000.0x2000"),
        (moving(0, 0x1000_0000, absent=True), "aperture of region r", "memory 0x10000000.0x1000"),
        (region(0x100, space=SPACE_IO), "other: region r", "io 0x100.0x100"),
    ):
        with pytest.raises(errors.BadRequest, match=f"{what}: expected memory inside 0x5000000.0x1000, got {got}$"):
            attach(machine, "other", described)
    attach(machine, "other", moving(0x500_0100, 0x500_0000))
