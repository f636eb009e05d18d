"""The toy's registers, and what of an instruction its slot holds."""

from __future__ import annotations

from vmesh_services.cpu.core import state as core
from vmesh_services.cpu.isa.registers import Kind, register, register_file
from vmesh_services.cpu.native.lang import Ptr, i32, u8, u64

ANY = range(1 << 64)
NAMES = tuple(f"r{number}" for number in range(8))
#: Interrupt lines, and what ``cause`` is besides: an interrupt's line in the upper half.
SOFTWARE, TIMER, EXTERNAL, EXTERNAL_LOW = 1, 2, 4, 8
ILLEGAL, ACCESS, MISALIGNED, CALLED = range(4)
INTERRUPT = 1 << 32
EPC, CAUSE, VECTOR, MASK, SCRATCH = range(5)


class Hart(core.Hart):
    """One hart of the toy."""

    r: Ptr[u64] = register_file(Kind.GENERAL, u64, 8, names=NAMES, legal=ANY)
    epc: u64 = register(Kind.CONTROL, EPC)
    why: u64 = register(Kind.CONTROL, CAUSE, names=("cause",), writable=ANY[-1])
    vector: u64 = register(Kind.CONTROL, VECTOR)
    mask: u64 = register(Kind.CONTROL, MASK, writable=15)
    scratch_register: u64 = register(Kind.CONTROL, SCRATCH, names=("scratch",), writable=ANY[-1])
    #: 1: interrupts are taken
    interrupts_on: u64 = register(Kind.STATE, legal=range(2))


class Slot(core.Slot, instead_of="operands"):
    """Where an instruction finds its operands."""

    rd: u8
    ra: u8
    rb: u8
    none: u8
    imm: i32
