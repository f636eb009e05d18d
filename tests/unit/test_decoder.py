"""From bytes in memory to what runs: pages, their ends, code that changes, extensions that are off."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.cpu_harness import BASE, END_WORD, Cpu
from vmesh_services.cpu.core.harts import CODE_PAGES
from vmesh_services.cpu.core.state import CODE_GENERATION, CODE_KEPT
from vmesh_services.cpu.isa.riscv.compressed import COMPRESSED, expansion_table
from vmesh_services.cpu.isa.riscv.encoding import encode
from vmesh_services.cpu.isa.riscv.features import FEATURES
from vmesh_services.cpu.isa.riscv.instructions import INSTRUCTIONS

ILLEGAL, BREAKPOINT, FETCH_ACCESS = 2, 3, 1
PAGE = BASE + 0x4000
C_EBREAK, C_NOP = 0x9002, 0x0001
C_ADDI_A0_1 = 0x0505


def addi(rd: int, imm: int) -> int:
    return encode("addi", rd=rd, rs1=rd, imm=imm)


@pytest.fixture(scope="module")
def machine() -> Cpu:
    return Cpu(1 << 20)


@pytest.fixture
def cpu(machine: Cpu) -> Iterator[Cpu]:
    machine.reset()
    machine.write(BASE + 0x1000, bytes(0xE000))
    yield machine
    machine.device = lambda access: None


def halves(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}H", *values)


# expansion


@pytest.mark.parametrize(
    ("encoding", "word"),
    [
        (0x0505, encode("addi", rd=10, rs1=10, imm=1)),
        (0x557D, encode("addi", rd=10, rs1=0, imm=-1)),
        (0x6141, encode("addi", rd=2, rs1=2, imm=16)),
        (0x7179, encode("addi", rd=2, rs1=2, imm=-48)),
        (0x1800, encode("addi", rd=8, rs1=2, imm=48)),
        (0x8082, encode("jalr", rd=0, rs1=1)),
        (0x9082, encode("jalr", rd=1, rs1=1)),
        (0x852E, encode("add", rd=10, rs1=0, rs2=11)),
        (0x952E, encode("add", rd=10, rs1=10, rs2=11)),
        (0x8D09, encode("sub", rd=10, rs1=10, rs2=10)),
        (0xE406, encode("sd", rs1=2, rs2=1, imm=8)),
        (0x60A2, encode("ld", rd=1, rs1=2, imm=8)),
        (0xBFFD, encode("jal", rd=0, imm=-2)),
        (0xDD75, encode("beq", rs1=10, rs2=0, imm=-4)),
        (0x74FD, encode("lui", rd=9, imm=-4096)),
        (0x9002, encode("ebreak")),
        (0x357D, encode("addiw", rd=10, rs1=10, imm=-1)),
        (0x2108, encode("fld", rd=10, rs1=10)),
        (0x0000, 0),
        (0x8000, 0),
    ],
)
def test_short_instructions_stand_for_long_ones(encoding: int, word: int) -> None:
    assert f"{expansion_table()[encoding >> 2 | (encoding & 3) << 14]:#010x}" == f"{word:#010x}"


def test_each_short_description_is_reached() -> None:
    names = {item.name for item in INSTRUCTIONS}
    assert {item.target for item in COMPRESSED} <= names
    assert len({item.name for item in COMPRESSED}) == len(COMPRESSED)


# pages


def test_an_instruction_across_the_end_of_a_page(cpu: Cpu) -> None:
    cpu.write(PAGE + 0xFFE, struct.pack("<II", addi(10, 5), END_WORD))
    cpu.set(PAGE + 0xFFE, {10: 1})
    assert cpu.run().pc == PAGE + 0x1002
    assert cpu.x()[10] == 6


def test_an_instruction_whose_second_half_is_no_memory(cpu: Cpu) -> None:
    end = BASE + cpu.size
    cpu.write(end - 2, halves(addi(10, 5) & 0xFFFF))
    cpu.set(end - 2, {10: 1})
    stop = cpu.run()
    assert (stop.pc, stop.cause, stop.value) == (end - 2, FETCH_ACCESS, end)
    assert cpu.x()[10] == 1
    cpu.write(end - 2, halves(C_ADDI_A0_1))
    cpu.set(end - 2)
    stop = cpu.run()
    assert (stop.pc, stop.cause, stop.value) == (end, FETCH_ACCESS, end)
    assert cpu.x()[10] == 2


def test_an_illegal_instruction_tells_its_bits_wherever_it_lies(cpu: Cpu) -> None:
    for pc in (PAGE, PAGE + 2, PAGE + 0xFFC, PAGE + 0xFFE):
        for word, bits in ((0xFFFF_FFFF, 0xFFFF_FFFF), (0xABCD_8000, 0x8000), (0, 0), (0x0000_700B, 0x700B)):
            cpu.write(pc, struct.pack("<I", word))
            cpu.set(pc)
            stop = cpu.run()
            assert (stop.pc, stop.cause, stop.value) == (pc, ILLEGAL, bits)


def test_a_breakpoint_is_at_its_own_address(cpu: Cpu) -> None:
    for code, pc in ((halves(C_EBREAK), PAGE + 6), (struct.pack("<I", encode("ebreak")), PAGE + 0xFFE)):
        cpu.write(pc, code)
        cpu.set(pc)
        stop = cpu.run()
        assert (stop.pc, stop.cause, stop.value) == (pc, BREAKPOINT, pc)


def test_a_jump_into_an_instruction_finds_another_one(cpu: Cpu) -> None:
    """The upper half of ``lui`` is a short instruction; both readings are kept side by side."""
    word = encode("lui", rd=11) | C_ADDI_A0_1 << 16
    cpu.place(PAGE, word, END_WORD)
    for start, expected in ((PAGE, (0, 0x0505_0000)), (PAGE + 2, (1, 0)), (PAGE, (0, 0x0505_0000))):
        cpu.set(start, {10: 0, 11: 0})
        assert cpu.run().why == "end"
        assert (cpu.x()[10], cpu.x()[11]) == expected


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("taken", [True, False])
def test_branches_around_the_end_of_a_page(cpu: Cpu, short: bool, taken: bool) -> None:
    """From every place near the end of a page to every place near it: within the page, and across, both ways."""
    area = PAGE + 0xFE0
    for start in range(area, area + 0x40, 2):
        for target in range(area, area + 0x40, 2):
            size = 2 if short else 4
            if target in range(start - 2, start + size) or start in range(target, target + 4):
                continue
            cpu.write(area, halves(*[C_EBREAK] * 0x24))
            if short:
                distance = target - start
                order = (8, 4, 3, None, None, None, 7, 6, 2, 1, 5)
                bits = sum((distance >> b & 1) << 12 - n for n, b in enumerate(order) if b is not None)
                cpu.write(start, halves(0xE001 | bits))  # c.bnez s0
            else:
                cpu.write(start, struct.pack("<I", encode("bne", rs1=8, rs2=0, imm=target - start)))
            cpu.set(start, {8: int(taken)})
            stop = cpu.run()
            assert (stop.cause, stop.pc) == (BREAKPOINT, target if taken else start + size)


def test_a_loop_across_pages_runs_as_often_as_it_says(cpu: Cpu) -> None:
    cpu.write(
        PAGE + 0xFF6, struct.pack("<IHIHI", addi(11, 3), C_NOP, addi(10, -1), C_NOP, encode("bne", rs1=10, imm=-12))
    )
    cpu.write(PAGE + 0x1006, struct.pack("<I", END_WORD))
    before = cpu.hart.retired
    cpu.set(PAGE + 0xFF6, {10: 1000, 11: 0})
    assert cpu.run().why == "end"
    assert (cpu.x()[10], cpu.x()[11]) == (0, 3000)
    assert cpu.hart.retired - before == 5000


@pytest.mark.parametrize("name", ["jal", "beq"])
def test_a_jump_to_itself_can_be_stopped(cpu: Cpu, name: str) -> None:
    for pc in (PAGE, PAGE + 0xFFE):
        cpu.place(pc, encode(name))
        cpu.set(pc)
        stop = cpu.run(seconds=0.05)
        assert (stop.why, stop.pc) == ("timeout", pc)


def _chain(pages: int) -> Cpu:
    """Code that runs through ``pages`` pages from BASE + 0x1000 on, adding one to a0 in each."""
    cpu = Cpu((pages + 2) << 12)
    for page in range(pages):
        code = struct.pack("<II", addi(10, 1), encode("jal", imm=0x1000 - 4))
        cpu.ram[0x1000 + (page << 12) : 0x1008 + (page << 12)] = code
    cpu.place(BASE + 0x1000 + (pages << 12), END_WORD)
    return cpu


def _run_chain(cpu: Cpu, start: int, pages: int) -> int:
    """Runs the last ``pages`` pages of a chain; gives the pages that were decoded for it."""
    before = cpu.hart.count_code_pages
    cpu.set(BASE + 0x1000 + (start << 12), {10: 0})
    assert cpu.run().why == "end"
    assert cpu.x()[10] == pages
    return int(cpu.hart.count_code_pages - before)


def test_code_in_more_pages_than_there_is_room_for() -> None:
    pages = CODE_PAGES + 50
    cpu = _chain(pages)
    for _ in range(2):
        _run_chain(cpu, 0, pages)


def test_pages_that_are_run_once_take_the_places_of_others() -> None:
    cpu = _chain(CODE_PAGES - 10)
    _run_chain(cpu, 0, CODE_PAGES - 10)
    assert cpu.hart.code_used <= CODE_KEPT + 2 * CODE_GENERATION


def test_pages_that_are_run_again_and_again_are_all_kept() -> None:
    pages = 3 * CODE_KEPT
    cpu = _chain(pages)
    decoded = [_run_chain(cpu, 0, pages) for _ in range(20)]
    assert decoded[0] == pages + 1
    assert decoded[-1] == 0
    # and part of them, in a program that is larger
    assert _run_chain(cpu, pages - 100, 100) == 0


# code that changes


def _store_then_run(cpu: Cpu, fence: bool, distance: int) -> int:
    """Stores an instruction ``distance`` bytes ahead, after it was run once; gives a0 at the end."""
    target = PAGE + distance
    cpu.place(target, addi(10, 1), encode("jalr", rs1=1))
    fences = [encode("fence.i")] if fence else [encode("addi")]
    call = [encode("lui", rd=1), encode("jalr", rd=1, rs1=5)]
    cpu.place(PAGE, *call, encode("sw", rs1=5, rs2=6), *fences, *call, END_WORD)
    cpu.set(PAGE, {5: target, 6: addi(10, 100), 10: 0})
    assert cpu.run().why == "end"
    return cpu.x()[10]


@pytest.mark.parametrize("distance", [0x100, 0xFFE, 0x1000, 0x3000])
def test_stores_to_code_are_seen_after_a_fence(cpu: Cpu, distance: int) -> None:
    assert _store_then_run(cpu, True, distance) == 101


def test_stores_to_code_may_be_seen_without_a_fence_but_nothing_else_is(cpu: Cpu) -> None:
    assert _store_then_run(cpu, False, 0x100) in (2, 101)


def test_a_fence_changes_only_what_changed(cpu: Cpu) -> None:
    """After FENCE.I a page whose bytes are the same keeps its decoded instructions."""
    cpu.place(PAGE, addi(10, 1), encode("fence.i"), addi(10, 1), END_WORD)
    cpu.set(PAGE, {10: 0})
    assert cpu.run().why == "end"
    before = cpu.hart.count_decoded
    cpu.set(PAGE)
    assert cpu.run().why == "end"
    assert cpu.x()[10] == 4
    assert cpu.hart.count_decoded == before


# extensions


@pytest.mark.parametrize("extension", sorted({item.extension for item in INSTRUCTIONS} - {"i"}))
def test_an_extension_that_is_off_is_illegal(extension: str) -> None:
    cpu = Cpu(1 << 16, set(FEATURES) - {extension})
    checked = 0
    for item in INSTRUCTIONS:
        if item.extension == extension and item.name not in ("wfi", "pause"):
            word = encode(item.name)
            cpu.place(BASE + 0x1000, word, END_WORD)
            cpu.set(BASE + 0x1000)
            stop = cpu.run()
            assert (stop.cause, stop.value) == (ILLEGAL, word), item.name
            checked += 1
    assert checked or extension in ("zihintpause",)


def test_pause_is_a_fence_where_it_has_no_meaning_of_its_own() -> None:
    """PAUSE is a FENCE hint, so it is never illegal."""
    for features in (set(FEATURES), set(FEATURES) - {"zihintpause"}):
        cpu = Cpu(1 << 16, features)
        cpu.place(BASE + 0x1000, 0x0100_000F, END_WORD)
        cpu.set(BASE + 0x1000)
        assert cpu.run().why == "end"


def test_short_instructions_are_illegal_without_c() -> None:
    cpu = Cpu(1 << 16, set(FEATURES) - {"c"})
    cpu.write(BASE + 0x1000, halves(C_ADDI_A0_1))
    cpu.set(BASE + 0x1000)
    stop = cpu.run()
    assert (stop.cause, stop.value) == (ILLEGAL, C_ADDI_A0_1)


def test_short_floating_point_is_illegal_without_d() -> None:
    cpu = Cpu(1 << 16, set(FEATURES) - {"d"})
    cpu.write(BASE + 0x1000, halves(0x2108))
    cpu.set(BASE + 0x1000, {10: BASE})
    assert cpu.run().cause == ILLEGAL
