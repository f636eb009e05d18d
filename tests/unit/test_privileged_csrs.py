"""Control and status registers: which exist for whom, what of them can be written, how they count (privileged 2, 3,
12)."""

from __future__ import annotations

import random
import struct

import pytest

from tests.cpu_harness import Cpu
from tests.models.assembler import CSR_NUMBERS
from tests.models.guest import ALL, CODE, DATA, M, S, Space, U, open_pmp, put, run, spin, virt
from vmesh_services.cpu.isa.riscv.encoding import encode

#: What the manual and the board's CPU promise, by number.
EXISTING = {
    *(0x001, 0x002, 0x003), *range(0xC00, 0xC20), 0x100, 0x104, 0x105, 0x106, 0x10A, *range(0x140, 0x145), 0x14D, 0x180,
    *range(0xF11, 0xF16), *range(0x300, 0x307), 0x30A, *range(0x340, 0x345), 0x3A0, 0x3A2, *range(0x3B0, 0x3C0),
    0xB00, *range(0xB02, 0xB20), 0x320, *range(0x323, 0x340), *range(0x7A0, 0x7A5),
}  # fmt: skip
COUNTERS = range(0xC00, 0xC20)
SEIP, STIP, SSIP, MSIP, MTIP, MEIP = 1 << 9, 1 << 5, 1 << 1, 1 << 3, 1 << 7, 1 << 11
STCE, ADUE, PBMTE = 1 << 63, 1 << 61, 1 << 62
FS, FS_DIRTY = 3 << 13, 3 << 13
FIXED = 2 << 32 | 2 << 34


@pytest.fixture(scope="module")
def cpu() -> Cpu:
    return virt()


@pytest.mark.parametrize("privilege", [U, S, M])
def test_all_numbers(cpu: Cpu, privilege: int) -> None:
    """Every one of the 4096 numbers, read and written, with some counters hidden: it works or it is illegal."""
    cpu.reset()
    hart = cpu.hart
    open_pmp(hart)
    put(cpu, "j CODE + 0x800", CODE + 0x800)
    handler, hidden = CODE + 0x800, 0x5555_5554
    for number in range(4096):
        for write in (False, True):
            # written: what was read, by setting no bits with a register that is not x0
            word = encode("csrrs", rd=10, rs1=11 if write else 0, csr=number)
            cpu.ram[0x1000:0x1008] = struct.pack("<2I", word, encode("jal", imm=0))
            cpu.forget_code()
            hart.mtvec, hart.privilege, hart.pc = handler, privilege, CODE
            hart.mstatus, hart.mcounteren, hart.scounteren = FIXED | FS_DIRTY, 0xFFFF_FFFF ^ hidden, 0xFFFF_FFF7
            hart.menvcfg, hart.x[10], hart.x[11] = STCE, 77, 0
            if privilege != M:
                cpu.forget()
            pc = spin(cpu, 2)
            allowed = number in EXISTING and privilege >= number >> 8 & 3 and not (write and number >> 10 == 3)
            if number in COUNTERS and privilege != M:
                bit = number - 0xC00
                allowed &= not hidden >> bit & 1 and (privilege == S or bit != 3)
            if number == 0x14D and privilege == S:
                allowed &= not hidden >> 1 & 1
            assert pc == (CODE + 4 if allowed else handler), (hex(number), write)
            if not allowed:
                assert (hart.mcause, hart.mtval, hart.mepc, hart.x[10]) == (2, word, CODE, 77)


def test_there_are_no_triggers(cpu: Cpu) -> None:
    """As software looks for them (debug specification 1.0, 5.1): tselect stays 0, and the type there is 0."""
    text = "li a0, 5\n csrw 0x7A0, a0\n csrr a1, 0x7A0\n csrw 0x7A1, a0\n csrr a2, 0x7A1\n csrr a3, 0x7A4\n .word END"
    assert run(cpu, text).why == "end"
    assert list(cpu.hart.x[11:14]) == [0, 0, 1]


def test_floating_point_off(cpu: Cpu) -> None:
    """With FS off neither its registers nor its instructions are there (3.1.6.6)."""
    for text in ("csrr a0, fcsr", "csrw fflags, x0", "csrr a0, frm", "fadd.d x1, x2, x3", "fld x1, 0(s0)"):
        if text.startswith("f"):
            word = {"fadd.d x1, x2, x3": 0x0231_70D3, "fld x1, 0(s0)": 0x0004_3087}[text]
            text = f".word {word:#x}"
        stop = run(cpu, f"{text}\n .word END", {8: DATA}, mstatus=FIXED)
        assert (stop.why, stop.pc, stop.cause) == ("trapped", CODE, 2), text
        assert stop.value == int.from_bytes(cpu.read(CODE, 4), "little")
        assert run(cpu, f"{text}\n .word END", {8: DATA}, mstatus=FIXED | 1 << 13).why == "end", text


def written(cpu: Cpu, name: str, value: int, **fields: int) -> int:
    """What a register reads after a write, in machine mode."""
    stop = run(cpu, f"csrw {name}, a1\n csrr a0, {name}\n .word END", {11: value}, **fields)
    assert stop.why == "end", (name, stop)
    return cpu.x()[10]


MSTATUS_BITS = 0x7E_19AA | FS
SSTATUS_BITS = 0xC_0122 | FS
#: name: bits that keep what is written.
WRITABLE = {
    "mscratch": ALL, "sscratch": ALL, "mepc": ALL & ~1, "sepc": ALL & ~1, "mcause": ALL, "scause": ALL,
    "mtval": ALL, "stval": ALL, "medeleg": 0xB3FF, "mideleg": 0x222, "mie": 0xAAA,
    "mcounteren": 0xFFFF_FFFF, "scounteren": 0xFFFF_FFFF, "mhpmcounter3": 0, "mhpmevent31": 0, "mcountinhibit": 5,
    "stimecmp": ALL,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITABLE)
def test_writable_bits(cpu: Cpu, name: str) -> None:
    for value in (ALL, 0, 0x5555_5555_5555_5555, 0xAAAA_AAAA_AAAA_AAAA):
        assert written(cpu, name, value) == value & WRITABLE[name]


def test_mstatus(cpu: Cpu) -> None:
    """MPP never holds the reserved 2; UXL and SXL are fixed; SD sums up FS."""
    every = MSTATUS_BITS | FIXED | 1 << 63
    assert written(cpu, "mstatus", ALL & ~(1 << 63)) == every
    assert written(cpu, "mstatus", 0) == FIXED
    assert written(cpu, "mstatus", 2 << 11, mstatus=FIXED | 1 << 11) == FIXED | 1 << 11
    assert written(cpu, "mstatus", 2 << 13) == FIXED | 2 << 13
    assert written(cpu, "mstatus", FS) == FIXED | FS | 1 << 63
    run(cpu, "csrr a0, sstatus\n csrw sstatus, x0\n csrr a1, mstatus\n .word END", mstatus=every)
    assert cpu.x()[10] == SSTATUS_BITS | 2 << 32 | 1 << 63
    assert cpu.x()[11] == MSTATUS_BITS & ~SSTATUS_BITS | FIXED


def test_fixed_registers(cpu: Cpu) -> None:
    assert written(cpu, "misa", 0) == 2 << 62 | sum(1 << ord(c) - ord("a") for c in "acdfimsu")
    for name in ("mvendorid", "mhartid", "mconfigptr"):
        stop = run(cpu, f"csrr a0, {name}\n csrw {name}, x0")
        assert (stop.cause, cpu.x()[10]) == (2, 0)


def test_trap_vectors(cpu: Cpu) -> None:
    for name in ("mtvec", "stvec"):
        assert written(cpu, name, 0x8000_1000) == 0x8000_1000
        assert written(cpu, name, 0x8000_1001) == 0x8000_1001
        # reserved modes are not kept
        assert written(cpu, name, 0x8000_2002) & 2 == 0


def test_satp(cpu: Cpu) -> None:
    """A mode that does not exist changes nothing at all (12.1.11)."""
    for mode in (0, 8, 9, 10):
        assert written(cpu, "satp", mode << 60) == mode << 60
    assert written(cpu, "satp", 8 << 60 | 0xFFFF << 44 | 0x123) == 8 << 60 | 0xFFFF << 44 | 0x123
    for mode in (1, 7, 11, 15):
        run(cpu, "csrw satp, a1\n csrw satp, a2\n csrr a0, satp\n .word END", {11: 8 << 60 | 5, 12: mode << 60 | 9})
        assert cpu.x()[10] == 8 << 60 | 5


def test_menvcfg(cpu: Cpu) -> None:
    every = STCE | PBMTE | ADUE | 0xF1
    assert written(cpu, "menvcfg", ALL) == every
    # CBIE = 2 is reserved
    assert written(cpu, "menvcfg", 2 << 4, menvcfg=3 << 4) & 3 << 4 != 2 << 4


def test_supervisor_interrupt_registers(cpu: Cpu) -> None:
    """sie and sip show what is delegated, sip lets SSIP be written only (12.1.3)."""
    text = """
        csrw mideleg, a1
        csrw mie, a2
        csrw mip, a2
        csrr s2, sie
        csrr s3, sip
        csrw sie, x0
        csrw sip, x0
        csrr s4, mie
        csrr s5, mip
        .word END
    """
    for delegated in (0, 0x222, 0x200, 0x022):
        run(cpu, text, {11: delegated, 12: 0xAAA})
        x = cpu.x()
        assert (x[18], x[19]) == (delegated, delegated)
        assert (x[20], x[21]) == (0xAAA & ~delegated, 0x222 & ~(delegated & SSIP))


def test_software_and_external_seip_are_two(cpu: Cpu) -> None:
    """A read-modify-write of mip sees the software bit of SEIP only (3.1.9): the wire never sticks."""
    cpu.reset()
    stop = run(cpu, "csrr a0, mip\n csrrsi a1, mip, 2\n csrrc a2, mip, x0\n .word END", lines=SEIP)
    assert stop.why == "end"
    assert cpu.x()[10:13] == [SEIP, SEIP, SEIP | SSIP]
    assert cpu.hart.mip == SSIP


def test_stip_belongs_to_the_timer_under_stce(cpu: Cpu) -> None:
    """With STCE, STIP is stimecmp's alone: it cannot be written, and what was written before is gone (Sstc)."""
    text = """
        csrw mip, a1; csrr s2, mip
        csrw menvcfg, a2; csrr s3, mip
        csrw mip, a1; csrr s4, mip
        csrw stimecmp, x0; csrr s5, mip
        .word END
    """
    run(cpu, text, {11: STIP, 12: STCE})
    assert cpu.x()[18:22] == [STIP, 0, 0, STIP]


# PMP registers


def test_pmp_registers(cpu: Cpu) -> None:
    """54 bits of address; W without R is not kept; a locked entry is not written, nor the base of a locked TOR
    entry."""
    assert written(cpu, "pmpaddr7", ALL) == (1 << 54) - 1
    assert written(cpu, "pmpcfg0", 0x1F_0F_07_60_00_00_00_00) == 0x1F_0F_07_00_00_00_00_00
    assert written(cpu, "pmpcfg2", 0x02) & 3 != 2
    locked_tor = 0x88 << 16
    text = """
        csrw pmpcfg0, a1
        csrw pmpaddr1, a2; csrw pmpaddr2, a2; csrw pmpaddr3, a2
        csrw pmpcfg0, x0
        csrr a0, pmpcfg0
        csrr s2, pmpaddr1; csrr s3, pmpaddr2; csrr s4, pmpaddr3
        .word END
    """
    run(cpu, text, {11: locked_tor | 0x1F, 12: 64})
    assert cpu.x()[18:21] == [0, 0, 64]
    assert cpu.x()[10] == locked_tor


def test_pmp_off_denies_lower_privileges(cpu: Cpu) -> None:
    """Entries that are all off leave supervisor and user mode nothing (3.7.1)."""
    for privilege in (U, S):
        stop = run(cpu, "csrw pmpcfg0, x0\n csrw mepc, a1\n mret", {11: CODE + 64}, mstatus=FIXED | privilege << 11)
        assert (stop.why, stop.pc, stop.cause, stop.value) == ("trapped", CODE + 64, 1, CODE + 64)


# counters


def test_instret_counts_exactly(cpu: Cpu) -> None:
    """A loop with loads, jumps, compressed code, a page end and a trap that does not retire."""
    text = """
        la t0, after
        csrw mtvec, t0
        csrr s2, minstret
        li s0, 100
    loop:
        ld t1, 0(s1)
        addi s0, s0, -1
        .word 0x00010001        # two compressed no-ops
        j next
        nop
    next:
        bnez s0, loop
        ecall                   # 100 * 6 + 2 so far, this one does not count
    .zero 64
    after:
        csrr s3, minstret
        csrr s4, mcycle
        csrr s5, instret
        csrr s6, mcycle
        .word END
    """
    run(cpu, text, {9: DATA})
    x = cpu.x()
    # the first read and the constant count too
    assert x[19] - x[18] == 2 + 100 * 6
    assert x[21] - x[19] == 2
    assert x[22] - x[20] == 2


def test_instret_across_pages(cpu: Cpu) -> None:
    """From one page into the next, whole and halved instructions."""
    nop = struct.pack("<I", encode("addi"))
    short = b"\x01\x00"
    for begin in (short, b""):
        cpu.reset()
        at = CODE + 0xFE0
        code = (
            struct.pack("<I", encode("csrrs", rd=8, csr=0xB02))
            + begin
            + nop * 20
            + struct.pack("<I", encode("csrrs", rd=9, csr=0xB02))
        )
        cpu.write(at, code + struct.pack("<I", encode("ecall")))
        cpu.set(at)
        cpu.run()
        assert cpu.x()[9] - cpu.x()[8] == 21 + len(begin) // 2


def test_writes_to_counters(cpu: Cpu) -> None:
    """The next instruction reads what was written; the counters are apart (3.1.10)."""
    run(
        cpu,
        """
        csrw minstret, a1; csrr s2, minstret; csrr s3, mcycle
        csrw mcycle, a1; csrr s4, mcycle; csrr s5, minstret
        .word END
        """,
        {11: 1000},
    )
    x = cpu.x()
    assert x[18] == 1000
    assert x[20] == 1000
    assert x[19] < 900
    assert x[21] == 1004


def test_csr_instructions(cpu: Cpu) -> None:
    """Swap in place, set and clear, immediates, and x0 that does not write."""
    text = """
        csrw mscratch, a0
        csrrw a0, mscratch, a1
        csrrs a2, mscratch, a3
        csrrc a3, mscratch, a3
        csrrwi a4, mscratch, 21
        csrrsi a5, mscratch, 10
        csrrci a6, mscratch, 1
        csrrs a7, mscratch, x0
        csrrw a1, mscratch, a1
        .word END
    """
    run(cpu, text, {10: 111, 11: 0xF0, 13: 0x0F})
    assert cpu.x()[10:18] == [111, 30, 0xF0, 0xFF, 0xF0, 21, 31, 30]


def test_random_pmp_writes_keep_their_rules(cpu: Cpu) -> None:
    """Random writes to all PMP registers against the rules of 3.7.1, locks included."""
    r = random.Random(2)
    cpu.reset()
    hart = cpu.hart
    config, address = [0] * 16, [0] * 16
    for step in range(600):
        if step % 60 == 0:
            cpu.reset()
            config, address = [0] * 16, [0] * 16
        number = r.randrange(16)
        if r.random() < 0.5:
            base = number & 8
            value = r.randrange(1 << 64) & (0x1F1F1F1F1F1F1F1F if r.random() < 0.8 else ALL)
            # what is locked binds machine mode too: it must let this test run
            value |= sum(4 << 8 * i for i in range(8) if value >> 8 * i & 0x80)
            name = CSR_NUMBERS["pmpcfg2" if base else "pmpcfg0"]
            for i in range(8):
                if not config[base + i] & 0x80:
                    new = value >> 8 * i & 0x9F
                    config[base + i] = new & ~2 if new & 3 == 2 else new
        else:
            value = r.randrange(1 << 64)
            name = CSR_NUMBERS["pmpaddr0"] + number
            above = config[number + 1] if number < 15 else 0
            if not config[number] & 0x80 and not (above & 0x80 and above >> 3 & 3 == 1):
                address[number] = value & (1 << 54) - 1
        hart.x[11] = value
        cpu.ram[0x1000:0x1008] = struct.pack("<2I", encode("csrrw", rs1=11, csr=name), encode("jal", imm=0))
        cpu.forget_code()
        hart.pc = CODE
        spin(cpu, 2)
        assert [hart.pmpcfg[i] for i in range(16)] == config, step
        assert [hart.pmpaddr[i] for i in range(16)] == address, step


def test_cache_blocks(cpu: Cpu) -> None:
    """CBO.ZERO clears its block; menvcfg and senvcfg say who may; where no memory is it faults (Zicboz, Zicbom)."""
    zero, clean, inval, flush = 0x0044_200F, 0x0014_200F, 0x0004_200F, 0x0024_200F
    cpu.reset()
    cpu.write(DATA, b"\xff" * 256)
    assert run(cpu, f".word {zero:#x}\n .word END", {8: DATA + 100}).why == "end"
    assert cpu.read(DATA, 256) == b"\xff" * 64 + bytes(64) + b"\xff" * 128
    for word, bits in ((zero, 1 << 7), (clean, 1 << 6), (flush, 1 << 6), (inval, 3 << 4)):
        for privilege, menv, senv in (
            (S, 0, ALL),
            (U, bits, 0),
            (U, 0, bits),
            (U, bits, bits),
            (S, bits, 0),
            (M, 0, 0),
        ):
            stop = run(
                cpu, f".word {word:#x}\n ecall", {8: DATA}, privilege=privilege, menvcfg=menv, senvcfg=senv & 0xFF
            )
            legal = privilege == M or (menv and (privilege == S or senv))
            assert stop.cause == ({U: 8, S: 9, M: 11}[privilege] if legal else 2), (hex(word), privilege, menv, senv)
        stop = run(cpu, f".word {word:#x}\n ecall", {8: 0x4000_0008})
        assert (stop.cause, stop.pc, stop.value >> 6) == (7, CODE, 0x4000_0000 >> 6), hex(word)
    cpu.reset()
    open_pmp(cpu.hart)
    space = Space(cpu)
    space.map(CODE, CODE, 0xCF)
    for word in (zero, clean, inval, flush):
        put(cpu, f".word {word:#x}\n ecall")
        cpu.set(CODE, {8: 0x7000_0010}, privilege=S, satp=space.satp, menvcfg=0xF0)
        cpu.forget()
        stop = cpu.run()
        assert (stop.cause, stop.pc, stop.value >> 6) == (15, CODE, 0x7000_0000 >> 6), hex(word)


def test_counters_stand_still_while_they_are_inhibited(cpu: Cpu) -> None:
    """Privileged specification 3.1.12: cycle and instret each by its bit, from the next instruction on."""
    text = """
        csrwi mcountinhibit, 1
        csrr a0, mcycle
        csrr a1, minstret
        csrr a2, mcycle
        csrr a3, minstret
        csrwi mcountinhibit, 4
        csrr a4, mcycle
        csrr a5, mcycle
        csrr a6, minstret
        csrr a7, minstret
        li t0, 1000
        csrw minstret, t0
        csrr s0, minstret
        csrwi mcountinhibit, 0
        csrr s1, minstret
        csrr s2, minstret
        li t0, -1
        csrw mcountinhibit, t0
        csrr s3, mcountinhibit
        .word END
    """
    assert run(cpu, text).why == "end"
    x = cpu.x()
    assert x[10] == x[12]
    assert x[13] == x[11] + 2
    assert x[14:16] == [x[10], x[10] + 1]
    assert x[16] == x[17] == x[13] + 2
    assert [x[8], x[9], x[18], x[19]] == [1000, 1000, 1001, 5]
