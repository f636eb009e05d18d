"""The instruction set under description, and what its encodings and semantics may name.

Encoding tokens are bits or one of ``TOKENS``. Operands of a semantics function, by parameter name:

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

from ..description import InstructionSet, part, token

#: Unprivileged specification 2.3: the immediates' formats are those of its figures.
TOKENS = {
    "rd": token(5), "rs1": token(5), "rs2": token(5), "rs3": token(5), "rm": token(3), "aq": token(1), "rl": token(1),
    "csr12": token(12, "csr"), "zimm5": token(5, "zimm"), "fm4": token(4), "pred4": token(4), "succ4": token(4),
    "imm12": part("I", "11:0"),
    "simm7": part("S", "11:5"), "simm5": part("S", "4:0"),
    "bimm7": part("B", "12|10:5"), "bimm5": part("B", "4:1|11"),
    "uimm20": part("U", "31:12"),
    "jimm20": part("J", "20|10:1|11|19:12"),
    "shamt6": part("shift", "5:0"), "shamt5": part("word shift", "4:0"),
}  # fmt: skip
SIGNED = {"I": True, "S": True, "B": True, "U": True, "J": True, "shift": False, "word shift": False}

instruction = InstructionSet(TOKENS, SIGNED)

# exception causes (privileged specification, table of mcause)
(
    FETCH_MISALIGNED, FETCH_ACCESS, ILLEGAL, BREAKPOINT, LOAD_MISALIGNED, LOAD_ACCESS, STORE_MISALIGNED, STORE_ACCESS,
    ECALL_USER,
    ECALL_SUPERVISOR,
) = range(10)  # fmt: skip
ECALL_MACHINE, FETCH_PAGE, LOAD_PAGE, STORE_PAGE = 11, 12, 13, 15
