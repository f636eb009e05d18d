"""Hostile clients at QMP and HMP: the monitor's memory is bounded, honest clients are answered, the machine goes on.

A minute of it is in bench/doors.py.
"""

from __future__ import annotations

import random
import signal
import stat

from bench.doors import GROWTH_BAR, Door, attack, connect
from tests.faults.conftest import Rig
from tests.waiting import wait_for

SECONDS = 6.0


def test_hostile_clients_harm_nobody(rig: Rig) -> None:
    rig.start()
    record = rig.wait_running()
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    outcome = attack(rig.machine, record.pid, SECONDS, random.Random(seed))
    print(f"{outcome.errors} errors were said")
    assert outcome.most - outcome.before < GROWTH_BAR
    door = Door(rig.machine.qmp)
    assert door.ask("flop")["class"] == "CommandNotFound"
    assert door.ask("stop") == {}
    assert door.ask("query-status")["status"] == "paused"
    assert door.ask("cont") == {}
    door.close()


def test_own_doors_are_their_owners(rig: Rig) -> None:
    rig.start()
    rig.wait_running()
    for path in (rig.machine.qmp, rig.machine.hmp):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_hmp_on_a_socket(rig: Rig) -> None:
    rig.start()
    rig.wait_running()
    with connect(rig.machine.hmp) as client:
        client.sendall(b"info status\nflop\nquit\n")
        text = b""
        while data := client.recv(65536):
            text += data
    assert b"VM status: running" in text
    assert b"unknown command: 'flop'" in text
    rig.wait_clean()


def test_machine_ends_though_it_waits_for_a_client(rig: Rig) -> None:
    process = rig.start("-qmp", f"unix:{rig.runtime}/q,server=on")
    wait_for((rig.runtime / "q").exists, "it to listen")
    process.terminate()
    assert process.wait() in (0, 128 + signal.SIGTERM)  # the latter, if it was only about to begin
    rig.wait_clean()
