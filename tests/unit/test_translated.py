"""Translated code keeps what the interpreter promises: precise traps, exact counts, changed code, requests of others.

Each test runs with all code translated and with about half of it (``models.tiers``). Its docstring names the check, in
``isa/riscv/region.py`` where nothing else is said, without which it fails.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from tests.cpu_harness import ACLINT, BASE, END_WORD, Access, Cpu
from tests.models.assembler import assemble
from tests.models.guest import CODE, DATA, M, S, Space, U, open_pmp, put, virt
from tests.models.tiers import BOTH, INTERPRET, TRANSLATE
from vmesh_services.cpu.core.execution import POSTED_SLICE, SLICE
from vmesh_services.cpu.core.state import (
    ATTENTION_INTERRUPT,
    ATTENTION_STOP,
    EXIT_ACCESS,
    EXIT_DRAIN,
    EXIT_FLUSH,
    EXIT_STOP,
    RING_ENTRIES,
)
from vmesh_services.cpu.core.tlb import data_index
from vmesh_services.cpu.native.lang import NativeFunction

#: Where devices of these tests are; all that is posted to the second one goes into the ring.
DEVICE, POSTED = 0x1000_0000, 0x1100_0000


@pytest.fixture(params=[TRANSLATE, BOTH])
def cpu(request: pytest.FixtureRequest) -> Iterator[Cpu]:
    made = virt(2, mode=request.param)
    made.reset()
    open_pmp(made.hart)
    yield made
    assert made.harts.installed


@pytest.fixture
def space(cpu: Cpu) -> Space:
    """The code at its own address; at 0x10000 a page of data, at 0x11000 none."""
    made = Space(cpu)
    for page in range(4):
        made.map(CODE + 0x1000 * page, CODE + 0x1000 * page, 0xCF)
    made.map(0x10000, DATA, 0xCF)
    made.map(0x11000, 0, 0)
    return made


def start(cpu: Cpu, text: str, x: dict[int, int] | None = None, **fields: int) -> int:
    """Puts a program into place, hart 0 about to run it; gives the count of retired instructions."""
    put(cpu, text)
    cpu.set(CODE, x, None, **fields)
    return int(cpu.hart.retired)


# traps


WARM = "loop: ld a1, 0(a0)\n addi a2, a2, 1\n add a3, a3, a2\n addi a0, a0, 8\n bne a0, a5, loop\n ecall"


def test_a_fault_in_the_middle_of_a_loop(cpu: Cpu, space: Space) -> None:
    """Registers are written back, pc and count are those before the instruction: ``_write_back``, ``leave_by``."""
    cpu.write(DATA, bytes(range(256)) * 16)
    before = start(cpu, "nop\n" + WARM, {10: 0x10000, 15: 0x12000}, privilege=S, satp=space.satp)
    cpu.forget()
    stop = cpu.run()
    assert (stop.pc, stop.cause, stop.value) == (CODE + 4, 13, 0x11000)
    x = cpu.x()
    assert (x[10], x[12], x[13]) == (0x11000, 512, 512 * 513 // 2)
    assert x[11] == int.from_bytes(cpu.read(DATA + 0xFF8, 8), "little")
    assert cpu.hart.retired - before == 1 + 512 * 5


def test_a_store_that_faults_changes_nothing(cpu: Cpu, space: Space) -> None:
    """A page that may only be read, and a store across the end of a page that may be written: the write TLB is asked,
    and whole accesses only (``locate``'s tag compare)."""
    space.map(0x12000, DATA + 0x2000, 0xC3)
    memory = cpu.read(DATA, 0x3000)
    for address, value in ((0x12008, 0x12008), (0x10FFC, 0x11000), (0x10FF9, 0x11000)):
        text = "ld a1, -2048(a0)\n addi a2, a2, 1\n sd a2, 0(a0)\n addi a2, a2, 1\n ecall"
        x = {10: address, 12: 5}
        if address == 0x12008:
            text = text.replace("-2048", "0")
        before = start(cpu, text, x, privilege=S, satp=space.satp)
        cpu.forget()
        stop = cpu.run()
        assert (stop.pc, stop.cause, stop.value) == (CODE + 8, 15, value)
        assert cpu.x()[12] == 6
        assert cpu.hart.retired - before == 2
        assert cpu.read(DATA, 0x3000) == memory


def test_misaligned_accesses(cpu: Cpu) -> None:
    """Inside a page and across two: the values are right; atomics trap (``locate``'s tag compare)."""
    cpu.write(DATA, bytes(n * 7 & 0xFF for n in range(0x2000)))
    for offset in (1, 3, 5, 0xFF9, 0xFFE, 0xFFF):
        data = cpu.read(DATA + offset, 8)
        text = "ld a1, 0(a0)\n lw a2, 0(a0)\n lhu a3, 0(a0)\n sd a5, 0(a0)\n amoadd.w a4, a4, (a0)\n nop"
        before = start(cpu, text, {10: DATA + offset, 15: 0x1122334455667788})
        stop = cpu.run()
        assert (stop.pc, stop.cause, stop.value) == (CODE + 16, 6, DATA + offset)
        assert cpu.hart.retired - before == 4
        x = cpu.x()
        assert x[11] == int.from_bytes(data, "little")
        assert (x[12] & 0xFFFF_FFFF, x[13]) == (x[11] & 0xFFFF_FFFF, x[11] & 0xFFFF)
        assert cpu.read(DATA + offset, 8) == (0x1122334455667788).to_bytes(8, "little")


@pytest.mark.parametrize("mode", [INTERPRET, TRANSLATE])
def test_misaligned_accesses_in_a_page_are_as_fast_as_others(mode: str) -> None:
    """V8 makes them all over: one that walked the page table for each byte cost twenty times QEMU's time."""
    cpu = virt(mode=mode)
    cpu.write(DATA, bytes(range(64)))
    text = (
        "li a1, 1000\n loop: ld a2, 1(s0)\n lw a3, 5(s0)\n lhu a4, 3(s0)\n sd a2, 17(s0)\n sw a3, 30(s0)\n"
        " addi a1, a1, -1\n bnez a1, loop\n .word END"
    )
    start(cpu, text, {8: DATA})
    fills = cpu.hart.count_tlb_fills
    assert cpu.run().why == "end"
    assert (cpu.x()[12], cpu.x()[13], cpu.x()[14]) == (0x0807060504030201, 0x08070605, 0x0403)
    assert cpu.read(DATA + 17, 8) == bytes(range(1, 9))
    assert cpu.read(DATA + 30, 4) == bytes(range(5, 9))
    assert cpu.hart.count_tlb_fills - fills < 10


@pytest.mark.parametrize("distance", [1 << bit for bit in range(20, 26)])
def test_what_is_mapped_alike_does_not_drive_each_other_out(distance: int) -> None:
    """OpenJDK uses pages at the same place of different megabytes by turns: each access walked the page table."""
    cpu = virt(size=64 << 20)
    text = (
        "li a1, 1000\n loop: ld a2, 0(s0)\n ld a3, 0(s1)\n sd a2, 8(s0)\n sd a3, 8(s1)\n"
        " addi a1, a1, -1\n bnez a1, loop\n .word END"
    )
    start(cpu, text, {8: DATA, 9: DATA + distance})
    fills = cpu.hart.count_tlb_fills
    assert cpu.run().why == "end"
    assert cpu.hart.count_tlb_fills - fills < 10


@pytest.mark.parametrize("mode", [INTERPRET, TRANSLATE])
@pytest.mark.parametrize("text", ["ld a2, -4(s0)", "sd a2, -4(s0)", "lw a2, -1(s0)", "lhu a2, -1(s0)"])
def test_an_access_that_begins_in_the_page_before_is_none_of_this_one(mode: str, text: str) -> None:
    """Where RAM begins, at a multiple of 2 GiB: the TLB has an entry of its first page."""
    cpu = virt(mode=mode)
    before = cpu.read(BASE, 8)
    start(cpu, f"ld a1, 0(s0)\n sd a1, 0(s0)\n {text}\n .word END", {8: BASE})
    stop = cpu.run()
    assert (stop.why, stop.pc, stop.cause & ~2) == ("trapped", CODE + 8, 4)  # misaligned, or an access fault
    assert cpu.read(BASE, 8) == before


def test_neighbours_never_have_the_same_place_in_a_tlb() -> None:
    assert isinstance(data_index, NativeFunction)
    place = data_index.python  # for page numbers of any size that Python has
    for boundary in (0, *(1 << bit for bit in range(12, 64))):
        assert place((boundary - 4096) & (1 << 64) - 1) != place(boundary), hex(boundary)


@pytest.mark.parametrize("text", ["csrw 0xc00, x0", ".word 0", "ebreak", "ecall"])
def test_what_a_region_does_not_do_itself(cpu: Cpu, text: str) -> None:
    """It leaves before such an instruction with everything as it is then (``go_to_slot``)."""
    before = start(cpu, f"li a0, 5\n li a1, 6\n mul a2, a0, a1\n {text}\n li a2, 0\n .word END")
    stop = cpu.run()
    assert (stop.why, stop.pc) == ("trapped", CODE + 12)
    assert cpu.x()[12] == 30
    assert cpu.hart.retired - before == 3


# devices


def test_a_device_is_accessed_exactly_once(cpu: Cpu) -> None:
    """In the middle of a loop: the access ends in the interpreter, which goes on behind it (``missed``)."""
    cpu.harts.add_region(DEVICE, 0x1000, 0, 0)
    seen: list[Access] = []

    def device(access: Access) -> int:
        seen.append(access)
        return 1000 + len(seen)

    cpu.device = device
    before = start(
        cpu,
        """
    loop:
        addi a1, a1, 1
        lw a2, 8(a0)
        add a3, a3, a2
        sw a1, 16(a0)
        amoadd.w a6, a1, (a7)
        addi a4, a4, -1
        bnez a4, loop
        .word END
        """,
        {10: DEVICE, 14: 20, 17: DATA},
    )
    assert cpu.run().why == "end"
    assert [(a.write, a.offset, a.value) for a in seen if a.write] == [(True, 16, n) for n in range(1, 21)]
    assert [(a.write, a.offset) for a in seen] == [(False, 8), (True, 16)] * 20
    assert cpu.x()[13] == sum(1001 + 2 * n for n in range(20))
    assert cpu.hart.retired - before == 20 * 7
    assert int.from_bytes(cpu.read(DATA, 4), "little") == 210


def test_a_bus_error_is_precise(cpu: Cpu) -> None:
    """No device answers: an access fault at the instruction, which has not happened."""
    before = start(cpu, "addi a1, a1, 1\n lw a1, 0(a0)\n addi a1, a1, 1\n .word END", {10: DEVICE, 11: 7})
    stop = cpu.run()
    assert (stop.pc, stop.cause, stop.value) == (CODE + 4, 5, DEVICE)
    assert cpu.x()[11] == 8
    assert cpu.hart.retired - before == 1


def test_a_fence_waits_for_what_was_posted(cpu: Cpu) -> None:
    """FENCE O leaves until the ring is empty (``hook_drain_posted``), FENCE R does not; a full ring does."""
    kinds = (bytearray(b"\x0f" * 0x1000), bytearray(0x1000))
    hosts = [ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in kinds]
    cpu.harts.add_region(POSTED, 0x1000, 0, 0, *hosts)
    hart = cpu.hart
    before = start(cpu, "nop\n sw a1, 0(a0)\n fence r, r\n sw a1, 4(a0)\n fence o, o\n addi a1, a1, 1\n .word END",
                   {10: POSTED, 11: 9})  # fmt: skip
    assert cpu.harts.run(0) == EXIT_DRAIN
    assert (hart.ring_count, hart.pc, hart.x[11]) == (2, CODE + 16, 9)
    assert hart.retired - before == 4
    assert [(e.offset, e.value) for e in hart.ring[:2]] == [(0, 9), (4, 9)]
    hart.ring_count = 0
    assert cpu.run().why == "end"
    assert hart.x[11] == 10
    before = start(cpu, "loop: sw a1, 0(a0)\n addi a1, a1, -1\n bnez a1, loop\n .word END", {10: POSTED, 11: 1000})
    written = 0
    while cpu.harts.run(0) != EXIT_ACCESS:
        written += hart.ring_count
        hart.ring_count = 0
    assert written + hart.ring_count == 1000
    assert hart.ring_count < RING_ENTRIES
    assert hart.retired - before == 3000


def test_a_posted_write_does_not_wait_for_the_end_of_a_slice(cpu: Cpu) -> None:
    """It makes the hart look, at once and then often, until it has waited for POSTED_AGE (``attention``)."""
    hart = cpu.hart
    kinds, values = bytearray(b"\x0f" * 0x1000), bytearray(0x1000)
    hosts = [ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in (kinds, values)]
    cpu.harts.add_region(POSTED, 0x1000, 0, 0, *hosts)
    start(cpu, "loop: addi a2, a2, 1\n bltu a2, a3, loop\n sw a1, 0(a0)\n .word END", {10: POSTED, 13: 100})
    assert cpu.run().why == "end"
    assert hart.ring_count == 1
    assert hart.stop_at <= hart.retired + POSTED_SLICE
    start(cpu, "loop: addi a2, a2, 1\n j loop", {})
    assert cpu.harts.run(0) == EXIT_FLUSH
    assert hart.ring_count == 1
    assert 0 < hart.stop_at - hart.retired <= POSTED_SLICE
    hart.ring_count, hart.attention, hart.stop_at = 0, ATTENTION_STOP, 0
    assert cpu.harts.run(0) == EXIT_STOP
    assert POSTED_SLICE < hart.stop_at - hart.retired <= SLICE


# code that changes


def test_code_in_its_own_page_changes(cpu: Cpu) -> None:
    """FENCE.I begins an epoch, in which the page is compared with what was decoded (``code_page``)."""
    for rounds in range(3):
        new = assemble(f"addi a0, a0, {100 + rounds}", 0).code
        stop = start_and_end(
            cpu,
            """
            call routine
            sw a1, 0(a2)
            fence.i
            call routine
            .word END
        routine:
            addi a0, a0, 1
            nop
            nop
            ret
            """,
            {10: 0, 11: int.from_bytes(new, "little"), 12: CODE + 20},
        )
        assert stop == "end"
        assert cpu.x()[10] == 1 + 100 + rounds


def start_and_end(cpu: Cpu, text: str, x: dict[int, int]) -> str:
    start(cpu, text, x)
    return cpu.run().why


def test_code_and_data_share_a_page(cpu: Cpu) -> None:
    """Stores into the page of running code cost it nothing: no region is made anew."""
    text = """
    loop:
        ld a1, 64(a0)
        addi a1, a1, 1
        sd a1, 64(a0)
        addi a2, a2, -1
        bnez a2, loop
        .word END
    """
    assert start_and_end(cpu, text, {10: CODE, 12: 5}) == "end"
    installed = cpu.harts.installed
    cpu.set(CODE, {12: 2000})
    assert cpu.run().why == "end"
    assert int.from_bytes(cpu.read(CODE + 64, 8), "little") == 2005
    assert cpu.harts.installed == installed


def test_data_that_changes_beside_code() -> None:
    """FENCE.I after each store: what was decoded stays, and so would regions (``check_slots``)."""
    cpu = virt(1, mode=INTERPRET)
    text = """
    loop:
        ld a1, 64(a0)
        addi a1, a1, 1
        sd a1, 64(a0)
        fence.i
        addi a2, a2, -1
        bnez a2, loop
        .word END
    """
    start(cpu, text, {10: CODE, 12: 5})
    assert cpu.run().why == "end"
    decoded = cpu.hart.count_decoded
    cpu.set(CODE, {12: 1000})
    assert cpu.run().why == "end"
    assert int.from_bytes(cpu.read(CODE + 64, 8), "little") == 1005
    assert cpu.hart.count_decoded == decoded
    # data that is executed later is what it is then
    cpu.write(CODE + 64, assemble(f"li a3, 7\n .word {END_WORD}", CODE).code)
    cpu.set(CODE + 64)
    assert cpu.run().why == "end"
    assert cpu.x()[13] == 7


@pytest.mark.parametrize("changed", range(6))
def test_code_that_changes_under_a_fence(changed: int) -> None:
    """Each of some instructions of which every second one lies in two doublewords."""
    nop = (1).to_bytes(2, "little")

    def program(amounts: list[int]) -> bytes:
        adds = assemble("\n".join(f"addi a1, a1, {amount}" for amount in amounts) + f"\n .word {END_WORD}", 0).code
        return nop + adds

    cpu = virt(1, mode=INTERPRET)
    amounts = [1] * 6
    for _ in range(2):
        cpu.write(CODE, program(amounts))
        cpu.set(CODE, {11: 0})
        assert cpu.run().why == "end"
        assert cpu.x()[11] == sum(amounts)
        amounts[changed] = 0x100  # in the upper half of the instruction


def test_half_an_instruction_changes_under_a_fence() -> None:
    """Nothing is decoded in the doubleword that changes but the end of a jump from the one before."""

    def program(target: int) -> bytes:
        """A jump at 6 to 32 or to 48."""
        jump = (1).to_bytes(2, "little") * 3 + assemble(f"j {target - 6}", 0).code
        rest = [assemble(f"li a1, {n}\n .word {END_WORD}", 0).code.ljust(16, b"\0") for n in (1, 2)]
        return jump.ljust(32, b"\0") + b"".join(rest)

    cpu = virt(1, mode=INTERPRET)
    for place, expected in ((32, 1), (48, 2), (32, 1)):
        cpu.write(CODE, program(place))
        cpu.set(CODE)
        assert cpu.run().why == "end"
        assert cpu.x()[11] == expected


def test_another_hart_changes_code(cpu: Cpu) -> None:
    """What it wrote is run after our own FENCE.I; decoded pages are per hart (``code_page``)."""
    text = "fence.i\n jalr ra, 0(s0)\n .word END"
    routine = CODE + 0x1000
    for number in range(2):
        hart = cpu.harts.hart[number]
        open_pmp(hart)
    for value in (5, 6):
        writer = put(cpu, "sw a1, 0(a0)\n nop\n nop\n .word END", CODE + 0x2000)
        assert writer.code
        if value == 5:
            cpu.write(routine, assemble("li a0, 4\n nop\n nop\n ret", 0).code)
        put(cpu, text)
        cpu.set(CODE, {8: routine})
        if value == 5:
            assert cpu.run().why == "end"
            assert cpu.x()[10] == 4
        other = cpu.harts.hart[1]
        other.x[10], other.x[11] = routine, int.from_bytes(assemble(f"li a0, {value}", 0).code, "little")
        other.pc, other.mtvec = CODE + 0x2000, cpu.base
        assert cpu.run(1).why == "end"
        cpu.set(CODE, {8: routine})
        assert cpu.run().why == "end"
        assert cpu.x()[10] == value


def test_a_device_writes_code(cpu: Cpu) -> None:
    """What a device has written is run behind a FENCE.I, at the latest."""
    routine = CODE + 0x1000
    cpu.write(routine, assemble("addi a0, a0, 1\n nop\n nop\n ret", 0).code)
    start(cpu, "jalr ra, 0(s0)\n lw a1, 0(s1)\n fence.i\n jalr ra, 0(s0)\n .word END", {8: routine, 9: DEVICE})
    cpu.harts.add_region(DEVICE, 0x1000, 0, 0)

    def transfer(access: Access) -> int:
        cpu.dma(routine, assemble("addi a0, a0, 100", 0).code)
        return 0

    cpu.device = transfer
    assert cpu.run().why == "end"
    assert cpu.x()[10] == 101


def test_code_seen_at_two_addresses(cpu: Cpu, space: Space) -> None:
    """One frame, two virtual pages: pc is computed from where the code runs (``pc_at``), and so are returns."""
    routine = assemble("auipc a0, 0\n nop\n jal a1, next\n next: add a2, a0, a1\n ret", 0).code
    cpu.write(DATA + 0x1000, routine)
    space.map(0x20000, DATA + 0x1000, 0xCF)
    space.map(0x7F00_0000, DATA + 0x1000, 0xCF)
    text = "jalr ra, 0(s0)\n mv s2, a0\n mv s3, a1\n jalr ra, 0(s1)\n ecall"
    start(cpu, text, {8: 0x20000, 9: 0x7F00_0000}, privilege=S, satp=space.satp)
    cpu.forget()
    assert cpu.run().cause == 9
    x = cpu.x()
    assert (x[18], x[19], x[10], x[11]) == (0x20000, 0x2000C, 0x7F00_0000, 0x7F00_000C)
    assert x[12] == 2 * 0x7F00_0000 + 12


def test_other_code_under_the_same_address(cpu: Cpu, space: Space) -> None:
    """A remap and SFENCE.VMA: the fetch TLB leads to the slots of another frame (``fence_vma``)."""
    for frame in (1, 2):
        cpu.write(DATA + 0x1000 * frame, assemble(f"addi a{frame}, a{frame}, {frame}\n nop\n nop\n ret", 0).code)
    space.map(0x30000, DATA + 0x1000, 0xCF)
    space.map(0x40000, space.entry(0x30000), 0xC7)
    text = """
        li s3, 3
    loop:
        jalr ra, 0(s0)
        addi s3, s3, -1
        bnez s3, loop
        sd s2, 0(s1)
        sfence.vma s0, x0
        jalr ra, 0(s0)
        ecall
    """
    at = 0x40000 + (space.entry(0x30000) & 0xFFF)
    x = {8: 0x30000, 9: at, 18: (DATA + 0x2000) >> 12 << 10 | 0xCF}
    start(cpu, text, x, privilege=S, satp=space.satp)
    cpu.forget()
    assert cpu.run().cause == 9
    assert (cpu.x()[11], cpu.x()[12]) == (3, 2)


def test_one_region_in_two_address_spaces_and_modes(cpu: Cpu) -> None:
    """The same code reads what the current address space maps (the TLB comes with the caller: ``%tlb``)."""
    spaces = [Space(cpu, first=DATA + 0x10000 + 0x10000 * n, asid=n + 1) for n in range(2)]
    for n, each in enumerate(spaces):
        cpu.write(DATA + 0x1000 * n, (100 + n).to_bytes(8, "little"))
        each.map(CODE, CODE, 0xCF)
        each.map(0x10000, DATA + 0x1000 * n, 0xCF)
    text = """
        call read
        mv s1, a1
        csrw satp, s0
        call read
        mv s2, a1
        li a0, CODE
        call read
        ecall
    read:
        ld a1, 0(a0)
        addi a2, a2, 1
        addi a1, a1, 1
        ret
    """
    start(cpu, text, {8: spaces[1].satp, 10: 0x10000}, privilege=S, satp=spaces[0].satp)
    cpu.forget()
    assert cpu.run().cause == 9
    x = cpu.x()
    assert (x[9], x[18], x[12]) == (101, 102, 3)


def test_permissions_of_a_mode(cpu: Cpu, space: Space) -> None:
    """Supervisor code that was translated is not run in user mode (fetch TLBs are per mode)."""
    space.map(CODE + 0x2000, CODE + 0x2000, 0xDF)
    put(cpu, "jalr ra, 0(s0)\n ecall", CODE + 0x2000)
    routine = "nop\n addi a0, a0, 1\n nop\n ret"
    start(cpu, routine, {1: 0, 8: CODE}, privilege=S, satp=space.satp)
    cpu.forget()
    stop = cpu.run()
    assert (stop.pc, stop.cause) == (0, 12)
    cpu.set(CODE + 0x2000, privilege=U)
    stop = cpu.run()
    assert (stop.pc, stop.cause, stop.value) == (CODE, 12, CODE)
    assert cpu.x()[10] == 1


# requests of others, interrupts

LOOPS = {
    "in a region": "loop: addi a0, a0, 1\n addi a1, a1, -1\n bnez a1, loop\n ecall",
    "by jal": "loop: addi a0, a0, 1\n addi a1, a1, -1\n beqz a1, out\n j loop\n out: ecall",
    "longer than a region": "loop: addi a0, a0, 1\n" + "nop\n" * 70 + "addi a1, a1, -1\n bnez a1, loop\n ecall",
    "indirect": "la a3, loop\n loop: addi a0, a0, 1\n addi a1, a1, -1\n beqz a1, out\n jr a3\n out: ecall",
    "two halves": "j loop\n second: addi a1, a1, -1\n beqz a1, out\n loop: addi a0, a0, 1\n j second\n out: ecall",
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_can_be_stopped(cpu: Cpu, name: str) -> None:
    """Every way around has a look at ``stop_at`` (``flow`` backward, ``check``); without it the loop ends first."""
    cpu.harts.limit = 24
    start(cpu, LOOPS[name], {11: 3_000_000})
    hart = cpu.hart
    for round in range(1, 50):
        hart.attention = ATTENTION_STOP
        hart.stop_at = hart.retired + 1000 + round
        wanted = hart.stop_at
        assert cpu.harts.run(0) == EXIT_STOP
        assert wanted <= hart.retired <= wanted + 80
        # nothing is half-done: the loop's own count of rounds agrees with its count down
        assert hart.x[10] + hart.x[11] in (3_000_000, 3_000_001)


def test_interrupts_at_a_back_edge(cpu: Cpu) -> None:
    """Taken between two rounds of a loop, many times: MRET goes on with the registers of that moment (``flow``)."""
    text = """
        la t0, handler; csrw mtvec, t0
        li t1, ACLINT
        li a5, 50
        li t0, 8; csrw mie, t0; csrw mstatus, t0
    loop:
        addi a0, a0, 1
        add a1, a1, a0
        addi a2, a2, 3
        blt s1, a5, loop
        csrw mie, x0
        .word END
    handler:
        sw x0, 0(t1)
        addi s1, s1, 1
        mret
    """
    start(cpu, text)
    hart = cpu.hart
    done = threading.Event()

    def interrupt() -> None:
        while not done.is_set():
            hart.lines = 8
            cpu.harts.raise_attention(0, ATTENTION_INTERRUPT)
            time.sleep(0.0002)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        stop = cpu.run()
    finally:
        done.set()
        thread.join(60)
    assert stop.why == "end"
    rounds = cpu.x()[10]
    assert (cpu.x()[11], cpu.x()[12]) == (rounds * (rounds + 1) // 2, 3 * rounds)


def test_the_place_and_the_count_of_an_interrupt(cpu: Cpu) -> None:
    """It is taken at the first back edge after it was raised, with the exact mepc and count of that moment."""
    program = put(cpu, "loop: addi a0, a0, 1\n addi a1, a1, 1\n beqz a2, on\n nop\n on: addi a3, a3, 1\n j loop")
    hart = cpu.hart
    for extra in range(1, 40):
        cpu.set(CODE, {10: 0, 11: 0, 13: 0}, privilege=M, mie=8, lines=0)
        hart.mstatus |= 8
        before = hart.retired
        hart.attention = ATTENTION_STOP
        hart.stop_at = before + extra
        assert cpu.harts.run(0) == EXIT_STOP
        rounds = -(-extra // 5)
        assert (hart.pc, hart.retired - before) == (program.labels["loop"], 5 * rounds)
        hart.lines = 8
        stop = cpu.run()
        assert (stop.cause, stop.pc) == ((1 << 63) | 3, program.labels["loop"])
        assert (hart.x[10], hart.x[11], hart.x[13]) == (rounds, rounds, rounds)
        assert hart.retired - before == 5 * rounds


# counts


COUNTED = {
    "a straight line": "nop\n nop\n nop\n csrr a0, instret",
    "a branch taken and one not": "beqz x0, on\n nop\n on: bnez x0, off\n nop\n off: nop\n csrr a0, instret",
    "a call": "call there\n csrr a0, instret\n j end\n there: nop\n nop\n ret\n end: nop",
    "a loop": "li a1, 10\n loop: addi a1, a1, -1\n bnez a1, loop\n csrr a0, instret",
    "a load that misses": "nop\n ld a1, 0(s0)\n ld a2, 8(s0)\n nop\n csrr a0, instret",
    "a misaligned load": "nop\n ld a1, 3(s0)\n nop\n csrr a0, instret",
    "floating point": "fadd.d fa0, fa1, fa2\n fdiv.d fa0, fa0, fa1\n csrr a0, instret",
    "another page": "li t0, CODE + 0x1000\n jalr ra, 0(t0)\n csrr a0, instret",
    "the end of a page": "li t0, CODE + 0x1ff8\n jalr ra, 0(t0)\n csrr a0, instret",
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_instret_is_exact(cpu: Cpu, name: str) -> None:
    """At every kind of exit, as the interpreter counts (``retired`` in ``emit_step``)."""
    found = []
    for machine in (virt(mode=INTERPRET), cpu):
        machine.reset()
        put(machine, "nop\n nop\n ret", CODE + 0x1000)
        put(machine, "nop\n nop\n nop\n ret", CODE + 0x1FF8)
        program = COUNTED[name].replace("fadd.d fa0, fa1, fa2", ".word 0x02c5f553").replace(
            "fdiv.d fa0, fa0, fa1", ".word 0x1ab57553"
        )  # fmt: skip
        start(machine, program + "\n .word END", {8: DATA})
        assert machine.run().why == "end"
        machine.set(CODE)
        before = machine.hart.retired
        assert machine.run().why == "end"
        found.append((machine.x()[10], machine.hart.retired - before))
    assert found[0] == found[1]


# floating point

FADD, FDIV, FADD_S = 0x02C5_F553, 0x1AC5_F553, 0x00C5_F553  # fa0 = fa1 op fa2, dynamic rounding
ONE, THREE = (struct.unpack("<Q", struct.pack("<d", v))[0] for v in (1.0, 3.0))


def test_the_rounding_mode_is_that_of_now(cpu: Cpu) -> None:
    """One region under every frm; an invalid one traps at the instruction (``rounding``)."""
    text = f"nop\n .word {FDIV}\n nop\n .word END"
    results = []
    for frm in range(8):
        before = start(cpu, text, frm=frm, fflags=0)
        cpu.hart.f[11], cpu.hart.f[12], cpu.hart.f[10] = ONE, THREE, 0
        stop = cpu.run()
        if frm > 4:
            assert (stop.pc, stop.cause) == (CODE + 4, 2)
            assert (cpu.hart.retired - before, cpu.hart.fflags, cpu.hart.f[10]) == (1, 0, 0)
        else:
            assert stop.why == "end"
            results.append(cpu.hart.f[10])
    third = 0x3FD5_5555_5555_5555  # rounded down; to nearest, to zero, down, up, to nearest
    assert results == [third, third, third, third + 1, third]


def test_flags_add_up(cpu: Cpu) -> None:
    """What a region raises is there when it is left, also by a trap behind it (flags are kept in the record)."""
    start(cpu, f"nop\n .word {FDIV}\n .word {FADD}\n ld a0, 0(x0)\n .word END", fflags=8)
    cpu.hart.f[11], cpu.hart.f[12] = ONE, THREE
    stop = cpu.run()
    assert (stop.pc, stop.cause) == (CODE + 12, 5)
    assert cpu.hart.fflags == 8 | 1


def test_a_unit_that_is_off(cpu: Cpu) -> None:
    """The same region with FS on, then off: illegal, nothing written; from initial it becomes dirty (``modify``)."""
    hart = cpu.hart
    for status in (3, 0, 1, 2):
        start(cpu, f"addi a0, a0, 1\n .word {FADD}\n addi a0, a0, 1\n .word END", {10: 0})
        hart.mstatus = hart.mstatus & ~(3 << 13) | status << 13
        hart.f[10], hart.f[11], hart.f[12] = 77, ONE, ONE
        stop = cpu.run()
        if status:
            assert stop.why == "end"
            assert hart.mstatus >> 13 & 3 == 3
        else:
            assert (stop.pc, stop.cause, stop.value) == (CODE + 4, 2, FADD)
            assert (hart.f[10], hart.x[10]) == (77, 1)


# atomics


def test_a_conditional_store_sees_others(cpu: Cpu) -> None:
    """LR and SC in one region; another hart's store comes between them at a stop (``hook_store_conditional``)."""
    text = "lr.d a1, (a0)\n addi a2, a1, 1\n beqz a4, store\n loop: j loop\n store: sc.d a3, a2, (a0)\n .word END"
    hart = cpu.hart
    for other in (False, True):
        start(cpu, text, {10: DATA, 14: 1})
        cpu.write(DATA, (41).to_bytes(8, "little"))
        hart.attention, hart.stop_at = ATTENTION_STOP, hart.retired + 50
        assert cpu.harts.run(0) == EXIT_STOP
        if other:
            cpu.ram[DATA - cpu.base] = 7
        hart.pc += 4
        assert cpu.run().why == "end"
        assert hart.x[13] == int(other)
        assert cpu.read(DATA, 1)[0] == (7 if other else 42)


def test_two_harts_count_together(cpu: Cpu) -> None:
    """Atomics are atomic: an AMO and an LR/SC loop on two threads lose nothing (``hook_atomic``)."""
    text = """
    loop:
        amoadd.d x0, a3, (a0)
    retry:
        lr.d a1, (a4)
        addi a1, a1, 1
        sc.d a5, a1, (a4)
        bnez a5, retry
        addi a2, a2, -1
        bnez a2, loop
        .word END
    """
    put(cpu, text)
    ends = []
    together = threading.Barrier(2)

    def count(number: int, rounds: int) -> None:
        hart = cpu.harts.hart[number]
        hart.x[10], hart.x[12], hart.x[13], hart.x[14] = DATA, rounds, 1, DATA + 64
        hart.pc = CODE
        together.wait()
        ends.append(cpu.run(number).why)

    # first to have it compiled
    for rounds in (10, 500_000):
        cpu.write(DATA, bytes(128))
        threads = [threading.Thread(target=count, args=(number, rounds)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [int.from_bytes(cpu.read(DATA + 64 * n, 8), "little") for n in range(2)] == [2 * rounds] * 2
    assert ends == ["end"] * 4


# places


def test_every_place_in_a_page(cpu: Cpu) -> None:
    """Regions that begin and end at each of the last places of a page, with long and short instructions."""
    short, long = b"\x05\x05", assemble("addi a0, a0, 1", 0).code
    end = CODE + 0x2000
    put(cpu, ".word END", end)
    for lengths in itertools.product((short, long), repeat=4):
        line = b"".join(lengths)
        for first in range(CODE + 0xFF0, CODE + 0x1000, 2):
            cpu.write(first, line + assemble("j end", first + len(line), end=end).code)
            cpu.set(first, {10: 0})
            before = cpu.hart.retired
            assert cpu.run().why == "end"
            assert (cpu.x()[10], cpu.hart.retired - before) == (4, 5)


def test_instructions_that_overlap(cpu: Cpu) -> None:
    """A jump into the middle of an instruction: another reading of the same bytes, in a region of its own."""
    word = int.from_bytes(assemble("lui a1, 0x5050", 0).code, "little") & 0xFFFF | 0x0505 << 16
    start(cpu, f"nop\n .word {word}\n nop\n .word END", {10: 0})
    assert cpu.run().why == "end"
    assert cpu.x()[10] == 0
    cpu.set(CODE + 6, {10: 0})
    assert cpu.run().why == "end"
    assert cpu.x()[10] == 1


def test_the_aclint_is_no_memory(cpu: Cpu) -> None:
    """A load of mtime in a loop moves on (no TLB entry is made of it)."""
    text = "loop: ld a1, 0(a0)\n bgeu a2, a1, loop\n mv a2, a1\n addi a3, a3, -1\n bnez a3, loop\n .word END"
    start(cpu, text, {10: ACLINT + 0xBFF8, 13: 5})
    assert cpu.run().why == "end"
