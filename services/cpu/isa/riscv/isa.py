"""The instruction set under description, and what its encodings and semantics may name.

Encoding tokens are bits or one of ``WIDTHS``. Operands of a semantics function, by parameter name:

``rs1 rs2``          integer registers; ``frs1 frs2 frs3`` the 64 raw bits of floating-point registers
``imm``              the immediate of the encoding, sign-extended (or the shift amount)
``insn``             the instruction's own bits
``pc next_pc``       its address and the address behind it
``rm``               the rounding mode field (7 = dynamic)
``hart``             the hart's record
``retired``          instructions retired before this one (system instructions only)

``result`` is ``rd``, ``frd`` (64 raw bits), ``branch`` (whether to go to pc + imm) or None.
"""

from __future__ import annotations

from ..description import InstructionSet

WIDTHS = {
    "rd": 5, "rs1": 5, "rs2": 5, "rs3": 5, "rm": 3, "aq": 1, "rl": 1, "imm12": 12, "simm7": 7, "simm5": 5, "bimm7": 7,
    "bimm5": 5,
    "uimm20": 20, "jimm20": 20, "shamt6": 6, "shamt5": 5, "csr12": 12, "zimm5": 5, "fm4": 4, "pred4": 4, "succ4": 4,
}  # fmt: skip

instruction = InstructionSet(WIDTHS)

# exception causes (privileged specification, table of mcause)
(
    FETCH_MISALIGNED, FETCH_ACCESS, ILLEGAL, BREAKPOINT, LOAD_MISALIGNED, LOAD_ACCESS, STORE_MISALIGNED, STORE_ACCESS,
    ECALL_USER,
    ECALL_SUPERVISOR,
) = range(10)  # fmt: skip
ECALL_MACHINE, FETCH_PAGE, LOAD_PAGE, STORE_PAGE = 11, 12, 13, 15
