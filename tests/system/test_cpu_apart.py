"""A cpu apart from RAM: a cache beside it has the pages that it uses, and DMA finds each page where it is."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hosts import Spread
from tests.relay import Relay
from tests.system import programs
from tests.system.conftest import BRIEF, PROMPT, Host, Terminal
from tests.waiting import LIMIT, wait_for
from vmesh.client import MachineClient
from vmesh.deploy.description import KEEPER
from vmesh.guest import Guest
from vmesh.machine import MachineDirectory

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]
SIZE = 16 << 20


def test_disk_and_memory_agree(host: Host, debian: Guest, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(random.Random(2).randbytes(SIZE))
    before = hashlib.sha256(disk.read_bytes()).hexdigest()
    commands = [
        "sha256sum /dev/vda",
        "dd if=/dev/urandom of=/tmp/noise bs=64k count=50 2>/dev/null",
        "dd if=/tmp/noise of=/dev/vda bs=64k seek=3 conv=fsync,notrunc 2>/dev/null",
        "sha256sum /tmp/noise",
        "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=64k skip=3 count=50 2>/dev/null | sha256sum",
    ]
    flags = ("-cpu-apart", "-smp", "2", "-append", BRIEF, "-drive", f"file={disk},format=raw,if=none,id=d")
    answer = host.vmesh("run", *flags, "-device", "virtio-blk-device,drive=d", stdin="\n".join(commands) + "\n")
    after = hashlib.sha256(disk.read_bytes()[3 * 65536 : 53 * 65536]).hexdigest()
    assert f"{before}  /dev/vda" in answer
    assert f"{after}  /tmp/noise" in answer
    assert f"{after}  -" in answer


def test_reset_kill_and_what_is_refused(run: Run, host: Host, debian: Guest) -> None:
    """Its memory is anew after a reset, a device comes back, it is not saved, and it ends with its cache."""
    terminal = run("-name", "apart", "-cpu-apart", "-append", BRIEF)
    terminal.expect(PROMPT)
    terminal.ask("echo x >/tmp/mark")
    machine = MachineDirectory(host.runtime / "apart")
    with MachineClient(machine, timeout=LIMIT) as client:
        client.reset()
    terminal.expect(PROMPT)
    assert "No such file" in terminal.ask("cat /tmp/mark")

    former = pid(machine, "uart0")
    os.kill(former, signal.SIGKILL)
    wait_for(lambda: pid(machine, "uart0") not in (former, -1), "the next life of the serial port")
    assert terminal.ask("echo $((6 * 7))").strip() == "42"

    assert "cpu is on another host than RAM" in host.vmesh("snapshot", "save", "apart", "s", status=1)
    assert terminal.ask("echo $((6 * 7))").strip() == "42"

    os.kill(pid(machine, "cache"), signal.SIGKILL)
    assert terminal.wait() == 1
    assert "service 'cache'" in terminal.output.splitlines()[-1]


def pid(machine: MachineDirectory, service: str) -> int:
    record = machine.read_record()
    assert record is not None
    return next(each.pid for each in record.services if each.name == service and each.state != "dead")


def test_flags_that_do_not_go_together(host: Host) -> None:
    assert "-cpu-apart: expected neither" in host.vmesh("run", "-cpu-apart", "-incoming", "defer", status=2)


def test_over_tcp_every_service_ends_in_order(tmp_path: Path) -> None:
    """On five hosts: all that the guest has written comes out, and whoever has something to bring out is asked to."""
    elf = tmp_path / "guest.elf"
    elf.write_bytes(programs.elf(programs.count(2000)))
    relay = Relay()
    where = {"cpu": "a", "cache": "a", "uart0": "b", "rtc": "c", "test": "c", "monitor": "d"}
    machine = Spread(["-bios", "none", "-kernel", str(elf), "-cpu-apart"], where, relay)
    try:
        machine.start()
        services = machine.commands.keys() - {KEEPER}  # which ends with the machine directory of its host
        ended = {name: machine.processes[name].wait() for name in services}
        assert ended == dict.fromkeys(services, 0), [machine.said(name) for name in ended]
        assert machine.console == b"".join(b"%08x\n" % number for number in range(2000))
        assert not [name for name in ended if machine.said(name)]
    finally:
        machine.close()
        relay.close()
