"""A hart never touches an absent page: it leaves before the instruction, and runs it when the page is there."""

from __future__ import annotations

import os
import random

import pytest

from tests.cpu_harness import BASE, Cpu
from tests.models.guest import CODE, DATA, S, Space, open_pmp, put
from tests.models.tiers import BOTH, INTERPRET, TRANSLATE
from vmesh_services.cpu.isa.riscv.csr_bits import ADUE

PAGE = 4096
RUBBISH = b"\xa5" * PAGE


class Lazy(Cpu):
    """All of its pages are absent and hold rubbish, until they are asked for."""

    def take_away(self) -> None:
        assert self.present is not None
        self.asked: list[int] = []
        self.kept = self.ram[:]
        self.ram[:] = RUBBISH * (self.size // PAGE)
        self.present[:] = bytes(len(self.present))
        self.page = self.bring
        self.forget()
        self.state = lambda: (self.hart.pc, self.hart.retired, *self.x())

    def bring(self, address: int) -> None:
        assert self.present is not None
        assert address % PAGE == 0
        number = (address - BASE) // PAGE
        assert not self.present[number], "it is there"
        assert not self.harts.is_present(address), "its hart would not wait"
        self.asked.append(number)
        at = number * PAGE
        assert self.ram[at : at + PAGE] == RUBBISH, "somebody wrote to a page that is absent"
        self.ram[at : at + PAGE] = self.kept[at : at + PAGE]
        self.present[number] = 1
        assert self.harts.is_present(address)


@pytest.fixture(params=[INTERPRET, TRANSLATE, BOTH])
def cpu(request: pytest.FixtureRequest) -> Lazy:
    return Lazy(mode=request.param, flags=True)


ACCESSES = {
    "ld a2, 0(a0)": [0],
    "lbu a2, 0(a0)": [0],
    "sd a1, 0(a0)": [0],
    "sb a1, 0(a0)": [0],
    "amoadd.d a2, a1, (a0)": [0],
    "lr.d a2, (a0)": [0],
    "cbo.zero (a0)": [0],
    "ld a2, -4(a0)": [-1, 0],
    "sd a1, -4(a0)": [-1, 0],
    "lr.d a2, (a0); sc.d a3, a1, (a0)": [0],
}


@pytest.mark.parametrize("text", ACCESSES)
def test_each_way_to_touch_a_page(cpu: Lazy, text: str) -> None:
    results = []
    for absent in (False, True):
        cpu.reset()
        rng = random.Random(1)
        cpu.write(DATA - PAGE, rng.randbytes(2 * PAGE))
        put(cpu, f"addi a4, a4, 1; {text}; addi a4, a4, 1; .word END")
        if absent:
            cpu.take_away()
        cpu.set(CODE, {10: DATA, 11: 0x1234_5678_9ABC_DEF0, 12: 0, 13: 0, 14: 0})
        assert cpu.run().why == "end"
        results.append((cpu.x(), cpu.hart.retired, cpu.read(DATA - PAGE, 2 * PAGE) if not absent else None))
        if absent:
            wanted = [(DATA - BASE) // PAGE + offset for offset in ACCESSES[text]]
            assert cpu.asked == [(CODE - BASE) // PAGE, *wanted]
            assert cpu.dirty is not None
    assert results[0][:2] == results[1][:2]


def test_walks_and_fetches(cpu: Lazy) -> None:
    """Tables, an instruction across two pages, A and D: each page is asked for once, in the order of the walk."""
    cpu.reset()
    space = Space(cpu)
    virtual = 0x4000_0000
    last = CODE + PAGE - 2
    put(cpu, "addi a4, a4, 5; ecall", last)  # 4 bytes from 2 before the page's end
    for number, at in enumerate((CODE, CODE + PAGE)):
        space.map(virtual + number * PAGE, at, 0x0F)  # neither A nor D
    space.map(virtual + 0x20_0000, DATA, 0x07)
    open_pmp(cpu.hart)
    cpu.hart.menvcfg = ADUE
    cpu.take_away()
    cpu.set(virtual + PAGE - 2, {14: 0}, satp=space.satp, privilege=S)
    stop = cpu.run()
    assert (stop.why, stop.cause, stop.pc) == ("trapped", 9, virtual + PAGE + 2)
    assert cpu.x()[14] == 5
    table = [(space.root - BASE) // PAGE + n for n in range(3)]
    # the last one is the handler's, in machine mode
    assert cpu.asked == [*table, (CODE - BASE) // PAGE, (CODE - BASE) // PAGE + 1, 0]


def test_programs_end_as_with_all_pages_present() -> None:
    """Random accesses over all of memory, in every mode and by every kind of access."""
    seed = int(os.environ.get("VMESH_SEED", random.randrange(1 << 32)))
    print(f"VMESH_SEED={seed}")
    program = """
    loop:
        slli t0, a5, 13; xor a5, a5, t0; srli t0, a5, 7; xor a5, a5, t0; slli t0, a5, 17; xor a5, a5, t0
        remu t1, a5, a3; add t1, t1, a2
        ld t2, 0(t1); add a6, a6, t2; sd a6, 0(t1)
        srli t3, a5, 11; remu t3, t3, a3; andi t3, t3, -8; add t3, t3, a2
        amoadd.d t4, a5, (t3); xor a6, a6, t4
        lr.d t4, (t3); add t4, t4, a6; sc.d t5, t4, (t3); add a6, a6, t5
        addi a1, a1, -1; bnez a1, loop
        .word END
    """
    results = []
    for mode in (INTERPRET, TRANSLATE, BOTH):
        for absent in (False, True):
            cpu = Lazy(mode=mode, flags=True)
            put(cpu, program)
            cpu.write(DATA, random.Random(seed).randbytes((1 << 20) - (DATA - BASE)))
            if absent:
                cpu.take_away()
            size = (1 << 20) - (DATA - BASE) - 8
            cpu.set(CODE, {11: 3000, 12: DATA, 13: size, 15: seed | 1, 16: 0})
            assert cpu.run().why == "end"
            if absent:
                assert len(cpu.asked) == len(set(cpu.asked)) > size // PAGE
                for number in range(cpu.size // PAGE):
                    if not cpu.present[number]:  # type: ignore[index]
                        cpu.bring(BASE + number * PAGE)
            results.append((cpu.x(), bytes(cpu.ram[:])))
    assert all(each == results[0] for each in results)
