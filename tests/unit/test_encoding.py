"""The assembler's half of the descriptions: known words, Capstone's reading of them, and what does not fit."""

from __future__ import annotations

import capstone
import pytest

from tests.models.operands import Generator, word_of
from vmesh_services.cpu.isa.description import DescriptionError, InstructionSet, OperandError, parse_encoding
from vmesh_services.cpu.isa.riscv.encoding import encode
from vmesh_services.cpu.isa.riscv.instructions import INSTRUCTIONS
from vmesh_services.cpu.isa.riscv.isa import SIGNED, TOKENS

#: Words as other assemblers write them (GNU as, the manuals' examples).
WORDS = [
    (0x00000013, "addi", {}),
    (0xFFF10093, "addi", {"rd": 1, "rs1": 2, "imm": -1}),
    (0x80000137, "lui", {"rd": 2, "imm": -(1 << 31)}),
    (0x00000517, "auipc", {"rd": 10}),
    (0xFFDFF0EF, "jal", {"rd": 1, "imm": -4}),
    (0x80000A6F, "jal", {"rd": 20, "imm": -(1 << 20)}),
    (0x7FFFF06F, "jal", {"imm": (1 << 20) - 2}),
    (0x00008067, "jalr", {"rs1": 1}),
    (0xFE000EE3, "beq", {"imm": -4}),
    (0x80B51063, "bne", {"rs1": 10, "rs2": 11, "imm": -4096}),
    (0x7E62DFE3, "bge", {"rs1": 5, "rs2": 6, "imm": 4094}),
    (0x00813083, "ld", {"rd": 1, "rs1": 2, "imm": 8}),
    (0xFE113C23, "sd", {"rs1": 2, "rs2": 1, "imm": -8}),
    (0x03F51513, "slli", {"rd": 10, "rs1": 10, "imm": 63}),
    (0x43F55513, "srai", {"rd": 10, "rs1": 10, "imm": 63}),
    (0x41F5551B, "sraiw", {"rd": 10, "rs1": 10, "imm": 31}),
    (0x02C5D533, "divu", {"rd": 10, "rs1": 11, "rs2": 12}),
    (0x0FF0000F, "fence", {"pred4": 15, "succ4": 15}),
    (0x0000100F, "fence.i", {}),
    (0x00000073, "ecall", {}),
    (0x00100073, "ebreak", {}),
    (0x30200073, "mret", {}),
    (0x10200073, "sret", {}),
    (0x10500073, "wfi", {}),
    (0x12000073, "sfence.vma", {}),
    (0x34011173, "csrrw", {"rd": 2, "rs1": 2, "csr": 0x340}),
    (0x30047073, "csrrci", {"zimm": 8, "csr": 0x300}),
    (0x1605A52F, "lr.w", {"rd": 10, "rs1": 11, "aq": 1, "rl": 1}),
    (0x18C5B52F, "sc.d", {"rd": 10, "rs1": 11, "rs2": 12}),
    (0x02C5F553, "fadd.d", {"rd": 10, "rs1": 11, "rs2": 12, "rm": 7}),
    (0x0015200F, "cbo.clean", {"rs1": 10}),
    (0x0045200F, "cbo.zero", {"rs1": 10}),
    (0x60451513, "sext.b", {"rd": 10, "rs1": 10}),
    (0x6B855513, "rev8", {"rd": 10, "rs1": 10}),
    (0x28755513, "orc.b", {"rd": 10, "rs1": 10}),
    (0x0805453B, "zext.h", {"rd": 10, "rs1": 10}),
    (0x20B52533, "sh1add", {"rd": 10, "rs1": 10, "rs2": 11}),
]


@pytest.mark.parametrize(
    ("word", "name", "operands"), WORDS, ids=lambda value: value if isinstance(value, str) else None
)
def test_known_words(word: int, name: str, operands: dict[str, int]) -> None:
    assert f"{encode(name, **operands):#010x}" == f"{word:#010x}"


def test_every_instruction_is_encoded_as_the_tests_do() -> None:
    """``models.operands`` spreads immediates over their fields by a table of its own."""
    generator = Generator(3)
    for item in INSTRUCTIONS:
        for number in range(50):
            values = generator.fields(item, number)
            imm = generator.immediate(item)
            renamed = {{"csr12": "csr", "zimm5": "zimm"}.get(name, name): value for name, value in values.items()}
            assert encode(item.name, **renamed, imm=imm) == word_of(item, values, imm), (item.name, values, imm)


#: Extensions that Capstone 5 does not know.
UNKNOWN = ("zba", "zbb", "zbc", "zbs", "zicbom", "zicboz", "svinval", "zihintpause", "zicond")


def test_capstone_reads_the_same_names() -> None:
    engine = capstone.Cs(capstone.CS_ARCH_RISCV, capstone.CS_MODE_RISCV64)
    wrong = []
    for item in INSTRUCTIONS:
        if item.extension in UNKNOWN or item.name in ("illegal", "fence.i"):
            continue
        operands = {"rd": 8, "rs1": 9, "rs2": 10, "rs3": 11, "csr": 0x340, "zimm": 5, "pred4": 15, "succ4": 3}
        if item.name == "fence":
            operands |= {"rd": 0, "rs1": 0}
        word = encode(item.name, **operands, imm=4096 if item.has("uimm20") else 4)
        read = [i.mnemonic for i in engine.disasm(word.to_bytes(4, "little"), 0x1000)]
        if read != [item.name]:
            wrong.append(f"{item.name} {word:#x}: {read}")
    assert not wrong


@pytest.mark.parametrize(
    ("name", "operands", "said"),
    [
        ("addi", {"imm": 2048}, "from -2048 to 2047"),
        ("addi", {"imm": -2049}, "got -2049"),
        ("sd", {"imm": 2048}, "from -2048 to 2047"),
        ("beq", {"imm": 3}, "in steps of 2"),
        ("beq", {"imm": 4096}, "to 4094"),
        ("jal", {"imm": 1 << 20}, "got 1048576"),
        ("lui", {"imm": 1}, "in steps of 4096"),
        ("slli", {"imm": 64}, "from 0 to 63"),
        ("slliw", {"imm": 32}, "from 0 to 31"),
        ("add", {"rd": 32}, "rd from 0 to 31"),
        ("csrrw", {"csr": 4096}, "csr12 from 0 to 4095"),
    ],
)
def test_operands_that_do_not_fit_are_refused(name: str, operands: dict[str, int], said: str) -> None:
    with pytest.raises(OperandError, match=said):
        encode(name, **operands)


def test_a_more_specific_encoding_comes_first() -> None:
    """Where a word has two descriptions the first one wins, so it must be the one with more fixed bits."""
    for number, first in enumerate(INSTRUCTIONS):
        for second in INSTRUCTIONS[number + 1 :]:
            common = first.mask & second.mask
            if first.match & common == second.match & common:
                assert second.mask & ~first.mask == 0, f"{first.name} and {second.name} overlap"
                assert first.mask != second.mask, f"{first.name} and {second.name} are the same"


def test_descriptions_that_are_wrong_are_refused() -> None:
    with pytest.raises(DescriptionError, match="expected 32 bits, got 31"):
        parse_encoding("imm12 rs1 000 rd 001001", TOKENS, 32)
    with pytest.raises(DescriptionError, match="'rq'"):
        parse_encoding("imm12 rs1 000 rq 0010011", TOKENS, 32)
    mask, match, fields = parse_encoding("0000001 rs2 rs1 100 rd 0110011", TOKENS, 32)
    assert (mask, match) == (0xFE00707F, 0x02004033)
    assert [(f.name, f.low, f.width) for f in fields] == [("rs2", 20, 5), ("rs1", 15, 5), ("rd", 7, 5)]


def test_an_instruction_is_described_by_its_function() -> None:
    described = InstructionSet(TOKENS, SIGNED)

    @described("nop2", "imm12 rs1 000 rd 0001011", "x", result="rd")
    def semantics(rs1: int, imm: int) -> int:
        return rs1 + imm

    (item,) = described.instructions
    assert (item.name, item.operands, item.result, item.extension) == ("nop2", ("rs1", "imm"), "rd", "x")
    assert item.has("imm12")
    assert not item.has("rs2")
