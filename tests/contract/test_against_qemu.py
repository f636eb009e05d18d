"""The serial port, the clock and fw_cfg beside QEMU's, register by register, driven through QEMU's qtest protocol."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.models.clock import FakeClock
from tests.unit.device_harness import Bench, FakeRuntime
from tests.unit.virtio_driver import BASE, RAM, guest_memory
from tests.waiting import LIMIT, read_some
from vmesh.cli.flags.options import OptionError
from vmesh.cli.flags.parsing import parse
from vmesh.device import BusError
from vmesh_services.devices.fw_cfg.device import REQUEST, FwCfg
from vmesh_services.devices.fw_cfg.device import Offset as Item
from vmesh_services.devices.fw_cfg.items import DIRECTORY, FIRST_FILE, items
from vmesh_services.devices.goldfish_rtc.device import GoldfishRtc
from vmesh_services.devices.goldfish_rtc.device import Offset as Clock
from vmesh_services.devices.ns16550a.device import Ns16550a, Offset

UART, RTC, FW_CFG = 0x1000_0000, 0x10_1000, 0x1010_0000
_LETTER = {1: "b", 2: "w", 4: "l", 8: "q"}
_LOONGARCH_FW_CFG = 0x1E02_0000
pytestmark = pytest.mark.peer


class Qemu:
    """QEMU's virt board, stopped: its memory accesses by text, its clock does not run."""

    def __init__(self, program: str, *flags: str, memory: str = "16M") -> None:
        command = [program, "-machine", "virt", "-m", memory, "-display", "none", "-serial", "null"]
        command += ["-S", "-qtest", "stdio", "-qtest-log", "none", *flags]
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

    def load(self, address: int, size: int) -> int:
        return int(self.ask(f"read{_LETTER[size]} {address:#x}"), 0)

    def store(self, address: int, size: int, value: int) -> None:
        self.ask(f"write{_LETTER[size]} {address:#x} {value:#x}")

    def bytes(self, address: int, size: int) -> bytes:
        return bytes.fromhex(self.ask(f"read {address:#x} {size}")[2:])

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def qemu(peer: Callable[[str], str]) -> Iterator[Qemu]:
    made = Qemu(peer("qemu-system-riscv64"), "-bios", "none")
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


def test_fw_cfg(peer: Callable[[str], str], tmp_path: Path) -> None:
    """Random accesses and requests; items with something in them are the kernel and its command line, which QEMU puts
    there for firmware in a flash.

    Left out: copies that are in memory with a part only, of which QEMU brings that part, and zeros without end.
    """
    kernel, flash = bytes(range(1, 200)) * 3, tmp_path / "flash"
    with flash.open("wb") as file:
        file.truncate(32 << 20)
    (tmp_path / "kernel").write_bytes(kernel)
    booted = ["-bios", "none", "-kernel", f"{tmp_path}/kernel", "-append", "0123456789", "-smp", "3"]
    drive = ["-drive", f"if=pflash,unit=1,format=raw,file={flash}"]
    qemu = Qemu(peer("qemu-system-riscv64"), *booted, *drive, memory=f"{RAM >> 20}M")
    text = b"0123456789\0"
    sizes = {0x08: len(kernel).to_bytes(4, "little"), 0x14: len(text).to_bytes(4, "little")}
    made = items(3, {}) | sizes | {0x11: kernel, 0x15: text}
    device = FwCfg(FakeRuntime(), FW_CFG, made, b"")  # type: ignore[arg-type]
    device.reset()
    device.memory = memory = guest_memory(tmp_path)
    chance = random.Random(1957)
    trace: list[str] = []

    def read(offset: int, size: int) -> None:
        try:
            ours = device.read(0, offset, size)
        except BusError:
            ours = 0  # as qtest says it
        theirs = qemu.load(FW_CFG + offset, size)
        trace.append(f"r{size}@{offset:#x}={theirs:#x}")
        assert ours == theirs, f"{ours:#x}, QEMU {theirs:#x}, after {' '.join(trace[-40:])}"

    def write(offset: int, size: int, value: int) -> None:
        trace.append(f"w{size}@{offset:#x}={value:#x}")
        qemu.store(FW_CFG + offset, size, value)
        with contextlib.suppress(BusError):
            device.write(0, offset, size, value)
        device.commit()

    def select(selector: int) -> None:
        write(Item.SELECTOR, 2, int.from_bytes(selector.to_bytes(2, "big"), "little"))

    def request() -> None:
        at, target = BASE + 0x1000 + chance.randrange(64), chance.choice((BASE + 0x2000, BASE + 0x2003, 0, BASE + RAM))
        control = chance.choice(interesting) << 16 | chance.getrandbits(5) | chance.choice((0, 0xFFE0))
        words = REQUEST.pack(control, chance.choice((0, 1, 7, 16, 300)), target)
        qemu.ask(f"write {at:#x} {len(words)} 0x{words.hex()}")
        memory.write(at, words)
        trace.append(f"request {words.hex()}")
        if chance.random() < 0.5:
            write(Item.DMA, 8, int.from_bytes(at.to_bytes(8, "big"), "little"))
        else:
            write(Item.DMA_LOW, 4, int.from_bytes(at.to_bytes(4, "big"), "little"))
        for place, count in ((at, 16), (BASE + 0x2000, 320)):
            assert memory.read(place, count) == qemu.bytes(place, count), " ".join(trace[-40:])

    interesting = (0x00, 0x01, 0x05, 0x08, 0x11, 0x14, 0x15, DIRECTORY, 0x22, 0x4015, 0x8015, 0x3F, 0x40, 0xFFFF)
    try:
        read(Item.DATA, 8)  # what is selected after a reset
        for selector in range(0x48):
            select(selector)
            for _ in range(100 if selector in (0x11, DIRECTORY) else 4):
                read(Item.DATA, 8)
        for _ in range(3000):
            size = chance.choice((1, 2, 4, 8))
            match chance.randrange(5):
                case 0:
                    select(chance.choice(interesting))
                case 1:
                    read(chance.randrange(0, 0x18, size), size)
                case 2:
                    offset = chance.randrange(0, 0x10, size)  # the DMA register has requests
                    write(
                        offset,
                        size,
                        (chance.getrandbits(64) if offset != Item.SELECTOR else 0x1500) & (1 << 8 * size) - 1,
                    )
                case 3:
                    read(Item.DATA, size)
                case _:
                    request()
    finally:
        qemu.close()


def test_the_directory_of_fw_cfg(peer: Callable[[str], str], tmp_path: Path) -> None:
    """Names, order and content of items that -fw_cfg gives. QEMU 7's RISC-V board takes none: beside LoongArch's,
    which has more items of its own."""
    (tmp_path / "file").write_bytes(b"of a file")
    flags = [
        *("-fw_cfg", "opt/b,string=1,,2"),
        *("-fw_cfg", f"name=opt/a,file={tmp_path}/file"),
        *("-fw_cfg", "opt/B,string=x,string=y"),
        *("-fw_cfg", f"opt/{'n' * 51},string=long"),
    ]
    made = parse(flags).firmware_items
    contents = {item.name: item.file.read_bytes() if item.file else item.text.encode() for item in made}
    ours = items(1, contents)
    qemu = Qemu(peer("qemu-system-loongarch64"), "-net", "none", *flags, memory="1G")

    def content(selector: int, size: int) -> bytes:
        qemu.store(_LOONGARCH_FW_CFG + Item.SELECTOR, 2, int.from_bytes(selector.to_bytes(2, "big"), "little"))
        return bytes(qemu.load(_LOONGARCH_FW_CFG, 1) for _ in range(size))

    def entries(directory: bytes) -> list[bytes]:
        return [directory[place : place + 64] for place in range(4, len(directory), 64)]

    try:
        count = int.from_bytes(content(DIRECTORY, 4), "big")
        theirs = entries(content(DIRECTORY, 4 + 64 * count))
        found = entries(ours[DIRECTORY])
        named = {entry[8:]: int.from_bytes(entry[4:6], "big") for entry in theirs}
        assert [name for name in named if name in {entry[8:] for entry in found}] == [entry[8:] for entry in found]
        for place, entry in enumerate(found):
            mine = ours[FIRST_FILE + place]
            assert entry[:4] == next(each for each in theirs if each[8:] == entry[8:])[:4]
            assert content(named[entry[8:]], len(mine)) == mine
    finally:
        qemu.close()


@pytest.mark.parametrize(
    "flags",
    [
        ["opt/x,string=a,file=/dev/null"], ["opt/x"], ["string=a"], [",string=a"], ["opt/x,string="], ["opt/x,file="],
        ["opt/x,file=/nonexistent/x"], ["opt/x,file=/"], ["opt/x,other=1"], [f"opt/{'n' * 52},string=x"], ["help"],
        ["etc/boot-fail-wait,string=a"], ["opt/x,string=a", "opt/x,string=b"],
    ],
)  # fmt: skip
def test_an_item_that_qemu_refuses(peer: Callable[[str], str], flags: Sequence[str]) -> None:
    arguments = [word for flag in flags for word in ("-fw_cfg", flag)]
    with pytest.raises(OptionError):
        parse(arguments)
    command = [
        peer("qemu-system-loongarch64"),
        "-machine",
        "virt",
        "-m",
        "1G",
        "-net",
        "none",
        "-display",
        "none",
        "-S",
    ]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 1
    assert "-fw_cfg" in done.stderr
