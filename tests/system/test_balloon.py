"""Debian's driver of the balloon does what QMP and HMP ask for, and the host gets the memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import BRIEF, PROMPT, Host, Terminal
from tests.system.test_hotplug import bare
from tests.waiting import LIMIT, wait_for
from vmesh.client import MachineClient
from vmesh.guest import Guest
from vmesh.machine import MachineDirectory
from vmesh.v1 import migration_pb2

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]
RAM, SMALL = 512 << 20, 192 << 20
BALLOON = ("-device", "virtio-balloon-device,id=air")
NONE = {"class": "DeviceNotActive", "desc": "No balloon device has been activated"}
USE = "dd if=/dev/urandom of=/tmp/used bs=1M count=150 2>/dev/null; rm /tmp/used"


class Door:
    """A client of QMP, which keeps the events that it sees."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self.events: list[tuple[str, Any]] = []
        json.loads(self._lines.readline())
        self.ask("qmp_capabilities")

    def ask(self, name: str, **arguments: object) -> Any:
        """What the command returns, or its error."""
        said = {"execute": name, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}}
        self._socket.sendall(json.dumps(said).encode())
        while "event" in (answer := json.loads(self._lines.readline())):
            self.events.append((answer["event"], answer.get("data")))
        return answer["return"] if "return" in answer else answer["error"]

    def has(self, actual: int) -> bool:
        return bool(self.ask("query-balloon") == {"actual": actual})

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture
def host(root: Path) -> Iterator[Host]:
    """Its machines are where a user's are: other file systems than that in memory may fill holes again."""
    runtime = Path(tempfile.mkdtemp(prefix="vmesh-", dir="/dev/shm"))
    yield Host(runtime, root)
    shutil.rmtree(runtime)


@contextmanager
def door(host: Host, name: str) -> Iterator[Door]:
    path = host.runtime / name / "qmp.sock"
    wait_for(path.exists, "QMP's socket")
    made = Door(path)
    try:
        yield made
    finally:
        made.close()


def held(host: Host, name: str) -> int:
    """Bytes of the host's memory that guest memory takes."""
    return (host.runtime / name / "ram.seg").stat().st_blocks * 512


def test_debian_does_with_less_and_gets_it_back(host: Host, run: Run, debian: Guest) -> None:
    machine = run("-name", "less", "-m", "512M", "-append", BRIEF, *BALLOON)
    machine.expect(PROMPT)
    machine.ask(USE)
    with door(host, "less") as qmp:
        assert qmp.ask("query-balloon") == {"actual": RAM}
        before = held(host, "less")
        assert qmp.ask("balloon", value=SMALL) == {}
        wait_for(lambda: qmp.has(SMALL), "the guest to do with less")
        assert before - held(host, "less") > 100 << 20
        wait_for(lambda: qmp.ask("query-name") and ("BALLOON_CHANGE", {"actual": SMALL}) in qmp.events, "the event")
        assert qmp.ask("human-monitor-command", command_line="info balloon") == "balloon: actual=192\n"
        free = int(machine.ask("awk '/MemTotal/ { print $2 }' /proc/meminfo")) << 10
        assert free < SMALL
        assert qmp.ask("human-monitor-command", command_line="balloon 0x200") == ""
        wait_for(lambda: qmp.has(RAM), "the guest to have all again")
        machine.ask(USE)
        assert qmp.ask("balloon", value=1 << 62) == {}
        assert qmp.has(RAM)
    machine.type("\x04")
    assert machine.wait() == 0


def test_killed_while_it_takes(host: Host, run: Run, debian: Guest) -> None:
    """What is wanted and what is given survive, and a guest that is asked for nothing new goes on with what it was."""
    machine = run("-name", "killed", "-m", "512M", "-append", BRIEF, *BALLOON)
    machine.expect(PROMPT)
    killed: list[int] = []
    with door(host, "killed") as qmp:
        qmp.ask("balloon", value=SMALL)
        for _ in range(3):
            former = next(each["pid"] for each in host.ps()["killed"]["services"] if each["name"] == "air")
            killed.append(former)
            os.kill(former, signal.SIGKILL)
            host.next_life("killed", "air", killed)
        wait_for(lambda: qmp.has(SMALL), "the guest to do with less")
        qmp.ask("stop")
        qmp.ask("balloon", value=RAM)
        assert qmp.has(SMALL)
        qmp.ask("cont")
        wait_for(lambda: qmp.has(RAM), "the guest to have all again")
    machine.ask(USE)
    machine.type("\x04")
    assert machine.wait() == 0


def test_a_snapshot_has_its_size(host: Host, run: Run, debian: Guest, tmp_path: Path) -> None:
    machine = run("-name", "kept", "-m", "512M", "-append", BRIEF, *BALLOON, VMESH_SNAPSHOTS=str(tmp_path))
    machine.expect(PROMPT)
    machine.ask(USE)
    with door(host, "kept") as qmp:
        qmp.ask("balloon", value=SMALL)
        wait_for(lambda: qmp.has(SMALL), "the guest to do with less")
        assert qmp.ask("human-monitor-command", command_line="savevm small") == ""
        qmp.ask("balloon", value=RAM)
        wait_for(lambda: qmp.has(RAM), "the guest to have all again")
        machine.ask(USE)
        assert qmp.ask("human-monitor-command", command_line="loadvm small") == ""
        assert qmp.has(SMALL)
        qmp.ask("balloon", value=RAM)
        wait_for(lambda: qmp.has(RAM), "the guest to have all again")
    machine.type(f"{USE}; echo o''k\n")
    machine.expect("ok\n")
    machine.expect(PROMPT)
    machine.type("\x04")
    assert machine.wait() == 0


@pytest.mark.parametrize("postcopy", [False, True], ids=["precopy", "postcopy"])
def test_a_machine_moves_while_its_guest_gives(host: Host, run: Run, debian: Guest, postcopy: bool) -> None:
    source = run("-name", "here", "-m", "512M", "-append", BRIEF, *BALLOON)
    source.expect(PROMPT)
    source.ask(USE)
    source.ask("dd if=/dev/urandom of=/tmp/kept bs=1M count=30 2>/dev/null")
    digest = source.ask("md5sum /tmp/kept")
    place = f"unix:{host.runtime}/there.migrate"
    target = run("-name", "there", "-m", "512M", "-append", BRIEF, *BALLOON, "-incoming", place)
    wait_for(Path(place[5:]).exists, "the target to listen")
    with (
        door(host, "here") as here,
        door(host, "there") as there,
        MachineClient(MachineDirectory(host.runtime / "here"), timeout=LIMIT) as client,
    ):
        client.migrate_set(postcopy_ram=postcopy, max_bandwidth=32 << 20)
        assert there.ask("balloon", value=SMALL)["desc"] == "the machine waits for a migration to come in"
        client.migrate(place)
        wait_for(lambda: client.query_migrate().status.state == migration_pb2.MIGRATION_ACTIVE, "the move to begin")
        assert here.ask("balloon", value=SMALL) == {}
        wait_for(lambda: here.ask("query-balloon")["actual"] < RAM - (20 << 20), "the guest to give some")
        assert client.query_migrate().status.state == migration_pb2.MIGRATION_ACTIVE
        if postcopy:
            client.migrate_start_postcopy()
        else:
            client.migrate_set(max_bandwidth=0)
        wait_for(lambda: client.query_migrate().status.state == migration_pb2.MIGRATION_COMPLETED, "the move")
        wait_for(lambda: there.has(SMALL), "the guest to do with less")
        target.type("md5sum /tmp/kept\n")
        target.expect(digest)
        target.expect(PROMPT)
        there.ask("balloon", value=RAM)
        wait_for(lambda: there.has(RAM), "the guest to have all again")
        target.ask(USE)
        assert target.ask("md5sum /tmp/kept") == digest


def test_a_machine_without_one_and_a_machine_with_two(host: Host, run: Run, tmp_path: Path) -> None:
    run("-name", "plain", "-S", "-bios", "none", "-serial", "null", "-kernel", str(bare(tmp_path)))
    with door(host, "plain") as qmp:
        assert qmp.ask("query-balloon") == qmp.ask("balloon", value=1) == NONE
        assert qmp.ask("human-monitor-command", command_line="info balloon") == f"Error: {NONE['desc']}\n"
        assert qmp.ask("human-monitor-command", command_line="balloon 1") == f"Error: {NONE['desc']}\n"
        assert qmp.ask("device_add", driver="virtio-balloon-device", id="air") == {}
        assert qmp.ask("balloon", value=1 << 20) == {}
        assert qmp.ask("balloon", value=0)["desc"] == "Parameter 'target' expects a size"
        assert qmp.ask("device_add", driver="virtio-balloon-device")["desc"].startswith("the machine has a balloon")
        assert qmp.ask("device_del", id="air") == {}
        assert qmp.ask("query-balloon") == NONE
        qmp.ask("quit")
