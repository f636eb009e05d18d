"""No write is missed: harts and DMA write at random while a consumer clears dirty flags, shoots down and copies."""

from __future__ import annotations

import os
import random
import threading
import time
from threading import Thread

import pytest

from tests.cpu_harness import BASE, Cpu, Stop
from tests.models.guest import CODE, S, Space, open_pmp, put, run
from tests.models.tiers import INTERPRET, TRANSLATE
from vmesh_services.cpu.isa.riscv.csr_bits import ADUE

PAGE = 4096
#: Pages that the harts write; the next ones are the devices'.
FIRST, PAGES, DMA = BASE + 0x80000, 64, 16
SIZE = 0x80000 + (PAGES + DMA) * PAGE
ROUNDS, BURSTS = 4000, 25

#: a0: the hart's number, a1: rounds, a2: the first page, a3: bytes of all, a4: the table of their entries, a5: seed.
#: Each round writes in every way there is, and now and then takes A and D from an entry, so that a walk writes it.
PROGRAM = f"""
    slli s0, a0, 3
    li s5, {PAGES}
loop:
    slli t0, a5, 13
    xor a5, a5, t0
    srli t0, a5, 7
    xor a5, a5, t0
    slli t0, a5, 17
    xor a5, a5, t0
    remu t1, a5, a3
    andi t1, t1, -8
    add t1, t1, a2
    sd a5, 0(t1)
    srli t2, a5, 20
    remu t2, t2, a3
    add t2, t2, a2
    sb a5, 0(t2)
    srli t3, a5, 9
    remu t3, t3, a3
    add t3, t3, a2
    sd a5, 0(t3)
    srli t4, a5, 30
    remu t4, t4, a3
    andi t4, t4, -8
    add t4, t4, a2
    amoadd.d t5, a5, (t4)
    srli t4, a5, 14
    remu t4, t4, a3
    andi t4, t4, -8
    add t4, t4, a2
    lr.d t5, (t4)
    add t5, t5, a5
    sc.d t6, t5, (t4)
    cbo.zero (t1)
    slli t0, a5, 52
    bnez t0, next
    srli t0, a5, 8
    remu t0, t0, s5
    slli t0, t0, 3
    add t0, t0, a4
    li t1, -193
    amoand.d x0, t1, (t0)
    sfence.vma
next:
    addi a1, a1, -1
    bnez a1, loop
    ecall
"""


def seed() -> int:
    made = int(os.environ.get("VMESH_SEED", random.randrange(1 << 32)))
    print(f"VMESH_SEED={made}")
    return made


class Consumer:
    """Keeps a copy of RAM by the dirty flags."""

    def __init__(self, cpu: Cpu) -> None:
        self.cpu = cpu
        self.copy = bytearray(cpu.ram)
        self.rounds = self.copied = 0

    def take(self) -> None:
        dirty = self.cpu.dirty
        assert dirty is not None
        pages = [number for number, flag in enumerate(dirty[:]) if flag]
        for number in pages:
            dirty[number] = 0
        shot = self.cpu.harts.shoot_down()
        while not self.cpu.harts.await_shot(shot):
            pass
        for number in pages:
            at = number * PAGE
            self.copy[at : at + PAGE] = self.cpu.ram[at : at + PAGE]
        self.rounds += 1
        self.copied += len(pages)


class Guest:
    """Harts in supervisor mode that write at random, and a device that does."""

    def __init__(self, mode: str, harts: int, rng: random.Random) -> None:
        self.rng, self.harts = rng, harts
        self.cpu = Cpu(SIZE, count=harts, mode=mode, flags=True)
        assert self.cpu.dirty is not None
        self.dirty = self.cpu.dirty
        space = self.space = Space(self.cpu)
        self.entries = space.entry(FIRST)
        for at in (CODE, self.entries & -PAGE):
            space.map(at, at, 0xCF)
        put(self.cpu, PROGRAM)
        for hart in self.cpu.harts.hart:
            open_pmp(hart)
            hart.menvcfg = ADUE | 1 << 7
        self.consumer = Consumer(self.cpu)

    def burst(self) -> None:
        """All harts run for some rounds, while the device writes and the consumer copies."""
        for number in range(PAGES):
            page = FIRST + number * PAGE
            self.space.map(page, page, 0x07)
        self.cpu.forget()
        self.consumer.copy[:] = self.cpu.ram[:]
        self.dirty[:] = bytes(len(self.dirty))
        for number, hart in enumerate(self.cpu.harts.hart):
            hart.privilege, hart.satp, hart.pc = S, self.space.satp, CODE
            values = (number, ROUNDS, FIRST, PAGES * PAGE - 8, self.entries, self.rng.getrandbits(63) | 1)
            for index, value in enumerate(values):
                hart.x[10 + index] = value
        self.ended = threading.Event()
        stops: list[Stop] = []
        harts = [Thread(target=lambda n=n: stops.append(self.cpu.run(n, 60)), daemon=True) for n in range(self.harts)]
        others = [Thread(target=each, daemon=True) for each in (self.device, self.consume)]
        for thread in (*others, *harts):
            thread.start()
        for thread in harts:
            thread.join(90)
        self.ended.set()
        for thread in others:
            thread.join(10)
        assert [(stop.why, stop.cause) for stop in stops] == [("trapped", 9)] * self.harts

    def device(self) -> None:
        while not self.ended.is_set():
            at = self.rng.randrange(SIZE - DMA * PAGE, SIZE - 5000)
            data = self.rng.randbytes(self.rng.randrange(1, 5000))
            self.cpu.ram[at : at + len(data)] = data
            for page in range(at >> 12, (at + len(data) - 1 >> 12) + 1):
                self.dirty[page] = 1
            time.sleep(0)

    def consume(self) -> None:
        while not self.ended.is_set():
            self.consumer.take()


@pytest.mark.parametrize("mode", [INTERPRET, TRANSLATE])
@pytest.mark.parametrize("harts", [1, 4])
def test_the_copy_is_ram(mode: str, harts: int) -> None:
    guest = Guest(mode, harts, random.Random(seed()))
    for _ in range(BURSTS):
        guest.burst()
        guest.consumer.take()
        ram, copy = guest.cpu.ram, guest.consumer.copy
        different = [n for n in range(0, SIZE, PAGE) if ram[n : n + PAGE] != copy[n : n + PAGE]]
        assert not different, different
    # they were no idle rounds: pages were copied while harts wrote
    assert guest.consumer.rounds > 3 * BURSTS
    assert guest.consumer.copied > PAGES * BURSTS


def test_a_hart_that_runs_nothing_is_not_waited_for() -> None:
    """It drops its entries before it runs again."""
    cpu = Cpu(SIZE, flags=True)
    assert cpu.dirty is not None
    run(cpu, "sd x0, 0(a0); .word END", {10: FIRST})
    page = FIRST - BASE >> 12
    assert cpu.dirty[page]
    cpu.dirty[page] = 0
    assert cpu.harts.await_shot(cpu.harts.shoot_down(), 0)
    put(cpu, "sd a1, 8(a0); .word END", CODE + 0x100)
    cpu.hart.pc = CODE + 0x100
    assert cpu.run().why == "end"
    assert cpu.dirty[page]
