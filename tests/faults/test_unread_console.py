"""A client of the console that does not read: the guest's output waits, and nothing else does. The machine is paused,
saved, moved and ended, its serial port is killed, and nothing of the output is lost or comes twice."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import DEADLINE, Rig
from tests.system import programs
from tests.waiting import wait_for
from vmesh.client import MachineClient
from vmesh.v1 import gateway_pb2, migration_pb2

pytestmark = pytest.mark.system

LINES = 45_000  # more than the sockets on the way, the keeper and the device hold
OUTPUT = b"".join(b"%08x\n" % number for number in range(LINES))


@pytest.fixture
def other(root: Path) -> Iterator[Rig]:
    made = Rig(Path(tempfile.mkdtemp(prefix="vmesh-faults-")), root)
    yield made
    made.close()


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """A guest that writes OUTPUT and powers off."""
    (tmp_path / "guest.elf").write_bytes(programs.elf(programs.count(LINES)))
    return ["-bios", "none", "-kernel", str(tmp_path / "guest.elf"), "-m", "32M"]


def reader(rig: Rig) -> socket.socket:
    """Who has connected to the console, and does not read yet."""
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(DEADLINE)
    wait_for(lambda: made.connect_ex(str(rig.runtime / "console")) == 0, "the console")
    return made


def read_all(made: socket.socket) -> bytes:
    data = b""
    while part := made.recv(1 << 20):
        data += part
    return data


def waiting(client: MachineClient) -> int:
    uart = next(service for service in client.status().services if service.name == "uart0")
    return uart.counters.get("console_bytes_waiting", 0)


def test_control_goes_on_while_nobody_reads(rig: Rig, other: Rig, flags: list[str], tmp_path: Path) -> None:
    launcher = rig.start_real(*flags, "-serial", f"unix:{rig.runtime}/console,server=on", "-health-interval", "0.1")
    console = reader(rig)
    rig.wait_running()
    with rig.client() as client:
        wait_for(lambda: waiting(client) > 0, "the output to wait")
        for _ in range(3):
            client.pause()
            client.resume()
        saved = rig.runtime / "saved"
        client.snapshot_save(saved)
        uart = rig.pid("uart0")
        assert uart is not None
        client.pause()
        client.resume()
    assert read_all(console) == OUTPUT
    assert launcher.wait(DEADLINE) == 0
    rig.wait_clean()

    # The same output goes on from the snapshot, with what was waiting then.
    again = other.start_real(*flags, "-serial", f"file:{tmp_path}/rest", "-loadvm", str(saved))
    assert again.wait(DEADLINE) == 0
    rest = (tmp_path / "rest").read_bytes()
    assert rest
    assert OUTPUT.endswith(rest)


def test_moved_machine_brings_out_what_was_waiting_once(rig: Rig, other: Rig, flags: list[str], tmp_path: Path) -> None:
    rig.start_real(*flags, "-serial", f"unix:{rig.runtime}/console,server=on", "-health-interval", "0.1")
    place = f"unix:{other.runtime}/incoming"
    moved = other.start_real(*flags, "-serial", f"file:{tmp_path}/rest", "-incoming", place)
    console = reader(rig)
    rig.wait_running()
    wait_for((other.runtime / "incoming").exists, "the destination to listen")
    with rig.client() as client:
        wait_for(lambda: waiting(client) > 0, "the output to wait")
        client.migrate(place)
        wait_for(
            lambda: client.query_migrate().status.state == migration_pb2.MIGRATION_COMPLETED, "the machine to be moved"
        )
        assert moved.wait(DEADLINE) == 0
        client.quit()
    assert read_all(console) + (tmp_path / "rest").read_bytes() == OUTPUT


def test_machine_ends_though_nobody_reads(rig: Rig, flags: list[str]) -> None:
    launcher = rig.start_real(*flags, "-serial", f"unix:{rig.runtime}/console,server=on", "-health-interval", "0.1")
    with reader(rig):
        rig.wait_running()
        with rig.client() as client:
            wait_for(lambda: waiting(client) > 0, "the output to wait")
            assert client.status().state == gateway_pb2.MACHINE_RUNNING
            client.reset()
            client.quit()
        assert launcher.wait(DEADLINE) == 0
    assert not (rig.runtime / "console").exists()
    rig.wait_clean()
