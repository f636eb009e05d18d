"""The toy to the core."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vmesh_services.cpu.core import provided
from vmesh_services.cpu.core.segments import machine_of
from vmesh_services.cpu.core.state import PENDING_TRAP
from vmesh_services.cpu.core.tlb import OFFSET, UNTRANSLATED
from vmesh_services.cpu.isa.description import Flow, encode
from vmesh_services.cpu.isa.interface import Code, Control, Isa, Lines, Operand, RegisterOperand, Step, Variant, Way
from vmesh_services.cpu.native.lang import Dispatch, Table, export, i32, inline, native, u8, u16, u32, u64

from .instructions import INSTRUCTIONS, TOKENS, control_read, control_write, instruction
from .registers import (
    ACCESS,
    CAUSE,
    EPC,
    EXTERNAL,
    EXTERNAL_LOW,
    INTERRUPT,
    MASK,
    MISALIGNED,
    SCRATCH,
    SOFTWARE,
    TIMER,
    VECTOR,
    Hart,
    Slot,
)

LENGTH = 4
#: Handlers of an instruction: one; or three for where a relative jump goes; or one that looks.
_FIRST: list[int] = []
_WAYS: list[tuple[Way, ...]] = []
for _item in INSTRUCTIONS:
    _FIRST.append(sum(map(len, _WAYS)))
    relative = (Way.FAR, Way.FORWARD, Way.BACKWARD)
    _WAYS.append(relative if _item.is_relative else (Way.CHECKED if _item.flow is Flow.INDIRECT else Way.NEXT,))
FIRST = Table(u16, tuple(_FIRST))
RELATIVE = Table(u8, tuple(int(item.is_relative) for item in INSTRUCTIONS))
PLACED = Table(u8, tuple(int(item.has("place")) for item in INSTRUCTIONS))
OPCODE_AT = 27
RD, RA, RB = (instruction.place(name) for name in ("rd", "ra", "rb"))
_value = instruction.immediates["value"].native
_place = instruction.immediates["place"].native
_IMMEDIATE = Dispatch({1: _place}, _value)


@native
def immediate(word: u32, placed: u64) -> i32:
    return _IMMEDIATE(placed, word)  # type: ignore[no-any-return]


@inline
def translate(hart: Hart, address: u64, size: u64, kind: u64) -> u64:
    hart.physical = address
    hart.page_mask = OFFSET
    hart.uniform = 1
    return address


@native
def refuse(hart: Hart, address: u64, cause: u64) -> u64:
    hart.cause = cause
    hart.trap_value = address
    hart.pending = PENDING_TRAP
    return 0


@inline
def refuse_access(hart: Hart, address: u64, kind: u64) -> u64:
    return refuse(hart, address, u64(ACCESS))


@inline
def refuse_misaligned(hart: Hart, address: u64, kind: u64) -> u64:
    return refuse(hart, address, u64(MISALIGNED))


@inline
def is_long(word: u32) -> bool:
    return True


@native
def decode(hart: Hart, slot: Slot, word: u32, pc: u64, local: bool) -> None:
    opcode = u64(word >> OPCODE_AT)
    imm = immediate(word, u64(PLACED[opcode]))
    number = u64(FIRST[opcode])
    if RELATIVE[opcode] != 0 and local and ((pc + u64(imm)) ^ pc) & ~OFFSET == 0:
        number += u64(1) if imm > 0 else u64(2)
        imm = imm << 3
    slot.rd = u8(word >> RD.low) & 7
    slot.ra = u8(word >> RA.low) & 7
    slot.rb = u8(word >> RB.low) & 7
    slot.imm = imm
    slot.handler = machine_of(hart).handlers[number]


@native
def take_trap(hart: Hart, cause: u64, value: u64) -> None:
    hart.count_traps += 1
    hart.epc = hart.pc
    hart.why = cause
    hart.scratch_register = value
    hart.interrupts_on = 0
    hart.pc = hart.vector


@inline
def wanted(hart: Hart) -> u64:
    return (hart.lines | hart.timers) & hart.mask


@native
def take_interrupt(hart: Hart) -> bool:
    if hart.interrupts_on == 0 or wanted(hart) == 0:
        return False
    hart.count_interrupts += 1
    take_trap(hart, INTERRUPT | wanted(hart), 0)
    return True


@inline
def is_woken(hart: Hart) -> bool:
    return wanted(hart) != 0


@inline
def space(hart: Hart) -> u64:
    return 0


@inline
def select(hart: Hart) -> u64:
    return UNTRANSLATED


@inline
def look_at_own_timers(hart: Hart, now: u64) -> None:
    return


@export
def read_control(hart: Hart, number: u64) -> u64:
    return control_read(hart, number)


@export
def write_control(hart: Hart, number: u64, value: u64) -> None:
    control_write(hart, number, value)


def step_at(page: bytes, offset: int) -> Step | None:
    if offset % LENGTH or offset + LENGTH > len(page):
        return None
    word = int.from_bytes(page[offset : offset + LENGTH], "little")
    opcode = word >> OPCODE_AT
    return Step(offset, LENGTH, INSTRUCTIONS[opcode], word, word, _FIRST[opcode])


def fits_region(step: Step, features: frozenset[str]) -> bool:
    """But a jump to a register: the interpreter looks where it goes."""
    return step.instruction.flow is not Flow.INDIRECT


def look_up(hart: Any, address: int, read: Callable[[int], int | None]) -> int | None:
    return address


def writes(values: Mapping[str, int], files: Mapping[str, Sequence[int]]) -> Iterator[tuple[int, int]]:
    yield from ((EPC, values["epc"]), (CAUSE, values["why"]), (VECTOR, values["vector"]))
    yield from ((MASK, values["mask"]), (SCRATCH, values["scratch_register"]))


CODE = Code(
    instructions=INSTRUCTIONS,
    variants=tuple(
        Variant(item, first + number, f"op_{item.name}_{way.name.lower()}", LENGTH, way)
        for item, first, ways in zip(INSTRUCTIONS, _FIRST, _WAYS, strict=True)
        for number, way in enumerate(ways)
    ),
    operands={
        **{name: RegisterOperand("r", name) for name in ("rd", "ra", "rb")},
        "imm": Operand.IMMEDIATE,
        "pc": Operand.PC,
        "next_pc": Operand.NEXT_PC,
        "hart": Operand.HART,
    },
    bindings={
        provided.translate: translate,
        provided.refuse_access: refuse_access,
        provided.refuse_misaligned: refuse_misaligned,
        provided.is_long: is_long,
        provided.decode: decode,
        provided.take_trap: take_trap,
        provided.take_interrupt: take_interrupt,
        provided.is_woken: is_woken,
        provided.space: space,
        provided.select: select,
        provided.look_at_own_timers: look_at_own_timers,
    },
    exports=(read_control, write_control),
    jump_cause=MISALIGNED,
    jump_alignment=LENGTH,
    step_at=step_at,
    fits_region=fits_region,
    warming=encode(INSTRUCTIONS[0], TOKENS, {}).to_bytes(LENGTH, "little"),
)
ISA = Isa(
    name="toy",
    features=("toy",),
    hart=Hart,
    slot=Slot,
    controls=(
        Control(EPC, "epc"),
        Control(CAUSE, "cause"),
        Control(VECTOR, "vector"),
        Control(MASK, "mask"),
        Control(SCRATCH, "scratch"),
    ),
    lines=Lines(software=SOFTWARE, timer=TIMER, external=(EXTERNAL, EXTERNAL_LOW)),
    alignment=lambda features: LENGTH,
    length=lambda first: LENGTH,
    look_up=look_up,
    writes=writes,
    code_module=__name__,
)
