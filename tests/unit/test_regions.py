"""Regions between harts, the translator and the disk: what is put into which page, and what is not."""

from __future__ import annotations

import struct
import threading

import pytest

from tests.cpu_harness import Cpu
from tests.models.guest import CODE, put
from vmesh_services.cpu.core import regions
from vmesh_services.cpu.core.region import form
from vmesh_services.cpu.core.regions import FINGERPRINT, LONGEST_CODE, Regions, Translation
from vmesh_services.cpu.core.state import ATTENTION_STOP, EXIT_REGIONS, EXIT_STOP
from vmesh_services.cpu.core.tlb import PAGE
from vmesh_services.cpu.core.translator import translate
from vmesh_services.cpu.core.translator_process import Request
from vmesh_services.cpu.isa.riscv.definition import ISA
from vmesh_services.cpu.isa.riscv.encoding import encode
from vmesh_services.cpu.isa.riscv.features import FEATURES

LOOP = """
loop:
    addi a0, a0, 1
    addi a1, a1, 1
    addi a1, a1, 1
    bnez a2, loop
    j loop
"""


class Elsewhere:
    """A translator that compiles when the test says so, and a store. Who asks again is answered once."""

    def __init__(self, kept: dict[bytes, list[Translation]] | None = None) -> None:
        self.requests: dict[tuple[bytes, int], Request] = {}
        self.asked = 0
        self.kept = kept or {}

    def request(self, digest: bytes, page: bytes, offset: int, executed: bytes, physical: int) -> bool:
        self.requests[digest, offset] = Request(digest, offset, physical, frozenset(FEATURES), executed, page)
        self.asked += 1
        return True

    def fingerprints(self) -> set[bytes]:
        return {digest[:FINGERPRINT] for digest in self.kept}

    def find(self, digest: bytes) -> list[Translation]:
        return self.kept.get(digest, [])

    def compile(self) -> list[tuple[bytes, Translation]]:
        made = [(each.digest, translation) for each in self.requests.values() if (translation := translate(ISA, each))]
        self.requests.clear()
        return made


class Machine:
    """One hart that interprets, with regions."""

    def __init__(self, elsewhere: Elsewhere, features: set[str] | None = None) -> None:
        self.cpu = Cpu(features=features, mode="interpret")
        self.regions = Regions(self.cpu.harts, elsewhere, elsewhere, hot_samples=2)
        put(self.cpu, LOOP)
        self.cpu.set(CODE)

    def run(self, looks: int) -> None:
        """Runs until the hart has looked up some times."""
        hart = self.cpu.hart
        for _ in range(looks):
            hart.attention |= ATTENTION_STOP
            hart.stop_at = hart.retired + 50
            reason = self.cpu.harts.run(0)
            assert reason in (EXIT_STOP, EXIT_REGIONS)
            self.regions.serve(0)

    @property
    def installed(self) -> int:
        return self.regions.counters()["regions_installed"]

    def in_region(self) -> bool:
        """Whether the loop's slot has other than an interpreter's handler."""
        hart, machine = self.cpu.hart, self.cpu.harts.machine
        page = self.regions._find(hart, CODE)
        from ctypes import c_uint64

        handler = c_uint64.from_address(page).value
        return handler not in (*machine.handlers[:], machine.decode_handler)


def test_hot_code_is_asked_for_once_and_installed() -> None:
    elsewhere = Elsewhere()
    machine = Machine(elsewhere)
    machine.run(10)
    assert [offset for _, offset in elsewhere.requests] == [0]
    for digest, translation in elsewhere.compile():
        machine.regions.add(digest, translation)
    assert not machine.in_region()
    machine.run(2)
    assert machine.in_region()
    assert machine.installed == 1
    a0, a1 = machine.cpu.x()[10:12]
    assert (a1, machine.cpu.hart.retired) == (2 * a0, 5 * a0)
    # a hot loop that runs from its region never comes to Python again (``sample``)
    hart = machine.cpu.hart
    hart.attention, hart.stop_at = 0, hart.retired
    watchdog = threading.Timer(0.2, machine.cpu.harts.stop)
    watchdog.start()
    assert machine.cpu.harts.run(0) == EXIT_STOP
    assert hart.hot_count == 0
    assert not elsewhere.requests


@pytest.mark.parametrize("limit", ["MOST_CODE", "MOST_CONTENTS"])
def test_a_guest_that_makes_code_all_the_time_is_interpreted_in_the_end(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    elsewhere = Elsewhere()
    machine = Machine(elsewhere)
    machine.run(10)
    for digest, translation in elsewhere.compile():
        machine.regions.add(digest, translation)
    machine.run(2)
    assert machine.in_region()
    asked = elsewhere.asked
    monkeypatch.setattr(regions, limit, 0)
    put(machine.cpu, LOOP.replace("a0, a0, 1", "a0, a0, 2"))
    machine.cpu.set(CODE)
    machine.run(10)
    assert elsewhere.asked == asked
    assert not machine.in_region()
    put(machine.cpu, LOOP)  # what is there is used again
    machine.cpu.set(CODE)
    machine.run(10)
    assert machine.in_region()
    assert elsewhere.asked == asked


def test_what_was_never_run_is_left_out() -> None:
    elsewhere = Elsewhere()
    machine = Machine(elsewhere)
    put(machine.cpu, "loop:\naddi a0, a0, 1\nbeqz a2, on\naddi a1, a1, 1\non:\naddi a3, a3, 1\nj loop\n")
    machine.cpu.set(CODE, {10: 0, 11: 0, 12: 0, 13: 0})
    machine.run(10)
    ((_, translation),) = elsewhere.compile()
    assert list(struct.unpack("<4H", translation.steps)) == [0, 4, 12, 16]
    for each in [translation]:
        machine.regions.add(machine.regions._content(machine.regions._find(machine.cpu.hart, CODE)).digest, each)
    machine.run(2)
    assert machine.in_region()
    # what has not been run is where the region is left
    machine.cpu.set(machine.cpu.hart.pc, {12: 1})
    machine.run(2)
    a0, a1, _, a3 = machine.cpu.x()[10:14]
    assert 0 < a1 <= a3 <= a0 <= a3 + 1
    assert sum(machine.cpu.hart.count_exits) > 0
    # though the clock finds nothing but the region at the loop's head, what it lacks is found hot
    machine.run(10)
    assert [offset for _, offset in elsewhere.requests] == [8]


def test_a_loop_is_whole_before_what_comes_behind_it() -> None:
    """A loop of 21 instructions from byte 4 on, found in its middle, and more behind it than there is room for."""
    words = [encode("addi", rd=10, rs1=10, imm=1)] * 52
    words[21] = encode("bne", rs1=10, rs2=0, imm=-80)
    page = struct.pack("<52I", *words).ljust(PAGE, b"\0")
    region = form(ISA, page, 60, frozenset(FEATURES), limit=25)
    assert region is not None
    assert sorted(region.steps) == [*range(4, 88, 4), 88, 92, 96, 100]


def test_a_request_that_is_repeated() -> None:
    """While nothing is translated a hot place is asked for again and again, which makes it the newest request."""
    elsewhere = Elsewhere()
    machine = Machine(elsewhere)
    machine.run(10)
    assert elsewhere.asked > 1
    assert len(elsewhere.requests) == 1
    assert machine.regions.counters()["regions_asked"] == 1


def test_regions_of_one_page_that_come_together() -> None:
    """Each is installed, not the last one twice."""
    elsewhere = Elsewhere()
    machine = Machine(elsewhere)
    machine.run(10)
    (first,) = elsewhere.requests.values()
    for offset in (4, 8):
        elsewhere.request(first.digest, first.page, offset, first.executed, CODE)
    for each in elsewhere.compile():
        machine.regions.add(*each)
    machine.run(1)
    assert machine.installed == 3
    assert machine.in_region()


def test_a_page_that_changed_meanwhile() -> None:
    """The answer is for other bytes: nothing is installed, and the new code runs (the digest in ``_serve``)."""
    elsewhere = Elsewhere()
    machine = Machine(elsewhere)
    machine.run(10)
    made = elsewhere.compile()
    put(machine.cpu, LOOP.replace("addi a1, a1, 1", "addi a1, a1, 3"))
    machine.cpu.set(CODE, {10: 0, 11: 0})
    machine.run(1)
    for each in made:
        machine.regions.add(*each)
    machine.run(3)
    assert not machine.in_region()
    a0, a1 = machine.cpu.x()[10:12]
    assert a1 == 6 * a0
    # and back: now they are what was compiled
    put(machine.cpu, LOOP)
    machine.cpu.set(CODE, {10: 0, 11: 0})
    machine.run(3)
    assert machine.in_region()
    a0, a1 = machine.cpu.x()[10:12]
    assert a1 == 2 * a0


def test_a_page_that_changed_beside_what_was_compiled() -> None:
    """A compiler in the guest writes its next function there meanwhile: the region is of the same instructions."""
    elsewhere = Elsewhere()
    machine = Machine(elsewhere)
    machine.run(10)
    made = elsewhere.compile()
    machine.cpu.write(CODE + PAGE // 2, b"data")
    machine.cpu.forget()
    machine.run(1)
    for each in made:
        machine.regions.add(*each)
    machine.run(1)
    assert machine.in_region()

    # changed where the region is, and back, in a page that is not the same any more: nothing is compiled again
    put(machine.cpu, LOOP.replace("addi a1, a1, 1", "addi a1, a1, 3"))
    machine.cpu.set(CODE, {10: 0, 11: 0})
    machine.run(5)
    assert not machine.in_region()
    machine.cpu.write(CODE + PAGE // 2, b"more")
    put(machine.cpu, LOOP)
    machine.cpu.set(CODE, {10: 0, 11: 0})
    asked = elsewhere.asked
    machine.run(3)
    assert machine.in_region()
    assert elsewhere.asked == asked
    a0, a1 = machine.cpu.x()[10:12]
    assert a1 == 2 * a0


def test_a_page_that_changed_right_behind_what_was_compiled() -> None:
    """A region that ends in an instruction of two bytes says nothing of the two behind it."""
    elsewhere = Elsewhere()
    machine = Machine(elsewhere)
    machine.cpu.write(CODE + 16, b"\xc5\xbf\x13\x00")  # c.j -16, and half of another instruction
    machine.cpu.forget()
    machine.cpu.set(CODE)
    machine.run(10)
    for each in elsewhere.compile():
        machine.regions.add(*each)
    machine.cpu.write(CODE + 18, b"\x93\x00")
    machine.cpu.forget()
    asked = elsewhere.asked
    machine.run(5)
    assert machine.in_region()
    assert elsewhere.asked == asked


def test_a_loop_that_counts_beside_itself_is_compiled_once() -> None:
    """Each answer is of another content of the page, and the same region."""
    elsewhere = Elsewhere()
    machine = Machine(elsewhere)
    for number in range(5):
        machine.cpu.write(CODE + PAGE // 2, bytes([number]))
        machine.cpu.forget()
        machine.run(3)
    made = elsewhere.compile()
    assert len(made) > 1
    for each in made:
        machine.regions.add(*each)
    machine.run(1)
    assert machine.in_region()
    size = machine.regions.counters()["region_bytes"]
    assert size == len(made[0][1].code)


def test_what_cannot_be_compiled_is_not_asked_for_again() -> None:
    elsewhere = Elsewhere()
    machine = Machine(elsewhere)
    machine.run(10)
    ((digest, offset),) = elsewhere.requests
    machine.regions.add(digest, Translation.nothing(offset))
    asked = elsewhere.asked
    machine.run(10)
    assert elsewhere.asked == asked
    machine.cpu.write(CODE + PAGE // 2, b"data")  # another content, which may be told otherwise
    machine.cpu.forget()
    machine.run(10)
    assert elsewhere.asked > asked


@pytest.mark.parametrize("bound", ["MOST_CODE", "MOST_CONTENTS"])
def test_what_is_there_is_used_when_no_more_is_compiled(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Elsewhere()
    machine = Machine(elsewhere)
    machine.run(10)
    for each in elsewhere.compile():
        machine.regions.add(*each)
    monkeypatch.setattr(regions, bound, 0)
    put(machine.cpu, LOOP.replace("addi a1, a1, 1", "addi a1, a1, 3"))
    machine.cpu.write(CODE + PAGE // 2, b"data")
    machine.cpu.set(CODE)
    machine.run(5)
    assert not machine.in_region()
    put(machine.cpu, LOOP)
    machine.cpu.set(CODE)
    machine.run(5)
    assert machine.in_region()


def test_a_later_machine_begins_with_what_was_kept() -> None:
    elsewhere = Elsewhere()
    machine = Machine(elsewhere)
    machine.run(10)
    made = elsewhere.compile()
    later = Machine(Elsewhere({digest: [translation] for digest, translation in made}))
    later.run(1)
    assert later.in_region()
    assert later.regions.counters()["regions_from_store"] == 1


def test_what_was_kept_of_a_page_whose_data_changes_beside_its_code() -> None:
    """The core tells of changed code only; the digest is of all bytes, and is looked up when the code is hot."""

    def run(elsewhere: Elsewhere) -> Machine:
        machine = Machine(elsewhere)
        machine.run(1)
        machine.cpu.write(CODE + PAGE // 2, b"data")
        machine.cpu.forget()
        machine.run(9)
        return machine

    elsewhere = Elsewhere()
    machine = run(elsewhere)
    made = elsewhere.compile()
    for each in made:
        machine.regions.add(*each)
    machine.run(1)
    assert machine.in_region()

    elsewhere = Elsewhere({digest: [translation] for digest, translation in made})
    machine = run(elsewhere)
    assert machine.in_region()
    assert elsewhere.asked == 0


def test_extensions_that_are_off_there() -> None:
    """A region of a machine with other extensions is none of this one's (the salt of ``_digest``)."""
    elsewhere = Elsewhere()
    machine = Machine(elsewhere)
    put(machine.cpu, LOOP.replace("addi a1, a1, 1", "sh1add a1, a3, a1"))
    machine.cpu.set(CODE)
    machine.run(10)
    made = elsewhere.compile()
    assert made
    other = Machine(Elsewhere({digest: [translation] for digest, translation in made}), set(FEATURES) - {"zba"})
    put(other.cpu, LOOP.replace("addi a1, a1, 1", "sh1add a1, a3, a1"))
    other.cpu.set(CODE)
    stop = other.cpu.run()
    other.regions.serve(0)
    assert (stop.cause, stop.pc) == (2, CODE + 4)
    other.cpu.set(CODE, {10: 0})
    stop = other.cpu.run()
    assert (stop.cause, stop.pc, other.cpu.x()[10]) == (2, CODE + 4, 1)
    assert other.installed == 0


def offsets(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}H", *values)


UNSOUND = {
    "no code": Translation(offsets(0, 4), offsets(0), b""),
    "too much code": Translation(offsets(0, 4), offsets(0), bytes(LONGEST_CODE + 1)),
    "no steps": Translation(b"", b"", b"\xc3"),
    "no entries": Translation(offsets(0, 4), b"", b"\xc3"),
    "half a step": Translation(offsets(0, 4) + b"\0", offsets(0), b"\xc3"),
    "half an entry": Translation(offsets(0, 4), offsets(0) + b"\0", b"\xc3"),
    "an odd step": Translation(offsets(0, 5), offsets(0), b"\xc3"),
    "a step behind the page": Translation(offsets(0, PAGE), offsets(0), b"\xc3"),
    "an entry that is no step": Translation(offsets(0, 4), offsets(0, 8), b"\xc3"),
}


@pytest.mark.parametrize("what", UNSOUND)
def test_translations_that_cannot_be(what: str) -> None:
    """From the disk or the translator: refused, counted, the code is interpreted (``sound``)."""
    assert Translation(offsets(0, 4), offsets(0), b"\xc3").sound
    elsewhere = Elsewhere()
    machine = Machine(elsewhere)
    machine.run(10)
    ((digest, _),) = elsewhere.requests
    machine.regions.add(digest, UNSOUND[what])
    machine.run(2)
    later = Machine(Elsewhere({digest: [UNSOUND[what]]}))
    later.run(2)
    for each in (machine, later):
        assert each.regions.counters()["regions_refused"] == 1
        assert not each.in_region()
        assert each.installed == 0


def test_two_harts_with_the_same_page() -> None:
    """Decoded pages are per hart: each gets what one of them asked for."""
    elsewhere = Elsewhere()
    machine = Machine(elsewhere)
    cpu = Cpu(count=2, mode="interpret")
    regions = Regions(cpu.harts, elsewhere, elsewhere, hot_samples=2)
    put(cpu, LOOP)
    for number, hart in enumerate(cpu.harts.hart):
        hart.pc = CODE
        for _ in range(5):
            hart.attention |= ATTENTION_STOP
            hart.stop_at = hart.retired + 50
            cpu.harts.run(number)
            regions.serve(number)
    assert len(elsewhere.requests) == 1
    for each in elsewhere.compile():
        regions.add(*each)
    for number, hart in enumerate(cpu.harts.hart):
        assert hart.attention
        assert cpu.harts.run(number) == EXIT_REGIONS
        regions.serve(number)
    assert regions.counters()["regions_installed"] == 2
    del machine
