"""Auto-converge: a guest that writes faster than can be sent is slowed down, and only as long as that helps."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.streams import ENDED, Pair, counts, wait_state
from tests.system import programs
from tests.waiting import wait_for
from vmesh.board import encode as e
from vmesh.client import MachineClient
from vmesh.guest.tiny import Program
from vmesh.v1 import cpu_pb2, migration_pb2

pytestmark = pytest.mark.system

MOST = 80  # percent: harts run for 10 ms, then they stand still for 40
WRITTEN = 16 << 20, 2 << 20  # where in RAM the guest writes, and how much
BANDWIDTH = 1 << 20  # bytes a second: in a round a hart runs so often that it writes all of it, on a busy host, too
LOOKS = 40


def writer() -> bytes:
    """A guest that writes every word of some memory, again and again."""
    program = Program()
    program.emit(e.auipc(e.S0, WRITTEN[0] >> 12), e.lui(e.S1, WRITTEN[1] >> 12), e.add(e.S1, e.S0, e.S1))
    program.label("pass")
    program.emit(e.addi(e.T0, e.S0, 0), e.addi(e.T1, e.T1, 1))
    program.label("word")
    program.emit(e.sd(e.T1, e.T0, 0), e.addi(e.T0, e.T0, 8))
    program.to("word", lambda offset: e.bltu(e.T0, e.S1, offset))
    program.jump("pass")
    return programs.elf(program.assemble())


@pytest.fixture
def pair(root: Path) -> Iterator[Pair]:
    made = Pair(root, writer())
    yield made
    made.close()


@pytest.fixture
def source(pair: Pair) -> MachineClient:
    """A machine whose migration comes to no end, as there is always more to send: it is slowed down by MOST."""
    made = pair.start("source")
    assert counts(made)
    made.migrate_set(auto_converge=True, cpu_throttle_initial=MOST, max_cpu_throttle=MOST)
    made.migrate_set(max_bandwidth=BANDWIDTH, downtime_limit_ms=0)
    return made


def stands_still(machine: MachineClient) -> int:
    """How often of LOOKS the hart does, while the machine runs."""
    found = 0
    for _ in range(LOOKS):
        status = machine.status()
        assert status.run_state == "running"
        found += [hart.state for hart in status.harts] == [cpu_pb2.HART_PAUSED]
        time.sleep(0.023)  # out of step with the slices
    return found


def slowed(machine: MachineClient) -> bool:
    return machine.query_migrate().status.cpu_throttle_percentage == MOST


def query_migrate(pair: Pair, name: str) -> dict[str, Any]:
    """As a client of QMP sees it."""
    with socket.socket(socket.AF_UNIX) as link, link.makefile("rw") as lines:
        link.settimeout(30)
        link.connect(str(pair.runtime / name / "qmp.sock"))
        lines.readline()
        for command in ("qmp_capabilities", "query-migrate"):
            lines.write(json.dumps({"execute": command}) + "\n")
            lines.flush()
            while "return" not in (answer := json.loads(lines.readline())):
                pass
        found: dict[str, Any] = answer["return"]
        return found


def test_harts_stand_still_for_their_part_and_run_again_where_they_go(pair: Pair, source: MachineClient) -> None:
    target = pair.start("target", "-incoming", "defer")
    assert stands_still(source) == 0
    source.migrate(f"unix:{pair.listen(target)}")
    wait_for(lambda: slowed(source), "the throttle to be at its most")
    assert query_migrate(pair, "source")["cpu-throttle-percentage"] == MOST
    assert stands_still(source) > LOOKS // 2
    assert counts(source), "it is slow, but goes on"
    source.migrate_set(downtime_limit_ms=10_000)
    assert wait_state(source, *ENDED).state == migration_pb2.MIGRATION_COMPLETED
    assert "cpu-throttle-percentage" not in query_migrate(pair, "source")
    assert counts(target)
    assert stands_still(target) == 0


@pytest.mark.parametrize("how", ["cancelled", "killed"])
def test_harts_run_again_after_a_migration_that_failed(pair: Pair, source: MachineClient, how: str) -> None:
    target = pair.start("target", "-incoming", "defer")
    source.migrate(f"unix:{pair.listen(target)}")
    wait_for(lambda: slowed(source), "the throttle to be at its most")
    if how == "cancelled":
        source.migrate_cancel()
    else:
        pid = pair.pid("source", "migration")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    wait_state(source, *ENDED)
    wait_for(lambda: stands_still(source) == 0, "the harts to run")
