"""The PLIC against the model in ``models/interrupts.py``: random lines and register accesses of two harts' four
contexts."""

from __future__ import annotations

import random

import pytest

from tests.cpu_harness import PLIC, Cpu
from tests.models.guest import CODE, M, put, run, spin, virt
from tests.models.interrupts import CONTEXT, ENABLE, PENDING, SOURCES, PlicModel
from vmesh_services.cpu.controllers.plic_layout import SIZE as PLIC_SIZE

MEIP, SEIP = 1 << 11, 1 << 9
HARTS = 2


@pytest.fixture(scope="module")
def cpu() -> Cpu:
    return virt(HARTS)


class Player:
    """Makes the same accesses on both; loads and stores are the guest's."""

    def __init__(self, cpu: Cpu) -> None:
        cpu.reset()
        self.cpu, self.model = cpu, PlicModel(2 * HARTS)
        put(cpu, "lw a2, 0(a0)\n j CODE + 4\n sw a1, 0(a0)\n j CODE + 12")

    def access(self, pc: int, offset: int, value: int = 0) -> int:
        hart = self.cpu.hart
        hart.x[10], hart.x[11], hart.pc, hart.privilege = PLIC + offset, value, pc, M
        assert spin(self.cpu, 2) == pc + 4
        return int(hart.x[12]) & 0xFFFF_FFFF

    def read(self, offset: int) -> None:
        assert self.access(CODE, offset) == self.model.read(offset), hex(offset)

    def write(self, offset: int, value: int) -> None:
        self.access(CODE + 8, offset, value)
        self.model.write(offset, value)

    def set_level(self, source: int, level: bool) -> None:
        self.cpu.harts.set_level(source, level)
        self.model.set_level(source, level)

    def check_lines(self) -> None:
        for number, hart in enumerate(self.cpu.harts.hart):
            assert bool(hart.lines & MEIP) == self.model.notified(2 * number)
            assert bool(hart.lines & SEIP) == self.model.notified(2 * number + 1)


def test_random_sequences(cpu: Cpu) -> None:
    first = random.SystemRandom().randrange(1 << 32)
    claimed = 0
    for seed in range(first, first + 20):
        r = random.Random(seed)
        player = Player(cpu)
        sources = r.sample(range(1, SOURCES), 6)
        try:
            for source in sources:
                player.write(4 * source, r.randrange(8))
            for _ in range(250):
                what, source, context = r.random(), r.choice(sources), r.randrange(2 * HARTS)
                if what < 0.3:
                    player.set_level(source, r.random() < 0.6)
                elif what < 0.5:
                    before = len(player.model.in_service)
                    player.read(CONTEXT + 0x1000 * context + 4)
                    claimed += len(player.model.in_service) > before
                elif what < 0.65:
                    player.write(CONTEXT + 0x1000 * context + 4, r.choice((source, source, r.randrange(1 << 32), 0)))
                elif what < 0.75:
                    player.write(ENABLE + 0x80 * context + 4 * (source // 32), r.randrange(1 << 32))
                elif what < 0.82:
                    player.write(CONTEXT + 0x1000 * context, r.choice((0, 0, r.randrange(8), r.randrange(1 << 32))))
                elif what < 0.88:
                    player.write(4 * source, r.randrange(1 << 32))
                else:
                    player.read(
                        r.choice((4 * source, 0, PENDING, PENDING + 4, PENDING + 8, ENABLE + 0x80 * context, CONTEXT))
                    )
                player.check_lines()
        except AssertionError as problem:
            raise AssertionError(f"seed {seed}: {problem}") from None
    assert claimed > 50


def test_registers_that_do_not_exist(cpu: Cpu) -> None:
    """Read as zero, writes have no effect: past the sources, past the contexts, read-only ones."""
    player = Player(cpu)
    places = [
        4 * SOURCES,
        0xFFC,
        PENDING + 4 * 3,
        ENABLE + 0x80 * 2 * HARTS,
        ENABLE + 0x0C,
        CONTEXT + 8,
        CONTEXT + 0xFFC,
    ]
    for offset in [0, PENDING, *places, CONTEXT + 0x1000 * 2 * HARTS, PLIC_SIZE - 4]:
        player.access(CODE + 8, offset, 0xFFFF_FFFF)
        assert player.access(CODE, offset) == 0, hex(offset)
    # source 0 cannot be enabled
    player.access(CODE + 8, ENABLE, 0xFFFF_FFFF)
    assert player.access(CODE, ENABLE) == 0xFFFF_FFFE


@pytest.mark.parametrize(
    "text", ["lb a0, 0(a1)", "lhu a0, 4(a1)", "ld a0, 0(a1)", "sb x0, 0(a1)", "sd x0, 0(a1)", "amoadd.w a0, a0, (a1)"]
)
def test_words_only(cpu: Cpu, text: str) -> None:
    stop = run(cpu, text, {11: PLIC})
    assert (stop.why, stop.cause) == ("trapped", 5 if text[0] == "l" else 7)
    assert stop.value == PLIC + (4 if "4(" in text else 0)


def test_lines_out_of_range_are_ignored(cpu: Cpu) -> None:
    cpu.reset()
    for source in (0, SOURCES, 1 << 40, (1 << 64) - 1):
        cpu.harts.set_level(source, True)
    assert [hart.lines for hart in cpu.harts.hart] == [0, 0]


def test_an_interrupt_from_line_to_completion(cpu: Cpu) -> None:
    """As a kernel sees it: delegated, taken in supervisor mode, claimed, handled while the line is high, completed."""
    cpu.reset()
    taken: list[int] = []

    def device(access: object) -> int:
        taken.append(1)
        cpu.harts.set_level(10, len(taken) < 3)
        return 0

    cpu.device = device
    cpu.harts.reset(CODE)
    text = """
        li t0, PLIC; li t1, 3
        sw t1, 40(t0)                   # priority of source 10
        li t2, PLIC + 0x2080; li t1, 1 << 10
        sw t1, 0(t2)                    # enabled for hart 0's supervisor context
        li t0, 0x200
        csrw mideleg, t0
        csrw mie, t0
        la t0, handler; csrw stvec, t0
        la t0, super; csrw mepc, t0
        li t0, 0x0880; csrw mstatus, t0
        li s0, PLIC + 0x201004
        li s1, 0x10000000
        mret
    super:
        wfi
        csrsi sstatus, 2                # taken here
        csrci sstatus, 2
        beqz s3, super
        ecall
    handler:
        lw s2, 0(s0)
        li t0, 10
        bne s2, t0, wrong
        lw t1, 0(s0)                    # nothing else is pending
        bnez t1, wrong
        lw x0, 0(s1)                    # the device lets go of its line the third time
        sw s2, 0(s0)
        addi s4, s4, 1
        li t0, 3
        bne s4, t0, back
        li s3, 1
    back:
        sret
    wrong:
        ebreak
    """
    put(cpu, text)
    cpu.harts.hart[0].pmpcfg[0], cpu.harts.hart[0].pmpaddr[0] = 0x1F, (1 << 54) - 1
    cpu.hart.mtvec = cpu.base
    cpu.harts.set_level(10, True)
    stop = cpu.run()
    cpu.device = lambda access: None
    assert (stop.why, stop.cause) == ("trapped", 9), stop
    assert len(taken) == 3
    assert cpu.hart.lines == 0
