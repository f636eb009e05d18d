"""Programs for several harts: locks whose counters must be exact, and litmus tests whose forbidden outcomes must not
be seen.

Each hart is a thread of this process. Spin loops use PAUSE, which lets other threads run: there may be more harts
than processors.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from tests.cpu_harness import Cpu, Stop

from .assembler import assemble
from .guest import CODE, DATA, put, virt

HARTS = 4
#: Slots of one run of a litmus test, each with two locations of a cache line each; and behind them eight results for
#: each slot.
SLOTS = 4096
SLOT = 128
RESULTS = DATA + SLOTS * SLOT
#: A line that harts meet at.
BARRIER = CODE + 0x2000
SIZE = RESULTS - CODE + SLOTS * 64 + 0x10000


def machine() -> Cpu:
    return virt(HARTS, SIZE + 0xFFFF & ~0xFFFF)


def start(cpu: Cpu, text: str, harts: int, rounds: int) -> list[Stop]:
    """Runs a program on the first ``harts`` harts at once: a0 is the hart's number, a1 the rounds. Memory behind the
    code is zero."""
    cpu.reset()
    cpu.write(CODE, bytes(len(cpu.ram) - 0x1000))
    put(cpu, text)
    for number in range(harts):
        hart = cpu.harts.hart[number]
        hart.pc, hart.x[10], hart.x[11] = CODE, number, rounds
    with ThreadPoolExecutor(harts) as pool:
        # all of them end: results of one that still runs are none
        return list(pool.map(partial(cpu.run, seconds=100), range(harts)))


# locks


@dataclass(frozen=True, slots=True)
class Lock:
    """How a critical section begins and ends; s2 is the lock's address, s3 is 1, a0 the hart's number. ``harts``
    that it serves. ``in_turn``: who goes next is settled; with fewer cores than harts, each turn waits for the host."""

    acquire: str
    release: str
    harts: int = HARTS
    in_turn: bool = False


FLAGS = "slli t3, a0, 6; add t3, t3, s2; xori t4, a0, 1; slli t5, t4, 6; add t5, t5, s2"
LOCKS = {
    "amoswap": Lock(
        "try: amoswap.w.aq t0, s3, (s2); beqz t0, got; pause; j try; got:",
        "amoswap.w.rl x0, x0, (s2)",
    ),
    "test and test-and-set": Lock(
        "look: lw t0, 0(s2); beqz t0, try; pause; j look; try: amoswap.w.aq t0, s3, (s2); bnez t0, look",
        "fence rw, w; sw x0, 0(s2)",
    ),
    "lr/sc": Lock(
        """
        try: lr.d.aq t0, (s2); bnez t0, wait; sc.d t0, s3, (s2); bnez t0, try; j got
        wait: pause; j try
        got:
        """,
        "fence rw, w; sd x0, 0(s2)",
    ),
    "ticket": Lock(
        "amoadd.w.aq t0, s3, (s2); turn: lw t1, 64(s2); beq t0, t1, got; pause; j turn; got: fence r, rw",
        "addiw t1, t1, 1; fence rw, w; sw t1, 64(s2)",
        in_turn=True,
    ),
    # flags of the two harts at s2 and s2 + 64, whose turn it is at s2 + 128
    "peterson": Lock(
        f"""
        {FLAGS}
        sd s3, 0(t3); fence rw, rw; sd t4, 128(s2); fence rw, rw
        look: ld t0, 0(t5); beqz t0, got; ld t0, 128(s2); bne t0, t4, got; pause; j look
        got: fence r, rw
        """,
        "fence rw, w; sd x0, 0(t3)",
        harts=2,
    ),
    "dekker": Lock(
        f"""
        {FLAGS}
        sd s3, 0(t3); fence rw, rw
        look: ld t0, 0(t5); beqz t0, got
        ld t0, 128(s2); beq t0, a0, rest
        sd x0, 0(t3)
        turn: pause; ld t0, 128(s2); bne t0, a0, turn
        sd s3, 0(t3); fence rw, rw
        rest: pause; j look
        got: fence r, rw
        """,
        "sd t4, 128(s2); fence rw, w; sd x0, 0(t3)",
        harts=2,
    ),
}  # fmt: skip
COUNTERS = {
    "amoadd.d": "amoadd.d x0, s3, (s0)",
    "amoadd.w": "amoadd.w t0, s3, (s0)",
    "lr/sc": "again: lr.d t0, (s0); add t0, t0, s3; sc.d t1, t0, (s0); bnez t1, again",
    "lr.w/sc.w": "again: lr.w t0, (s0); add t0, t0, s3; sc.w t1, t0, (s0); bnez t1, again",
    # a bit of each hart is flipped twice: it ends as it began
    "amoxor and amoadd": """
        sll t0, s3, a0; slli t0, t0, 40
        amoxor.d t1, t0, (s0); amoxor.d t2, t0, (s0); amoadd.d x0, s3, (s0)
    """,
}  # fmt: skip
LOOP = """
    li s0, DATA
    li s2, DATA + 256
    li s3, 1
    li t0, BARRIER
    amoadd.w t1, s3, (t0)
    li t2, HARTS
meet:
    lw t1, 0(t0)
    beq t1, t2, loop
    pause
    j meet
loop:
    {body}
    addi a1, a1, -1
    bnez a1, loop
    .word END
"""


def count(cpu: Cpu, body: str, harts: int, rounds: int) -> int:
    """The shared counter after all harts have gone through ``body`` ``rounds`` times in all."""
    text = LOOP.format(body=body).replace("BARRIER", str(BARRIER)).replace("HARTS", str(harts))
    stops = start(cpu, text, harts, rounds // harts)
    assert {stop.why for stop in stops} == {"end"}, stops
    return int.from_bytes(cpu.read(DATA, 8), "little")


def locked(lock: Lock) -> str:
    """A critical section that counts without atomics; now and then its hart pauses in the middle of it, so that
    others wait."""
    hold = "andi t6, a1, 63; bnez t6, on; pause; on:"
    return f"{lock.acquire}\n ld a2, 0(s0); addi a2, a2, 1; {hold} sd a2, 0(s0)\n {lock.release}"


# litmus tests


@dataclass(frozen=True, slots=True)
class Litmus:
    """One body for each hart: x is at 0(s0), y at 64(s0), s3 is 1; results go to 0(s1), 8(s1) ... of the slot.

    ``forbidden`` says of a slot's results that the memory model (RVWMO, unprivileged 17) does not allow them.
    """

    harts: tuple[str, ...]
    forbidden: Callable[[tuple[int, ...]], bool]


TESTS = {
    "store buffering": Litmus(
        (
            "sd s3, 0(s0); fence rw, rw; ld t0, 64(s0); sd t0, 0(s1)",
            "sd s3, 64(s0); fence rw, rw; ld t0, 0(s0); sd t0, 8(s1)",
        ),
        lambda r: r[:2] == (0, 0),
    ),
    "store buffering, w,r": Litmus(
        (
            "sd s3, 0(s0); fence w, r; ld t0, 64(s0); sd t0, 0(s1)",
            "sd s3, 64(s0); fence w, r; ld t0, 0(s0); sd t0, 8(s1)",
        ),
        lambda r: r[:2] == (0, 0),
    ),
    "store buffering, amo": Litmus(
        (
            "amoswap.d.aqrl x0, s3, (s0); addi t2, s0, 64; amoor.d.aqrl t0, x0, (t2); sd t0, 0(s1)",
            "addi t2, s0, 64; amoswap.d.aqrl x0, s3, (t2); amoor.d.aqrl t0, x0, (s0); sd t0, 8(s1)",
        ),
        lambda r: r[:2] == (0, 0),
    ),
    "message passing": Litmus(
        (
            "sd s3, 0(s0); fence w, w; sd s3, 64(s0)",
            "ld t0, 64(s0); fence r, r; ld t1, 0(s0); sd t0, 0(s1); sd t1, 8(s1)",
        ),
        lambda r: r[:2] == (1, 0),
    ),
    "message passing, release and acquire": Litmus(
        (
            "sd s3, 0(s0); addi t2, s0, 64; amoswap.d.rl x0, s3, (t2)",
            "addi t2, s0, 64; lr.d.aq t0, (t2); ld t1, 0(s0); sd t0, 0(s1); sd t1, 8(s1)",
        ),
        lambda r: r[:2] == (1, 0),
    ),
    "load buffering": Litmus(
        (
            "ld t0, 0(s0); fence r, w; sd s3, 64(s0); sd t0, 0(s1)",
            "ld t0, 64(s0); fence r, w; sd s3, 0(s0); sd t0, 8(s1)",
        ),
        lambda r: r[:2] == (1, 1),
    ),
    "coherence": Litmus(
        ("sd s3, 0(s0)", "ld t0, 0(s0); ld t1, 0(s0); sd t0, 0(s1); sd t1, 8(s1)"),
        lambda r: r[:2] == (1, 0),
    ),
    "independent reads of independent writes": Litmus(
        (
            "sd s3, 0(s0)",
            "sd s3, 64(s0)",
            "ld t0, 0(s0); fence r, r; ld t1, 64(s0); sd t0, 0(s1); sd t1, 8(s1)",
            "ld t0, 64(s0); fence r, r; ld t1, 0(s0); sd t0, 16(s1); sd t1, 24(s1)",
        ),
        lambda r: r[:4] == (1, 0, 1, 0),
    ),
}  # fmt: skip
#: What RVWMO allows and hosts like x86 do: seeing it says that the harts do race.
RELAXED = Litmus(
    ("sd s3, 0(s0); ld t0, 64(s0); sd t0, 0(s1)", "sd s3, 64(s0); ld t0, 0(s0); sd t0, 8(s1)"),
    lambda r: r[:2] == (0, 0),
)
#: All harts meet every sixteen slots, so that they stay abreast.
FRAME = """
    li s0, DATA
    li s1, RESULTS
    li s3, 1
    li s4, SLOTS
    li s5, BARRIER
    li s6, 0
    li s7, HARTS
loop:
    andi t0, s4, 15
    bnez t0, on
    add s6, s6, s7
    amoadd.w.aqrl t0, s3, (s5)
meet:
    lw t0, 0(s5)
    bge t0, s6, on
    pause
    j meet
on:
    {dispatch}
{bodies}
next:
    addi s0, s0, 128
    addi s1, s1, 64
    addi s4, s4, -1
    bnez s4, loop
    .word END
"""


def outcomes(cpu: Cpu, test: Litmus) -> list[tuple[int, ...]]:
    """The results of each slot of one run."""
    dispatch = "; ".join(f"li t0, {n}; beq a0, t0, body{n}" for n in range(len(test.harts)))
    bodies = "\n".join(f"body{n}: {body}; j next" for n, body in enumerate(test.harts))
    text = FRAME.format(dispatch=dispatch, bodies=bodies)
    for name, value in {"RESULTS": RESULTS, "SLOTS": SLOTS, "BARRIER": BARRIER, "HARTS": len(test.harts)}.items():
        text = text.replace(name, str(value))
    stops = start(cpu, text, len(test.harts), 0)
    assert {stop.why for stop in stops} == {"end"}, stops
    return list(struct.iter_unpack("<8Q", cpu.read(RESULTS, 64 * SLOTS)))


# interrupts between harts

#: A token goes round: each hart sleeps until it is told, and tells the next one.
RING = """
    li s0, ACLINT
    slli t0, a0, 2
    add s1, s0, t0                  # our msip
    addi t0, a0, 1
    andi t0, t0, HARTS - 1
    slli t0, t0, 2
    add s2, s0, t0                  # the next hart's
    li s3, 1
    li s4, DATA
    li t0, 8
    csrw mie, t0
    beqz a0, tell                   # the first one has the token
sleep:
    wfi
    csrr t0, mip
    andi t0, t0, 8
    beqz t0, sleep
    sw x0, 0(s1)
    ld t0, 0(s4)
    addi t0, t0, 1
    sd t0, 0(s4)
    addi a1, a1, -1
    beqz a1, last
tell:
    fence rw, rw
    sw s3, 0(s2)
    j sleep
last:
    fence rw, rw
    sw s3, 0(s2)                    # the others have a round to go
    .word END
"""

#: The first hart changes something that others have cached, tells them, and waits until they have looked at it.
BROADCAST = """
    li s0, ACLINT
    li s1, DATA                     # acknowledgements; the round at 64
    li s3, 1
    li s4, ROUTINE
    li s10, 8
    csrw mie, s10
    {prepare}
    bnez a0, other
first:
    {change}
    fence rw, rw
    sd a1, 64(s1)
    sd x0, 0(s1)
    fence rw, rw
    sw s3, 4(s0); sw s3, 8(s0); sw s3, 12(s0)
wait:
    ld t0, 0(s1)
    li t1, 3
    beq t0, t1, done
    pause
    j wait
done:
    addi a1, a1, -1
    bnez a1, first
    .word END
other:
    slli t0, a0, 2
    add s2, s0, t0
sleep:
    wfi
    csrr t0, mip
    andi t0, t0, 8
    beqz t0, sleep
    sw x0, 0(s2)
    fence rw, rw
    ld s5, 64(s1)
    {look}
    bne s6, s7, wrong
    amoadd.d.aqrl x0, s3, (s1)
    addi a1, a1, -1
    bnez a1, sleep
    .word END
wrong:
    ebreak
"""
ROUTINE = CODE + 0x3000
#: A routine is rewritten: ``li a2, round & 1023``.
REMOTE_FENCE_I = BROADCAST.format(
    prepare=f"li s8, {int.from_bytes(assemble('addi a2, x0, 0', 0).code, 'little'):#x}; "
    f"li s9, {int.from_bytes(assemble('ret', 0).code, 'little'):#x}; bnez a0, over; sw s9, 4(s4); over:",
    change="andi t0, a1, 1023; slli t0, t0, 20; add t0, t0, s8; sw t0, 0(s4)",
    look="fence.i; jalr ra, 0(s4); mv s6, a2; andi s7, s5, 1023",
)
#: A page is mapped elsewhere; harts look through MPRV. Frames at DATA + 0x4000 and 0x5000 hold 0 and 1.
REMOTE_SFENCE = BROADCAST.format(
    prepare="""
        li s8, DATA + 0x1000            # root, level 1, level 0: each leads on by its first entry
        li t0, 1; slli t0, t0, 54; srli s9, s8, 2
        bnez a0, over
        srli t1, s8, 12; addi t1, t1, 1; slli t1, t1, 10; addi t1, t1, 1; sd t1, 0(s8)
        li t2, DATA + 0x2000; srli t1, t2, 12; addi t1, t1, 1; slli t1, t1, 10; addi t1, t1, 1; sd t1, 0(t2)
        li t2, DATA + 0x5000; sd s3, 0(t2)
    over:
        li t0, 8 << 60; srli t1, s8, 12; or t0, t0, t1; csrw satp, t0
        li t0, 0x1f; csrw pmpcfg0, t0; li t0, -1; csrw pmpaddr0, t0
        li s9, DATA + 0x3000
        li s11, 0x20800                 # MPRV, MPP = S
    """,
    change="""
        li t0, DATA + 0x4000; andi t1, a1, 1; slli t1, t1, 12; add t0, t0, t1
        srli t0, t0, 2; ori t0, t0, 0xcf; sd t0, 0(s9)
    """,
    look="sfence.vma; csrs mstatus, s11; ld s6, 0(x0); csrc mstatus, s11; andi s7, s5, 1",
)


def broadcast(cpu: Cpu, text: str, rounds: int) -> list[Stop]:
    return start(cpu, text.replace("ROUTINE", str(ROUTINE)), HARTS, rounds)
