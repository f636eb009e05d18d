"""A guest whose pages are still to come, and nobody brings them: it can be paused, reset and asked to wait."""

from __future__ import annotations

import random
import shlex
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.streams import COUNT_PAGE, DATA_BYTES, Pair, counts, mend, wait_state
from tests.system import programs
from tests.waiting import LIMIT, wait_for
from vmesh.board import encode as e
from vmesh.board import virt
from vmesh.client import GatewayError, MachineClient
from vmesh.guest.tiny import Program
from vmesh.spawn import python
from vmesh.v1 import cpu_pb2, migration_pb2

pytestmark = pytest.mark.system

ACTIVE, PAUSED = migration_pb2.MIGRATION_POSTCOPY_ACTIVE, migration_pb2.MIGRATION_POSTCOPY_PAUSED
BASE, IRQ = 0x400_0000, 20  # of the copier
COPIER = (
    "-device",
    f"vmesh-external,id=copier0,base={BASE:#x},irq={IRQ},kind=copier,"
    f"command={shlex.join(python('docs.examples.copier'))}",
)
COUNT = virt.DRAM_BASE + COUNT_PAGE
ORDER, MARK, COPY = COUNT + 8, COUNT + 16, COUNT + 1024  # where the guest finds what it is to do; what is ours; a copy
RESET = 1
COPIED = 64


def obedient() -> bytes:
    """Counts as `counter` does. An order of RESET resets the board; another is an address, from which the copier is to
    copy to COPY: the hart waits for it."""
    program = Program()
    program.emit(e.auipc(e.T0, COUNT_PAGE >> 12), e.addi(e.T1, e.ZERO, 0), e.addi(e.S1, e.ZERO, RESET))
    program.emit(e.sd(e.ZERO, e.T0, ORDER - COUNT))
    program.label("again")
    program.emit(e.addi(e.T1, e.T1, 1), e.sw(e.T1, e.T0, 0), e.ld(e.T2, e.T0, ORDER - COUNT))
    program.to("again", lambda offset: e.beq(e.T2, e.ZERO, offset))
    program.to("reset", lambda offset: e.beq(e.T2, e.S1, offset))
    program.emit(e.lui(e.S0, BASE >> 12), e.sd(e.T2, e.S0, 0), e.addi(e.T2, e.T0, COPY - COUNT), e.sd(e.T2, e.S0, 8))
    program.emit(e.addi(e.T2, e.ZERO, COPIED), e.sd(e.T2, e.S0, 16), e.sd(e.S1, e.S0, 24), e.sd(e.ZERO, e.S0, 24))
    program.emit(e.sd(e.ZERO, e.T0, ORDER - COUNT))
    program.jump("again")
    program.label("reset")
    program.emit(
        e.lui(e.T0, virt.TEST.range.base >> 12), e.lui(e.T1, 7), e.addi(e.T1, e.T1, 0x777), e.sw(e.T1, e.T0, 0)
    )
    program.emit(e.jal(e.ZERO, 0))
    return programs.elf(program.assemble().ljust(4096, b"\0") + random.Random(5).randbytes(DATA_BYTES))


@pytest.fixture
def pair(root: Path) -> Iterator[Pair]:
    made = Pair(root, obedient())
    yield made
    made.close()


@pytest.fixture
def source(pair: Pair) -> MachineClient:
    return pair.start("source", *COPIER)


@pytest.fixture
def target(pair: Pair, source: MachineClient) -> MachineClient:
    """The guest runs here, and its post-copy is paused: its pages are absent, but the few that it has used."""
    target = pair.start("target", *COPIER, "-incoming", "defer")
    source.migrate_set(postcopy_ram=True, max_bandwidth=1 << 20, max_postcopy_bandwidth=1 << 16)
    source.migrate(f"unix:{pair.listen(target)}")
    source.migrate_start_postcopy()
    wait_state(source, ACTIVE)
    wait_state(target, ACTIVE)
    assert counts(target)
    target.migrate_pause()
    for side in (source, target):
        wait_state(side, PAUSED)
    return target


def order(machine: MachineClient, what: int) -> None:
    machine.write_memory(ORDER, what.to_bytes(8, "little"), physical=True)


def test_pause_waits_for_a_device_that_waits_for_a_page(
    pair: Pair, source: MachineClient, target: MachineClient
) -> None:
    far = COUNT_PAGE - (1 << 20)
    order(target, virt.DRAM_BASE + far)
    wait_for(lambda: [hart.state for hart in target.status().harts] == [cpu_pb2.HART_BUS], "the copier to wait")
    with ThreadPoolExecutor(1) as pool:
        pausing: Future[None] = pool.submit(target.pause)
        mend(pair, source, target)
        pausing.result(LIMIT)
    assert target.status().run_state == "paused"
    target.resume()
    assert counts(target)
    (start,) = (pair.kernel.read_bytes()[-DATA_BYTES:][far - 4096 :][:COPIED],)
    wait_for(lambda: target.read_memory(COPY, COPIED, physical=True) == start, "the copy")
    assert pair.has_its_data("target")


def test_reset_is_refused_and_the_guest_goes_on(pair: Pair, source: MachineClient, target: MachineClient) -> None:
    with pytest.raises(GatewayError, match="still to come"):
        target.reset()
    assert counts(target)
    mend(pair, source, target)
    target.write_memory(MARK, b"mark", physical=True)
    target.reset()
    assert counts(target)
    assert target.read_memory(MARK, 4, physical=True) != b"mark"


def test_reset_that_the_guest_asks_for_waits_for_its_pages(
    pair: Pair, source: MachineClient, target: MachineClient
) -> None:
    target.write_memory(MARK, b"mark", physical=True)
    order(target, RESET)
    wait_for(lambda: target.status().run_state == "paused", "the guest to stand still")
    with pytest.raises(GatewayError, match="asked for a reset"):
        target.resume()
    assert target.read_memory(MARK, 4, physical=True) == b"mark"
    mend(pair, source, target)
    assert counts(target)
    assert target.read_memory(MARK, 4, physical=True) != b"mark"
    assert pair.has_its_data("target")
