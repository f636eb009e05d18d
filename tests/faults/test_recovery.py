"""Devices killed under a running guest: it gets every answer once, and nothing of its output is lost or comes twice."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.conftest import DEADLINE, Rig
from tests.system import programs
from tests.waiting import kill_until, read_some, wait_for

pytestmark = pytest.mark.system

LINES = 20_000
MANY = 5 * LINES  # which a guest has not written before it was killed five times, however long each life takes


def output_of(lines: int) -> bytes:
    return b"".join(b"%08x\n" % number for number in range(lines))


class Output:
    """What a machine writes, taken as it comes."""

    def __init__(self, launcher: subprocess.Popen[bytes]) -> None:
        self.data = b""
        self._launcher = launcher
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        assert self._launcher.stdout is not None
        while part := os.read(self._launcher.stdout.fileno(), 65536):
            self.data += part

    def wait(self) -> bytes:
        """Everything, once the machine has ended in order."""
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        assert self._launcher.wait(DEADLINE) == 0
        return self.data


def start(rig: Rig, tmp_path: Path, program: bytes) -> subprocess.Popen[bytes]:
    elf = tmp_path / "guest.elf"
    elf.write_bytes(programs.elf(program))
    return rig.start_real("-bios", "none", "-kernel", str(elf), "-health-interval", "0.1", "-health-limit", "30")


def kill(rig: Rig, name: str) -> int | None:
    """Kill a device as soon as it lives; gives its pid, None when the machine has ended instead."""
    found: list[int] = []

    def lives() -> bool:
        if pid := rig.pid(name):
            found.append(pid)
        return bool(found)

    wait_for(lambda: lives() or not rig.processes(), f"{name} to live")
    if not found:
        return None
    with suppress(ProcessLookupError):
        os.kill(found[0], signal.SIGKILL)
    return found[0]


def chance() -> random.Random:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.mark.parametrize("round_", range(3))
def test_numbered_lines_while_devices_are_killed(rig: Rig, tmp_path: Path, round_: int) -> None:
    moments = chance()
    output = Output(start(rig, tmp_path, programs.count(LINES)))
    rig.wait_running()
    for name in moments.sample(["uart0"] * 4 + ["rtc"] * 2 + ["test"] * 2, k=8):
        time.sleep(moments.uniform(0, 0.1))
        if kill(rig, name) is None:
            break
    assert output.wait() == output_of(LINES)
    rig.wait_clean()


def test_killed_too_often_the_machine_stands_still_until_it_is_told_to_go_on(rig: Rig, tmp_path: Path) -> None:
    """A hart is in the midst of an access, or has posted some: each is made once, in the life after."""
    output = Output(start(rig, tmp_path, programs.count(MANY)))
    rig.wait_running()

    def stands_still() -> bool:
        record = rig.record()
        return record is not None and record.state == "paused"

    kill_until(lambda: rig.pid("uart0"), stands_still, "the machine to be paused")
    with rig.client() as client:
        client.resume()
    assert output.wait() == output_of(MANY)
    rig.wait_clean()


def test_answers_that_a_hart_waits_for_while_the_device_is_killed(rig: Rig, tmp_path: Path) -> None:
    moments = chance()
    launcher = start(rig, tmp_path, programs.loop_back(3000))
    rig.wait_running()
    lives = [kill(rig, "uart0")]
    for _ in range(3):
        wait_for(lambda: rig.pid("uart0") not in (None, *lives) or not rig.processes(), "the next life")
        time.sleep(moments.uniform(0, 0.2))
        if (killed := kill(rig, "uart0")) is None:  # the guest is done already
            break
        lives.append(killed)
    assert launcher.wait(DEADLINE) == 0
    rig.wait_clean()


def test_killed_again_while_it_comes_back(rig: Rig, tmp_path: Path) -> None:
    """The next life dies as soon as it is a process: before it listens, attaches or has read its slot."""
    output = Output(start(rig, tmp_path, programs.count(LINES)))
    rig.wait_running()
    killed: list[int] = []
    for _ in range(4):
        wait_for(lambda: rig.pid("uart0") not in (None, *killed) or not rig.processes(), "the next life")
        if (pid := kill(rig, "uart0")) is None:  # the guest is done already
            break
        killed.append(pid)
    assert output.wait() == output_of(LINES)
    rig.wait_clean()


def test_typed_lines_while_the_serial_port_is_killed(rig: Rig) -> None:
    moments = chance()
    launcher = rig.start_real()
    assert launcher.stdin is not None
    seen = bytearray()
    assert launcher.stdout is not None
    fd = launcher.stdout.fileno()

    def until(text: bytes) -> bytes:
        while text not in seen:
            part = read_some(fd, repr(text))
            assert part, f"ended before {text!r}: {bytes(seen)!r}"
            seen.extend(part)
        before, _, rest = bytes(seen).partition(text)
        seen[:] = rest
        return before

    until(b"> ")
    rig.wait_running()
    killed = 0
    for number in range(30):
        line = b"line %d of thirty" % number
        launcher.stdin.write(line + b"\n")
        launcher.stdin.flush()
        if killed < 4 and moments.random() < 0.3:
            time.sleep(moments.uniform(0, 0.003))
            kill(rig, "uart0")
            killed += 1
        assert until(b"> ") == line + b"\r\n" + line + b"\r\n"
    launcher.stdin.close()
    assert launcher.wait(DEADLINE) == 0
    rig.wait_clean()


def test_status_tells_of_it(rig: Rig, tmp_path: Path) -> None:
    launcher = start(rig, tmp_path, programs.sleep(0))
    rig.wait_running()
    kill(rig, "rtc")
    rig.wait_life("rtc", 2)
    with rig.client() as client:
        rtc = next(service for service in client.status().services if service.name == "rtc")
        assert (rtc.epoch, rtc.state, rtc.last_error) == (2, "running", "was killed by SIGKILL")
        client.quit()
    assert launcher.wait(DEADLINE) == 0
