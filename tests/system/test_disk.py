"""Debian's virtio drivers on our disks: what the host put there is read, and what the guest writes is in the file."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.conftest import BRIEF, Host, Terminal
from vmesh.guest import Guest

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]
SIZE = 16 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(2).randbytes(SIZE))
    return path


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("properties", ["", ",packed=on", ",num-queues=2"])
def test_what_the_guest_reads_and_writes(host: Host, debian: Guest, disk: Path, properties: str) -> None:
    before = disk.read_bytes()
    commands = [
        "sha256sum /dev/vda",
        "cat /sys/block/vda/serial; echo",
        "dd if=/dev/urandom of=/tmp/noise bs=64k count=50 2>/dev/null",
        "dd if=/tmp/noise of=/dev/vda bs=64k seek=3 conv=fsync,notrunc 2>/dev/null",
        "sha256sum /tmp/noise",
        "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=64k skip=3 count=50 2>/dev/null | sha256sum",
    ]
    flags = ("-smp", "2", "-append", BRIEF, "-drive", f"file={disk},format=raw,if=none,id=d")
    device = f"virtio-blk-device,drive=d,serial=d-17{properties}"

    answer = host.vmesh("run", *flags, "-device", device, stdin="\n".join(commands) + "\n")

    after = disk.read_bytes()
    start, end = 3 * 65536, 53 * 65536
    assert f"{digest(before)}  /dev/vda" in answer
    assert "\nd-17\n" in answer
    assert f"{digest(after[start:end])}  /tmp/noise" in answer
    assert f"{digest(after[start:end])}  -" in answer
    assert after[start:end] != before[start:end]
    assert (after[:start], after[end:]) == (before[:start], before[end:])


@pytest.mark.parametrize("properties", ["", ",packed=on"])
def test_a_killed_disk_comes_back_and_has_lost_nothing(
    run: Run, host: Host, debian: Guest, disk: Path, properties: str
) -> None:
    """The whole way, at four moments; death between any two stores is tests/unit/test_virtio_queue.py's."""
    steps = 24
    script = (
        f"for i in $(seq {steps}); do head -c 262144 /dev/urandom >/tmp/n; "
        "dd if=/tmp/n of=/dev/vda bs=16k seek=$((i * 16)) oflag=direct conv=notrunc 2>/dev/null || echo failed; "
        "dd if=/dev/vda of=/tmp/m bs=16k skip=$((i * 16)) count=16 iflag=direct 2>/dev/null || echo failed; "
        "cmp /tmp/n /tmp/m && echo step $i $(sha256sum </tmp/n); done; read x"
    )
    machine = run(
        *("-name", "killed", "-drive", f"file={disk},format=raw,if=none,id=d"),
        *("-device", f"virtio-blk-device,drive=d{properties}", "-append", f'{BRIEF} vmesh.run="{script}"'),
    )
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    killed = set[int]()
    for step in (2, 7, 13, 19):
        machine.expect(f"step {step} ")
        time.sleep(chance.uniform(0, 0.05))  # somewhere in the next steps
        pid = host.next_life("killed", "blk0", killed)
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    host.next_life("killed", "blk0", killed)
    machine.type("\n")

    assert machine.wait() == 0
    assert "failed" not in machine.output
    told = dict(re.findall(r"^step (\d+) (\w{64}) ", machine.output, re.MULTILINE))
    data = disk.read_bytes()
    written = {str(step): digest(data[step * SIZE // 64 : (step + 1) * SIZE // 64]) for step in range(1, steps + 1)}
    assert told == written


def test_disks_that_are_not_written_to(run: Run, debian: Guest, disk: Path, tmp_path: Path) -> None:
    before = disk.read_bytes()
    other = tmp_path / "other.img"
    other.write_bytes(before[: 1 << 20])
    command = (
        "for d in vda vdb; do cat /sys/block/$d/ro; echo written | dd of=/dev/$d conv=fsync,notrunc; "
        "head -c 7 /dev/$d | grep -c written; done; dd if=/dev/hwrng bs=64 count=1 | wc -c"
    )
    # Which of the two is vda is the guest's choice.
    machine = run(
        *("-drive", f"file={disk},format=raw,snapshot=on"),
        *("-drive", f"file={other},format=raw,readonly=on"),
        *("-device", "virtio-rng-device,bus=virtio-mmio-bus.0"),
        *("-append", f'{BRIEF} vmesh.run="{command}"'),
        pipes=True,
    )

    assert machine.wait() == 0
    lines = [line for line in machine.output.splitlines() if line.isdecimal()]
    assert lines in (["0", "1", "1", "0", "64"], ["1", "0", "0", "1", "64"]), machine.output
    assert disk.read_bytes() == before
    assert other.read_bytes() == before[: 1 << 20]
