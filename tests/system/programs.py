"""Small bare-metal guests, for `-bios none -kernel FILE`: made here, so that no cross compiler is needed."""

from __future__ import annotations

import struct

from vmesh.board import encode as e
from vmesh.board import virt
from vmesh.guest.tiny import Program

MCAUSE, MTVEC = 0x342, 0x305
_PLIC_ENABLE, _PLIC_CLAIM = 0x2000, 0x20_0004  # of hart 0 in M-mode
_MTIMECMP, _MTIME = 0x4000, 0xBFF8  # of hart 0, in the CLINT
_MACHINE_TIMER, _MACHINE_EXTERNAL = 7, 11  # bits of mie
_TICKS_PER_MS = virt.TIMEBASE_HZ // 1000
_IN_A_ROW, _REST_MS = 8, 5  # copies, a power of 2
_LSR, _DATA_READY, _SEND_EMPTY = 5, 0x01, 0x20
_MCR, _LOOP = 4, 0x10
_FW_CFG_SELECTOR, _FW_CFG_DMA = 8, 16
_FW_CFG_READ, _FW_CFG_SELECT = 1 << 1, 1 << 3
_ELF_HEADER, _PROGRAM_HEADER = 64, 56


def elf(code: bytes, entry: int = virt.DRAM_BASE) -> bytes:
    """An ELF file that has `code` at the start of RAM (System V ABI, chapters 4 and 5; machine 243 is RISC-V)."""
    offset = _ELF_HEADER + _PROGRAM_HEADER
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = struct.pack(
        "<HHIQQQIHHHHHH", 2, 243, 1, entry, _ELF_HEADER, 0, 0, _ELF_HEADER, _PROGRAM_HEADER, 1, 0, 0, 0
    )
    size = len(code)
    segment = struct.pack("<IIQQQQQQ", 1, 7, offset, virt.DRAM_BASE, virt.DRAM_BASE, size, size, 1)
    return ident + header + segment + code


def fail(code: int) -> bytes:
    """Ends with `code`: the test device's failure."""
    program = Program()
    _finish(program, code << 16 | 0x3333)
    return program.assemble()


def sleep(a0: int) -> bytes:
    """Sleeps for ever, with a0 set."""
    program = Program()
    program.emit(e.addi(e.A0, e.ZERO, a0))
    program.label("park")
    program.emit(e.wfi())
    program.jump("park")
    return program.assemble()


def touch(address: int) -> bytes:
    """Reads where nothing is, a multiple of 4 KiB, twice; then ends with the trap's cause as the failure code."""
    program = Program()
    program.address(e.T0, "trapped")
    program.emit(e.csrw(MTVEC, e.T0), e.addi(e.S2, e.ZERO, 0), e.lui(e.T0, address >> 12))
    program.label("again")
    program.emit(e.lw(e.T1, e.T0, 0))
    program.label("trapped")
    program.emit(e.addi(e.S2, e.S2, 1), e.addi(e.T1, e.ZERO, 2), e.lui(e.T0, address >> 12))
    program.to("again", lambda offset: e.bne(e.S2, e.T1, offset))
    program.emit(e.csrr(e.T1, MCAUSE), e.slli(e.T1, e.T1, 16), *_load(e.T2, 0x3333), e.add(e.T1, e.T1, e.T2))
    program.emit(e.lui(e.T0, virt.TEST.range.base >> 12), e.sw(e.T1, e.T0, 0))
    program.label("park")
    program.jump("park")
    return program.assemble()


def peek(address: int) -> bytes:
    """Reads a word at a multiple of 4 KiB once, and sleeps."""
    program = Program()
    program.emit(e.lui(e.T0, address >> 12), e.lw(e.T1, e.T0, 0))
    program.label("park")
    program.emit(e.wfi())
    program.jump("park")
    return program.assemble()


def sweep(size: int) -> bytes:
    """Stores to each page of RAM in turn, for ever, but for the first MiB; RAM has `size` bytes."""
    program = Program()
    program.emit(*_load(e.S0, virt.DRAM_BASE >> 20), e.slli(e.S0, e.S0, 20), e.lui(e.S1, 0x100), e.lui(e.S2, 1))
    program.emit(*_load(e.S3, size), e.add(e.S3, e.S0, e.S3))
    program.label("around")
    program.emit(e.add(e.T0, e.S0, e.S1))
    program.label("page")
    program.emit(e.sd(e.T0, e.T0, 0), e.add(e.T0, e.T0, e.S2))
    program.to("page", lambda offset: e.bne(e.T0, e.S3, offset))
    program.jump("around")
    return program.assemble()


def count(lines: int) -> bytes:
    """Prints the numbers from 0 to `lines` - 1, a line of eight hexadecimal digits each, and powers off."""
    program = Program()
    program.emit(e.lui(e.S0, virt.UART0.range.base >> 12), e.addi(e.S1, e.ZERO, 0), *_load(e.S2, lines))
    program.label("line")
    program.emit(e.slli(e.S4, e.S1, 32), e.addi(e.A2, e.ZERO, 8))
    program.label("digit")
    program.emit(e.srli(e.A0, e.S4, 60), e.slli(e.S4, e.S4, 4), e.addi(e.T0, e.ZERO, 10), e.addi(e.A2, e.A2, -1))
    program.to("decimal", lambda offset: e.bltu(e.A0, e.T0, offset))
    program.emit(e.addi(e.A0, e.A0, ord("a") - ord("0") - 10))
    program.label("decimal")
    program.emit(e.addi(e.A0, e.A0, ord("0")))
    program.call("put")
    program.to("digit", lambda offset: e.bne(e.A2, e.ZERO, offset))
    program.emit(e.addi(e.A0, e.ZERO, ord("\n")))
    program.call("put")
    program.emit(e.addi(e.S1, e.S1, 1))
    program.to("line", lambda offset: e.bne(e.S1, e.S2, offset))
    _finish(program, virt.TEST_POWER_OFF)
    _put(program)
    return program.assemble()


def firmware_item(selector: int, size: int) -> bytes:
    """Prints an item of fw_cfg of so many bytes twice, and powers off: as the data register reads, and as a DMA request
    brings it into memory. Ends with failure code 1 when that was refused."""
    request, target = 0x8010_0000, 0x8020_0000
    swapped = int.from_bytes(selector.to_bytes(2, "big"), "little")
    words = struct.unpack("<4I", struct.pack(">HHIQ", selector, _FW_CFG_SELECT | _FW_CFG_READ, size, target))
    program = Program()
    program.emit(e.lui(e.S0, virt.UART0.range.base >> 12), e.lui(e.S1, virt.FW_CFG.range.base >> 12))
    program.emit(*_load(e.T0, swapped), e.sh(e.T0, e.S1, _FW_CFG_SELECTOR), *_load(e.S2, size))
    program.label("byte")
    program.emit(e.lbu(e.A0, e.S1, 0))
    program.call("put")
    program.emit(e.addi(e.S2, e.S2, -1))
    program.to("byte", lambda offset: e.bne(e.S2, e.ZERO, offset))
    program.emit(e.lui(e.S3, request >> 12), e.slli(e.S3, e.S3, 32), e.srli(e.S3, e.S3, 32))
    for place, word in enumerate(words):
        program.emit(*_load(e.T0, word), e.sw(e.T0, e.S3, 4 * place))
    program.emit(*_load(e.T0, int.from_bytes(request.to_bytes(4, "big"), "little")), e.sw(e.T0, e.S1, _FW_CFG_DMA + 4))
    program.emit(e.lw(e.T0, e.S3, 0))
    program.to("refused", lambda offset: e.bne(e.T0, e.ZERO, offset))
    program.emit(e.lui(e.T0, target - request >> 12), e.add(e.S3, e.S3, e.T0), *_load(e.S2, size))
    program.label("copied")
    program.emit(e.lbu(e.A0, e.S3, 0))
    program.call("put")
    program.emit(e.addi(e.S3, e.S3, 1), e.addi(e.S2, e.S2, -1))
    program.to("copied", lambda offset: e.bne(e.S2, e.ZERO, offset))
    _finish(program, virt.TEST_POWER_OFF)
    program.label("refused")
    _finish(program, 1 << 16 | 0x3333)
    _put(program)
    return program.assemble()


def loop_back(times: int) -> bytes:
    """Sends bytes to itself through the serial port's loop-back, `times` of them, one by one: a posted write and a read
    that waits and takes the byte away. Ends with failure code 1 when another byte comes than was sent."""
    program = Program()
    program.emit(e.lui(e.S0, virt.UART0.range.base >> 12), e.addi(e.S1, e.ZERO, 0), *_load(e.S2, times))
    program.emit(e.addi(e.T0, e.ZERO, _LOOP), e.sb(e.T0, e.S0, _MCR))
    program.label("again")
    program.emit(e.sb(e.S1, e.S0, 0), e.lbu(e.T0, e.S0, 0), e.andi(e.T1, e.S1, 0xFF))
    program.to("wrong", lambda offset: e.bne(e.T0, e.T1, offset))
    program.emit(e.addi(e.S1, e.S1, 1))
    program.to("again", lambda offset: e.bne(e.S1, e.S2, offset))
    _finish(program, virt.TEST_POWER_OFF)
    program.label("wrong")
    _finish(program, 1 << 16 | 0x3333)
    return program.assemble()


def rest(milliseconds: int) -> tuple[int, ...]:
    """Sleeps so long, by the timer of hart 0; takes t0 to t2 and mie, to which nothing else is due meanwhile."""
    return (
        *_load(e.T0, virt.CLINT.range.base + _MTIME), e.ld(e.T1, e.T0, 0), *_load(e.T2, milliseconds * _TICKS_PER_MS),
        e.add(e.T1, e.T1, e.T2), *_load(e.T0, virt.CLINT.range.base + _MTIMECMP), e.sd(e.T1, e.T0, 0),
        e.addi(e.T0, e.ZERO, 1 << _MACHINE_TIMER), e.csrw(e.MIE, e.T0), e.wfi(),
    )  # fmt: skip


COPIED = 64  # bytes that `copy` has copied: the first of itself


def copy(base: int, irq: int, times: int = 1) -> bytes:
    """Has the copier at `base` copy so many times, then once more, asleep until its interrupt.

    0 times: until something is typed on the serial port.

    Ends with failure code 128 + the CRC's low 7 bits.

    Codes below say what was wrong: 1 the interrupt, 2 the status, 3 the copy, 4 the line after it was acknowledged.
    """
    program = Program()
    program.emit(e.lui(e.S0, base >> 12), e.lui(e.S1, virt.PLIC.range.base >> 12), *_load(e.S2, irq))
    program.emit(e.lui(e.S3, 0x80000), e.slli(e.S3, e.S3, 32), e.srli(e.S3, e.S3, 32))  # the start of RAM
    program.emit(e.lui(e.S4, 0x100), e.add(e.S4, e.S3, e.S4), *_load(e.T0, COPIED))
    program.emit(e.sd(e.S3, e.S0, 0), e.sd(e.S4, e.S0, 8), e.sd(e.T0, e.S0, 16), e.addi(e.T1, e.ZERO, 1))
    program.emit(*_load(e.S5, times))
    program.label("again")
    program.emit(e.sd(e.T1, e.S0, 24), e.ld(e.T0, e.S0, 24), e.sd(e.ZERO, e.S0, 24), e.addi(e.A0, e.ZERO, 2))
    program.to("end", lambda offset: e.bne(e.T0, e.T1, offset))
    if times:
        program.emit(e.addi(e.S5, e.S5, -1))
        program.to("again", lambda offset: e.bne(e.S5, e.ZERO, offset))
    else:
        # Some in a row, then as long a rest: whoever waits for something else needs the processor.
        program.emit(e.addi(e.S5, e.S5, 1), e.andi(e.T0, e.S5, _IN_A_ROW - 1))
        program.to("again", lambda offset: e.bne(e.T0, e.ZERO, offset))
        program.emit(*rest(_REST_MS))
        program.emit(e.lui(e.T0, virt.UART0.range.base >> 12), e.lbu(e.T0, e.T0, _LSR), e.andi(e.T0, e.T0, _DATA_READY))
        program.emit(e.addi(e.T1, e.ZERO, 1))
        program.to("again", lambda offset: e.beq(e.T0, e.ZERO, offset))
    program.emit(e.slli(e.T0, e.S2, 2), e.add(e.T0, e.S1, e.T0), e.sw(e.T1, e.T0, 0))  # priority
    program.emit(*_load(e.T0, _PLIC_ENABLE), e.add(e.T0, e.S1, e.T0), *_load(e.T2, 1 << irq), e.sw(e.T2, e.T0, 0))
    program.emit(*_load(e.T0, 1 << _MACHINE_EXTERNAL), e.csrw(e.MIE, e.T0), e.sd(e.T1, e.S0, 24), e.wfi())
    program.emit(*_load(e.T0, _PLIC_CLAIM), e.add(e.S1, e.S1, e.T0), e.lw(e.T0, e.S1, 0), e.addi(e.A0, e.ZERO, 1))
    program.to("end", lambda offset: e.bne(e.T0, e.S2, offset))
    program.emit(e.ld(e.T0, e.S0, 24), e.addi(e.A0, e.ZERO, 2))
    program.to("end", lambda offset: e.bne(e.T0, e.T1, offset))
    program.emit(e.ld(e.T0, e.S3, COPIED - 8), e.ld(e.T2, e.S4, COPIED - 8), e.addi(e.A0, e.ZERO, 3))
    program.to("end", lambda offset: e.bne(e.T0, e.T2, offset))
    program.emit(e.sd(e.ZERO, e.S0, 24), e.sw(e.S2, e.S1, 0), e.lw(e.T0, e.S1, 0), e.addi(e.A0, e.ZERO, 4))
    program.to("end", lambda offset: e.bne(e.T0, e.ZERO, offset))
    program.emit(e.ld(e.T0, e.S0, 32), e.andi(e.T0, e.T0, 0x7F), e.addi(e.A0, e.T0, 128))
    program.label("end")
    program.emit(e.slli(e.A0, e.A0, 16), *_load(e.T2, 0x3333), e.add(e.T1, e.A0, e.T2))
    program.emit(e.lui(e.T0, virt.TEST.range.base >> 12), e.sw(e.T1, e.T0, 0))
    program.label("park")
    program.jump("park")
    return program.assemble()


def _finish(program: Program, value: int) -> None:
    program.emit(e.lui(e.T0, virt.TEST.range.base >> 12), *_load(e.T1, value), e.sw(e.T1, e.T0, 0))
    program.emit(e.jal(e.ZERO, 0))


def _put(program: Program) -> None:
    """The routine "put": a0 to the serial port, of which s0 is the address; takes t0."""
    program.label("put")
    program.emit(e.lbu(e.T0, e.S0, _LSR), e.andi(e.T0, e.T0, _SEND_EMPTY))
    program.to("put", lambda offset: e.beq(e.T0, e.ZERO, offset))
    program.emit(e.sb(e.A0, e.S0, 0), e.jalr(e.ZERO, e.RA, 0))


def _load(register: int, value: int) -> tuple[int, int]:
    """lui and addi for a value below 2**31."""
    low = (value & 0xFFF ^ 0x800) - 0x800
    return e.lui(register, (value - low) >> 12), e.addi(register, register, low)
