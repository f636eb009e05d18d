"""Fetches see stores without FENCE.I: whoever makes them, wherever the code lies (``isa/riscv/coherence.py``)."""

from __future__ import annotations

import threading
import time

import pytest

from tests.cpu_harness import END_WORD, Cpu
from tests.models import litmus
from tests.models.assembler import assemble
from tests.models.guest import CODE, DATA, S, Space, open_pmp, put, virt
from tests.models.tiers import BOTH, INTERPRET, TRANSLATE
from vmesh.v1 import cpu_pb2
from vmesh_services.cpu.core import inspection

PAGE = 4096
ROUTINE = CODE + 0x1000
OLD, NEW = (assemble(f"addi a0, a0, {amount}", 0).code for amount in (1, 0x700))
WORD = int.from_bytes(NEW, "little")
NOP = b"\x01\x00"


@pytest.fixture(params=[INTERPRET, TRANSLATE])
def cpu(request: pytest.FixtureRequest) -> Cpu:
    made = virt(2, mode=request.param)
    made.reset()
    for hart in made.harts.hart:
        open_pmp(hart)
    return made


def routine(cpu: Cpu, at: int, first: bytes = OLD) -> None:
    """``first``, and a return."""
    cpu.write(at, first + assemble("ret", 0).code)


#: s0: where the instruction is, a1: the new one.
STORES = {
    "sw": "sw a1, 0(s0)",
    "halves": "sh a1, 0(s0)\n srli t0, a1, 16\n sh t0, 2(s0)",
    "bytes": "srli t0, a1, 24\n sb t0, 3(s0)\n srli t0, a1, 16\n sb t0, 2(s0)",
    "amo": "amoswap.w x0, a1, (s0)",
    "sc": "lr.w t0, (s0)\n sc.w t0, a1, (s0)",
}


@pytest.mark.parametrize("store", STORES)
def test_the_next_instruction_is_what_was_stored(cpu: Cpu, store: str) -> None:
    """A store to the very next instruction, which has been run before."""
    text = f"j first\nagain:\n{STORES[store]}\nfirst:\naddi a0, a0, 1\naddi a2, a2, -1\nbnez a2, again\n.word END"
    program = put(cpu, text)
    cpu.set(CODE, {8: program.labels["first"], 10: 0, 11: WORD, 12: 3})
    assert cpu.run().why == "end"
    assert cpu.x()[10] == 1 + 2 * 0x700


@pytest.mark.parametrize("offset", [0, 2, 4, 6, PAGE - 2, PAGE - 4])
def test_wherever_an_instruction_lies(cpu: Cpu, offset: int) -> None:
    """In one doubleword, in two, at the end of a page, in two pages; called from another page."""
    at = ROUTINE + offset
    routine(cpu, at)
    store = "sh a1, 0(s0)\n srli t0, a1, 16\n sh t0, 2(s0)"
    put(cpu, f"jalr ra, 0(s0)\n{store}\n jalr ra, 0(s0)\n jalr ra, 0(s0)\n .word END")
    cpu.set(CODE, {8: at, 10: 0, 11: WORD})
    assert cpu.run().why == "end"
    assert cpu.x()[10] == 1 + 2 * 0x700


@pytest.mark.parametrize("half", [0, 2])
def test_compressed_halves(cpu: Cpu, half: int) -> None:
    """One of two compressed instructions in a word; then a long one in the place of both."""
    short, other = (0x0505).to_bytes(2, "little"), 0x0529  # c.addi a0, 1 and 10
    routine(cpu, ROUTINE, short * 2)
    put(cpu, f"jalr ra, 0(s0)\n sh a2, {half}(s0)\n jalr ra, 0(s0)\n sw a1, 0(s0)\n jalr ra, 0(s0)\n .word END")
    cpu.set(CODE, {8: ROUTINE, 10: 0, 11: WORD, 12: other})
    assert cpu.run().why == "end"
    assert cpu.x()[10] == 2 + 11 + 0x700


def test_through_another_virtual_address(cpu: Cpu) -> None:
    """The page is run at one address and written at two others, one of them not cached by the TLB before."""
    space = Space(cpu)
    space.map(CODE, CODE, 0xCF)
    for virtual in (0x10000, 0x20000, 0x30000):
        space.map(virtual, ROUTINE, 0xCF)
    routine(cpu, ROUTINE)
    text = "sd x0, 64(s1)\n jalr ra, 0(s0)\n sw a1, 0(s1)\n jalr ra, 0(s0)\n sw a2, 0(s2)\n jalr ra, 0(s0)\n ecall"
    put(cpu, text)
    x = {8: 0x10000, 9: 0x20000, 18: 0x30000, 10: 0, 11: WORD, 12: int.from_bytes(OLD, "little")}
    cpu.set(CODE, x, satp=space.satp, privilege=S)
    cpu.forget()
    assert cpu.run().why == "trapped"
    assert cpu.x()[10] == 1 + 0x700 + 1


def test_a_page_of_code_becomes_data_and_code_again(cpu: Cpu) -> None:
    """It is written through the TLB again before long; then it is compared."""
    routine(cpu, ROUTINE)
    text = """
        jalr ra, 0(s0)
        mv t0, s0
        li t1, 2000
    fill:
        sw x0, 16(t0)
        addi t1, t1, -1
        bnez t1, fill
        sw a1, 0(s0)
        jalr ra, 0(s0)
        .word END
    """
    put(cpu, text)
    cpu.set(CODE, {8: ROUTINE, 10: 0, 11: WORD})
    assert cpu.run().why == "end"
    assert cpu.x()[10] == 1 + 0x700
    assert 0 < cpu.hart.count_code_stores < 100


def test_code_and_data_in_one_page(cpu: Cpu) -> None:
    """Both are used all the time: the page does not go to and fro for each store."""
    text = "loop:\n sd a0, 256(s0)\n ld a1, 256(s0)\n add a2, a2, a1\n addi a0, a0, -1\n bnez a0, loop\n .word END"
    put(cpu, text)
    cpu.set(CODE, {8: CODE, 10: 20000, 12: 0})
    checks = cpu.hart.count_code_checks
    assert cpu.run().why == "end"
    assert cpu.x()[12] == 20000 * 20001 // 2
    assert cpu.hart.count_code_checks - checks < 20


SPIN = "loop:\n addi a2, a2, 1\nchanged:\n li a0, 0\n beqz a0, loop\n .word END"


def spinning(cpu: Cpu, change: object) -> int:
    """Hart 0 spins in a loop until its own code is changed; gives what it then has in a0."""
    program = put(cpu, SPIN)
    cpu.set(CODE, {10: 0, 12: 0})
    stops = []
    thread = threading.Thread(target=lambda: stops.append(cpu.run(seconds=30)))
    thread.start()
    while not cpu.hart.count_decoded or not cpu.hart.retired:
        time.sleep(0.001)
    change(program.labels["changed"])  # type: ignore[operator]
    thread.join(30)
    assert [stop.why for stop in stops] == ["end"]
    return cpu.x()[10]


END_LOOP = assemble("li a0, 7", 0).code


def test_another_hart_changes_a_loop(cpu: Cpu) -> None:
    text = "sw a1, 0(a0)\n .word END"

    def change(at: int) -> None:
        cpu.write(ROUTINE, assemble(text, ROUTINE, END=END_WORD).code)
        other = cpu.harts.hart[1]
        other.x[10], other.x[11], other.pc, other.mtvec = at, int.from_bytes(END_LOOP, "little"), ROUTINE, cpu.base
        assert cpu.run(1).why == "end"

    assert spinning(cpu, change) == 7


def test_a_device_changes_a_loop(cpu: Cpu) -> None:
    assert spinning(cpu, lambda at: cpu.dma(at, END_LOOP)) == 7


def test_the_debugger_changes_a_loop(cpu: Cpu) -> None:
    def change(at: int) -> None:
        inspection.write(cpu.harts, cpu_pb2.WriteMemory(address=at, data=END_LOOP, physical=True))

    assert spinning(cpu, change) == 7


def test_a_device_writes_before_its_interrupt(cpu: Cpu) -> None:
    """Code that the hart has run before, and runs in the interrupt's handler, without FENCE.I."""
    routine(cpu, ROUTINE)
    text = "jalr ra, 0(s0)\nwait:\n wfi\n j wait\nhandler:\n jalr ra, 0(s0)\n .word END"
    program = put(cpu, text)
    cpu.set(CODE, {8: ROUTINE, 10: 0}, mtvec=program.labels["handler"], mie=1 << 11, mstatus=1 << 3)
    thread = threading.Thread(target=cpu.run)
    thread.start()
    while not cpu.hart.waiting:
        time.sleep(0.001)
    cpu.dma(ROUTINE, NEW)
    cpu.hart.lines |= 1 << 11
    cpu.harts.raise_attention(0, 1)
    thread.join(20)
    assert cpu.x()[10] == 1 + 0x700


@pytest.mark.parametrize("mode", [INTERPRET, BOTH])
@pytest.mark.parametrize("beside", [0, 40])
def test_code_as_a_message(mode: str, beside: int) -> None:
    """A hart changes code and then says so; who has heard of it runs the new code, or a later one, without FENCE.I.
    ``beside``: stores to other parts of the page, so that it is written through TLBs and run by turns."""
    data = f"li t3, {beside}\ndata:\nsd s1, 512(s2)\naddi t3, t3, -1\nbnez t3, data" if beside else ""
    text = f"""
        li s0, DATA
        li s2, ROUTINE
        li a2, 0x513
        bnez a0, reader
        li s1, 0x8067
        sw s1, 4(s2)
        li s1, 0
    writer:
        addi s1, s1, 1
        slli t0, s1, 20
        or t0, t0, a2
        sw t0, 0(s2)
        fence w, w
        sd s1, 0(s0)
        {data}
        bne s1, a1, writer
        .word END
    reader:
        ld s1, 0(s0)
        beqz s1, reader
        fence r, r
        jalr ra, 0(s2)
        bltu a0, s1, bad
        bne s1, a1, reader
        .word END
    bad:
        sd s1, 64(s0)
        .word END
    """.replace("ROUTINE", str(ROUTINE))
    made = virt(3, litmus.SIZE + 0xFFFF & ~0xFFFF, mode=mode)
    for _ in range(3):
        stops = litmus.start(made, text, 3, 2000)
        assert [stop.why for stop in stops] == ["end"] * 3
        assert int.from_bytes(made.read(DATA + 64, 8), "little") == 0
