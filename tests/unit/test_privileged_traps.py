"""Traps and the returns from them, against the manual's text in a few lines of Python (privileged specification
3.1.6 to 3.1.9, 12.1)."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from tests.cpu_harness import Cpu
from tests.models.assembler import assemble
from tests.models.guest import CODE, DATA, END, M, S, Space, U, open_pmp, put, run, spin, virt
from tests.models.tiers import INTERPRET, TRANSLATE
from vmesh_services.cpu.isa.riscv.encoding import encode
from vmesh_services.cpu.isa.riscv.features import FEATURES

SIE, MIE, SPIE, MPIE, SPP, MPP = 1 << 1, 1 << 3, 1 << 5, 1 << 7, 1 << 8, 3 << 11
MPRV, SUM, MXR, TVM, TW, TSR = 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21, 1 << 22
FIXED = 2 << 32 | 2 << 34
INTERRUPT = 1 << 63
M_HANDLER, S_HANDLER = CODE + 0x400, CODE + 0x800
NEVER = (1 << 64) - 1


@pytest.fixture(scope="module")
def cpu() -> Cpu:
    return virt()


@dataclass(frozen=True)
class State:
    """What a trap reads and changes."""

    privilege: int
    mstatus: int
    pc: int
    mepc: int
    mcause: int
    mtval: int
    sepc: int
    scause: int
    stval: int


def state_of(cpu: Cpu) -> State:
    return State(*(getattr(cpu.hart, name) for name in State.__dataclass_fields__))


def bit(value: int, mask: int) -> int:
    return int(bool(value & mask))


def with_bits(value: int, **bits: int) -> int:
    """mstatus with fields replaced."""
    masks = {"sie": SIE, "mie": MIE, "spie": SPIE, "mpie": MPIE, "spp": SPP, "mpp": MPP, "mprv": MPRV}
    for name, new in bits.items():
        mask = masks[name]
        value = value & ~mask | new * (mask & -mask)
    return value


def trapped(before: State, cause: int, value: int, deleg: int, mtvec: int, stvec: int) -> State:
    """The state after a trap is taken (3.1.6.1, 3.1.8)."""
    code = cause & ~INTERRUPT
    if before.privilege != M and deleg >> code & 1:
        vector, status = (
            stvec,
            with_bits(before.mstatus, spie=bit(before.mstatus, SIE), sie=0, spp=int(before.privilege == S)),
        )
        after = replace(before, privilege=S, mstatus=status, sepc=before.pc, scause=cause, stval=value)
    else:
        vector, status = mtvec, with_bits(before.mstatus, mpie=bit(before.mstatus, MIE), mie=0, mpp=before.privilege)
        after = replace(before, privilege=M, mstatus=status, mepc=before.pc, mcause=cause, mtval=value)
    spread = 4 * code if vector & 1 and cause & INTERRUPT else 0
    return replace(after, pc=(vector & ~3) + spread)


def random_status(r: random.Random) -> int:
    status = r.randrange(1 << 23) & (SIE | MIE | SPIE | MPIE | SPP | MPRV | SUM | MXR | TVM | TW | TSR)
    return FIXED | status | r.choice((U, S, M)) << 11


#: Instructions that trap wherever they are: cause (None: by privilege), and the trap value (None: the instruction's
#: bits).
TRAPPING = {
    "ecall": (None, 0), "ebreak": (3, "pc"), ".word 0xffffffff": (2, None), "csrw 0xc00, x0": (2, None),
    "lr.w a0, (s1)": (4, "s1"), "amoadd.d a0, a0, (s1)": (6, "s1"),
    "lw a0, 0(s2)": (5, "s2"), "sd a0, 0(s2)": (7, "s2"), "amoswap.w a0, a0, (s2)": (7, "s2"),
}  # fmt: skip


def test_exceptions(cpu: Cpu) -> None:
    """Every privilege, delegated or not, any mstatus, vectored or not: state as the manual says, no register
    written."""
    seed = random.randrange(1 << 32)
    r = random.Random(seed)
    cpu.reset()
    hart = cpu.hart
    open_pmp(hart)
    put(cpu, "j CODE + 0x400", M_HANDLER)
    put(cpu, "j CODE + 0x800", S_HANDLER)
    for place, text in enumerate(TRAPPING):
        put(cpu, text, CODE + 8 * place)
    for case in range(1500):
        place, (text, (cause, value)) = r.choice(list(enumerate(TRAPPING.items())))
        hart.privilege, hart.mstatus = r.choice((U, S, M)), random_status(r) & ~MPRV
        hart.medeleg = r.choice((0, 0xB3FF, r.randrange(1 << 16) & 0xB3FF))
        hart.mtvec, hart.stvec = M_HANDLER | r.randrange(2), S_HANDLER | r.randrange(2)
        hart.pc = CODE + 8 * place
        hart.x[9], hart.x[10], hart.x[18] = DATA + 1, 77, 0x4000_0000
        before = state_of(cpu)
        retired = hart.retired
        spin(cpu, 1)
        cause = {U: 8, S: 9, M: 11}[before.privilege] if cause is None else cause
        word = int.from_bytes(cpu.read(before.pc, 4), "little")
        number = {"pc": before.pc, "s1": DATA + 1, "s2": 0x4000_0000, None: word}.get(value, value)  # type: ignore[call-overload]
        expected = trapped(before, cause, number, hart.medeleg, hart.mtvec, hart.stvec)
        assert state_of(cpu) == expected, (seed, case, text, before)
        assert hart.x[10] == 77, (seed, case, text)
        # the jump that spins is all that retired
        assert hart.retired == retired + 1


PRIORITY = (11, 3, 7, 9, 1, 5)


def interrupt_of(privilege: int, status: int, pending: int, mideleg: int) -> int | None:
    """The interrupt to be taken (3.1.9)."""
    machine, supervisor = pending & ~mideleg, pending & mideleg
    if machine and (privilege < M or status & MIE):
        return next(code for code in PRIORITY if machine >> code & 1)
    if supervisor and (privilege < S or (privilege == S and status & SIE)):
        return next(code for code in PRIORITY if supervisor >> code & 1)
    return None


def test_interrupts(cpu: Cpu) -> None:
    """Which interrupt comes first, who takes it and what that leaves, for random states."""
    seed = random.randrange(1 << 32)
    r = random.Random(seed)
    cpu.reset()
    hart = cpu.hart
    open_pmp(hart)
    put(cpu, "j CODE")
    put(cpu, "\n".join(f"here{n}: j here{n}" for n in range(64)), M_HANDLER)
    put(cpu, "\n".join(f"here{n}: j here{n}" for n in range(64)), S_HANDLER)
    taken = 0
    for case in range(3000):
        hart.privilege, hart.mstatus = r.choice((U, S, M)), random_status(r) & ~MPRV
        hart.mideleg = r.choice((0, 0x222, r.randrange(1 << 10) & 0x222))
        hart.mie = r.choice((0xAAA, r.randrange(1 << 12) & 0xAAA))
        hart.mip = r.randrange(1 << 12) & 0x222 & r.randrange(1 << 12)
        hart.lines = r.randrange(1 << 12) & 0xA08 & r.randrange(1 << 12)
        hart.timers = r.choice((0, 1 << 7))
        cpu.controllers.aclint.compare[0] = 0 if hart.timers else NEVER
        hart.mtvec, hart.stvec = M_HANDLER | r.randrange(2), S_HANDLER | r.randrange(2)
        hart.pc = CODE
        before = state_of(cpu)
        pending = (hart.mip | hart.lines | hart.timers) & hart.mie
        spin(cpu, 1)
        code = interrupt_of(before.privilege, before.mstatus, pending, hart.mideleg)
        if code is None:
            assert state_of(cpu) == before, (seed, case)
        else:
            taken += 1
            expected = trapped(before, INTERRUPT | code, 0, hart.mideleg, hart.mtvec, hart.stvec)
            assert state_of(cpu) == expected, (seed, case, code, before)
        hart.mie = 0
    assert 500 < taken < 2900


def test_returns(cpu: Cpu) -> None:
    """MRET and SRET of random states; where they are illegal they trap and change nothing else."""
    seed = random.randrange(1 << 32)
    r = random.Random(seed)
    cpu.reset()
    hart = cpu.hart
    open_pmp(hart)
    put(cpu, "j CODE + 0x400", M_HANDLER)
    put(cpu, "mret\n nop\n sret\n nop\n landing: j landing")
    mret, sret, landing = CODE, CODE + 8, CODE + 16
    for case in range(1500):
        hart.privilege, hart.mstatus = r.choice((U, S, M)), random_status(r)
        hart.mepc = hart.sepc = landing
        hart.medeleg, hart.mtvec = 0, M_HANDLER
        hart.pc = r.choice((mret, sret))
        before = state_of(cpu)
        spin(cpu, 3)
        status = before.mstatus
        if before.pc == mret:
            legal = before.privilege == M
            mode = status >> 11 & 3
            after = with_bits(status, mie=bit(status, MPIE), mpie=1, mpp=U)
        else:
            legal = before.privilege == M or (before.privilege == S and not status & TSR)
            mode = S if status & SPP else U
            after = with_bits(status, sie=bit(status, SPIE), spie=1, spp=0)
        if mode != M:
            after = with_bits(after, mprv=0)
        if legal:
            assert state_of(cpu) == replace(before, privilege=mode, mstatus=after, pc=landing), (seed, case, before)
        else:
            word = int.from_bytes(cpu.read(before.pc, 4), "little")
            assert state_of(cpu) == trapped(before, 2, word, 0, M_HANDLER, 0), (seed, case, before)


LEGAL: dict[str, Callable[[int, int], bool]] = {
    "csrr a0, satp": lambda p, s: p == M or (p == S and not s & TVM),
    "csrw satp, x0": lambda p, s: p == M or (p == S and not s & TVM),
    "sfence.vma": lambda p, s: p == M or (p == S and not s & TVM),
    "sinval.vma": lambda p, s: p == M or (p == S and not s & TVM),
    "sfence.w.inval": lambda p, s: p != U,
    "sfence.inval.ir": lambda p, s: p != U,
    "wfi": lambda p, s: p == M or (p == S and not s & TW),
}


@pytest.mark.parametrize("text", LEGAL)
@pytest.mark.parametrize("privilege", [U, S, M])
@pytest.mark.parametrize("status", [0, TVM, TW, TSR, TVM | TW | TSR])
def test_what_mstatus_forbids(cpu: Cpu, text: str, privilege: int, status: int) -> None:
    # a software interrupt that is pending and not taken lets WFI go on at once
    pending = {"mip": 2, "mie": 2, "mideleg": 2} if privilege == S else {}
    if text == "wfi" and privilege == M:
        pending = {"mip": 2, "mie": 2}
    stop = run(cpu, f"{text}\n ecall", None, 0, privilege=privilege, mstatus=FIXED | status, **pending)
    if LEGAL[text](privilege, status):
        assert (stop.pc, stop.cause) == (CODE + 4, {S: 9, M: 11}[privilege])
    else:
        word = int.from_bytes(assemble(text, 0).code, "little")
        assert (stop.pc, stop.cause, stop.value) == (CODE, 2, word)


def test_nested_traps(cpu: Cpu) -> None:
    """A system call from user mode into supervisor mode, whose handler calls machine mode, which is interrupted; and
    all the way back."""
    stop = run(
        cpu,
        """
        la t0, machine; csrw mtvec, t0
        la t0, super; csrw stvec, t0
        li t0, 0x100; csrw medeleg, t0      # ecall from user mode
        la t0, user; csrw mepc, t0
        li t0, 0x1800; csrc mstatus, t0
        li t0, 8; csrw mie, t0              # machine software interrupts
        mret
    user:
        li a0, 1
        ecall
        addi a0, a0, 1000
        ebreak                              # not delegated: to machine mode, the end
    super:
        csrr s2, sepc
        csrr s3, scause
        ecall
        addi a0, a0, 100
        addi s2, s2, 4
        csrw sepc, s2
        sret
    machine:
        csrr s4, mcause
        bltz_check: blt s4, x0, interrupted
        li t1, 9
        bne s4, t1, over
        csrr s5, mepc
        csrr s6, mstatus
        li t1, ACLINT; li t2, 1
        sw t2, 0(t1)                        # our own software interrupt
        csrsi mstatus, 8                    # taken here
        addi s5, s5, 4
        csrw mepc, s5
        csrw mstatus, s6
        addi a0, a0, 10
        mret
    interrupted:
        li t1, ACLINT
        sw x0, 0(t1)
        addi s7, s7, 1
        mret
    over:
        .word END
        """,
    )
    assert stop.why == "end"
    x = cpu.x()
    assert x[10] == 1111
    assert (x[19], x[20], x[23]) == (8, 3, 1)


# precision

PRECISE = {
    "ld a0, 0(a0)": (13, 0), "lw a0, -4(a0)": None, "amoadd.w a0, a1, (a0)": (15, 0), "lr.d a0, (a0)": (13, 0),
    "sc.d a0, a1, (a0)": (15, 0), "sd a1, 0(a0)": (15, 0),
    "ld a0, -3(a0)": (13, 0), "sd a1, -3(a0)": (15, 0), "lhu a0, -1(a0)": (13, 0),
}  # fmt: skip


@pytest.fixture
def space(cpu: Cpu) -> Space:
    """Supervisor mode: the code at its own address; pages at 0x10000 and 0x11000 of which only the first is mapped."""
    cpu.reset()
    open_pmp(cpu.hart)
    made = Space(cpu)
    made.map(CODE, CODE, 0xCF)
    made.map(0x10000, DATA, 0xCF)
    made.map(0x11000, 0, 0)
    cpu.write(DATA, bytes(range(256)) * 16)
    return made


def in_space(cpu: Cpu, space: Space, text: str, at: int = CODE, **registers: int) -> tuple[int, int, int]:
    """Runs code at a virtual address in supervisor mode up to its first trap: pc, cause, value."""
    if text:
        put(cpu, text)
    for name, value in registers.items():
        cpu.hart.x[int(name[1:])] = value
    cpu.set(at, privilege=S, satp=space.satp)
    cpu.forget()
    stop = cpu.run()
    assert stop.why == "trapped"
    return stop.pc, stop.cause, stop.value


@pytest.mark.parametrize("text", PRECISE)
def test_a_fault_leaves_everything(cpu: Cpu, space: Space, text: str) -> None:
    """At and across the end of a page: no register, no memory, the count as before."""
    memory = cpu.read(DATA, 4096)
    retired = cpu.hart.retired
    got = in_space(cpu, space, f"{text}\n ecall", x10=0x11000, x11=0x5555_5555_5555_5555)
    expected = PRECISE[text]
    if expected is None:
        assert got == (CODE + 4, 9, 0)
        assert cpu.x()[10] == int.from_bytes(memory[4092:], "little", signed=True) & NEVER
        return
    assert got == (CODE, expected[0], 0x11000)
    assert cpu.x()[10] == 0x11000
    assert cpu.read(DATA, 4096) == memory
    assert cpu.hart.retired == retired


def test_a_jump_to_nowhere_retires_and_the_fetch_traps(cpu: Cpu, space: Space) -> None:
    assert in_space(cpu, space, "jalr ra, 0(a0)", x10=0x11000) == (0x11000, 12, 0x11000)
    assert cpu.x()[1] == CODE + 4


# instructions across pages


def straddle(cpu: Cpu, word: int, second: int = DATA + 0x5000) -> None:
    """A 4-byte instruction at 0x10ffe: half of it at the end of one frame, half at the start of another; then ECALL."""
    cpu.write(DATA + 0xFFE, (word & 0xFFFF).to_bytes(2, "little"))
    cpu.write(second, (word >> 16).to_bytes(2, "little") + assemble("ecall", 0).code)


ADDI = int.from_bytes(assemble("addi a0, a0, 5", 0).code, "little")


def test_an_instruction_in_two_frames(cpu: Cpu, space: Space) -> None:
    straddle(cpu, ADDI)
    space.map(0x11000, DATA + 0x5000, 0xCF)
    assert in_space(cpu, space, "", at=0x10FFE, x10=1) == (0x11002, 9, 0)
    assert cpu.x()[10] == 6


@pytest.mark.parametrize("flags", [0, 0xC7, 0xDF, 0x8F])
def test_its_second_half_faults(cpu: Cpu, space: Space, flags: int) -> None:
    """Not mapped, not executable, user's, not accessed (Svade): the value is where the second page begins."""
    straddle(cpu, ADDI)
    space.map(0x11000, DATA + 0x5000, flags)
    cpu.hart.menvcfg = 0
    assert in_space(cpu, space, "", at=0x10FFE, x10=1) == (0x10FFE, 12, 0x11000)
    assert cpu.x()[10] == 1


def test_its_second_half_is_no_memory(cpu: Cpu, space: Space) -> None:
    straddle(cpu, ADDI)
    space.map(0x11000, 0x4000_0000, 0xCF)
    assert in_space(cpu, space, "", at=0x10FFE) == (0x10FFE, 1, 0x11000)


def test_a_short_instruction_at_the_end_of_a_page(cpu: Cpu, space: Space) -> None:
    """C.ADDI a0, 1 at 0x10ffe needs nothing of the next page; the next instruction does."""
    cpu.write(DATA + 0xFFE, (0x0505).to_bytes(2, "little"))
    assert in_space(cpu, space, "", at=0x10FFE, x10=1) == (0x11000, 12, 0x11000)
    assert cpu.x()[10] == 2


def test_a_taken_branch_across_pages(cpu: Cpu, space: Space) -> None:
    """A straddling branch back: it is decoded alone, and goes where it would from a page."""
    branch = int.from_bytes(assemble("bnez a0, back", 0x10FFE, back=0x10FF0).code, "little")
    straddle(cpu, branch)
    space.map(0x11000, DATA + 0x5000, 0xCF)
    cpu.write(DATA + 0xFF0, assemble("addi a0, a0, -1\n addi a1, a1, 1\n addi a2, a2, 1", 0).code + b"\x01\x00")
    assert in_space(cpu, space, "", at=0x10FF0, x10=10, x11=0) == (0x11002, 9, 0)
    assert (cpu.x()[10], cpu.x()[11]) == (0, 10)


# self-modifying code


def test_code_that_writes_itself(cpu: Cpu) -> None:
    """A routine in another page and one in the same are rewritten many times, FENCE.I each time."""
    times = 1000 if cpu.mode == INTERPRET else 40  # each is compiled
    stop = run(
        cpu,
        f"""
        li s0, {times}; li s1, 0
        la s2, near
        li s3, {CODE + 0x3000}
        li s4, {int.from_bytes(assemble("addi a0, a0, 0", 0).code, "little"):#x}
        li s5, {int.from_bytes(assemble("ret", 0).code, "little"):#x}
        sw s5, 4(s3)
    loop:
        andi t0, s0, 0x3ff
        slli t0, t0, 20
        add t0, t0, s4
        sw t0, 0(s2)
        sw t0, 0(s3)
        fence.i
        li a0, 0
        call near
        andi t1, s0, 0x3ff
        bne a0, t1, wrong
        jalr ra, 0(s3)
        add t1, t1, t1
        bne a0, t1, wrong
        addi s0, s0, -1
        bnez s0, loop
        .word END
    near:
        addi a0, a0, 0
        ret
    wrong:
        ebreak
        """,
    )
    assert stop.why == "end", (stop, cpu.x())


def test_code_shared_by_two_virtual_pages(cpu: Cpu, space: Space) -> None:
    """Written through one, run through the other, and half of an instruction that straddles."""
    space.map(0x20000, DATA, 0xCF)
    space.map(0x11000, DATA + 0x5000, 0xCF)
    space.map(0x21000, DATA + 0x5000, 0xCF)
    straddle(cpu, ADDI)
    # the new second half makes it addi a0, a0, 85
    text = """
        jalr ra, 0(s0)
        li t0, 0x0555
        sh t0, 0(s1)
        fence.i
        jalr ra, 0(s0)
        ecall
    """
    cpu.write(DATA + 0x5002, assemble("ret", 0).code)
    assert in_space(cpu, space, text, x8=0x10FFE, x9=0x21000, x10=0)[1] == 9
    assert cpu.x()[10] == 5 + 85


def test_changed_pages_are_seen_after_a_new_mapping(cpu: Cpu, space: Space) -> None:
    """Another frame under the same address needs SFENCE.VMA alone."""
    for frame in (1, 2):
        cpu.write(DATA + 0x1000 * frame, assemble(f"li a{frame}, {frame}\n ret", 0).code)
    space.map(0x30000, DATA + 0x1000, 0xCF)
    space.map(0x40000, space.entry(0x30000), 0xC7)
    text = """
        jalr ra, 0(s0)
        sd s2, 0(s1)
        sfence.vma s0, x0
        jalr ra, 0(s0)
        ecall
    """
    entry = (DATA + 0x2000) >> 12 << 10 | 0xCF
    at = 0x40000 + (space.entry(0x30000) & 0xFFF)
    in_space(cpu, space, text, x8=0x30000, x9=at, x18=entry, x11=0, x12=0)
    assert (cpu.x()[11], cpu.x()[12]) == (1, 2)


@pytest.fixture(scope="module", params=[INTERPRET, TRANSLATE])
def without_c(request: pytest.FixtureRequest) -> Cpu:
    return Cpu(features=set(FEATURES) - {"c"}, mode=request.param)


# Unprivileged specification 2.5: the exception is at the jump, and only if it is taken; nothing is written to rd.
JUMPS = {
    "jal": (encode("jal", rd=1, imm=6), 6),
    "jal back": (encode("jal", rd=1, imm=-10), -10),
    "jal to another page": (encode("jal", rd=1, imm=0x1002), 0x1002),
    "jal to a word": (encode("jal", rd=1, imm=8), None),
    "jalr": (encode("jalr", rd=1, rs1=8, imm=2), 0x102),
    "jalr to an odd address": (encode("jalr", rd=1, rs1=8, imm=3), 0x102),
    "jalr to a word and a byte": (encode("jalr", rd=1, rs1=8, imm=1), None),
    "beq": (encode("beq", imm=6), 6),
    "bne": (encode("bne", imm=6), None),
    "bgeu back": (encode("bgeu", imm=-2), -2),
    "blt": (encode("blt", imm=-2), None),
}


@pytest.mark.parametrize(("word", "target"), JUMPS.values(), ids=JUMPS)
def test_without_compressed_instructions_jumps_go_to_words(without_c: Cpu, word: int, target: int | None) -> None:
    cpu = without_c
    cpu.reset()
    cpu.place(CODE, encode("addi", rd=5, rs1=5, imm=1), word, *[END] * 4)
    cpu.place(CODE + 0x100, END)
    cpu.set(CODE, {1: 77, 8: CODE + 0x100})
    stop = cpu.run()
    assert cpu.hart.x[5] == 1
    if target is None:
        assert stop.why == "end"
        return
    expected = CODE + target if word & 0x7F == 0x67 else CODE + 4 + target
    assert (stop.why, stop.pc, stop.cause, stop.value) == ("trapped", CODE + 4, 0, expected)
    assert cpu.hart.x[1] == 77


@pytest.mark.parametrize("name", ["mepc", "sepc"])
def test_without_compressed_instructions_returns_go_to_words(without_c: Cpu, name: str) -> None:
    text = f"li a0, -1\n csrw {name}, a0\n csrr a1, {name}\n .word END"
    assert run(without_c, text).why == "end"
    assert without_c.hart.x[11] == (1 << 64) - 4


def test_a_reservation_is_of_memory_not_of_an_address(cpu: Cpu, space: Space) -> None:
    """SC fails where another frame is at the address by now, and succeeds by another address of the same memory."""
    for page, frame in ((0x30000, 0x1000), (0x31000, 0x1000), (0x40000, 0x2000)):
        space.map(page, DATA + frame, 0xC7)
    cpu.write(DATA + 0x1000, bytes(0x2000))
    space.map(0x50000, space.entry(0x40000), 0xC7)
    text = """
        lr.d t0, (s0); sc.d a0, s4, (s1)
        lr.d t0, (s0); sc.d a1, s4, (s2)
        lr.d t0, (s2); sd s5, 0(s3); sfence.vma; sc.d a2, s4, (s2)
        ecall
    """
    entry = (DATA + 0x1008) >> 12 << 10 | 0xC7
    at = 0x50000 + (space.entry(0x40000) & 0xFFF)
    in_space(cpu, space, text, x8=0x30000, x9=0x31000, x18=0x40000, x19=at, x20=5, x21=entry)
    assert cpu.x()[10:13] == [0, 1, 1]
    assert cpu.read(DATA + 0x1000, 8) == (5).to_bytes(8, "little")
    assert cpu.read(DATA + 0x2000, 8) == bytes(8)


@pytest.mark.parametrize("handler", [CODE + 0x100, 0x4000_0000])
def test_a_handler_that_traps_at_once_can_be_stopped(handler: int) -> None:
    """Its first instruction is ECALL, or cannot be fetched: the hart still heeds others."""
    cpu = virt()
    put(cpu, "ecall", CODE + 0x100)
    cpu.hart.mtvec = handler
    cpu.set(CODE + 0x100)
    stops: list[str] = []
    # a hart that heeds nobody would keep this thread for ever
    thread = threading.Thread(target=lambda: stops.append(cpu.run(seconds=0.2).why), daemon=True)
    thread.start()
    thread.join(20)
    assert stops == ["timeout"]
