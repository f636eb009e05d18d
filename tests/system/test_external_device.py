"""Devices of the user's own: the copier of docs/examples on the board of a real machine, however it is started."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.c_example import copier_in_c
from tests.system import programs
from tests.system.conftest import BRIEF, PROMPT, Host, Terminal
from tests.waiting import LIMIT, wait_for
from vmesh.board.virt import DRAM_BASE
from vmesh.guest import Guest
from vmesh.machine import MachineDirectory, MachineError

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]
Program = Callable[[], list[str]]

BASE, IRQ = 0x400_0000, 20  # where the board has nothing
PYTHON = f"{sys.executable} -P -m docs.examples.copier"


def python() -> list[str]:
    return PYTHON.split()


every_language = pytest.mark.parametrize("program", [python, copier_in_c], ids=["python", "c"])
FLAG = f"vmesh-external,id=copier0,base={BASE:#x},irq={IRQ}"


@pytest.fixture
def guest(tmp_path: Path) -> tuple[str, ...]:
    """Flags for a guest that uses the copier."""
    path = tmp_path / "guest.elf"
    path.write_bytes(programs.elf(programs.copy(BASE, IRQ)))
    return "-bios", "none", "-kernel", str(path), "-serial", "null"


def copied(times: int = 1) -> int:
    """The exit status of a guest that found all right."""
    return 128 + (zlib.crc32(programs.copy(BASE, IRQ, times)[: programs.COPIED]) & 0x7F)


@every_language
def test_the_machine_starts_the_device(run: Run, guest: tuple[str, ...], program: Program) -> None:
    machine = run(*guest, "-device", f"{FLAG},kind=copier,command={shlex.join(program())}", pipes=True)

    assert (machine.wait(), machine.output) == (copied(), "")


@every_language
def test_the_machine_waits_for_a_device_started_by_hand(
    root: Path, run: Run, guest: tuple[str, ...], program: Program
) -> None:
    machine = run(*guest, "-device", FLAG, "-name", "waits", pipes=True)
    machine.expect("\n")
    found = re.fullmatch(r"vmesh: waiting for the device copier0: start it with (.*)\n", machine.output)
    assert found, machine.output
    device = subprocess.Popen([*program(), *found[1].split()], cwd=root)

    assert machine.wait() == copied()
    assert device.wait(LIMIT) == 0


@every_language
def test_killed_while_the_guest_uses_it(host: Host, run: Run, tmp_path: Path, program: Program) -> None:
    """kill -9: the machine starts its next life, and the guest sees nothing but a pause."""
    path = tmp_path / "busy.elf"
    path.write_bytes(programs.elf(programs.copy(BASE, IRQ, 0)))
    flags = ("-bios", "none", "-kernel", str(path), "-name", "busy")
    machine = run(*flags, "-device", f"{FLAG},command={shlex.join(program())}")
    for epoch in (1, 2):
        pid = wait_for_life(MachineDirectory(host.runtime / "busy"), epoch)
        time.sleep(0.05)  # so that the kill is in the midst of accesses
        os.kill(pid, signal.SIGKILL)
    wait_for_life(MachineDirectory(host.runtime / "busy"), 3)
    machine.type("x")

    assert (machine.wait(), machine.output) == (copied(0), "")


@every_language
def test_killed_and_another_started_by_hand(host: Host, root: Path, run: Run, tmp_path: Path, program: Program) -> None:
    """The successor may be in another language: it finds the state and where each hart was in the slot."""
    successor = program()
    path = tmp_path / "busy.elf"
    path.write_bytes(programs.elf(programs.copy(BASE, IRQ, 0)))
    flags = ("-bios", "none", "-kernel", str(path), "-name", "hand")
    machine = run(*flags, "-device", FLAG)
    here = MachineDirectory(host.runtime / "hand")
    arguments = ["--machine", str(here.path), "--name", "copier0", "--base", hex(BASE), "--irq", str(IRQ)]
    machine.expect("\n")
    first = subprocess.Popen([*python(), *arguments], cwd=root)
    wait_for_life(here, 1)
    first.kill()
    first.wait()
    second = subprocess.Popen([*successor, *arguments, "--epoch", "2"], cwd=root)
    wait_for_life(here, 2)
    machine.type("x")

    assert machine.wait() == copied(0)
    assert second.wait(LIMIT) == 0


def test_who_is_started_by_hand_with_a_number_of_before_costs_nothing(
    host: Host, root: Path, run: Run, tmp_path: Path
) -> None:
    """One that is refused is not the one that is waited for."""
    path = tmp_path / "busy.elf"
    path.write_bytes(programs.elf(programs.copy(BASE, IRQ, 0)))
    flags = ("-bios", "none", "-kernel", str(path), "-name", "hand")
    machine = run(*flags, "-device", FLAG)
    here = MachineDirectory(host.runtime / "hand")
    arguments = [*python(), "--machine", str(here.path), "--name", "copier0", "--base", hex(BASE), "--irq", str(IRQ)]
    machine.expect("\n")
    first = subprocess.Popen(arguments, cwd=root)
    wait_for_life(here, 1)
    first.kill()
    first.wait()
    wait_for(lambda: due(here) == 2, "its death to be seen")
    for _ in range(2):
        command = [*arguments, "--epoch", "1"]
        stale = subprocess.run(command, check=False, cwd=root, capture_output=True, text=True, timeout=LIMIT)
        assert stale.returncode == 1
        assert re.search(r"expected an epoch from [234] on, got 1", stale.stderr), stale.stderr
    second = subprocess.Popen(arguments, cwd=root)  # it takes the number that is waited for
    wait_for(lambda: is_running(here), "the next life")
    machine.type("x")

    assert machine.wait() == copied(0)
    assert second.wait(LIMIT) == 0


def due(machine: MachineDirectory) -> int:
    """Which life of the copier is waited for; 0: one is there."""
    (copier,) = [each for each in machine.read_record().services if each.name == "copier0"]
    return 0 if copier.state == "running" else copier.epoch


def is_running(machine: MachineDirectory) -> bool:
    return due(machine) == 0


def wait_for_life(machine: MachineDirectory, epoch: int) -> int:
    """The process of the copier in its life `epoch`, once the machine runs."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        with suppress(MachineError):
            for service in machine.read_record().services:
                if (service.name, service.epoch, service.state) == ("copier0", epoch, "running"):
                    return service.pid
        time.sleep(0.01)
    raise AssertionError(f"waited {LIMIT:g} s for life {epoch} of the copier")


@every_language
def test_linux_finds_and_uses_it(run: Run, debian: Guest, program: Program) -> None:
    """Debian's kernel has it in its device tree; a program in the guest has it copy the start of the firmware."""
    flag = f"{FLAG},kind=copier,compatible=acme,,copier,command={shlex.join(program())}"
    machine = run("-append", BRIEF, "-device", flag)
    machine.expect(PROMPT)
    assert machine.ask(f"cat /proc/device-tree/soc/copier@{BASE:x}/compatible") == "acme,copier\0"
    for offset, value in ((0, DRAM_BASE), (8, DRAM_BASE), (16, 64), (24, 1)):
        machine.ask(f"devmem {BASE + offset:#x} 64 {value}")
    assert int(machine.ask(f"devmem {BASE + 24:#x} 64"), 16) == 1
    firmware = Path(debian.bios).read_bytes()[:64]
    assert int(machine.ask(f"devmem {BASE + 32:#x} 64"), 16) == zlib.crc32(firmware)
    machine.type("\x04")
    assert machine.wait() == 0


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        (f"kind=toaster,command={PYTHON}", "copier0: kind: expected toaster, got 'copier'$"),
        ("command=/nowhere/copier", "/nowhere/copier: No such file or directory$"),
        ("command=true", "service 'copier0' .* ended with status 0"),
        ("wait=0.2", "no device has come to /.*/copier0.sock within 0.2 s$"),
    ],
)
def test_a_device_that_does_not_come_ends_the_machine(
    run: Run, guest: tuple[str, ...], properties: str, reason: str
) -> None:
    machine = run(*guest, "-device", f"{FLAG},{properties}", pipes=True)

    assert machine.wait() == 1
    last = machine.output.splitlines()[-1]
    assert "service 'copier0'" in last, machine.output
    assert re.search(reason, last), machine.output


def test_the_readme_shows_this_device(root: Path) -> None:
    source = (root / "docs/examples/copier/__main__.py").read_text()

    shown = source[source.index("class Copier") : source.index("\n\nif __name__")]
    assert shown.strip() in (root / "README.md").read_text()
