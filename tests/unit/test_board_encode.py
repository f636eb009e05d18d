"""Instruction words, read back by an independent disassembler."""

from __future__ import annotations

import capstone
import pytest

from vmesh.board import encode as e


def disassemble(word: int) -> str:
    reader = capstone.Cs(capstone.CS_ARCH_RISCV, capstone.CS_MODE_RISCV64)
    (instruction,) = reader.disasm(e.words([word]), 0)
    return f"{instruction.mnemonic} {instruction.op_str}".strip()


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (e.auipc(e.T0, 0x12345), "auipc t0, 0x12345"),
        (e.lui(e.A5, 0x80000), "lui a5, 0x80000"),
        (e.addi(e.A0, e.S1, -2048), "addi a0, s1, -0x800"),
        (e.andi(e.T1, e.T2, 2047), "andi t1, t2, 0x7ff"),
        (e.ld(e.A1, e.T0, 32), "ld a1, 0x20(t0)"),
        (e.lbu(e.A0, e.S0, 5), "lbu a0, 5(s0)"),
        (e.sb(e.A0, e.S0, -1), "sb a0, -1(s0)"),
        (e.sh(e.A0, e.S1, 8), "sh a0, 8(s1)"),
        (e.sw(e.A3, e.A2, 0x7FC), "sw a3, 0x7fc(a2)"),
        (e.jal(e.RA, -0x100000), "jal -0x100000"),
        (e.jal(e.A0, 0xABCDE), "jal a0, 0xabcde"),
        (e.jalr(e.A1, e.T0, 8), "jalr a1, t0, 8"),
        (e.beq(e.A0, e.A1, -4096), "beq a0, a1, -0x1000"),
        (e.bne(e.A0, e.A1, 0xABE), "bne a0, a1, 0xabe"),
        (e.csrr(e.A0, e.MHARTID), "csrr a0, mhartid"),
        (e.wfi(), "wfi"),
        (e.slli(e.A0, e.S2, 63), "slli a0, s2, 0x3f"),
        (e.srli(e.S5, e.A4, 4), "srli s5, a4, 4"),
        (e.add(e.A1, e.S3, e.S4), "add a1, s3, s4"),
        (e.lw(e.A0, e.T1, -4), "lw a0, -4(t1)"),
        (e.bltu(e.A0, e.A1, 16), "bltu a0, a1, 0x10"),
        (e.csrw(e.MIE, e.T0), "csrw mie, t0"),
    ],
)
def test_encode_word_disassembles_to_its_instruction(word: int, text: str) -> None:
    assert disassemble(word) == text


@pytest.mark.parametrize(
    "encode",
    [
        lambda: e.addi(e.A0, e.A0, 2048),
        lambda: e.sw(e.A0, e.A0, -2049),
        lambda: e.beq(e.A0, e.A0, 4096),
        lambda: e.jal(e.RA, 3),
        lambda: e.lui(e.A0, 1 << 20),
        lambda: e.slli(e.A0, e.A0, 64),
    ],
)
def test_encode_immediate_out_of_range_raises(encode: object) -> None:
    assert callable(encode)
    with pytest.raises(ValueError, match="immediate"):
        encode()
