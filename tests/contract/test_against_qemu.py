"""The serial port and the clock beside QEMU's, register by register, driven through QEMU's qtest protocol."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.models.clock import FakeClock
from tests.unit.device_harness import Bench, FakeRuntime
from tests.waiting import read_some
from vmesh_services.devices.goldfish_rtc.device import GoldfishRtc
from vmesh_services.devices.goldfish_rtc.device import Offset as Clock
from vmesh_services.devices.ns16550a.device import Ns16550a, Offset

UART, RTC = 0x1000_0000, 0x10_1000
pytestmark = pytest.mark.peer


class Qemu:
    """QEMU's virt board, stopped: its memory accesses by text, its clock does not run."""

    def __init__(self, program: str) -> None:
        command = [program, "-machine", "virt", "-m", "16M", "-bios", "none", "-display", "none", "-serial", "null"]
        command += ["-S", "-qtest", "stdio", "-qtest-log", "none"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._said = b""

    def ask(self, text: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()
        while True:
            while b"\n" not in self._said:
                part = read_some(self.process.stdout.fileno(), f"QEMU's answer to {text}")
                assert part, f"QEMU ended at {text}"
                self._said += part
            line, _, self._said = self._said.partition(b"\n")
            answer = line.decode()
            if answer.startswith("OK"):
                return answer[2:].strip()
            assert answer.startswith("IRQ"), answer

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def qemu(peer: Callable[[str], str]) -> Iterator[Qemu]:
    made = Qemu(peer("qemu-system-riscv64"))
    yield made
    made.close()


def test_serial_port(qemu: Qemu) -> None:
    """Random writes and reads of all registers, loop-back included.

    Left out: what an empty receiver gives; the delta bits of MSR (and their interrupt), which QEMU does not do in
    loop-back; receive triggers above one byte, since below the trigger QEMU waits for its clock, which does not run.
    """
    chance = random.Random(16550)
    port = Ns16550a(FakeRuntime(), UART, 10, "null")  # type: ignore[arg-type]
    mine = Bench(port, 1)
    trace: list[str] = []

    def write(offset: int, value: int) -> None:
        trace.append(f"w{offset}={value:#04x}")
        mine.write(offset, value)
        qemu.ask(f"writeb {UART + offset:#x} {value:#x}")

    def read(offset: int) -> None:
        empty = offset == Offset.RBR_THR_DLL and not (port._state.lcr & 0x80 or port._state.receive)
        shadow = mine.shadow(offset)
        ours, theirs = mine.read(offset), int(qemu.ask(f"readb {UART + offset:#x}"), 0)
        trace.append(f"r{offset}={theirs:#04x}")
        if offset == Offset.MSR:
            ours, theirs = ours & 0xF0, theirs & 0xF0
        assert empty or ours == theirs, (
            f"register {offset}: {ours:#04x}, QEMU {theirs:#04x}, after {' '.join(trace[-40:])}"
        )
        assert shadow is None or shadow == theirs

    for offset in range(8):
        read(offset)
    for _ in range(4000):
        offset = chance.randrange(8)
        if chance.random() < 0.5:
            read(offset)
            continue
        value = chance.randrange(256)
        match offset:
            case Offset.IIR_FCR:
                value &= 0x3F
            case Offset.IER_DLM:
                value &= 0xF7
            case Offset.MCR:
                value = value & 0x0F | chance.choice((0, 0x10))
        write(offset, value)


def test_clock(qemu: Qemu) -> None:
    """All registers but the time itself, which runs."""
    chance = random.Random(3)
    runtime = FakeRuntime(clock=FakeClock(wall_ns=time.time_ns()))
    mine = Bench(GoldfishRtc(runtime, RTC, 11), 4)  # type: ignore[arg-type]
    far = (Clock.ALARM_HIGH, 0x7000_0000)
    past = (Clock.ALARM_HIGH, 0)
    writes = [
        far,
        past,
        *((offset, value) for offset in (0x08, 0x10, 0x14, 0x18, 0x1C) for value in (0, 1, 0xFFFF_FFFF)),
    ]
    for step in range(1000):
        if chance.random() < 0.5:
            offset, value = chance.choice(writes)
            mine.write(offset, value)
            qemu.ask(f"writel {RTC + offset:#x} {value:#x}")
        else:
            offset = chance.choice(
                (Clock.ALARM_LOW, Clock.ALARM_HIGH, Clock.IRQ_ENABLED, 0x14, Clock.ALARM_STATUS, 0x1C)
            )
            theirs = int(qemu.ask(f"readl {RTC + offset:#x}"), 0)
            assert mine.read(offset) == theirs, f"register {offset:#x} in step {step}"
