"""Zicsr, Zicbom, Zicboz and the privileged instructions."""

from __future__ import annotations

from ...core.memory import host_address, region_of
from ...core.state import PENDING_NONE, PENDING_TRAP, READ, Machine
from ...native.host import SCHED_YIELD
from ...native.lang import at, call_host, inline, native, u64
from ..semantics import Trap, atomic, jump, leave_if_pending, store
from .csr import csr_allowed, csr_read, csr_stored, csr_write
from .csr_bits import CBCFE, CBIE, CBZE, TSR, TVM, TW
from .isa import ILLEGAL, LOAD_PAGE, STORE_ACCESS, STORE_PAGE, instruction
from .state import MACHINE, SUPERVISOR, USER, Hart
from .translation import fence_vma
from .trap import return_from_machine, return_from_supervisor

ZICSR, S = "zicsr", "i"
BLOCK = 64
#: PAUSEs of a hart between two offers of its host core to others: fewer lose the core to strangers, more waste it.
PAUSES = 16


def _csr(name: str, funct3: str, operation: str, immediate: bool) -> None:
    """CSRRW, CSRRS and CSRRC, with a register or an immediate: set and clear with x0 or 0 do not write."""
    always = operation == "write"
    setting = operation == "set"

    @inline
    def access(hart: Hart, insn: u64, operand: u64) -> u64:
        number = insn >> 20
        writes = always or (insn >> 15) & 31 != 0
        if not csr_allowed(hart, number, writes):
            raise Trap(ILLEGAL, insn)
        old = csr_read(hart, number)
        if writes:
            if always:
                csr_write(hart, number, operand)
            elif setting:
                csr_write(hart, number, csr_stored(hart, number, old) | operand)
            else:
                csr_write(hart, number, csr_stored(hart, number, old) & ~operand)
        return old

    if immediate:

        @instruction(f"{name}i", f"csr12 zimm5 {funct3} rd 1110011", ZICSR, result="rd", system=True)
        def by_immediate(hart: Hart, insn: u64) -> u64:
            return access(hart, insn, (insn >> 15) & 31)

    else:

        @instruction(name, f"csr12 rs1 {funct3} rd 1110011", ZICSR, result="rd", system=True)
        def by_register(hart: Hart, insn: u64, rs1: u64) -> u64:
            return access(hart, insn, rs1)


for _name, _operation, _funct3 in (("csrrw", "write", 1), ("csrrs", "set", 2), ("csrrc", "clear", 3)):
    _csr(_name, f"{_funct3:03b}", _operation, immediate=False)
    _csr(_name, f"{_funct3 + 4:03b}", _operation, immediate=True)


@instruction("mret", "001100000010 00000 000 00000 1110011", S, system=True)
def mret(hart: Hart, insn: u64) -> None:
    if hart.privilege != MACHINE:
        raise Trap(ILLEGAL, insn)
    jump(return_from_machine(hart))


@instruction("sret", "000100000010 00000 000 00000 1110011", S, system=True)
def sret(hart: Hart, insn: u64) -> None:
    if hart.privilege == USER or (hart.privilege == SUPERVISOR and hart.mstatus & TSR != 0):
        raise Trap(ILLEGAL, insn)
    jump(return_from_supervisor(hart))


@instruction("wfi", "000100000101 00000 000 00000 1110011", S, system=True)
def wfi(hart: Hart, insn: u64) -> None:
    if hart.privilege == USER or (hart.privilege == SUPERVISOR and hart.mstatus & TW != 0):
        raise Trap(ILLEGAL, insn)
    hart.waiting = 1
    hart.changed = 1


@inline
def translation_allowed(hart: Hart) -> bool:
    """Whether the instructions that fence translation are: not in user mode, nor under TVM (3.1.6.6)."""
    return hart.privilege == MACHINE or (hart.privilege == SUPERVISOR and hart.mstatus & TVM == 0)


def _fence_vma(name: str, funct7: str, extension: str) -> None:
    @instruction(name, f"{funct7} rs2 rs1 000 00000 1110011", extension, system=True)
    def fence(hart: Hart, insn: u64, rs1: u64, rs2: u64) -> None:
        if not translation_allowed(hart):
            raise Trap(ILLEGAL, insn)
        fence_vma(hart, rs1, rs2, (insn >> 15) & 31 == 0, (insn >> 20) & 31 == 0)
        hart.changed = 1


_fence_vma("sfence.vma", "0001001", S)
_fence_vma("sinval.vma", "0001011", "svinval")


def _inval_order(name: str, funct12: str) -> None:
    """SFENCE.W.INVAL and SFENCE.INVAL.IR: nothing to order, since SINVAL.VMA acts at once."""

    @instruction(name, f"{funct12} 00000 000 00000 1110011", "svinval", system=True)
    def order(hart: Hart, insn: u64) -> None:
        if hart.privilege == USER:
            raise Trap(ILLEGAL, insn)


_inval_order("sfence.w.inval", "000110000000")
_inval_order("sfence.inval.ir", "000110000001")


@inline
def block_allowed(hart: Hart, bits: u64) -> bool:
    """Whether menvcfg and senvcfg let the current privilege manage cache blocks (Zicbom 19.3)."""
    if hart.privilege == MACHINE:
        return True
    return hart.menvcfg & bits != 0 and (hart.privilege == SUPERVISOR or hart.senvcfg & bits != 0)


@native
def block_fault(hart: Hart, address: u64) -> u64:
    """The exception of managing the cache block of an address, or 0: whoever may load may manage (Zicbom 19.3.2)."""
    found = host_address(hart, address & ~(BLOCK - 1), BLOCK, READ)
    if hart.pending == PENDING_TRAP:
        hart.pending = PENDING_NONE
        return u64(STORE_PAGE) if hart.cause == LOAD_PAGE else u64(STORE_ACCESS)
    if hart.pending != PENDING_NONE:
        return 0
    return u64(STORE_ACCESS) if found == 0 and region_of(hart, hart.physical, 1) == 0 else u64(0)


def _block(name: str, funct12: str, bits: int) -> None:
    """CBO.INVAL, CBO.CLEAN and CBO.FLUSH: caches do not exist here, so memory is always up to date."""

    @instruction(name, f"{funct12} rs1 010 00000 0001111", "zicbom", system=True)
    def manage(hart: Hart, insn: u64, rs1: u64) -> None:
        if not block_allowed(hart, bits):
            raise Trap(ILLEGAL, insn)
        cause = block_fault(hart, rs1)
        leave_if_pending()
        if cause != 0:
            raise Trap(cause, rs1)


_block("cbo.inval", "000000000000", CBIE)
_block("cbo.clean", "000000000001", CBCFE)
_block("cbo.flush", "000000000010", CBCFE)


@instruction("cbo.zero", "000000000100 rs1 010 00000 0001111", "zicboz")
def cbo_zero(hart: Hart, insn: u64, rs1: u64) -> None:
    if not block_allowed(hart, CBZE):
        raise Trap(ILLEGAL, insn)
    first = rs1 & ~(BLOCK - 1)
    # an atomic is refused where no memory is: what follows happens in memory
    atomic("and", u64, first, u64(0))
    for i in range(1, BLOCK // 8):
        store(u64, first + 8 * i, 0)


@instruction("pause", "0000 0001 0000 00000 000 00000 0001111", "zihintpause", system=True)
def pause(hart: Hart) -> None:
    machine = at(Machine, hart.machine)
    hart.pauses += 1
    if machine.hart_count > 1 and hart.pauses % PAUSES == 0:
        call_host(machine.syscall, SCHED_YIELD, 0, 0, 0, 0, 0, 0)
