"""`vmesh swap`: another program in the place of a device that the guest uses, or a refusal that it does not notice."""

from __future__ import annotations

import hashlib
import os
import random
import re
import resource
import shlex
import shutil
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
from tests.system.conftest import BRIEF, PROMPT, Host, Terminal
from tests.system.test_external_device import BASE, FLAG, IRQ, PYTHON, copied, wait_for_life
from tests.waiting import LIMIT, kill_until, wait_for
from vmesh.client import GatewayError, MachineClient
from vmesh.guest import Guest
from vmesh.machine import MachineDirectory, MachineError

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]
RIVAL = f"{sys.executable} -P -m tests.system.rival"
LATER = f"{RIVAL} later"
RUNS = "copier0 (copier, state vmesh.v1.CopierState version 1), which goes on: "


@pytest.fixture
def busy(host: Host, run: Run, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MachineDirectory]:
    """A machine `swaps` whose guest uses the copier all the time; it must find all right in the end.

    The parameter is the health limit in seconds: short for tests of what hangs, else ample for a host under load.
    """
    limit = str(getattr(request, "param", 30))
    path = tmp_path / "busy.elf"
    path.write_bytes(programs.elf(programs.copy(BASE, IRQ, 0)))
    flags = ("-bios", "none", "-kernel", str(path), "-name", "swaps", "-health-interval", "0.2", "-health-limit", limit)
    terminal = run(*flags, "-device", f"{FLAG},kind=copier,command={PYTHON}")
    machine = MachineDirectory(host.runtime / "swaps")
    wait_for_life(machine, 1)
    yield machine
    wait_used(machine)
    assert sorted(path.name for path in machine.path.glob("copier0.*")) == ["copier0.slot", "copier0.sock"]
    terminal.type("x")
    assert terminal.wait() == copied(0), terminal.output


def wait_used(machine: MachineDirectory) -> None:
    """Wait until the guest has used the present life of the copier."""

    def accesses() -> int:
        with MachineClient(machine, timeout=LIMIT) as client:
            return next(each for each in client.status().services if each.name == "copier0").counters["accesses"]

    before = accesses()
    wait_for(lambda: accesses() > before, "the guest to use the copier")


def swap(host: Host, command: str, *, status: int = 0) -> str:
    """What `vmesh swap` says of putting `command` in the place of the copier."""
    return host.vmesh("swap", "swaps", "copier0", "--", *shlex.split(command), status=status)


def test_to_and_fro_between_languages(host: Host, busy: MachineDirectory) -> None:
    in_c = shlex.join(copier_in_c())
    for epoch, command in enumerate((in_c, PYTHON, in_c), start=2):
        said = swap(host, command)
        assert f"copier0 (copier) goes on in its life {epoch}, with vmesh.v1.CopierState version 1\n" in said
        assert re.search(r"the guest stood still for \d+ ms\n", said)
        wait_for_life(busy, epoch)
        wait_used(busy)


def test_the_state_comes_by_load_where_the_slot_is_of_another_form(host: Host, busy: MachineDirectory) -> None:
    for epoch, command in enumerate((f"{RIVAL} forgetful", PYTHON), start=2):
        assert "with vmesh.v1.CopierState version 1\n" in swap(host, command)
        wait_for_life(busy, epoch)
        wait_used(busy)


def test_killed_after_it_the_new_one_is_started_again(host: Host, busy: MachineDirectory) -> None:
    swap(host, LATER)
    os.kill(wait_for_life(busy, 2), signal.SIGKILL)
    pid = wait_for_life(busy, 3)
    assert b"tests.system.rival\0later" in Path(f"/proc/{pid}/cmdline").read_bytes()


OTHER_STATE = "expected vmesh.v1.GoldfishRtcState, got 'vmesh.v1.CopierState'"
REFUSED = (
    (f"{sys.executable} -P -m vmesh_services.devices.goldfish_rtc", OTHER_STATE),
    ("false", "ended with status 1"),
    (f"{sys.executable} -P -m docs.examples.copier --no-such-option", "unrecognized arguments: --no-such-option"),
    (f"{RIVAL} toaster", "kind: expected copier, got 'toaster'"),
    (f"{RIVAL} smaller", "regions: expected those of its former life, got others"),
    (f"{RIVAL} strange", "refused the monitor: expected protocol 9.x, got protocol 1.0"),
    (f"{RIVAL} faulting", "no paper"),
    (shlex.join([*PYTHON.split(), "x" * 131_000]), "its command line is too long: expected at most "),
)


def test_refused_the_former_one_goes_on(host: Host, busy: MachineDirectory) -> None:
    for command, reason in REFUSED:
        said = swap(host, command, status=1)
        assert said.count("\n") == 1
        assert reason in said
        assert RUNS in said
        wait_used(busy)
    assert "there is no program '/nowhere/copier'" in swap(host, "/nowhere/copier", status=1)
    assert "no device 'copier1'; expected one of " in host.vmesh("swap", "swaps", "copier1", "--", "true", status=1)
    assert "expected [NAME] DEVICE -- COMMAND" in host.vmesh("swap", "swaps", "copier0", status=2)
    with (
        MachineClient(busy, timeout=LIMIT) as client,
        pytest.raises(GatewayError, match="command: expected a text without NUL"),
    ):
        client.swap("copier0", ["true", "\0"], "/")


def process(machine: MachineDirectory) -> int | None:
    """Of the copier's present life, or its last one."""
    return next((each.pid for each in machine.read_record().services if each.name == "copier0"), None)


def test_a_device_that_died_too_often_is_mended(host: Host, busy: MachineDirectory) -> None:
    with MachineClient(busy, timeout=LIMIT) as client:
        kill_until(lambda: process(busy), lambda: client.status().run_state == "io-error", "the machine to stop")
        for command, reason in (("false", "ended with status 1"), (f"{RIVAL} toaster", "kind: expected copier, got")):
            said = swap(host, command, status=1)
            assert "cannot take the place of copier0 (copier, state vmesh.v1.CopierState), which has died: " in said
            assert reason in said
            assert client.status().run_state == "io-error"
        assert "copier0 (copier) goes on in its life" in swap(host, LATER)
        assert client.status().run_state == "running"
    wait_used(busy)


@pytest.mark.parametrize("busy", [15], indirect=True)
@pytest.mark.parametrize("how", ["silent", "freezing"])
def test_one_that_hangs_is_refused(host: Host, busy: MachineDirectory, how: str) -> None:
    said = swap(host, f"{RIVAL} {how}", status=1)

    assert RUNS in said
    assert "no answer from copier0 for 15 s" in said


def test_an_older_version_is_refused_and_both_are_named(host: Host, busy: MachineDirectory) -> None:
    assert "vmesh.v1.CopierState version 1, now version 2\n" in swap(host, LATER)

    said = swap(host, PYTHON, status=1)

    assert "copier0 (copier, state vmesh.v1.CopierState version 2), which goes on: " in said
    assert "expected version 1 to 1, got 2" in said


def test_one_that_does_not_take_the_state_is_named_with_its_version(host: Host, busy: MachineDirectory) -> None:
    swap(host, LATER)

    said = swap(host, f"{RIVAL} forgetful", status=1)

    assert "copier0 (copier, state vmesh.v1.CopierState version 2), which goes on: " in said
    assert "it is copier, state vmesh.v1.CopierState version 1: " in said


def test_a_full_disk_refuses_it(host: Host, busy: MachineDirectory) -> None:
    """There must be room for a copy of the slot: a file of a MiB is the most the monitor can write."""
    monitor = busy.read_record().pid
    unlimited = resource.prlimit(monitor, resource.RLIMIT_FSIZE)
    resource.prlimit(monitor, resource.RLIMIT_FSIZE, (1 << 20, unlimited[1]))
    said = swap(host, PYTHON, status=1)
    resource.prlimit(monitor, resource.RLIMIT_FSIZE, unlimited)

    assert re.search(r"cannot keep a copy of \S+/copier0.slot: File too large\n", said)
    assert not (busy.path / "copier0.former").exists()
    wait_used(busy)
    swap(host, PYTHON)


def test_paused_it_stays_paused(host: Host, busy: MachineDirectory) -> None:
    host.vmesh("pause", "swaps")
    swap(host, PYTHON)
    assert host.ps()["swaps"]["state"] == "paused"
    host.vmesh("resume", "swaps")


# The cpu waits up to ten seconds for a hart whose device has died; that is not to be taken for a cpu that hangs.
def test_kills_in_the_midst_of_swaps(host: Host, busy: MachineDirectory) -> None:
    """Whichever process is hit, the swap is done or refused, and the guest finds all right."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    done = threading.Event()

    def kill() -> None:
        while not done.wait(chance.uniform(0.0, 1.0)):
            with suppress(MachineError, StopIteration, ProcessLookupError):
                record = busy.read_record()
                os.kill(next(each.pid for each in record.services if each.name == "copier0"), signal.SIGKILL)
            done.wait(2.5)  # five deaths within ten seconds end a machine

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        ends = time.monotonic() + 8.0
        while time.monotonic() < ends:
            with suppress(AssertionError):  # refused
                swap(host, PYTHON)
    finally:
        done.set()
        killer.join(LIMIT)


@pytest.mark.timeout(900)
def test_every_device_of_debian_with_itself(host: Host, run: Run, debian: Guest, tmp_path: Path) -> None:
    """While a shell writes to the console, the disk and a file of the shared folder that stays open."""
    disk, share = tmp_path / "disk.img", tmp_path / "share"
    disk.write_bytes(bytes(16 << 20))
    share.mkdir()
    flags: tuple[str, ...] = (
        "-name", "linux", "-append", BRIEF, "-drive", f"file={disk},format=raw", "-device", "virtio-rng-device",
        "-virtfs", f"local,path={share},mount_tag=t,security_model=none",
    )  # fmt: skip
    if shutil.which("passt"):
        flags += ("-netdev", "user,id=n", "-device", "virtio-net-device,netdev=n")
    machine = run(*flags)
    machine.limit = 4 * LIMIT
    machine.expect(PROMPT)
    machine.ask("modprobe -a 9pnet_virtio 9p virtio_rng virtio_net; mkdir /t")
    machine.ask("mount -t 9p -o trans=virtio t /t; exec 5>/t/lines")
    machine.type(
        "for i in $(seq 200); do echo line $i; echo $i >&5; dd if=/dev/urandom of=/tmp/$i bs=64k count=1 2>/dev/null;"
        " dd if=/tmp/$i of=/dev/vda bs=64k seek=$i conv=fsync 2>/dev/null; done; cd /tmp; cat $(seq 200) | sha256sum\n"
    )
    commands = service_commands(host, *flags)
    with MachineClient(MachineDirectory(host.runtime / "linux"), timeout=LIMIT) as client:
        devices = [each.name for each in client.status().services if each.kind not in ("memory", "cpu")]
        assert {"uart0", "rtc", "test", "blk0", "rng0", "share0"} <= set(devices)
        for name in devices:
            assert client.swap(name, commands[name], os.getcwd()).epoch == 2
    smaller = tmp_path / "smaller.img"
    smaller.write_bytes(bytes(8 << 20))
    other = [word.replace(str(disk), str(smaller)) for word in commands["blk0"]]
    said = host.vmesh("swap", "linux", "blk0", "--", *other, status=1)
    assert "blk0 (virtio-blk, state vmesh.v1.VirtioBlkState version 1), which goes on: " in said
    assert "capacity" in said
    machine.expect("\nline 200\n")
    digest = machine.expect("  -\n")
    written = disk.read_bytes()[1 << 16 : 201 << 16]
    assert digest == hashlib.sha256(written).hexdigest()
    lines = [line for line in machine.output.splitlines() if line.startswith("line ")]
    assert lines == [f"line {number}" for number in range(1, 201)]
    assert (share / "lines").read_text().split() == [str(number) for number in range(1, 201)]
    machine.expect(" # ")
    assert machine.ask("head -c 16 /dev/hwrng | wc -c", " # ").split()[0] == "16"
    machine.type("\x04")
    assert machine.wait() == 0


def service_commands(host: Host, *flags: str) -> dict[str, list[str]]:
    """For each service its command line, without the options that a swap adds."""
    found = {}
    for line in host.vmesh("run", *flags, "-print-commands").splitlines():
        words = shlex.split(line)
        own = words[:4]  # python -P -m MODULE
        for option, value in zip(words[4::2], words[5::2], strict=False):
            if option not in ("--machine", "--name", "--base", "--irq"):
                own += [option, value]
        if "--name" in words:
            found[words[words.index("--name") + 1]] = own
    return found
