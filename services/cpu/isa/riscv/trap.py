"""Exceptions, interrupts and the return from them (privileged specification 3.1.6 to 3.1.9, 3.3.2, 12.1)."""

from __future__ import annotations

from ...core.timers import timer
from ...native.lang import inline, native, u32, u64
from .csr_bits import (
    INTERRUPT,
    MEIP,
    MIE,
    MPIE,
    MPP,
    MPP_SHIFT,
    MPRV,
    MSIP,
    MTIP,
    SEIP,
    SIE,
    SPIE,
    SPP,
    SSIP,
    STCE,
    STIP,
)
from .state import MACHINE, SUPERVISOR, USER, Hart


@inline
def vector(base: u64, cause: u64) -> u64:
    """Where a trap goes: vectored mode spreads interrupts."""
    if base & 1 != 0 and cause & INTERRUPT != 0:
        return (base & ~3) + 4 * (cause & ~INTERRUPT)
    return base & ~3


@native
def take_trap(hart: Hart, cause: u64, value: u64) -> None:
    """Enters the handler of a trap at ``hart.pc``; ``cause`` has the INTERRUPT bit for interrupts."""
    hart.count_traps += 1
    number = cause & 63
    delegation = hart.mideleg if cause & INTERRUPT != 0 else hart.medeleg
    status = hart.mstatus
    privilege = u64(hart.privilege)
    if privilege <= SUPERVISOR and (delegation >> number) & 1 != 0:
        hart.scause = cause
        hart.sepc = hart.pc
        hart.stval = value
        kept = status & ~(SPIE | SIE | SPP)
        if status & SIE != 0:
            kept |= SPIE
        if privilege != USER:
            kept |= SPP
        hart.mstatus = kept
        hart.privilege = SUPERVISOR
        hart.pc = vector(hart.stvec, cause)
    else:
        hart.mcause = cause
        hart.mepc = hart.pc
        hart.mtval = value
        kept = status & ~(MPIE | MIE | MPP)
        if status & MIE != 0:
            kept |= MPIE
        hart.mstatus = kept | (privilege << MPP_SHIFT)
        hart.privilege = MACHINE
        hart.pc = vector(hart.mtvec, cause)


@inline
def interrupts_pending(hart: Hart) -> u64:
    """mip: what software set, the lines from outside and the timers."""
    return hart.mip | hart.lines | hart.timers


@inline
def is_woken(hart: Hart) -> bool:
    """What ends WFI: an interrupt that is enabled in mie (3.3.3)."""
    return interrupts_pending(hart) & hart.mie != 0


@inline
def look_at_own_timers(hart: Hart, now: u64) -> None:
    """The supervisor's timer (Sstc)."""
    if hart.menvcfg & STCE != 0:
        timer(hart, now, hart.stimecmp, u64(STIP))


@native
def highest(pending: u64) -> u64:
    """The cause of the interrupt that comes first (3.1.9: MEI, MSI, MTI, SEI, SSI, STI)."""
    if pending & MEIP != 0:
        return 11
    if pending & MSIP != 0:
        return 3
    if pending & MTIP != 0:
        return 7
    if pending & SEIP != 0:
        return 9
    if pending & SSIP != 0:
        return 1
    return 5


@native
def take_interrupt(hart: Hart) -> bool:
    """Enters the handler of the interrupt that is pending, enabled and first; False if there is none."""
    pending = interrupts_pending(hart) & hart.mie
    if pending == 0:
        return False
    privilege = hart.privilege
    machine = pending & ~hart.mideleg
    if machine != 0 and (privilege < MACHINE or hart.mstatus & MIE != 0):
        hart.count_interrupts += 1
        take_trap(hart, INTERRUPT | highest(machine), 0)
        return True
    supervisor = pending & hart.mideleg
    if supervisor != 0 and (privilege < SUPERVISOR or (privilege == SUPERVISOR and hart.mstatus & SIE != 0)):
        hart.count_interrupts += 1
        take_trap(hart, INTERRUPT | highest(supervisor), 0)
        return True
    return False


@native
def return_from_machine(hart: Hart) -> u64:
    """MRET: gives the address to go on at."""
    status = hart.mstatus
    privilege = (status & MPP) >> MPP_SHIFT
    kept = (status & ~(MIE | MPP)) | MPIE
    if status & MPIE != 0:
        kept |= MIE
    if privilege != MACHINE:
        kept &= ~MPRV
    hart.mstatus = kept
    hart.privilege = u32(privilege)
    hart.changed = 1
    return hart.mepc & ~1


@native
def return_from_supervisor(hart: Hart) -> u64:
    """SRET: gives the address to go on at."""
    status = hart.mstatus
    kept = (status & ~(SIE | SPP | MPRV)) | SPIE
    if status & SPIE != 0:
        kept |= SIE
    hart.mstatus = kept
    hart.privilege = u32(SUPERVISOR) if status & SPP != 0 else u32(USER)
    hart.changed = 1
    return hart.sepc & ~1
