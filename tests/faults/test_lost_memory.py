"""Files that a machine's processes share are cut short under them, or have no room: nobody dies of a signal."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.faults.conftest import Rig
from tests.file_systems import mounted
from tests.system import programs
from tests.waiting import wait_for
from vmesh.client import GatewayError

pytestmark = pytest.mark.system

RAM = 32 << 20


def start(rig: Rig, program: bytes, *flags: str) -> subprocess.Popen[bytes]:
    elf = rig.runtime / "guest.elf"
    elf.write_bytes(programs.elf(program))
    return rig.start_real("-bios", "none", "-kernel", str(elf), "-m", f"{RAM >> 20}M", "-smp", "2", *flags)


def end(rig: Rig, launcher: subprocess.Popen[bytes]) -> list[str]:
    """End a machine that is lost; gives the lines on stderr that are of a loss."""
    with rig.client() as client:
        assert client.status().run_state == "internal-error"
        snapshot = partial(client.snapshot_save, rig.runtime / "s")
        move = partial(client.migrate, f"unix:{rig.runtime}/to")
        doors: tuple[Callable[[], object], ...] = (client.resume, client.reset, snapshot, move)
        for refused in doors:
            with pytest.raises(GatewayError, match="the machine can be looked at and ended, no more"):
                refused()
        assert client.registers()  # it can be looked at
        client.quit()
    _, stderr = launcher.communicate()
    assert launcher.returncode == 0
    assert b"SIGBUS" not in stderr
    rig.wait_clean()
    return [line for line in stderr.decode().splitlines() if "memory is lost" in line]


@pytest.mark.parametrize("name", ["ram.seg", "ram.flags"])
def test_guest_memory_is_cut_short(rig: Rig, name: str) -> None:
    launcher = start(rig, programs.sweep(RAM))
    pids = {service.name: service.pid for service in rig.wait_running().services}
    os.truncate(rig.machine.path / name, 0)
    rig.wait_running("paused")
    assert {service.name: service.pid for service in rig.wait_running("paused").services} == pids
    with rig.client() as client:
        why = client.status().last_error
    assert why.startswith(f"guest memory is lost: {rig.machine.path}/{name} was cut short: 0 of ")
    assert f"{name} was cut short" in rig.machine.log.read_text()
    (line,) = end(rig, launcher)
    assert why in line


def test_guest_memory_is_cut_short_and_the_machine_ends_if_asked_to(rig: Rig) -> None:
    launcher = start(rig, programs.sweep(RAM), "-action", "device-failure=exit-failure")
    rig.wait_running()
    os.truncate(rig.machine.path / "ram.seg", 0)
    _, stderr = launcher.communicate()
    (line,) = stderr.decode().splitlines()
    cause = f"{rig.machine.path}/ram.seg was cut short: 0 of {RAM} bytes are left"
    assert line == f"vmesh run: machine 'm': guest memory is lost: {cause}"
    assert launcher.returncode == 1
    rig.wait_clean()


def test_a_slot_is_cut_short(rig: Rig) -> None:
    """Which costs its device a life, and nobody else."""
    launcher = start(rig, programs.count(1 << 30))
    rig.wait_running()
    os.truncate(rig.machine.path / "uart0.slot", 0)
    rig.wait_life("uart0", 2)
    with rig.client() as client:
        services = {service.name: service for service in client.status().services}
        assert {name: service.epoch for name, service in services.items() if service.epoch > 1} == {"uart0": 2}
        assert "uart0.slot was cut short: 0 of " in services["uart0"].last_error
        assert "ended with status 1" in services["uart0"].last_error
        client.quit()
    _, stderr = launcher.communicate()
    assert launcher.returncode == 0
    assert b"SIGBUS" not in stderr
    rig.wait_clean()


@pytest.fixture
def small(root: Path) -> Iterator[Rig]:
    """A machine in a file system that has room for it, for now."""
    place = Path(tempfile.mkdtemp(prefix="vmesh-faults-"))
    try:
        with mounted(place, size=str(2 * RAM)):
            rig = Rig(place, root)
            try:
                yield rig
            finally:
                rig.close()
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_there_is_no_room_for_guest_memory(small: Rig) -> None:
    launcher = start(small, programs.sweep(RAM), "-S")
    small.wait_running("paused")
    with open(small.runtime / "full", "wb", buffering=0) as full, suppress(OSError):
        while full.write(bytes(4096)):
            pass
    with small.client() as client:
        client.resume()
        wait_for(lambda: client.status().run_state == "internal-error", "the machine to stop")
        why = client.status().last_error
    assert why.startswith(f"guest memory is lost: {small.machine.path}/ram.")
    assert why.endswith(": its file system has no room for it")
    (small.runtime / "full").unlink()
    (line,) = end(small, launcher)
    assert why in line
