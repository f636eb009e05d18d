"""Every instruction against an oracle that shares nothing with its description.

* Unicorn (QEMU 5.0), always there: I, M, A, Zicsr, D. It knows neither Zb* nor Zicbo*, and leaves the upper half of
  single-precision results as it was, so F is compared by ``unit/test_softfloat.py`` in a way that allows for that.
* Models in plain Python: Zba, Zbb, Zbc, Zbs (``models/bitmanip.py``), Zicbom, Zicboz.
* QEMU 7.2 or newer where installed: everything, traps and trap values included. ``EXCUSED`` has what it does otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.models.bitmanip import MASK, MODEL
from tests.models.operands import CENTRE, CSRS, Generator, disassemble, report
from tests.models.oracle import BREAKPOINT, WINDOW, Case, Ours, Qemu, State, Unicorn
from tests.models.tiers import INTERPRET, TRANSLATE, portion
from vmesh_services.cpu.isa.description import Instruction
from vmesh_services.cpu.isa.riscv.instructions import INSTRUCTIONS

#: Instructions that are compared elsewhere: WFI waits and the returns change privilege (tests of traps); ``illegal``
#: stands for all that is no instruction (test_oracle_encodings).
ELSEWHERE = {"wfi", "mret", "sret", "illegal"}
TESTED = [item for item in INSTRUCTIONS if item.name not in ELSEWHERE]
BLOCK = [item for item in TESTED if item.name.startswith("cbo.")]
#: Computation with single-precision values.
SINGLE = [
    item
    for item in TESTED
    if (item.extension == "f" and item.name not in ("flw", "fsw")) or item.name in ("fcvt.s.d", "fcvt.d.s")
]
#: FMIN and FMAX of a signalling NaN gave a NaN before version 2.2 of F and D; Unicorn gives no cause of ECALL, EBREAK.
CHANGED = ("fmin.d", "fmax.d", "ecall", "ebreak")
#: What Unicorn's CPU has, and does as today's specification says.
UNICORN = ("i", "m", "a", "f", "d", "zicsr", "zifencei", "zihintpause")
ON_UNICORN = [item for item in TESTED if item.extension in UNICORN and item not in SINGLE and item.name not in CHANGED]
SEED = 20_240


@pytest.fixture(scope="module")
def ours() -> Ours:
    return Ours()


def named(case: Case) -> str:
    shown = {f"x{n}": hex(v) for n, v in enumerate(case.x) if n and n in _registers(case)}
    return f"{disassemble(case.code, case.pc)} with {shown}, fcsr {case.fcsr:#x}"


def _registers(case: Case) -> set[int]:
    word = int.from_bytes(case.code[:4], "little")
    return {word >> low & 31 for low in (7, 15, 20)}


def test_every_instruction_has_an_oracle() -> None:
    without = {i.name for i in TESTED} - {i.name for i in (*ON_UNICORN, *SINGLE, *BLOCK)} - set(MODEL)
    # test_softfloat has the first two; the others trap or order, which QEMU shows
    assert without == {*CHANGED, "sinval.vma", "sfence.w.inval", "sfence.inval.ir"}
    assert len(ON_UNICORN) > 110


def test_instructions_agree_with_unicorn(ours: Ours) -> None:
    generator = Generator(SEED)
    made = portion(generator.cases(ON_UNICORN, 64) + generator.pairs(ON_UNICORN))
    cases = [case for _, case in made]
    found, compared = [], Counter[str]()
    for (item, case), mine, theirs in zip(made, ours.run(cases), Unicorn().run(cases), strict=True):
        # it gives no cause of a failed access, and an SC without a reservation fails there whatever the address
        if theirs is None or (item.name.startswith("sc.") and mine.cause != BREAKPOINT):
            continue
        compared[item.name] += 1
        if differences := mine.differences(theirs):
            found.append(f"{item.name}: {named(case)}: ours / Unicorn {differences}")
    assert not found, f"seed {SEED}: {report(found)}"
    assert min(compared[item.name] for item in ON_UNICORN) > 16 or len(made) < 64 * len(ON_UNICORN)


def test_translated_instructions_agree_with_the_interpreter() -> None:
    """Each instruction in a few encodings, each of these with many values in its registers."""
    generator = Generator(SEED + 5)
    made = [(item, each) for item, case in generator.cases(TESTED, 4) for each in generator.varied(item, case, 32)]
    cases = [case for _, case in made]
    found = []
    translated = Ours(TRANSLATE)
    for (item, case), mine, theirs in zip(made, translated.run(cases), Ours(INTERPRET).run(cases), strict=True):
        if differences := mine.differences(theirs):
            found.append(f"{item.name}: {named(case)}: translated / interpreted {differences}")
    assert not found, f"seed {SEED + 5}: {report(found)}"
    assert translated.cpu.harts.installed > 3 * len([item for item in TESTED if not item.system and not item.traps])


def test_bit_manipulation_and_conditionals_agree_with_the_model(ours: Ours) -> None:
    described = [item for item in INSTRUCTIONS if item.extension in ("zba", "zbb", "zbc", "zbs", "zicond")]
    assert {item.name for item in described} == set(MODEL)
    generator = Generator(SEED + 1)
    made = portion(generator.cases(described, 96) + generator.pairs(described))
    found = []
    for (item, case), mine in zip(made, ours.run([case for _, case in made]), strict=True):
        expected = _expected_of_model(item, case)
        if differences := mine.differences(expected):
            found.append(f"{item.name}: {named(case)}: ours / model {differences}")
    assert not found, f"seed {SEED + 1}: {report(found)}"


def _expected_of_model(item: Instruction, case: Case) -> State:
    word = int.from_bytes(case.code, "little")
    rd, rs1 = word >> 7 & 31, word >> 15 & 31
    if item.has("rs2"):
        second = case.x[word >> 20 & 31]
    else:
        second = word >> 20 & (31 if item.has("shamt5") else 63)
    x = list(case.x)
    if rd:
        x[rd] = MODEL[item.name](case.x[rs1], second) & MASK
    return State(tuple(x), tuple(case.f), case.fcsr, case.pc + 4, BREAKPOINT, 0, case.window)


def test_cache_block_operations_clear_or_keep_their_block(ours: Ours) -> None:
    made = Generator(SEED + 2).cases(BLOCK, 64)
    found = []
    for (item, case), mine in zip(made, ours.run([case for _, case in made]), strict=True):
        word = int.from_bytes(case.code, "little")
        address = case.x[word >> 15 & 31]
        window = bytearray(case.window)
        if not CENTRE - WINDOW // 2 <= address < CENTRE + WINDOW // 2:
            continue
        if item.name == "cbo.zero":
            start = address // 64 * 64 - case.address
            window[start : start + 64] = bytes(64)
        expected = State(tuple(case.x), tuple(case.f), case.fcsr, case.pc + 4, BREAKPOINT, 0, bytes(window))
        if differences := mine.differences(expected):
            found.append(f"{item.name}: {named(case)}: ours / model {differences}")
    assert not found, report(found)


Excuse = Callable[[Instruction, Case, State, State], bool]


def _block(item: Instruction, case: Case, mine: State, theirs: State) -> bool:
    """QEMU before 8.0 has no Zicbom and no Zicboz."""
    return item in BLOCK


def _zicond(item: Instruction, case: Case, mine: State, theirs: State) -> bool:
    """QEMU before 8.0 has no Zicond, and later ones do not turn it on by themselves."""
    return item.extension == "zicond"


def _store_cause(item: Instruction, case: Case, mine: State, theirs: State) -> bool:
    """The specification has store causes for AMOs (privileged, table of mcause); QEMU reports the load's."""
    return item.name.startswith("amo") and (mine.cause, theirs.cause) in ((6, 4), (7, 5), (6, 5), (6, 7))


def _misaligned_amo(item: Instruction, case: Case, mine: State, theirs: State) -> bool:
    """QEMU makes misaligned AMOs with all other harts stopped; here they trap, which the A extension allows."""
    return item.extension == "a" and mine.cause in (4, 6) and theirs.cause == BREAKPOINT


def _conditional(item: Instruction, case: Case, mine: State, theirs: State) -> bool:
    """An SC without a reservation fails in QEMU without looking at its address; here the address is checked first."""
    return item.name.startswith("sc.") and mine.cause in (6, 7) and theirs.cause == BREAKPOINT


def _misaligned_nowhere(item: Instruction, case: Case, mine: State, theirs: State) -> bool:
    """A misaligned access where no memory is: either exception may come first (privileged, exception priorities)."""
    return (mine.cause, theirs.cause) in ((4, 5), (6, 7)) and mine.value % 8 != 0


def _write_of_nothing(item: Instruction, case: Case, mine: State, theirs: State) -> bool:
    """CSRRS and CSRRC with a register other than x0 write even if it holds 0 (Zicsr); QEMU 7.2 does not think so."""
    word = int.from_bytes(case.code, "little")
    return item.name in ("csrrs", "csrrc") and word >> 30 == 3 and mine.cause == 2 and case.x[word >> 15 & 31] == 0


def _trailing_zeros(item: Instruction, case: Case, mine: State, theirs: State) -> bool:
    """QEMU 7.2 looks at all 64 bits in CTZW where the lower 32 are zero; the model above has it as specified."""
    return item.name == "ctzw" and case.x[case.code[1] >> 7 | (case.code[2] & 15) << 1] & 0xFFFF_FFFF == 0


EXCUSED: tuple[Excuse, ...] = (
    _block, _zicond, _store_cause,
    _misaligned_amo, _conditional, _misaligned_nowhere, _write_of_nothing, _trailing_zeros,
)  # fmt: skip


@pytest.mark.peer
def test_instructions_agree_with_qemu(ours: Ours, peer: Callable[[str], str]) -> None:
    peer(Qemu.PROGRAM)
    generator = Generator(SEED + 3)
    made = portion(generator.cases(TESTED, 96) + generator.pairs(TESTED))
    cases = [case for _, case in made]
    found = []
    for (item, case), mine, theirs in zip(made, ours.run(cases), Qemu().run(cases), strict=True):
        differences = mine.differences(theirs)
        if differences and not any(excuse(item, case, mine, theirs) for excuse in EXCUSED):
            found.append(f"{item.name}: {named(case)}: ours / QEMU {differences}")
    assert not found, f"seed {SEED + 3}: {report(found)}"


def test_csr_cases_reach_registers_that_exist_and_that_do_not(ours: Ours) -> None:
    """The list that cases choose from: what is there, what is read-only, what is not there."""
    word = 0x0000_2073  # csrrs x0, csr, x0
    generator = Generator(SEED + 4)
    states = ours.run([generator.code((word | csr << 20).to_bytes(4, "little")) for csr in CSRS])
    assert [state.cause for state in states] == [BREAKPOINT] * 6 + [2, 2]
