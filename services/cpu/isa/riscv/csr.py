"""Control and status registers: how each is read, written and allowed, by its number.

Those that are state are declared in ``state.Hart``; one that is read and written as it is has no more to it.

Unprivileged specification chapters 6 (Zicsr) and 7 (counters); privileged specification chapters 2, 3 and 12.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...core.timers import counter, look_at_clock
from ...core.tlb import flush_all, select_context
from ...native.lang import Dispatch, export, inline, native, u8, u32, u64
from ..registers import Kind, registers_of
from .csr_bits import (
    ADUE,
    CBCFE,
    CBIE,
    CBZE,
    FIOM,
    FS,
    FS_DIRTY,
    MEIP,
    MIE,
    MPIE,
    MPP,
    MPP_SHIFT,
    MPRV,
    MSIP,
    MTIP,
    MXR,
    PBMTE,
    PMP_A_SHIFT,
    PMP_L,
    PMP_TOR,
    SATP_MODE_SHIFT,
    SD,
    SIE,
    SPIE,
    SPP,
    SSIP,
    STCE,
    STIP,
    SUM,
    TSR,
    TVM,
    TW,
    UXL,
)  # fmt: skip
from .features import FEATURE_BIT, has_feature
from .state import MACHINE, PMP_ENTRIES, SUPERVISOR, SUPERVISOR_INTERRUPTS, Hart
from .trap import interrupts_pending

MIP = 0x344
COUNTER_CYCLE, COUNTER_TIME, COUNTER_INSTRET = 0, 1, 2
#: Counters that can stand still: not the time, nor those that count nothing.
INHIBITABLE = 1 << COUNTER_CYCLE | 1 << COUNTER_INSTRET


@dataclass(frozen=True)
class Csr:
    """One register. ``read(hart) -> u64``, ``write(hart, value)``, and ``allowed(hart) -> bool`` beyond what its
    number says."""

    number: int
    name: str
    read: Any
    write: Any
    allowed: Any


@inline
def always(hart: Hart) -> bool:
    return True


@inline
def never(hart: Hart) -> bool:
    return False


@inline
def ignore(hart: Hart, value: u64) -> None:
    return


@inline
def zero(hart: Hart) -> u64:
    return 0


CSRS: dict[int, Csr] = {}


def describe(number: int, name: str, read: Any, write: Any = ignore, allowed: Any = always) -> None:
    CSRS[number] = Csr(number, name, read, write, allowed)


def field(number: int, name: str, mask: int) -> None:
    """A register that is the field of the same name, of which ``mask`` can be written."""

    @inline
    def read(hart: Hart) -> u64:
        return getattr(hart, name)  # type: ignore[no-any-return]

    @inline
    def write(hart: Hart, value: u64) -> None:
        setattr(hart, name, (getattr(hart, name) & ~mask) | (value & mask))

    describe(number, name, read, write)


def value_of(number: int, name: str, value: int) -> None:
    """A register with a constant value; writes are dropped."""

    @inline
    def read(hart: Hart) -> u64:
        return value

    describe(number, name, read)


for _name, _register in registers_of(Hart).items():
    if _register.kind is Kind.CONTROL and _register.writable is not None:
        field(_register.number, _name, _register.writable)

# floating point


@inline
def float_on(hart: Hart) -> bool:
    return hart.mstatus & FS != 0


@native
def read_fcsr(hart: Hart) -> u64:
    return u64(hart.frm << 5) | u64(hart.fflags)


@native
def write_fcsr(hart: Hart, value: u64) -> None:
    hart.fflags = u32(value) & 31
    hart.frm = (u32(value) >> 5) & 7
    hart.mstatus |= FS_DIRTY | SD


@inline
def read_fflags(hart: Hart) -> u64:
    return u64(hart.fflags)


@inline
def write_fflags(hart: Hart, value: u64) -> None:
    write_fcsr(hart, u64(hart.frm << 5) | (value & 31))


@inline
def read_frm(hart: Hart) -> u64:
    return u64(hart.frm)


@inline
def write_frm(hart: Hart, value: u64) -> None:
    write_fcsr(hart, ((value & 7) << 5) | u64(hart.fflags))


describe(0x001, "fflags", read_fflags, write_fflags, float_on)
describe(0x002, "frm", read_frm, write_frm, float_on)
describe(0x003, "fcsr", read_fcsr, write_fcsr, float_on)

# counters


@native
def counter_allowed(hart: Hart, bit: u64) -> bool:
    """Whether mcounteren and scounteren show a counter to the current privilege (3.1.11, 12.1.5)."""
    if hart.privilege == MACHINE:
        return True
    if (hart.mcounteren >> bit) & 1 == 0:
        return False
    return hart.privilege == SUPERVISOR or (hart.scounteren >> bit) & 1 != 0


def counter_check(bit: int) -> Any:
    @inline
    def allowed(hart: Hart) -> bool:
        return counter_allowed(hart, bit)

    return allowed


@inline
def inhibited(hart: Hart, bit: u64) -> bool:
    """Whether a counter stands still (3.1.12)."""
    return (hart.mcountinhibit >> bit) & 1 != 0


@native
def read_cycle(hart: Hart) -> u64:
    return hart.cycle_offset if inhibited(hart, COUNTER_CYCLE) else hart.retired + hart.cycle_offset


@native
def read_instret(hart: Hart) -> u64:
    return hart.instret_offset if inhibited(hart, COUNTER_INSTRET) else hart.retired + hart.instret_offset


@inline
def read_time(hart: Hart) -> u64:
    return counter(hart)


@inline
def start_of(hart: Hart, bit: u64, value: u64) -> u64:
    """The offset by which the next instruction reads a value of a counter: this one still counts."""
    return value if inhibited(hart, bit) else value - (hart.retired + 1)


@native
def write_cycle(hart: Hart, value: u64) -> None:
    hart.cycle_offset = start_of(hart, COUNTER_CYCLE, value)


@native
def write_instret(hart: Hart, value: u64) -> None:
    hart.instret_offset = start_of(hart, COUNTER_INSTRET, value)


@inline
def read_mcountinhibit(hart: Hart) -> u64:
    return hart.mcountinhibit


@native
def write_mcountinhibit(hart: Hart, value: u64) -> None:
    """From the next instruction on, counters stand still or go on from where they stood."""
    changed = (hart.mcountinhibit ^ value) & INHIBITABLE
    cycle = hart.cycle_offset if inhibited(hart, COUNTER_CYCLE) else hart.retired + 1 + hart.cycle_offset
    instret = hart.instret_offset if inhibited(hart, COUNTER_INSTRET) else hart.retired + 1 + hart.instret_offset
    hart.mcountinhibit ^= changed
    if changed & (1 << COUNTER_CYCLE) != 0:
        hart.cycle_offset = start_of(hart, COUNTER_CYCLE, cycle)
    if changed & (1 << COUNTER_INSTRET) != 0:
        hart.instret_offset = start_of(hart, COUNTER_INSTRET, instret)


describe(0xC00, "cycle", read_cycle, ignore, counter_check(COUNTER_CYCLE))
describe(0xC01, "time", read_time, ignore, counter_check(COUNTER_TIME))
describe(0xC02, "instret", read_instret, ignore, counter_check(COUNTER_INSTRET))
describe(0xB00, "mcycle", read_cycle, write_cycle)
describe(0xB02, "minstret", read_instret, write_instret)
for _n in range(3, 32):
    describe(0xC00 + _n, f"hpmcounter{_n}", zero, ignore, counter_check(_n))
    value_of(0xB00 + _n, f"mhpmcounter{_n}", 0)
    value_of(0x320 + _n, f"mhpmevent{_n}", 0)
describe(0x320, "mcountinhibit", read_mcountinhibit, write_mcountinhibit)

# identity
for _number, _name in ((0xF11, "mvendorid"), (0xF12, "marchid"), (0xF13, "mimpid"), (0xF15, "mconfigptr")):
    value_of(_number, _name, 0)

# triggers (debug specification 1.0, chapter 5): there are none, which software finds out by these
for _number, _name in ((0x7A0, "tselect"), (0x7A1, "tdata1"), (0x7A2, "tdata2"), (0x7A3, "tdata3")):
    value_of(_number, _name, 0)
value_of(0x7A4, "tinfo", 1)

# status

MSTATUS_WRITABLE = SIE | MIE | SPIE | MPIE | SPP | MPP | FS | MPRV | SUM | MXR | TVM | TW | TSR
SSTATUS_WRITABLE = SIE | SPIE | SPP | FS | SUM | MXR
SSTATUS_READABLE = SSTATUS_WRITABLE | UXL | SD


@native
def set_status(hart: Hart, value: u64, mask: u64) -> None:
    """Writes the bits of ``mask`` of mstatus."""
    old = hart.mstatus
    new = (old & ~mask) | (value & mask)
    if new & MPP == u64(2) << MPP_SHIFT:
        new = (new & ~MPP) | (old & MPP)
    new &= ~SD
    if new & FS == FS:
        new |= SD
    hart.mstatus = new
    if (old ^ new) & MXR != 0:
        flush_all(hart)
    if (old ^ new) & (SIE | MIE | SUM | MXR | MPRV | MPP) != 0:
        hart.changed = 1


@inline
def read_mstatus(hart: Hart) -> u64:
    return hart.mstatus


@inline
def write_mstatus(hart: Hart, value: u64) -> None:
    set_status(hart, value, MSTATUS_WRITABLE)


@inline
def read_sstatus(hart: Hart) -> u64:
    return hart.mstatus & SSTATUS_READABLE


@inline
def write_sstatus(hart: Hart, value: u64) -> None:
    set_status(hart, value, SSTATUS_WRITABLE)


describe(0x300, "mstatus", read_mstatus, write_mstatus)
describe(0x100, "sstatus", read_sstatus, write_sstatus)

# interrupts

INTERRUPTS = SUPERVISOR_INTERRUPTS | MSIP | MTIP | MEIP


@native
def set_mie(hart: Hart, value: u64, mask: u64) -> None:
    hart.mie = (hart.mie & ~mask) | (value & mask)
    hart.changed = 1


@native
def read_mip(hart: Hart) -> u64:
    look_at_clock(hart)
    return interrupts_pending(hart)


@native
def set_mip(hart: Hart, value: u64, mask: u64) -> None:
    hart.mip = (hart.mip & ~mask) | (value & mask)
    hart.changed = 1


@inline
def read_mie(hart: Hart) -> u64:
    return hart.mie


@inline
def write_mie(hart: Hart, value: u64) -> None:
    set_mie(hart, value, INTERRUPTS)


@inline
def read_sie(hart: Hart) -> u64:
    return hart.mie & hart.mideleg


@inline
def write_sie(hart: Hart, value: u64) -> None:
    set_mie(hart, value, hart.mideleg & SUPERVISOR_INTERRUPTS)


@native
def write_mip(hart: Hart, value: u64) -> None:
    mask = u64(SUPERVISOR_INTERRUPTS)
    if hart.menvcfg & STCE != 0:
        mask &= ~STIP
    set_mip(hart, value, mask)


@inline
def read_sip(hart: Hart) -> u64:
    return read_mip(hart) & hart.mideleg


@inline
def write_sip(hart: Hart, value: u64) -> None:
    set_mip(hart, value, hart.mideleg & SSIP)


describe(0x304, "mie", read_mie, write_mie)
describe(0x104, "sie", read_sie, write_sie)
describe(MIP, "mip", read_mip, write_mip)
describe(0x144, "sip", read_sip, write_sip)


@inline
def stimecmp_allowed(hart: Hart) -> bool:
    return hart.privilege == MACHINE or (hart.menvcfg & STCE != 0 and (hart.mcounteren >> COUNTER_TIME) & 1 != 0)


@inline
def read_stimecmp(hart: Hart) -> u64:
    return hart.stimecmp


@native
def write_stimecmp(hart: Hart, value: u64) -> None:
    hart.stimecmp = value
    look_at_clock(hart)
    hart.changed = 1


@inline
def sstc_allowed(hart: Hart) -> bool:
    return has_feature(hart, FEATURE_BIT["sstc"]) and stimecmp_allowed(hart)


describe(0x14D, "stimecmp", read_stimecmp, write_stimecmp, sstc_allowed)

# trap handling


def trap_vector(number: int, name: str) -> None:
    @inline
    def read(hart: Hart) -> u64:
        return getattr(hart, name)  # type: ignore[no-any-return]

    @inline
    def write(hart: Hart, value: u64) -> None:
        if value & 2 == 0:
            setattr(hart, name, value)

    describe(number, name, read, write)


trap_vector(0x305, "mtvec")
trap_vector(0x105, "stvec")


@inline
def instruction_mask(hart: Hart) -> u64:
    """Which bits an instruction's address can have: without the C extension bit 1 is 0, too (3.1.14)."""
    return ~u64(1) if has_feature(hart, FEATURE_BIT["c"]) else ~u64(3)


def exception_pc(number: int, name: str) -> None:
    @inline
    def read(hart: Hart) -> u64:
        return getattr(hart, name)  # type: ignore[no-any-return]

    @inline
    def write(hart: Hart, value: u64) -> None:
        setattr(hart, name, value & instruction_mask(hart))

    describe(number, name, read, write)


exception_pc(0x341, "mepc")
exception_pc(0x141, "sepc")

# environment configuration


@native
def write_menvcfg(hart: Hart, value: u64) -> None:
    mask = u64(FIOM)
    if has_feature(hart, FEATURE_BIT["zicbom"]):
        mask |= CBCFE
        if value & CBIE != 2 << 4:
            mask |= CBIE
    if has_feature(hart, FEATURE_BIT["zicboz"]):
        mask |= CBZE
    if has_feature(hart, FEATURE_BIT["svadu"]):
        mask |= ADUE
    if has_feature(hart, FEATURE_BIT["svpbmt"]):
        mask |= PBMTE
    if has_feature(hart, FEATURE_BIT["sstc"]):
        mask |= STCE
    old = hart.menvcfg
    hart.menvcfg = (old & ~mask) | (value & mask)
    if (old ^ hart.menvcfg) & (ADUE | PBMTE) != 0:
        flush_all(hart)
    if hart.menvcfg & STCE != 0:
        # STIP is the timer's from now on
        hart.mip &= ~STIP
    look_at_clock(hart)
    hart.changed = 1


@native
def write_senvcfg(hart: Hart, value: u64) -> None:
    mask = u64(FIOM | CBCFE | CBZE)
    if value & CBIE != 2 << 4:
        mask |= CBIE
    hart.senvcfg = (hart.senvcfg & ~mask) | (value & mask)


@inline
def read_menvcfg(hart: Hart) -> u64:
    return hart.menvcfg


@inline
def read_senvcfg(hart: Hart) -> u64:
    return hart.senvcfg


describe(0x30A, "menvcfg", read_menvcfg, write_menvcfg)
describe(0x10A, "senvcfg", read_senvcfg, write_senvcfg)

# address translation


@inline
def satp_allowed(hart: Hart) -> bool:
    return hart.privilege == MACHINE or hart.mstatus & TVM == 0


@inline
def read_satp(hart: Hart) -> u64:
    return hart.satp


@native
def write_satp(hart: Hart, value: u64) -> None:
    """A write with a mode that the hart does not have changes nothing (12.1.11)."""
    mode = value >> SATP_MODE_SHIFT
    if mode == 8:
        if not has_feature(hart, FEATURE_BIT["sv39"]):
            return
    elif mode == 9:
        if not has_feature(hart, FEATURE_BIT["sv48"]):
            return
    elif mode == 10:
        if not has_feature(hart, FEATURE_BIT["sv57"]):
            return
    elif mode != 0:
        return
    hart.satp = value
    select_context(hart)
    hart.changed = 1


describe(0x180, "satp", read_satp, write_satp, satp_allowed)

# physical memory protection (3.7)


@native
def pmp_locked(hart: Hart, index: u64) -> bool:
    return hart.pmpcfg[index] & PMP_L != 0


@native
def write_pmpcfg(hart: Hart, first: u64, value: u64) -> None:
    for i in range(8):
        if not pmp_locked(hart, first + i):
            config = u8(value >> (8 * i)) & 0x9F
            if config & 3 == 2:
                # W without R is reserved
                config &= ~2
            hart.pmpcfg[first + i] = config
    flush_all(hart)
    hart.changed = 1


@native
def read_pmpcfg(hart: Hart, first: u64) -> u64:
    value = u64(0)
    for i in range(8):
        value |= u64(hart.pmpcfg[first + i]) << (8 * i)
    return value


@native
def write_pmpaddr(hart: Hart, index: u64, value: u64) -> None:
    if pmp_locked(hart, index):
        return
    above = hart.pmpcfg[index + 1] if index + 1 < PMP_ENTRIES else u8(0)
    if above & PMP_L != 0 and (above >> PMP_A_SHIFT) & 3 == PMP_TOR:
        return
    hart.pmpaddr[index] = value & ((1 << 54) - 1)
    flush_all(hart)
    hart.changed = 1


def _pmp_config(number: int, first: int) -> None:
    @inline
    def read(hart: Hart) -> u64:
        return read_pmpcfg(hart, first)

    @inline
    def write(hart: Hart, value: u64) -> None:
        write_pmpcfg(hart, first, value)

    describe(number, f"pmpcfg{number - 0x3A0}", read, write)


def _pmp_address(index: int) -> None:
    @inline
    def read(hart: Hart) -> u64:
        return hart.pmpaddr[index]

    @inline
    def write(hart: Hart, value: u64) -> None:
        write_pmpaddr(hart, index, value)

    describe(0x3B0 + index, f"pmpaddr{index}", read, write)


_pmp_config(0x3A0, 0)
_pmp_config(0x3A2, 8)
for _n in range(PMP_ENTRIES):
    _pmp_address(_n)


@inline
def unknown_read(hart: Hart) -> u64:
    return 0


def _dispatch(part: Callable[[Csr], Any], default: Any) -> Dispatch:
    return Dispatch({csr.number: part(csr) for csr in CSRS.values()}, default)


CSR_ALLOWED = _dispatch(lambda csr: csr.allowed, never)
CSR_READ = _dispatch(lambda csr: csr.read, unknown_read)
CSR_WRITE = _dispatch(lambda csr: csr.write, ignore)


@native
def csr_allowed(hart: Hart, number: u64, write: bool) -> bool:
    """Whether the current privilege may read (and write) a register (privileged specification 2.1)."""
    if u64(hart.privilege) < (number >> 8) & 3:
        return False
    if write and number >> 10 == 3:
        return False
    return CSR_ALLOWED(number, hart)  # type: ignore[no-any-return]


@native
def csr_read(hart: Hart, number: u64) -> u64:
    return CSR_READ(number, hart)  # type: ignore[no-any-return]


@inline
def csr_stored(hart: Hart, number: u64, read: u64) -> u64:
    """What CSRRS and CSRRC modify: in mip only the bits that software wrote, not the lines from outside (3.1.9)."""
    return hart.mip if number == MIP else read


@native
def csr_write(hart: Hart, number: u64, value: u64) -> None:
    CSR_WRITE(number, hart, value)


@export
def read_control(hart: Hart, number: u64) -> u64:
    """A CSR, whatever the privilege."""
    return csr_read(hart, number)


@export
def write_control(hart: Hart, number: u64, value: u64) -> None:
    """Writes a CSR as an instruction would, whatever the privilege. The hart is not in native code."""
    csr_write(hart, number, value)
    # it comes back by ``go``, which looks at all of it
    hart.changed = 0
