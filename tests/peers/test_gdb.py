"""Debian's gdb on machines of one hart and of four, over a Unix socket, with a guest of ours that has symbols."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.waiting import LIMIT, wait_for
from vmesh.client import MachineClient
from vmesh.machine import MachineDirectory
from vmesh.spawn import python
from vmesh.v1 import gateway_pb2

BATCH = ("--batch", "-nx", "-l", str(int(LIMIT)))  # -l: how long gdb waits for an answer; attaching takes a while
SOURCES = Path(__file__).parent / "gdb"
Peer = Callable[[str], str]


@pytest.fixture(scope="module")
def gdb(peer: Peer) -> str:
    return peer("gdb-multiarch")


@pytest.fixture(scope="module")
def guest(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ELF file, with symbols."""
    pytest.importorskip("ziglang", reason="ziglang is not installed (make dev)")
    elf = tmp_path_factory.mktemp("gdb") / "guest.elf"
    flags = ["-target", "riscv64-freestanding-none", "-mcpu=baseline_rv64", "-mcmodel=medany", "-nostdlib", "-static"]
    flags += ["-g", "-O1", "-fno-omit-frame-pointer", f"-Wl,-T,{root / 'bench/guest/link.ld'}"]
    command = python("ziglang", "cc", *flags, *map(str, sorted(SOURCES.glob("guest.*"))), "-o", str(elf))
    subprocess.run(command, check=True, timeout=LIMIT)
    return elf


class Debugged:
    """A machine that waits for gdb at `socket`."""

    def __init__(self, runtime: Path, *flags: str) -> None:
        self.socket = runtime / "gdb"
        self._machine = MachineDirectory(runtime / "debugged")
        command = python("vmesh.cli", "run", "-name", "debugged", "-display", "none", *flags)
        command += ["-gdb", f"unix:{self.socket},server=on,wait=off"]
        self.process = subprocess.Popen(
            command, env={**os.environ, "VMESH_RUNTIME": str(runtime)}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        wait_for(lambda: self.socket.exists() and self._machine.gateway.exists(), "the machine")

    @property
    def state(self) -> str:
        with MachineClient(self._machine, timeout=LIMIT) as client:
            return gateway_pb2.MachineState.Name(client.status().state)

    def client(self) -> MachineClient:
        return MachineClient(self._machine, timeout=LIMIT)

    def close(self) -> str:
        """End it; gives what it printed."""
        self.process.terminate()
        said, _ = self.process.communicate(timeout=LIMIT)
        return said


@pytest.fixture
def machine() -> Iterator[Callable[..., Debugged]]:
    """Starts a machine with these flags."""
    runtime = Path(tempfile.mkdtemp(prefix="vmesh-gdb-"))
    started: list[Debugged] = []

    def start(*flags: str) -> Debugged:
        started.append(Debugged(runtime, *flags))
        return started[-1]

    yield start
    for each in started:
        assert "Traceback" not in each.close()
    shutil.rmtree(runtime)


def script(gdb: str, machine: Debugged, elf: Path | None, *commands: str) -> str:
    """What gdb prints for these commands, after it has connected."""
    arguments = [gdb, *BATCH, "-ex", "set pagination off", "-ex", "set confirm off"]
    for command in (f"target remote {machine.socket}", *commands):
        arguments += ["-ex", command]
    done = subprocess.run(
        [*arguments, *([str(elf)] if elf else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    print(done.stdout)
    return done.stdout


def test_one_hart(gdb: str, guest: Path, machine: Callable[..., Debugged]) -> None:
    debugged = machine("-bios", "none", "-kernel", str(guest), "-S")
    said = script(
        gdb, debugged, guest,
        "printf \"at %#lx in mode %d\\n\", $pc, $priv",
        "break middle", "continue", "backtrace",
        "step", "step", "step", "finish", "print $a0",
        "delete", "watch rounds", "continue", "continue",
        "delete", "hbreak leaf", "continue", "printf \"hit at %d\\n\", number", "delete",
        "rwatch ratio", "continue",
        "print/x $mstatus & 0x6000", "set $mscratch = 0x1234", "print/x $mscratch",
        "set $ft11 = 2.5", "print $ft11", "print $fcsr",
        "set var shared[3] = 77", "print shared[3]", "x/i &_start",
        "maintenance packet Qqemu.PhyMemMode:1", "x/xw 0x80000000", "maintenance packet Qqemu.PhyMemMode:0",
        "monitor info status", "x/xw 0x10000000",
    )  # fmt: skip
    assert "at 0x1000 in mode 3" in said
    assert re.search(r"#0  middle \(hart=.*0, number=.*0\).*\n#1  0x\w+ in main \(hart=0\)", said)
    assert "leaf (number=" in said, "step goes into the call"
    assert "Value returned" in said, "finish ends behind the call"
    assert "$1 = 1\n" in said
    assert "Old value = 0\nNew value = 1" in said
    assert "Old value = 1\nNew value = 2" in said
    assert "hit at 3" in said
    assert "Hardware read watchpoint 4: ratio" in said
    assert "= 0x6000" in said, "floating point is dirty"
    assert "= 0x1234" in said
    assert "double = 2.5" in said
    assert "= 77" in said
    assert re.search(r"<_start>:\s+csrr\s+a0,mhartid", said)
    assert re.search(r"0x80000000 <_start>:\s+0xf1402573", said)
    assert "VM status: paused" in said
    # gdb's own end is a detach
    wait_for(lambda: debugged.state == "MACHINE_RUNNING", "the machine to go on")


def test_four_harts(gdb: str, guest: Path, machine: Callable[..., Debugged]) -> None:
    debugged = machine("-bios", "none", "-kernel", str(guest), "-S", "-smp", "4")
    said = script(
        gdb, debugged, guest,
        "info threads", "thread apply all print $mhartid",
        "break middle if hart == 2", "continue",
        "printf \"thread %d\\n\", $_thread", "next", "printf \"thread %d\\n\", $_thread", "delete",
        "watch shared[3]", "continue", "printf \"writer %d\\n\", $_thread", "delete",
        "thread 1", "set scheduler-locking on",
        "set $before = (long)shared[1]", "stepi", "stepi", "stepi", "printf \"others %d\\n\", shared[1] - $before",
    )  # fmt: skip
    assert [line for line in said.splitlines() if "machine mode" in line and "Thread" in line][3].split()[0] == "4"
    assert re.findall(r"\$\d = (\d)", said)[:4] == ["3", "2", "1", "0"]
    assert "hart=2" in said or "hart=hart@entry=2" in said
    assert said.count("thread 3") >= 2
    assert "writer 4" in said
    assert "others 0" in said


def go_on_after_stop(process: subprocess.Popen[str], debugged: Debugged) -> None:
    """Until gdb has said "stopped" and then let the guest go on."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("stopped"):
            break
    wait_for(lambda: debugged.state == "MACHINE_RUNNING", "gdb's continue")


def test_a_pause_by_another_door_is_gdbs_too(gdb: str, guest: Path, machine: Callable[..., Debugged]) -> None:
    debugged = machine("-bios", "none", "-kernel", str(guest))
    process = subprocess.Popen(
        [gdb, *BATCH, "-ex", f"target remote {debugged.socket}", "-ex", "printf \"stopped %d\\n\", $priv",
         "-ex", "continue", "-ex", "printf \"again %d\\n\", $priv", str(guest)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    go_on_after_stop(process, debugged)
    with debugged.client() as client:
        client.pause()
    said, _ = process.communicate(timeout=LIMIT)
    assert "Program received signal SIGINT" in said
    assert "again 3" in said


def test_ctrl_c_and_kill(gdb: str, guest: Path, machine: Callable[..., Debugged]) -> None:
    debugged = machine("-bios", "none", "-kernel", str(guest))
    process = subprocess.Popen(
        [gdb, *BATCH, "-ex", f"target remote {debugged.socket}", "-ex", "printf \"stopped %d\\n\", $priv",
         "-ex", "continue", "-ex", "backtrace", "-ex", "kill", str(guest)],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    go_on_after_stop(process, debugged)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=LIMIT)
    assert "Program received signal SIGINT" in said
    assert "in main (hart=" in said or "main (hart=" in said
    assert debugged.process.wait(LIMIT) == 0
