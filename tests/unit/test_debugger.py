"""Breakpoints, watchpoints and steps of a hart, interpreted and translated."""

from __future__ import annotations

import pytest

from tests.cpu_harness import BASE, END_WORD, Access, Cpu
from tests.models.tiers import MODES
from vmesh import errors
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import cpu_pb2 as messages
from vmesh_services.cpu.core.debugger import Debugger
from vmesh_services.cpu.core.state import EXIT_ACCESS
from vmesh_services.cpu.isa.riscv.encoding import encode

CODE, DATA = BASE + 0x1000, BASE + 0x8000
NOP = encode("addi")
ROUNDS = 1000


class Debugged:
    """A hart at a program that counts to ``ROUNDS`` in a0, storing it each time at DATA."""

    def __init__(self, mode: str) -> None:
        self.cpu = Cpu(mode=mode)
        self.debugger = Debugger(self.cpu.harts)
        self.loop = CODE + 4
        self.store = CODE + 8
        self.branch = CODE + 12
        self.end = (
            self.cpu.place(
                CODE,
                NOP,
                encode("addi", rd=10, rs1=10, imm=1),
                encode("sd", rs1=11, rs2=10, imm=0),
                encode("bne", rs1=10, rs2=12, imm=-8),
                encode("ld", rd=13, rs1=11, imm=0),
                END_WORD,
            )
            - 4
        )
        self.cpu.set(CODE, x={11: DATA, 12: ROUNDS})

    def set(self, *addresses: int, watch: tuple[int, int, messages.WatchKind.ValueType] | None = None) -> None:
        watchpoints = [messages.Watchpoint(address=watch[0], size=watch[1], kind=watch[2])] if watch else []
        self.debugger.set(messages.SetBreakpoints(addresses=addresses, watchpoints=watchpoints))

    def go(self) -> common.HartStop | None:
        """Runs on; gives why the hart stopped for the debugger, or None at the program's end."""
        while True:
            reason = self.cpu.harts.run(0)
            if stop := self.debugger.take(0):
                return stop
            if reason == EXIT_ACCESS and self.cpu._access(self.cpu.hart) is not None:
                return None

    def step(self, low: int = 0, high: int = 0, *, interrupts: bool = False) -> common.HartStop | None:
        step = messages.Step(hart=0, low=low, high=high, interrupts=interrupts)
        self.debugger.order(messages.RunHarts(step=step))
        return self.go()

    @property
    def a0(self) -> int:
        return self.cpu.x()[10]

    @property
    def pc(self) -> int:
        return int(self.cpu.hart.pc)


@pytest.fixture(params=MODES)
def debugged(request: pytest.FixtureRequest) -> Debugged:
    return Debugged(request.param)


def stop(reason: common.StopReason.ValueType, address: int) -> common.HartStop:
    return common.HartStop(hart=0, reason=reason, address=address)


def test_a_breakpoint_stops_before_its_instruction_each_time(debugged: Debugged) -> None:
    debugged.set(debugged.store)
    for expected in (1, 2, 3):
        assert debugged.go() == stop(common.STOP_BREAKPOINT, debugged.store)
        assert (debugged.pc, debugged.a0) == (debugged.store, expected)
        assert debugged.go() == stop(common.STOP_BREAKPOINT, debugged.store), "it is met until it is passed"
        debugged.debugger.pass_breakpoints()

    debugged.set()
    assert debugged.go() is None
    assert debugged.a0 == ROUNDS


def test_a_breakpoint_in_code_that_runs_already(debugged: Debugged) -> None:
    debugged.set(watch=(DATA, 8, messages.WATCH_WRITE))
    for _ in range(5):
        assert debugged.go() is not None
    debugged.set(debugged.branch)
    assert debugged.go() == stop(common.STOP_BREAKPOINT, debugged.branch)
    assert debugged.a0 == 5


def test_a_breakpoint_is_for_its_virtual_address_alone(debugged: Debugged) -> None:
    debugged.set(debugged.store + 0x10_0000)
    assert debugged.go() is None


def test_code_without_breakpoints_is_translated_as_ever() -> None:
    debugged = Debugged("translate")
    debugged.set(CODE + 0x2000)
    installed = debugged.cpu.harts.installed
    assert debugged.go() is None
    assert debugged.cpu.harts.installed > installed

    debugged.set(debugged.end)
    debugged.cpu.set(CODE, x={10: 0})
    before = debugged.cpu.hart.count_exits[:]
    assert debugged.go() == stop(common.STOP_BREAKPOINT, debugged.end)
    assert debugged.cpu.hart.count_exits[:] == before, "no region in a page with breakpoints"

    debugged.set()
    debugged.cpu.set(CODE, x={10: 0})
    assert debugged.go() is None
    assert debugged.cpu.hart.count_exits[:] != before


def test_a_write_is_reported_behind_the_instruction(debugged: Debugged) -> None:
    debugged.set(watch=(DATA + 4, 2, messages.WATCH_WRITE))
    for expected in (1, 2):
        assert debugged.go() == stop(common.STOP_WRITE, DATA + 4)
        assert (debugged.pc, debugged.a0) == (debugged.branch, expected)
        assert debugged.cpu.read(DATA, 1)[0] == expected


def test_reads_are_watched_apart_from_writes(debugged: Debugged) -> None:
    debugged.set(watch=(DATA, 1, messages.WATCH_READ))
    assert debugged.go() == stop(common.STOP_READ, DATA)
    assert (debugged.pc, debugged.a0, debugged.cpu.x()[13]) == (debugged.end, ROUNDS, ROUNDS)
    assert debugged.go() is None


def test_what_is_beside_a_watchpoint_is_not_watched(debugged: Debugged) -> None:
    debugged.set(watch=(DATA + 8, 8, messages.WATCH_ACCESS))
    assert debugged.go() is None


def test_an_atomic_access_reads_and_writes(debugged: Debugged) -> None:
    debugged.cpu.place(CODE, encode("amoadd.d", rd=14, rs1=11, rs2=12), END_WORD)
    for kind, reason in ((messages.WATCH_READ, common.STOP_READ), (messages.WATCH_WRITE, common.STOP_WRITE)):
        debugged.cpu.set(CODE)
        debugged.set(watch=(DATA, 8, kind))
        assert debugged.go() == stop(reason, DATA)
    assert int.from_bytes(debugged.cpu.read(DATA, 8), "little") == 2 * ROUNDS


def test_a_step_is_one_instruction(debugged: Debugged) -> None:
    way = [debugged.loop, debugged.store, debugged.branch, debugged.loop, debugged.store]
    retired = debugged.cpu.hart.retired
    for number, place in enumerate(way, 1):
        assert debugged.step() == stop(common.STOP_STEP, place)
        assert debugged.cpu.hart.retired == retired + number
    assert debugged.a0 == 2


def test_a_step_leaves_a_breakpoint_alone(debugged: Debugged) -> None:
    debugged.set(CODE, debugged.loop)
    assert debugged.step() == stop(common.STOP_STEP, debugged.loop)


def test_a_step_through_a_range_ends_outside_or_at_a_breakpoint(debugged: Debugged) -> None:
    assert debugged.step(CODE, debugged.branch) == stop(common.STOP_STEP, debugged.branch)
    assert debugged.step(CODE, debugged.branch + 4) == stop(common.STOP_STEP, debugged.branch + 4)
    assert debugged.a0 == ROUNDS

    debugged.cpu.set(CODE, x={10: 0})
    debugged.set(debugged.store)
    assert debugged.step(CODE, debugged.end) == stop(common.STOP_STEP, debugged.store)


def test_a_step_into_a_watched_access_reports_the_access(debugged: Debugged) -> None:
    debugged.set(watch=(DATA, 8, messages.WATCH_WRITE))
    debugged.cpu.set(debugged.store, x={10: 77})
    assert debugged.step() == stop(common.STOP_WRITE, DATA)
    assert debugged.pc == debugged.branch


def test_a_step_into_a_trap_ends_at_its_handler(debugged: Debugged) -> None:
    debugged.cpu.place(CODE, encode("ecall"))
    assert debugged.step() == stop(common.STOP_STEP, BASE)
    assert debugged.cpu.hart.mepc == CODE


def test_a_step_takes_no_interrupt_unless_told(debugged: Debugged) -> None:
    hart = debugged.cpu.hart
    hart.mstatus |= 8
    hart.mie = hart.mip = 1 << 1
    assert debugged.step() == stop(common.STOP_STEP, debugged.loop)
    assert debugged.step(interrupts=True) is None, "the handler of these tests ends the run"
    assert hart.mepc == debugged.loop


def test_a_step_over_a_device_access_waits_for_its_answer(debugged: Debugged) -> None:
    asked: list[Access] = []

    def device(access: Access) -> int:
        asked.append(access)
        return 42

    debugged.cpu.device = device
    debugged.cpu.set(CODE, x={11: 0x1000_0000})
    debugged.cpu.place(CODE, encode("lw", rd=10, rs1=11, imm=0), NOP)
    assert debugged.step() == stop(common.STOP_STEP, CODE + 4)
    assert (debugged.a0, len(asked)) == (42, 1)


def test_a_step_ends_behind_wfi_and_goes_on_from_it(debugged: Debugged) -> None:
    debugged.cpu.place(CODE, encode("wfi"), NOP)
    assert debugged.step() == stop(common.STOP_STEP, CODE + 4)
    assert debugged.step() == stop(common.STOP_STEP, CODE + 8)


def test_a_page_fault_is_the_guests_not_a_hit(debugged: Debugged) -> None:
    """The first access traps; nothing was accessed, so the hart goes on into its handler."""
    debugged.cpu.set(CODE, x={11: 0x2000_0000})
    debugged.set(watch=(0x2000_0000, 8, messages.WATCH_WRITE))
    assert debugged.go() is None
    assert debugged.cpu.hart.mepc == debugged.store


def test_ebreak_is_the_guests(debugged: Debugged) -> None:
    debugged.cpu.place(CODE, encode("ebreak"))
    assert debugged.go() is None
    assert debugged.cpu.hart.mcause == 3

    debugged.cpu.set(CODE)
    debugged.set(CODE)
    assert debugged.go() == stop(common.STOP_BREAKPOINT, CODE)


def test_a_breakpoint_at_an_instruction_across_pages(debugged: Debugged) -> None:
    place = CODE + 0xFFE
    debugged.cpu.write(place, encode("addi", rd=10, rs1=10, imm=5).to_bytes(4, "little"))
    debugged.cpu.place(place + 4, END_WORD)
    debugged.cpu.set(place)
    debugged.set(place)
    assert debugged.go() == stop(common.STOP_BREAKPOINT, place)
    assert debugged.step() == stop(common.STOP_STEP, place + 4)
    assert debugged.a0 == 5


def test_code_that_is_written_by_fence_i_keeps_its_breakpoints(debugged: Debugged) -> None:
    debugged.set(debugged.store)
    assert debugged.go() is not None
    debugged.cpu.place(CODE, encode("addi", rd=20, imm=1))
    debugged.cpu.set(CODE, x={10: 0})
    assert debugged.go() == stop(common.STOP_BREAKPOINT, debugged.store)
    assert debugged.cpu.x()[20] == 1


@pytest.mark.parametrize(
    "request_",
    [
        messages.SetBreakpoints(addresses=[CODE + 1]),
        messages.SetBreakpoints(addresses=range(0, 2000, 2)),
        messages.SetBreakpoints(watchpoints=[messages.Watchpoint(address=DATA, size=8)]),
        messages.SetBreakpoints(watchpoints=[messages.Watchpoint(address=DATA, kind=messages.WATCH_READ)]),
        messages.SetBreakpoints(
            watchpoints=[messages.Watchpoint(address=(1 << 64) - 1, size=8, kind=messages.WATCH_READ)]
        ),
        messages.SetBreakpoints(
            watchpoints=[messages.Watchpoint(address=DATA, size=1, kind=messages.WATCH_READ)] * 1000
        ),
    ],
)
def test_what_cannot_be_set_changes_nothing(request_: messages.SetBreakpoints) -> None:
    debugged = Debugged("interpret")
    debugged.set(debugged.store)
    with pytest.raises(errors.BadRequest, match="expected"):
        debugged.debugger.set(request_)
    assert debugged.go() == stop(common.STOP_BREAKPOINT, debugged.store)
