"""`vmesh swap`: another program in the place of a device that the guest uses, or a refusal that it does not notice."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.c_example import copier_in_c
from tests.system import programs
from tests.system.conftest import LIMIT, PROMPT, Host, Terminal
from tests.system.test_external_device import BASE, FLAG, IRQ, PYTHON, TIMES, copied, wait_for_life
from vmesh.guest import Guest
from vmesh.machine import Machine, MachineError

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]
LATER = f"{sys.executable} -m tests.system.copier_2"  # the copier, with version 2 of its state


@pytest.fixture
def busy(host: Host, run: Run, tmp_path: Path) -> Iterator[Terminal]:
    """A machine `swaps` whose guest uses the copier all the time; it must find all right in the end."""
    path = tmp_path / "busy.elf"
    path.write_bytes(programs.elf(programs.copy(BASE, IRQ, 2 * TIMES)))
    flags = ("-bios", "none", "-kernel", str(path), "-serial", "null", "-name", "swaps")
    machine = run(*flags, "-device", f"{FLAG},kind=copier,command={PYTHON}", pipes=True)
    wait_for_life(Machine(host.runtime / "swaps"), 1)
    yield machine
    assert (machine.wait(), machine.output) == (copied(2 * TIMES), "")


def swap(host: Host, command: str, *, status: int = 0) -> str:
    """What `vmesh swap` says of putting `command` in the place of the copier."""
    return host.vmesh("swap", "swaps", "copier0", "--", *shlex.split(command), status=status)


def test_to_and_fro_between_languages(host: Host, busy: Terminal) -> None:
    in_c = shlex.join(copier_in_c())
    for epoch, command in enumerate((in_c, PYTHON, in_c), start=2):
        said = swap(host, command)
        assert f"copier0 (copier) goes on in its life {epoch}, with vmesh.v1.CopierState version 1\n" in said
        assert re.search(r"the guest stood still for \d+ ms\n", said)
        wait_for_life(Machine(host.runtime / "swaps"), epoch)


def test_killed_after_it_the_new_one_is_started_again(host: Host, busy: Terminal) -> None:
    swap(host, LATER)
    machine = Machine(host.runtime / "swaps")
    os.kill(wait_for_life(machine, 2), signal.SIGKILL)
    pid = wait_for_life(machine, 3)
    assert b"tests.system.copier_2" in Path(f"/proc/{pid}/cmdline").read_bytes()


REFUSED = (
    (f"{sys.executable} -m services.devices.goldfish_rtc", "GoldfishRtcState"),
    ("false", "ended with status 1"),
    (f"{sys.executable} -m docs.examples.copier --no-such-option", "unrecognized arguments: --no-such-option"),
)


def test_refused_the_former_one_goes_on(host: Host, busy: Terminal) -> None:
    for command, reason in REFUSED:
        said = swap(host, command, status=1)
        assert said.count("\n") == 1
        assert reason in said
        assert "copier0 (copier, state vmesh.v1.CopierState version 1), which goes on: " in said
    assert "there is no program '/nowhere/copier'" in swap(host, "/nowhere/copier", status=1)
    assert "no device 'copier1'; expected one of " in host.vmesh("swap", "swaps", "copier1", "--", "true", status=1)
    assert "expected [MACHINE] DEVICE -- COMMAND" in host.vmesh("swap", "swaps", "copier0", status=2)


def test_an_older_version_is_refused_and_both_are_named(host: Host, busy: Terminal) -> None:
    assert "vmesh.v1.CopierState version 1, now version 2\n" in swap(host, LATER)

    said = swap(host, PYTHON, status=1)

    assert "copier0 (copier, state vmesh.v1.CopierState version 2), which goes on: " in said
    assert "expected version 1 to 1, got 2" in said


def test_paused_it_stays_paused(host: Host, busy: Terminal) -> None:
    host.vmesh("pause", "swaps")
    swap(host, PYTHON)
    assert host.ps()["swaps"]["state"] == "paused"
    host.vmesh("resume", "swaps")


def test_kills_in_the_midst_of_swaps(host: Host, busy: Terminal) -> None:
    """Whichever process is hit, the swap is done or refused, and the guest finds all right."""
    machine = Machine(host.runtime / "swaps")
    done = threading.Event()

    def kill() -> None:
        while not done.wait(0.2):
            with suppress(MachineError, StopIteration, ProcessLookupError):
                record = machine.read_record()
                os.kill(next(each.pid for each in record.services if each.name == "copier0"), signal.SIGKILL)
            done.wait(3.0)  # five deaths within ten seconds end a machine

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        ends = time.monotonic() + 6.0
        while time.monotonic() < ends:
            with suppress(AssertionError):  # refused
                swap(host, PYTHON)
    finally:
        done.set()
        killer.join(LIMIT)


def test_the_console_and_the_disk_of_debian(host: Host, run: Run, debian: Guest, tmp_path: Path) -> None:
    """Each with itself, while a shell writes to both."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(16 << 20))
    flags = ("-name", "linux", "-append", "loglevel=1", "-drive", f"file={disk},format=raw")
    machine = run(*flags)
    machine.expect(PROMPT)
    machine.type(
        "for i in $(seq 200); do echo line $i; dd if=/dev/urandom of=/tmp/$i bs=64k count=1 2>/dev/null;"
        " dd if=/tmp/$i of=/dev/vda bs=64k seek=$i conv=fsync 2>/dev/null; done; cd /tmp; cat $(seq 200) | sha256sum\n"
    )
    for name, command in service_commands(host, *flags).items():
        if name in ("uart0", "blk0"):
            host.vmesh("swap", "linux", name, "--", *command)
    machine.expect("\nline 200\n")
    digest = machine.expect("  -\n")
    written = disk.read_bytes()[1 << 16 : 201 << 16]
    assert digest == hashlib.sha256(written).hexdigest()
    lines = [line for line in machine.output.splitlines() if line.startswith("line ")]
    assert lines == [f"line {number}" for number in range(1, 201)]
    machine.expect(" # ")
    machine.type("\x04")
    assert machine.wait() == 0


def service_commands(host: Host, *flags: str) -> dict[str, list[str]]:
    """For each service its command line, without the options that a swap adds."""
    found = {}
    for line in host.vmesh("run", *flags, "-print-commands").splitlines():
        words = shlex.split(line)
        own = words[:3]
        for option, value in zip(words[3::2], words[4::2], strict=False):
            if option not in ("--machine", "--name", "--base", "--irq"):
                own += [option, value]
        if "--name" in words:
            found[words[words.index("--name") + 1]] = own
    return found
