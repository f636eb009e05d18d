"""The ACLINT, Sstc, the time CSR and WFI. Where real time is compared the bounds are coarse: hosts are busy."""

from __future__ import annotations

import threading
import time

import pytest

from tests.cpu_harness import ACLINT, Cpu, Stop
from tests.models.guest import CODE, M, S, open_pmp, put, run, virt

MSIP, MTIMECMP, MTIME = ACLINT, ACLINT + 0x4000, ACLINT + 0xBFF8
MTIP, STIP, MSI = 1 << 7, 1 << 5, 1 << 3
STCE = 1 << 63
FIXED = 2 << 32 | 2 << 34
NEVER = (1 << 64) - 1


@pytest.fixture(scope="module")
def cpu() -> Cpu:
    return virt(2)


def test_registers(cpu: Cpu) -> None:
    """msip keeps one bit; mtimecmp is 64 bits, in words too; the rest is zero."""
    text = """
        li s0, ACLINT
        li t0, -1
        sw t0, 4(s0); lw a0, 4(s0); sw x0, 4(s0); lw a1, 4(s0)
        li s1, ACLINT + 0x4008
        ld a2, 0(s1)
        li t0, 0x1122334455667788
        sd t0, 0(s1); ld a3, 0(s1); lw a4, 4(s1)
        sw x0, 0(s1); ld a5, 0(s1)
        li s2, ACLINT + 0xbff8
        ld s3, 0(s2); ld s4, 0(s2); lw s5, 0(s2); lw s6, 4(s2)
        li t0, -1; ld s7, 0x10(s1); sd t0, 0x10(s1); ld s8, 0x10(s1); lw s9, 8(s0)
        .word END
    """
    assert run(cpu, text).why == "end"
    x = cpu.x()
    assert x[10:16] == [1, 0, NEVER, 0x1122_3344_5566_7788, 0x1122_3344, 0x1122_3344_0000_0000]
    assert x[19] <= x[20] < x[19] + 10_000_000_000
    assert x[21] >= x[20]
    assert x[22] == 0
    assert x[23:26] == [0, 0, 0]


def test_mtime_can_be_written(cpu: Cpu) -> None:
    """Whole and in words; the time CSR and the timers follow at once (ACLINT 1.0, 2)."""
    text = """
        li s0, ACLINT + 0xbff8
        li s1, ACLINT + 0x4000
        li t0, 0x123456789abc0000
        sd t0, 0(s0); ld a0, 0(s0); csrr a1, time
        li t1, 0x123456789abc0000 + 100000000000
        sd t1, 0(s1); csrr a2, mip
        li t1, 0x20000000
        sw t1, 4(s0); lw a3, 4(s0); csrr a4, mip
        sd x0, 0(s0); ld a5, 0(s0); csrr a6, mip
        li t1, -16
        sd t1, 0(s0); csrr a7, mip
        .word END
    """
    assert run(cpu, text).why == "end"
    x, minute = cpu.x(), 60 * 10_000_000
    start = 0x1234_5678_9ABC_0000
    assert start <= x[10] <= x[11] < start + minute
    assert x[13] == 0x2000_0000
    assert x[15] < minute
    assert [value & MTIP for value in (x[12], x[14], x[16])] == [0, MTIP, 0]


def test_a_write_of_mtime_wakes_a_hart_that_sleeps_until_then(cpu: Cpu) -> None:
    cpu.reset()
    sleeper = cpu.harts.hart[1]
    put(cpu, "wfi\n .word END")
    cpu.controllers.aclint.compare[1] = 1 << 60
    sleeper.mie, sleeper.pc = MTIP, CODE
    ends: list[Stop] = []
    thread = threading.Thread(target=lambda: ends.append(cpu.run(1)))
    thread.start()
    put(cpu, "sd a0, 0(a1)\n .word END", CODE + 0x100)
    cpu.set(CODE + 0x100, {10: 1 << 60, 11: MTIME})
    assert cpu.run().why == "end"
    thread.join()
    assert [stop.why for stop in ends] == ["end"]


@pytest.mark.parametrize(
    "text", ["lb a0, 0(a1)", "lhu a0, 2(a1)", "sb x0, 0(a1)", "sh x0, 0(a1)", "amoor.w a0, a0, (a1)"]
)
def test_words_only(cpu: Cpu, text: str) -> None:
    stop = run(cpu, text, {11: MTIMECMP})
    assert (stop.why, stop.cause) == ("trapped", 5 if text[0] == "l" else 7)


def test_timer_interrupt_pending_follows_mtimecmp_at_once(cpu: Cpu) -> None:
    """In mip, and for MRET right behind the store: no second interrupt from a deadline that was moved."""
    text = """
        li s0, ACLINT + 0x4000
        csrr s2, mip
        sd x0, 0(s0); csrr s3, mip
        li t0, -1
        sd t0, 0(s0); csrr s4, mip
        la t0, handler; csrw mtvec, t0
        li t0, 0x80; csrw mie, t0
        sd x0, 0(s0)
        csrsi mstatus, 8                # taken
        li t0, 1000
    again:
        addi t0, t0, -1
        bnez t0, again
        .word END
    handler:
        addi s5, s5, 1
        csrr s6, mcause
        li t0, -1
        sd t0, 0(s0)
        mret
    """
    stop = run(cpu, text)
    assert stop.why == "end"
    assert cpu.x()[18:21] == [0, MTIP, 0]
    assert cpu.x()[21:23] == [1, 1 << 63 | 7]


def test_supervisor_timer(cpu: Cpu) -> None:
    """stimecmp raises STIP in supervisor mode, without machine mode, and lowers it at once (Sstc)."""
    text = """
        csrr s2, sip
        csrw stimecmp, x0; csrr s3, sip
        li t0, -1
        csrw stimecmp, t0; csrr s4, sip
        la t0, handler; csrw stvec, t0
        li t0, 0x20; csrw sie, t0
        csrr t0, time
        addi t0, t0, 2000
        csrw stimecmp, t0
        csrsi sstatus, 2
    wait:
        beqz s5, wait
        ecall
    handler:
        addi s5, s5, 1
        csrr s6, scause
        csrr s7, time
        csrr s8, stimecmp
        li t0, -1
        csrw stimecmp, t0
        sret
    """
    fields = {"privilege": S, "menvcfg": STCE, "mcounteren": 7, "mideleg": 0x222, "mstatus": FIXED}
    stop = run(cpu, text, None, 0, **fields)
    assert stop.cause == 9
    x = cpu.x()
    assert x[18:21] == [0, STIP, 0]
    assert x[21:23] == [1, 1 << 63 | 5]
    assert x[23] >= x[24]


def test_without_stce_stimecmp_does_nothing(cpu: Cpu) -> None:
    run(cpu, "csrw stimecmp, x0\n csrr a0, mip\n .word END")
    assert cpu.x()[10] == 0


def test_time_runs_at_ten_megahertz(cpu: Cpu) -> None:
    """Against the host's clock over a fifth of a second, within a factor of two; never backwards."""
    text = """
        csrr s2, time
        mv s4, s2
        li s5, 2000000
        add s5, s5, s2
    more:
        csrr s3, time
        bltu s3, s4, back
        mv s4, s3
        bltu s3, s5, more
        .word END
    back:
        ebreak
    """
    begin = time.monotonic()
    assert run(cpu, text).why == "end"
    took = time.monotonic() - begin
    assert cpu.x()[19] - cpu.x()[18] >= 2_000_000
    assert 0.19 <= took < 20
    for _ in range(2):
        run(cpu, "csrr a0, time\n .word END")
        assert cpu.x()[10] < 60 * 10_000_000


def test_time_is_mtime(cpu: Cpu) -> None:
    run(cpu, "csrr a0, time\n li t0, ACLINT + 0xbff8\n ld a1, 0(t0)\n csrr a2, time\n .word END")
    assert cpu.x()[10] <= cpu.x()[11] <= cpu.x()[12]


# WFI


def in_thread(cpu: Cpu, number: int = 0) -> tuple[threading.Thread, list[Stop], list[float]]:
    """Runs a hart in a thread of its own; gives its stop and the processor time of its thread."""
    stops: list[Stop] = []
    used: list[float] = []

    def body() -> None:
        begin = time.thread_time()
        stops.append(cpu.run(number, seconds=30))
        used.append(time.thread_time() - begin)

    thread = threading.Thread(target=body)
    thread.start()
    return thread, stops, used


def until(condition: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


SLEEPER = """
    li t0, {enabled}
    csrw mie, t0
    csrr s2, time
    li s0, ACLINT + 0x4000
    li t0, {delay}
    add t0, t0, s2
    {arm}
sleep:
    wfi
    csrr s3, time
    csrr s4, mip
    csrr t0, mie
    and t0, t0, s4
    beqz t0, sleep
    .word END
"""


def prepare(cpu: Cpu, enabled: int, delay: int = 0, arm: str = "nop") -> None:
    cpu.reset()
    for hart in cpu.harts.hart:
        open_pmp(hart)
        hart.menvcfg |= STCE
    program = put(cpu, SLEEPER.format(enabled=enabled, delay=delay, arm=arm))
    cpu.hart.pc = program.base


@pytest.mark.parametrize(("arm", "enabled"), [("sd t0, 0(s0)", MTIP), ("csrw stimecmp, t0", STIP)])
def test_a_timer_ends_wfi_and_sleep_costs_nothing(cpu: Cpu, arm: str, enabled: int) -> None:
    prepare(cpu, enabled, 10_000_000, arm)
    thread, stops, used = in_thread(cpu)
    thread.join(60)
    assert stops[0].why == "end"
    x = cpu.x()
    assert x[19] - x[18] >= 10_000_000
    assert x[20] == enabled
    # asleep for 1 s: a hart that spins would use all of it; compiling takes some tenths where that is done at once
    assert used[0] < 0.5


def test_short_sleeps_are_short(cpu: Cpu) -> None:
    """A hundred sleeps of a millisecond; one that only ended with the longest sleep of all would not be through in
    time."""
    prepare(cpu, MTIP)
    put(
        cpu,
        """
        li t0, 0x80; csrw mie, t0
        li s0, ACLINT + 0x4000
        li s1, 100
    again:
        csrr t0, time
        li t1, 10000
        add t0, t0, t1
        sd t0, 0(s0)
        wfi
        addi s1, s1, -1
        bnez s1, again
        .word END
        """,
    )
    assert cpu.run(seconds=20).why == "end"


def test_a_line_ends_wfi(cpu: Cpu) -> None:
    prepare(cpu, 1 << 11)
    put(
        cpu,
        "li t0, PLIC\n li t1, 7\n sw t1, 4(t0)\n li t0, PLIC + 0x2000\n li t1, 2\n sw t1, 0(t0)\n .word END",
        0x8000_2000,
    )
    cpu.hart.pc = 0x8000_2000
    assert cpu.run().why == "end"
    cpu.hart.pc = 0x8000_1000
    thread, stops, _ = in_thread(cpu)
    until(lambda: cpu.hart.waiting)
    cpu.harts.set_level(1, True)
    thread.join(60)
    assert stops[0].why == "end"
    assert cpu.x()[20] == 1 << 11


def test_an_ipi_ends_wfi(cpu: Cpu) -> None:
    prepare(cpu, MSI)
    put(cpu, "li t0, ACLINT\n li t1, 1\n sw t1, 0(t0)\n .word END", 0x8000_2000)
    thread, stops, _ = in_thread(cpu)
    until(lambda: cpu.hart.waiting)
    cpu.harts.hart[1].pc = 0x8000_2000
    assert cpu.run(1).why == "end"
    thread.join(60)
    assert stops[0].why == "end"
    assert cpu.x()[20] == MSI


def test_a_stop_ends_wfi_and_sleep_goes_on_afterwards(cpu: Cpu) -> None:
    """Python may want the hart while it sleeps; it then sleeps on."""
    prepare(cpu, MSI)
    thread, stops, _ = in_thread(cpu)
    until(lambda: cpu.hart.waiting)
    for _ in range(5):
        cpu.harts.stop()
        time.sleep(0.01)
    assert not stops
    put(cpu, "li t0, ACLINT\n li t1, 1\n sw t1, 0(t0)\n .word END", 0x8000_2000)
    cpu.harts.hart[1].pc = 0x8000_2000
    cpu.harts.hart[1].attention = 0
    assert cpu.run(1).why == "end"
    thread.join(60)
    assert stops[0].why == "end"


def test_wfi_goes_on_for_what_is_not_enabled_globally(cpu: Cpu) -> None:
    """An interrupt that mie enables ends WFI even with MIE off; one that mie does not enable leaves it asleep
    (3.3.3)."""
    assert run(cpu, "wfi\n .word END", mip=2, mie=2).why == "end"
    cpu.reset()
    put(cpu, "wfi\n .word END")
    cpu.set(0x8000_1000, mip=2, mie=0x80)
    assert cpu.run(seconds=0.2).why == "timeout"
    assert cpu.hart.waiting
    assert cpu.hart.privilege == M


def test_a_busy_hart_takes_a_timer_interrupt(cpu: Cpu) -> None:
    """A loop without an instruction that looks up by itself."""
    text = """
        la t0, handler; csrw mtvec, t0
        li s0, ACLINT + 0x4000
        csrr t0, time
        li t1, 1000000
        add t0, t0, t1
        sd t0, 0(s0)
        li t0, 0x80; csrw mie, t0
        csrsi mstatus, 8
    loop:
        addi s5, s5, 1
        j loop
    handler:
        .word END
    """
    assert run(cpu, text).why == "end"
    assert cpu.hart.mcause == 1 << 63 | 7
    assert cpu.x()[21] > 0
