"""Devices that come and go while Debian runs: `vmesh device_add` and `vmesh device_del`."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.file_systems import mounted
from tests.system import programs
from tests.system.conftest import BRIEF, PROMPT, Host, Terminal
from tests.waiting import LIMIT, wait_for
from vmesh.client import GatewayError, MachineClient
from vmesh.guest import Guest
from vmesh.machine import MachineDirectory
from vmesh.spawn import python

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]
LAST = "10008000.virtio_mmio"  # the transport that the first device gets
COPIER = f"command={sys.executable} -P -m docs.examples.copier"


def names(host: Host) -> set[str]:
    return {service["name"] for service in host.ps()["plugs"]["services"]}


@contextmanager
def events(host: Host) -> Iterator[list[tuple[str, Any]]]:
    """What happens meanwhile: names and data, as they come."""
    seen: list[tuple[str, Any]] = []
    with MachineClient(MachineDirectory(host.runtime / "plugs"), timeout=LIMIT) as client:
        stream = client.events()

        def read() -> None:
            with suppress(GatewayError):
                seen.extend((event.name, json.loads(event.data)) for event in stream)

        reader = threading.Thread(target=read)
        reader.start()
        yield seen
        client.close()
    reader.join(LIMIT)
    assert not reader.is_alive()


def wait_gone(host: Host, name: str) -> None:
    """Wait until nothing is left of a device."""
    deadline = time.monotonic() + LIMIT
    while name in names(host) or list((host.runtime / "plugs").glob(f"{name}.*")):
        assert time.monotonic() < deadline, f"waited {LIMIT:g} s for {name} to be gone"
        time.sleep(0.02)


def test_a_disk_comes_is_used_and_goes(host: Host, run: Run, debian: Guest, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"hello" + bytes(1 << 20))
    machine = run("-name", "plugs", "-append", BRIEF)
    machine.expect(PROMPT)
    before = names(host)
    machine.ask("D=/sys/bus/platform/drivers/virtio-mmio; modprobe virtio_blk")
    assert machine.ask("devmem 0x10008000 32; devmem 0x10008008 32") == "0x74726976\n0x00000000\n"
    for round_ in range(2):
        added = host.vmesh(
            "device_add", "plugs", "virtio-blk-device,id=d1,drive=x",
            "-drive", f"file={disk},format=raw,if=none,id=x",
        )  # fmt: skip
        assert added == "d1 is at 0x10008000, interrupt 8\n"
        wait_for(lambda: names(host) == before | {"d1"}, "ps to list the disk")
        assert machine.ask(f"echo {LAST} >$D/bind; head -c 5 /dev/vda; echo").startswith("hello\n")
        machine.ask(f"printf {round_} | dd of=/dev/vda bs=1 seek=9 conv=fsync 2>/dev/null")
        machine.ask(f"echo {LAST} >$D/unbind; ls /dev/vda")
        with events(host) as seen:
            assert host.vmesh("device_del", "plugs", "d1") == ""
            wait_gone(host, "d1")
        assert seen == [("DEVICE_DELETED", {"device": "d1", "path": "/machine/peripheral/d1"})]
        assert disk.read_bytes()[:10] == b"hello\0\0\0\0" + str(round_).encode()
        assert machine.ask("devmem 0x10008008 32") == "0x00000000\n"
    machine.type("\x04")
    assert machine.wait() == 0


def test_a_full_host_is_an_event(host: Host, run: Run, debian: Guest, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    with mounted(small):
        disk = small / "disk"
        disk.touch()
        os.truncate(disk, 16 << 20)
        machine = run("-name", "plugs", "-append", BRIEF, "-drive", f"file={disk},format=raw,id=d0")
        machine.expect(PROMPT)
        with events(host) as seen:
            machine.ask("modprobe virtio_blk")
            machine.ask("dd if=/dev/zero of=/dev/vda bs=64k count=100 2>/dev/null; sync")
            wait_for(lambda: any(name == "BLOCK_IO_ERROR" for name, _ in seen), "the event")
        told = next(data for name, data in seen if name == "BLOCK_IO_ERROR")
        reason = {"operation": "write", "action": "report", "nospace": True, "reason": "No space left on device"}
        assert told == {"device": "blk0", **reason}
        machine.type("\x04")
        assert machine.wait() == 0


def test_what_cannot_be_added_is_refused_and_changes_nothing(host: Host, run: Run, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    drive = ("-drive", f"file={disk},format=raw,if=none,id=x")
    run("-name", "plugs", "-S", "-bios", "none", "-serial", "null", "-device", "virtio-rng-device,id=r",
                  "-kernel", str(bare(tmp_path)), pipes=True)  # fmt: skip
    wait_paused(host)
    before = names(host)
    for device, more, reason in (
        ("virtio-rng-device,id=r", (), "expected an id that no device has"),
        ("virtio-rng-device,bus=virtio-mmio-bus.7", (), "virtio-mmio-bus.7: expected one device on it"),
        ("virtio-blk-device,drive=y", drive, "there is no 'y'"),
        ("virtio-gpu-device", (), "no device 'virtio-gpu-device' can be added"),
        ("virtio-serial-device", (), "a console cannot be added"),
        ("vmesh-external,id=c,base=0x10000000,irq=20," + COPIER, (), "uart0"),
        ("vmesh-external,id=c,base=0x4000000,irq=10," + COPIER, (), "interrupt 10 is taken by uart0"),
        ("vmesh-external,id=c,base=0x80000000,irq=20," + COPIER, (), "RAM"),
        ("vmesh-external,id=c,base=0x4000000,irq=20", (), "expected command=TEXT"),
        ("vmesh-external,id=c,base=0x4000000,irq=20,command=false", (), "the device c cannot be added: ended with"),
    ):
        said = host.vmesh("device_add", "plugs", device, *more, status=1)
        assert reason in said
        assert said.count("\n") == 1
    wait_gone(host, "c")
    assert names(host) == before
    for name in ("uart0", "d7"):
        said = host.vmesh("device_del", "plugs", name, status=1)
        assert f"no device '{name}' can be taken away; expected one of: r\n" in said
    assert host.ps()["plugs"]["state"] == "paused"


def test_all_slots_many_times(host: Host, run: Run, tmp_path: Path) -> None:
    """Numbers, latches and FIFOs are used again; the machine has no more open files than before."""
    run("-name", "plugs", "-S", "-bios", "none", "-serial", "null", "-kernel", str(bare(tmp_path)), pipes=True)
    wait_paused(host)
    with MachineClient(MachineDirectory(host.runtime / "plugs"), timeout=LIMIT) as client:
        client.add_device("virtio-rng-device,id=first")
        client.remove_device("first")
        wait_gone(host, "first")
        before = open_files(host)
        for _ in range(2):
            places = {client.add_device(f"virtio-rng-device,id=r{number}").base for number in range(8)}
            assert len(places) == 8
            with pytest.raises(GatewayError, match="expected at most 8 virtio devices"):
                client.add_device("virtio-rng-device")
            for number in range(8):
                client.remove_device(f"r{number}")
            for number in range(8):
                wait_gone(host, f"r{number}")
    deadline = time.monotonic() + LIMIT
    while (now := open_files(host)) != before:
        assert time.monotonic() < deadline, f"expected {before}, got {now}"
        time.sleep(0.1)


def test_one_that_came_is_killed_swapped_and_killed_while_it_goes(host: Host, run: Run, tmp_path: Path) -> None:
    """Whatever it is doing when it dies, nothing is left of it, and its id and place are free again."""
    run("-name", "plugs", "-bios", "none", "-serial", "null", "-kernel", str(resting(tmp_path)), pipes=True)
    wait_for(lambda: host.ps().get("plugs", {}).get("state") == "running", "the machine to run")
    before = names(host)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with MachineClient(MachineDirectory(host.runtime / "plugs"), timeout=LIMIT) as client:
        for round_ in range(6):
            assert client.add_device(f"vmesh-external,id=c,base=0x4000000,irq=20,{COPIER}").base == 0x400_0000
            pid = life(client, 1)
            if round_ == 0:
                kill(pid)
                life(client, 2)
                reply = client.swap("c", python("tests.system.rival", "later"), os.getcwd())
                assert (reply.kind, reply.version, reply.epoch) == ("copier", 2, 3)
                pid = life(client, 3)
            killer = threading.Timer(chance.uniform(0.0, 0.03), kill, (pid,))
            killer.start()
            with suppress(GatewayError):  # it died in the midst, and is there again
                client.remove_device("c")
            killer.join()
            if any(service.name == "c" for service in client.status().services):
                with suppress(GatewayError):  # it was on its way out
                    client.remove_device("c")
            wait_gone(host, "c")
    wait_for(lambda: names(host) == before, "nothing to be left of it")
    assert host.ps()["plugs"]["state"] == "running"


def life(client: MachineClient, epoch: int) -> int:
    """The process of the device `c` in that life, once it runs."""
    pids: list[int] = []

    def lives() -> bool:
        (found,) = (service for service in client.status().services if service.name == "c")
        pids.append(found.pid)
        return (found.state, found.epoch) == ("running", epoch)

    wait_for(lives, f"life {epoch} of the device")
    return pids[-1]


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_none_comes_or_goes_while_the_machine_moves(host: Host, run: Run, tmp_path: Path) -> None:
    flags = ("-bios", "none", "-serial", "null", "-kernel", str(bare(tmp_path)), "-device", "virtio-rng-device,id=r")
    run("-name", "plugs", *flags, "-incoming", "defer", pipes=True)
    wait_paused(host)
    for command in (("device_add", "plugs", "virtio-rng-device,id=s"), ("device_del", "plugs", "r"),
                    ("swap", "plugs", "r", "--", "true")):  # fmt: skip
        assert " now: the machine waits for a migration to come in\n" in host.vmesh(*command, status=1)


def resting(folder: Path) -> Path:
    """A guest that sleeps."""
    path = folder / "guest.elf"
    path.write_bytes(programs.elf(programs.sleep(0)))
    return path


def bare(folder: Path) -> Path:
    """A guest that is never run."""
    path = folder / "guest.elf"
    path.write_bytes(programs.elf(programs.copy(0x400_0000, 20)))
    return path


def wait_paused(host: Host) -> None:
    deadline = time.monotonic() + LIMIT
    while host.ps().get("plugs", {}).get("state") != "paused":
        assert time.monotonic() < deadline, f"waited {LIMIT:g} s for the machine"
        time.sleep(0.05)


def open_files(host: Host) -> dict[str, int]:
    """By service; sockets that gRPC keeps for a while are the monitor's, which is left out."""
    services = host.ps()["plugs"]["services"]
    return {each["name"]: len(os.listdir(f"/proc/{each['pid']}/fd")) for each in services if each["name"] != "monitor"}
