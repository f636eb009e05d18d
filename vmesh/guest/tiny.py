"""A bare-metal guest that the project builds itself: a banner and a shell on the serial port, in M-mode, no firmware.

For hosts without apt, and for tests that want a guest at once: it needs the UART, the PLIC (a hart that waits for a key
sleeps in WFI) and the test device. Ctrl-D on an empty line powers off, so it ends at the end of input.
Sources: the 16550's data sheet; RISC-V PLIC specification, chapters 3 to 9; privileged manual, mie and WFI.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from vmesh.board import encode as e
from vmesh.board import virt
from vmesh.guest.cache import Guest

BANNER = "\r\nvmesh: a machine made of processes. Type help.\r\n"
PROMPT = "> "
HELP = (
    "help      this text\r\n"
    "info      what this hart is\r\n"
    "poweroff  end the machine (so does Ctrl-D; Ctrl-A x ends the emulator)\r\n"
    "All else is said back to you.\r\n"
)

_LINE_BYTES = 64
_RBR, _IER, _LSR = 0, 1, 5  # UART registers: receive and send, interrupt enable, line status
_RX_INTERRUPT, _DATA_READY, _SEND_EMPTY = 1, 1, 0x20
_PLIC_ENABLE, _PLIC_CLAIM = 0x2000, 0x20_0004  # of context 0, hart 0 in M-mode
_MACHINE_EXTERNAL = 11  # bit of mie
_CTRL_D, _BACKSPACE, _NEWLINE, _RETURN, _DELETE, _BLANK = 4, 8, 10, 13, 127, 32


class Program:
    """Machine code in the making: words, texts and labels one after the other, references to labels filled in last."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Callable[[int], bytes]]] = []  # size in bytes, and the bytes for an address
        self._labels: dict[str, int] = {}
        self._size = 0

    def label(self, name: str) -> None:
        """Name this place."""
        self._labels[name] = self._size

    def emit(self, *code: int) -> None:
        self._add(4 * len(code), lambda _: e.words(code))

    def to(self, label: str, instruction: Callable[[int], int]) -> None:
        """An instruction that takes the offset from itself to `label`."""
        self._add(4, lambda here: e.words([instruction(self._labels[label] - here)]))

    def jump(self, label: str) -> None:
        self.to(label, lambda offset: e.jal(e.ZERO, offset))

    def call(self, label: str) -> None:
        self.to(label, lambda offset: e.jal(e.RA, offset))

    def address(self, rd: int, label: str) -> None:
        """rd = the address of `label`, which is less than 2 KiB away."""
        self.emit(e.auipc(rd, 0))
        self._add(4, lambda here: e.words([e.addi(rd, rd, self._labels[label] - (here - 4))]))

    def text(self, name: str, text: str) -> None:
        """A text behind a label, with a zero at its end, padded to whole words."""
        data = text.encode() + b"\0"
        self.label(name)
        self._add(-(-len(data) // 4) * 4, lambda _: data + bytes(-len(data) % 4))

    def assemble(self) -> bytes:
        image = b""
        for _, render in self._parts:
            image += render(len(image))
        return image

    def _add(self, size: int, render: Callable[[int], bytes]) -> None:
        self._parts.append((size, render))
        self._size += size


def guest(scratch: Path) -> Guest:
    """The guest, with its image written to `scratch`. Raises OSError."""
    path = scratch / "tiny.bin"
    path.write_bytes(build())
    return Guest("the built-in guest", bios="none", kernel=path, initrd=None, append="")


def build() -> bytes:
    """The image, for the start of RAM; harts begin at its first byte."""
    program = Program()
    _start(program)
    _shell(program)
    _info(program)
    _power_off(program)
    _routines(program)
    for name, text in _TEXTS.items():
        program.text(name, text)
    program.label("line")  # in RAM behind the image
    return program.assemble()


# What the shell knows: the command, and where its code is.
_COMMANDS: Mapping[str, str] = {"help": "do_help", "info": "do_info", "poweroff": "power_off"}
_TEXTS: Mapping[str, str] = {
    "banner": BANNER,
    "prompt": PROMPT,
    "help_text": HELP,
    "newline": "\r\n",
    "rubout": "\b \b",
    "hart": "mhartid ",
    "isa": "misa    ",
    "cycles": "mcycle  ",
    "bye": "Power off.\r\n",
    **{f"name_{command}": command for command in _COMMANDS},
}


def _start(p: Program) -> None:
    """Hart 0 goes on, with the UART's interrupt able to wake it; others sleep. s0 is the UART, s1 the PLIC's claim."""
    p.emit(e.csrr(e.T0, e.MHARTID))
    p.to("awake", lambda offset: e.beq(e.T0, e.ZERO, offset))
    p.label("park")
    p.emit(e.wfi())
    p.jump("park")
    p.label("awake")
    p.emit(
        e.lui(e.S0, virt.UART0.range.base >> 12),
        e.addi(e.T0, e.ZERO, _RX_INTERRUPT),
        e.sb(e.T0, e.S0, _IER),
        e.lui(e.T1, virt.PLIC.range.base >> 12),
        e.sw(e.T0, e.T1, 4 * virt.UART0.irq),  # priority 1; the threshold is 0 after reset
        e.slli(e.T0, e.T0, virt.UART0.irq % 32),
        e.lui(e.T2, (virt.PLIC.range.base + _PLIC_ENABLE) >> 12),
        e.sw(e.T0, e.T2, 4 * (virt.UART0.irq // 32)),
        e.lui(e.S1, (virt.PLIC.range.base + _PLIC_CLAIM) >> 12),
        e.addi(e.T0, e.ZERO, 1),
        e.slli(e.T0, e.T0, _MACHINE_EXTERNAL),
        e.csrw(e.MIE, e.T0),
    )
    _say(p, "banner")


def _shell(p: Program) -> None:
    """Read a line into `line`, s2 long, then do what it says."""
    p.label("shell")
    _say(p, "prompt")
    p.address(e.S3, "line")
    p.emit(e.addi(e.S2, e.ZERO, 0))
    p.label("key")
    p.call("get")
    _if_equal(p, e.A0, _CTRL_D, "end_of_input")
    _if_equal(p, e.A0, _RETURN, "entered")
    _if_equal(p, e.A0, _NEWLINE, "entered")
    _if_equal(p, e.A0, _BACKSPACE, "erase")
    _if_equal(p, e.A0, _DELETE, "erase")
    _if_below(p, e.A0, _BLANK, "key")
    p.emit(e.addi(e.T0, e.ZERO, _LINE_BYTES - 1))
    p.to("key", lambda offset: e.beq(e.S2, e.T0, offset))
    p.emit(e.add(e.T0, e.S3, e.S2), e.sb(e.A0, e.T0, 0), e.addi(e.S2, e.S2, 1))
    p.call("put")
    p.jump("key")

    p.label("erase")
    p.to("key", lambda offset: e.beq(e.S2, e.ZERO, offset))
    p.emit(e.addi(e.S2, e.S2, -1))
    _say(p, "rubout")
    p.jump("key")

    p.label("end_of_input")
    p.to("key", lambda offset: e.bne(e.S2, e.ZERO, offset))
    p.jump("power_off")

    p.label("entered")
    _say(p, "newline")
    p.to("shell", lambda offset: e.beq(e.S2, e.ZERO, offset))
    p.emit(e.add(e.T0, e.S3, e.S2), e.sb(e.ZERO, e.T0, 0))
    for command, code in _COMMANDS.items():
        p.address(e.A1, f"name_{command}")
        p.call("same_as_line")
        p.to(f"not_{command}", lambda offset: e.beq(e.A0, e.ZERO, offset))
        p.jump(code)
        p.label(f"not_{command}")
    _say(p, "line")
    _say(p, "newline")
    p.jump("shell")

    p.label("do_help")
    _say(p, "help_text")
    p.jump("shell")


def _info(p: Program) -> None:
    p.label("do_info")
    for text, register in (("hart", e.MHARTID), ("isa", e.MISA), ("cycles", e.MCYCLE)):
        _say(p, text)
        p.emit(e.csrr(e.S4, register))
        p.call("put_hex")
        _say(p, "newline")
    p.jump("shell")


def _power_off(p: Program) -> None:
    p.label("power_off")
    _say(p, "bye")
    p.emit(
        e.lui(e.T0, virt.TEST.range.base >> 12),
        e.lui(e.T1, virt.TEST_POWER_OFF >> 12),
        e.addi(e.T1, e.T1, virt.TEST_POWER_OFF & 0xFFF),
        e.sw(e.T1, e.T0, 0),
    )
    p.jump("park")


def _routines(p: Program) -> None:
    """Called with jal; they change a0, a1, a2, t0, t1, t2 and, where they call another, s5 (the way back)."""
    p.label("get")  # a0 = the next key, asleep until there is one
    p.emit(e.lbu(e.T0, e.S0, _LSR), e.andi(e.T0, e.T0, _DATA_READY))
    p.to("got", lambda offset: e.bne(e.T0, e.ZERO, offset))
    p.emit(e.wfi())
    p.jump("get")
    p.label("got")
    p.emit(e.lbu(e.A0, e.S0, _RBR), e.lw(e.T0, e.S1, _PLIC_CLAIM & 0xFFF), e.sw(e.T0, e.S1, _PLIC_CLAIM & 0xFFF))
    p.emit(e.jalr(e.ZERO, e.RA, 0))

    p.label("put")  # send a0
    p.emit(e.lbu(e.T0, e.S0, _LSR), e.andi(e.T0, e.T0, _SEND_EMPTY))
    p.to("put", lambda offset: e.beq(e.T0, e.ZERO, offset))
    p.emit(e.sb(e.A0, e.S0, _RBR), e.jalr(e.ZERO, e.RA, 0))

    p.label("puts")  # send the text at a1
    p.emit(e.addi(e.S5, e.RA, 0))
    p.label("puts_next")
    p.emit(e.lbu(e.A0, e.A1, 0), e.addi(e.A1, e.A1, 1))
    p.to("puts_done", lambda offset: e.beq(e.A0, e.ZERO, offset))
    p.call("put")
    p.jump("puts_next")
    p.label("puts_done")
    p.emit(e.jalr(e.ZERO, e.S5, 0))

    p.label("put_hex")  # send s4 as 16 digits
    p.emit(e.addi(e.S5, e.RA, 0), e.addi(e.A2, e.ZERO, 16))
    p.label("put_digit")
    p.emit(e.srli(e.A0, e.S4, 60), e.slli(e.S4, e.S4, 4), e.addi(e.T0, e.ZERO, 10), e.addi(e.A2, e.A2, -1))
    p.to("decimal", lambda offset: e.bltu(e.A0, e.T0, offset))
    p.emit(e.addi(e.A0, e.A0, ord("a") - ord("0") - 10))
    p.label("decimal")
    p.emit(e.addi(e.A0, e.A0, ord("0")))
    p.call("put")
    p.to("put_digit", lambda offset: e.bne(e.A2, e.ZERO, offset))
    p.emit(e.jalr(e.ZERO, e.S5, 0))

    p.label("same_as_line")  # a0 = 1 if the text at a1 is the line, or else 0
    p.emit(e.addi(e.A2, e.S3, 0), e.addi(e.A0, e.ZERO, 0))
    p.label("same_next")
    p.emit(e.lbu(e.T0, e.A1, 0), e.lbu(e.T1, e.A2, 0), e.addi(e.A1, e.A1, 1), e.addi(e.A2, e.A2, 1))
    p.to("same_done", lambda offset: e.bne(e.T0, e.T1, offset))
    p.to("same_next", lambda offset: e.bne(e.T0, e.ZERO, offset))
    p.emit(e.addi(e.A0, e.ZERO, 1))
    p.label("same_done")
    p.emit(e.jalr(e.ZERO, e.RA, 0))


def _say(p: Program, text: str) -> None:
    p.address(e.A1, text)
    p.call("puts")


def _if_equal(p: Program, register: int, value: int, label: str) -> None:
    p.emit(e.addi(e.T0, e.ZERO, value))
    p.to(label, lambda offset: e.beq(register, e.T0, offset))


def _if_below(p: Program, register: int, value: int, label: str) -> None:
    p.emit(e.addi(e.T0, e.ZERO, value))
    p.to(label, lambda offset: e.bltu(register, e.T0, offset))
