"""A device that misbehaves is named, and the rest of the machine goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.conftest import DEADLINE, Rig
from tests.faults.rogue import IMPOSTORS
from tests.system import programs
from tests.waiting import wait_for

pytestmark = pytest.mark.system

BASE = 0x400_0000  # where the board has nothing
LOAD_ACCESS_FAULT = 5
LINES = 4000


def start(rig: Rig, tmp_path: Path, misdeed: str, program: bytes, *flags: str) -> subprocess.Popen[bytes]:
    elf = tmp_path / "guest.elf"
    elf.write_bytes(programs.elf(program))
    rig.environment["ROGUE"] = misdeed
    rogue = f"vmesh-external,id=rogue,base={BASE:#x},irq=20,command={sys.executable} -P -m tests.faults.rogue"
    return rig.start_real("-bios", "none", "-kernel", str(elf), "-health-interval", "0.1", "-device", rogue, *flags)


def complaints(rig: Rig) -> dict[str, int]:
    with rig.client() as client:
        services = client.status().services
    assert all(not service.complaints for service in services if service.name != "rogue")
    return next(dict(service.complaints) for service in services if service.name == "rogue")


def finish(rig: Rig, launcher: subprocess.Popen[bytes]) -> None:
    with rig.client() as client:
        assert all(service.epoch == 1 for service in client.status().services)
        client.quit()
    launcher.communicate(timeout=DEADLINE)
    assert launcher.returncode == 0
    rig.wait_clean()


def _life(rig: Rig, name: str) -> int:
    """Which life of a service runs; 0: none does."""
    record = rig.record()
    services = record.services if record is not None else ()
    return next((each.epoch for each in services if each.name == name and each.state == "running"), 0)


def test_a_hart_gets_an_access_fault_from_a_device_that_says_nothing(rig: Rig, tmp_path: Path) -> None:
    launcher = start(rig, tmp_path, "silent", programs.touch(BASE), "-bus-limit", "3")
    assert launcher.wait(DEADLINE) == LOAD_ACCESS_FAULT
    rig.wait_clean()


def test_answers_that_are_nonsense(rig: Rig, tmp_path: Path) -> None:
    """The access is answered all the same, as the right answer comes too: the guest goes on, without a trap."""
    launcher = start(rig, tmp_path, "nonsense", programs.peek(BASE))
    rig.wait_running()
    wait_for(lambda: complaints(rig) == {"nonsense": 2}, "two complaints")
    finish(rig, launcher)


@pytest.mark.parametrize(
    ("misdeed", "complaint"),
    [("flood", "floods updates"), ("interrupts", "floods updates"), ("dma", "DMA outside its grants")],
)
def test_what_others_see_is_counted(rig: Rig, tmp_path: Path, misdeed: str, complaint: str) -> None:
    launcher = start(rig, tmp_path, misdeed, programs.sleep(0))
    rig.wait_running()
    wait_for(lambda: complaints(rig).get(complaint, 0) > 0, complaint)
    finish(rig, launcher)


def test_a_device_that_says_anything_costs_nobody_else_a_life(rig: Rig, tmp_path: Path) -> None:
    """In front of memory, the cpu and the monitor; bench.fuzz_bus has the same for each service alone, for long."""
    seed = rig.environment["SEED"] = str(time.time_ns() // 1_000_000)
    print(f"seed {seed}")
    elf = tmp_path / "guest.elf"
    elf.write_bytes(programs.elf(programs.sleep(0)))
    program = f"{sys.executable} -P -m tests.models.hostile_device"
    hostile = f"vmesh-external,id=h0,base={BASE:#x},irq=20,command={program}"
    launcher = rig.start_real("-bios", "none", "-kernel", str(elf), "-device", hostile)
    wait_for(lambda: _life(rig, "h0") >= 3, "some lives of the device")
    with rig.client() as client:
        assert all(service.epoch == 1 for service in client.status().services if service.name != "h0")
        client.quit()
    assert launcher.wait(DEADLINE) == 0
    rig.wait_clean()


def test_a_device_that_attaches_as_a_later_life_has_its_next_one(rig: Rig, tmp_path: Path) -> None:
    """Which is what the monitor calls it."""
    launcher = start(rig, tmp_path, "life", programs.peek(BASE))
    wait_for(lambda: _life(rig, "rogue") == 2, "the next life of the device")
    with rig.client() as client:
        client.quit()
    assert launcher.wait(DEADLINE) == 0
    rig.wait_clean()


@pytest.mark.parametrize("misdeed", ["limits", "blame", "notices", "large"])
def test_what_breaks_the_protocol_costs_a_device_its_life(rig: Rig, tmp_path: Path, misdeed: str) -> None:
    """And nobody else."""
    launcher = start(rig, tmp_path, misdeed, programs.peek(BASE))
    wait_for(lambda: _life(rig, "rogue") == 2, "the next life of the device")
    with rig.client() as client:
        services = {service.name: service for service in client.status().services}
        assert "breaks the protocol" in services["rogue"].last_error
        assert all(service.epoch == 1 for name, service in services.items() if name != "rogue")
        client.quit()
    assert launcher.wait(DEADLINE) == 0
    rig.wait_clean()


def test_a_device_cannot_be_anybody_else(rig: Rig, tmp_path: Path) -> None:
    """Whatever its Hello says; and a device that was killed comes back all the same, as does the one that pretends."""
    # Impatience would end it: it waits for the cpu to come.
    launcher = start(rig, tmp_path, "impostor", programs.sleep(0), "-health-limit", f"{DEADLINE:g}")
    rig.wait_running()
    wait_for(lambda: complaints(rig).get("refused") == 3 * len(IMPOSTORS), "the refusals")
    for name in ("uart0", "rogue"):
        os.kill(rig.service(name).pid, signal.SIGKILL)
        rig.wait_life(name, 2)
    with rig.client() as client:

        def refused(name: str) -> int:
            return next(each.counters["refused: process"] for each in client.status().services if each.name == name)

        wait_for(lambda: refused("memory") == 2 * len(IMPOSTORS), "memory to refuse its next life, too")
        wait_for(lambda: refused("uart0") == len(IMPOSTORS), "a device in its next life to refuse it")
        client.quit()
    assert launcher.wait(DEADLINE) == 0
    rig.wait_clean()


@pytest.mark.parametrize("misdeed", ["silent", "nonsense", "flood", "interrupts", "dma"])
def test_the_guest_and_other_devices_work_meanwhile(rig: Rig, tmp_path: Path, misdeed: str) -> None:
    """Every line comes out of the serial port, once and in order, and the test device ends the machine."""
    launcher = start(rig, tmp_path, misdeed, programs.count(LINES))
    said, _ = launcher.communicate(timeout=DEADLINE)
    assert launcher.returncode == 0
    assert said == b"".join(b"%08x\n" % number for number in range(LINES))
    rig.wait_clean()
