"""Regions: hot guest code of one page as one native function, from the same descriptions as the interpreter.

A region has the signature of a handler and stands in the slots of its entries, so that the interpreter enters it as it
enters any instruction. It keeps guest registers in host registers, and leaves by dispatching a slot: another region, or
the interpreter. What a region does not do itself (system instructions, traps, an address that the TLB does not hold)
it leaves to the interpreter's handler of that instruction, before the instruction has done anything. So everything is
precise at the instruction, and a region is valid exactly as long as the slots of its page are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..isa.description import Flow
from ..isa.interface import BitsOperand, Isa, Operand, RegisterOperand, Step
from ..native.builder import Builder
from ..native.compiler import Module
from ..native.frame import Frame
from ..native.lang import PtrType
from ..native.values import I64, U8, U64, UNLIKELY, NativeError, Value, Variable
from .interpreter import SIGNATURE, Handler
from .state import CODE_PAGE_STRIDE, EXITS, SLOT_BYTES, Hart, Machine, Slot
from .tlb import OFFSET

PAGE = OFFSET + 1
#: A bitmap of slots that has them all.
ALL = b"\xff" * 256
#: Instructions in a region at most: more costs LLVM more than it gains.
LIMIT = 50
#: And at least: entering and leaving costs as much as a few instructions.
LEAST = 3
OUTSIDE, MISS, INTERPRET, LOOK = EXITS
#: Where the parts of an exit's number are: offset of the slot, handler, instructions retired since the last count.
_HANDLER_SHIFT, _RETIRED_SHIFT, _FIELD = 16, 32, 0xFFFF
#: Handlers of the core that regions end in, and the fields of the machine's record that have their addresses.
CORE_HANDLERS = {"@op_attention": "attention_handler", "@op_go": "go_handler"}


class RegionModule(Module):
    """A module of regions. They reach the functions of the core through the machine's record."""

    def __init__(self, isa: Isa) -> None:
        super().__init__(bindings={Hart: isa.hart, Slot: isa.slot, **isa.code.bindings})
        self.isa = isa

    def text(self) -> str:
        # without jump tables a region needs no constants, and stands alone
        return super().text() + 'attributes #1 = { nounwind "no-builtins" "no-jump-tables"="true" }\n'

    def callee(self, builder: Builder, item: Any) -> str:
        hart = Value("%hart", PtrType(self.isa.hart))
        machine = builder.pointer(builder.load(builder.field(hart, "machine")), Machine)
        number = core_functions(self.isa).index(item)
        return builder.pointer(builder.load(builder.element(builder.field(machine, "functions"), number)), U8).ref


class _Collector(Module):
    """Finds the functions that semantics call."""

    def __init__(self, isa: Isa) -> None:
        super().__init__(bindings={Hart: isa.hart, Slot: isa.slot, **isa.code.bindings})
        self.found: dict[int, Any] = {}

    def callee(self, builder: Builder, item: Any) -> str:
        self.found[id(item)] = item
        return "@unused"


@cache
def core_functions(isa: Isa) -> tuple[Any, ...]:
    """The functions of the core that regions may call, by number."""
    module = _Collector(isa)
    for instruction in isa.code.instructions:
        if not instruction.system and not instruction.traps:
            emitter = _Emitter(Builder(module), isa)
            emitter.builder.environment = emitter
            emitter.step = Step(0, 4, instruction, instruction.match, instruction.match, 0)
            emitter.semantics()
    return tuple(module.found.values())


@dataclass
class Region:
    """The instructions of a region by offset, the offsets at which it can be entered, and those at which ways meet."""

    steps: dict[int, Step] = field(default_factory=dict)
    entries: list[int] = field(default_factory=list)
    joins: set[int] = field(default_factory=set)

    def reach(self, step: Step) -> bool:
        """Takes note of where a branch or jump goes; gives whether that is a loop's head."""
        self.joins.add(step.target)
        if step.imm <= 0:
            self.entries.append(step.target)
        return step.imm <= 0


def form(
    isa: Isa,
    page: bytes,
    entry: int,
    features: frozenset[str],
    executed: bytes = ALL,
    limit: int = LIMIT,
    least: int = LEAST,
) -> Region | None:
    """The region around ``entry``: what is reached from it inside the page, calls apart; None if it would have less
    than ``least`` instructions.

    ``executed`` has a bit for each slot (see ``execution.executed``): what was never run is left out. A loop can be
    entered at its head, since it is left where it does something for the first time. What comes behind a loop is taken
    when the loop is whole: to go round it must not need two regions.
    """
    region = Region(entries=[entry])
    work, later = [entry], list[int]()
    while (work or later) and len(region.steps) < limit:
        offset = work.pop(0) if work else later.pop(0)
        while 0 <= offset < PAGE:
            if offset in region.steps:
                region.joins.add(offset)
                break
            if len(region.steps) == limit or not executed[offset >> 4] >> (offset >> 1 & 7) & 1:
                break
            step = isa.code.step_at(page, offset)
            if step is None or not is_translatable(isa, step, features):
                break
            region.steps[offset] = step
            flow = step.instruction.flow
            if flow is Flow.BRANCH:
                if region.reach(step):
                    later.append(step.next)
                    offset = step.target
                    continue
                work.append(step.target)
            elif flow is Flow.JUMP:
                if step.calls:
                    # the return comes in by the slot behind the call
                    region.entries.append(step.next)
                    work.append(step.next)
                elif region.reach(step):
                    offset = step.target
                    continue
                else:
                    work.append(step.target)
                break
            elif flow is Flow.INDIRECT:
                if step.calls:
                    region.entries.append(step.next)
                    work.append(step.next)
                break
            offset = step.next
    region.entries = [e for e in dict.fromkeys(region.entries) if e in region.steps]
    region.joins = {offset for offset in (*region.joins, *region.entries) if offset in region.steps}
    return region if entry in region.steps and len(region.steps) >= least else None


def is_translatable(isa: Isa, step: Step, features: frozenset[str]) -> bool:
    """Whether a region can contain an instruction: system instructions may change what the region relies on, some
    always trap, and of others the interpreter looks where they go."""
    return not step.instruction.system and not step.instruction.traps and isa.code.fits_region(step, features)


@dataclass
class _Emitter(Handler):
    """Emits a region. The hooks are the interpreter's, but a miss or a trap leaves for the interpreter.

    ``passed`` counts the instructions since ``retired`` was brought up to date: a way out adds them.
    """

    step: Step = None  # type: ignore[assignment]
    passed: int = 0
    variables: dict[tuple[str, int], Variable] = field(default_factory=dict)
    values: dict[tuple[str, int], Value] = field(default_factory=dict)
    written: set[tuple[str, int]] = field(default_factory=set)
    exits: set[str] = field(default_factory=set)
    jumps: bool = False

    def __init__(self, builder: Builder, isa: Isa) -> None:
        super().__init__(builder, isa, slow_twin="@miss")
        self.variables = {}
        self.values = {}
        self.written = set()
        self.exits = set()
        self.retired = builder.variable(U64)
        self.exit_number = builder.variable(U64)
        self.exit_handler = builder.variable(PtrType(U8))
        self.target_variable = builder.variable(U64)

    # registers

    def guest_register(self, register: tuple[str, int]) -> Variable:
        """The variable of a register by file and number; its first use makes it a register of the region."""
        if register not in self.variables:
            self.variables[register] = self.builder.variable(U64)
        return self.variables[register]

    def read_register(self, register: tuple[str, int]) -> Value:
        """Its value, which a run reads from the variable once."""
        if register not in self.values:
            self.values[register] = self.builder.read(self.guest_register(register))
        return self.values[register]

    def write_register(self, register: tuple[str, int], value: Value) -> None:
        self.builder.write(self.guest_register(register), value)
        self.values[register] = value
        self.written.add(register)

    def operand(self, name: str) -> Any:
        step = self.step
        match self.code.operands.get(name):
            case RegisterOperand(file, place, zero):
                number = step.field(place)
                return Value("0", U64) if zero and number == 0 else self.read_register((file, number))
            case BitsOperand(low, width):
                return Value(str(step.bits >> low & ((1 << width) - 1)), U64)
            case Operand.IMMEDIATE:
                return Value(str(step.imm), I64)
            case Operand.PC:
                return self.pc_at(step.offset)
            case Operand.NEXT_PC:
                return self.pc_at(step.next)
            case Operand.BITS:
                return Value(str(step.bits), U64)
            case Operand.HART:
                return self.hart
        raise NativeError(f"{name} is not an operand in a region")

    def semantics(self) -> Value | None:
        function = self.step.instruction.semantics
        bound = {name: self.operand(name) for name in self.step.instruction.operands}
        return Frame(self.builder, function, bound, inlined=True).run()

    def pc_at(self, offset: int) -> Value:
        return self.builder.value(U64, f"add i64 %pc_base, {offset}")

    # ways out

    def machine_handler(self, name: str) -> Value:
        """The address of a handler that the machine's record names."""
        b = self.builder
        machine = b.pointer(self.get("machine"), Machine)
        return b.pointer(b.load(b.field(machine, name)), U8)

    def tail(self, target: str, ip: str = "%ip", bias: str = "%bias", tlb: str = "%tlb", n: str = "%n") -> None:
        """As in the interpreter; its handlers are reached through the machine's record."""
        if target in CORE_HANDLERS:
            target = self.machine_handler(CORE_HANDLERS[target]).ref
        super().tail(target, ip, bias, tlb, n)

    def exit(self, kind: str, offset: int, handler: int = 0) -> None:
        """Leaves at ``offset``. One number says all about it, so that ways out cost the way on little."""
        number = offset | handler << _HANDLER_SHIFT | self.passed << _RETIRED_SHIFT
        self.builder.write(self.exit_number, Value(str(number), U64))
        self.exits.add(kind)
        self.builder.jump(kind)

    def leave(self) -> None:
        """Leaves for the step's instruction in the interpreter, not by its slot, which may hold this very region."""
        self.exit(INTERPRET, self.step.offset, self.step.handler)

    def missed(self) -> None:
        self.exit(MISS, self.step.offset, self.step.handler)

    def hook_trap(self, cause: Any, value: Any) -> None:
        self.leave()

    def drain(self) -> None:
        self.leave()

    # control flow

    def go_far(self, target: Value) -> None:
        self.jumps = True
        self.builder.write(self.target_variable, target)
        self.builder.jump("far")

    def count(self) -> None:
        """Brings ``retired`` up to date."""
        b = self.builder
        b.write(self.retired, b.binary("+", b.read(self.retired), self.passed))
        self.passed = 0

    def flow(self, region: Region, offset: int, *, backward: bool = False) -> None:
        """Goes on at ``offset``, with ``retired`` up to date: in the region if it is there, otherwise by its slot, or
        by its address (which is a way out that looks up)."""
        b = self.builder
        if 0 <= offset < PAGE:
            if backward:
                wanted = b.value(U64, f"load atomic i64, ptr {self.hart_field('stop_at').ref} monotonic, align 8")
                late = b.compare(">=", b.read(self.retired), wanted)
                late.hint = UNLIKELY
                look, on = b.fresh("look"), b.fresh("on")
                b.branch(late, look, on)
                b.block(look)
                self.exit(LOOK, offset)
                b.block(on)
            if offset in region.joins:
                b.jump(f"at{offset}")
            else:
                self.exit(OUTSIDE, offset)
        else:
            self.go_far(self.pc_at(offset))

    def emit_run(self, region: Region, offset: int) -> None:
        """The instructions from a join on, up to the next one or a jump."""
        b = self.builder
        b.block(f"at{offset}")
        self.passed = 0
        self.values.clear()
        step: Step | None = region.steps[offset]
        while step is not None:
            step = self.emit_step(region, step)

    def emit_step(self, region: Region, step: Step) -> Step | None:
        """One instruction; gives the one that follows it in the run."""
        b = self.builder
        self.step, self.instruction, self.target = step, step.instruction, None
        result = self.semantics()
        if b.terminated:
            return None
        self.passed += 1
        flow = step.instruction.flow
        if flow is Flow.BRANCH:
            assert result is not None
            self.count()
            taken, passed = b.fresh("taken"), b.fresh("passed")
            b.branch(result, taken, passed)
            b.block(taken)
            self.flow(region, step.target, backward=step.imm <= 0)
            b.block(passed)
            return self.follow(region, step.next)
        if result is not None and (to := self.result) is not None:
            number = step.field(to.field)
            if number or not to.zero:
                self.write_register((to.file, number), result)
        if flow is Flow.JUMP:
            self.count()
            self.flow(region, step.target, backward=step.imm <= 0)
        elif self.target is not None:
            self.count()
            self.go_far(self.target)
        else:
            return self.follow(region, step.next)
        return None

    def follow(self, region: Region, offset: int) -> Step | None:
        """Goes on at the next instruction; gives it if it belongs to the run."""
        if offset in region.steps and offset not in region.joins:
            return region.steps[offset]
        self.count()
        self.flow(region, offset)
        return None


def emit(module: RegionModule, name: str, region: Region) -> None:
    """Adds the function of a region to a module."""
    builder = Builder(module)
    emitter = _Emitter(builder, module.isa)
    builder.environment = emitter
    b = builder
    # the body first: it tells which registers the region has
    body_start = len(b._lines)
    b.terminated = True
    for offset in sorted(region.joins):
        emitter.emit_run(region, offset)
    body = b._lines[body_start:]
    del b._lines[body_start:]
    b.terminated = False
    # entry
    b.line("%ip_number = ptrtoint ptr %ip to i64")
    b.line(f"%page = and i64 %ip_number, {-CODE_PAGE_STRIDE}")
    b.line("%page_number = lshr i64 %page, 3")
    b.line("%pc_base = add i64 %page_number, %bias")
    b.line(f"store i64 %n, ptr {emitter.retired.ref}")
    for register, variable in emitter.variables.items():
        b.write(variable, b.load(_register(emitter, register)))
    if len(region.entries) == 1:
        b.jump(f"at{region.entries[0]}")
    else:
        first, *others = region.entries
        cases = " ".join(f"i64 {e * SLOT_BYTES // 2}, label %at{e}" for e in others)
        place = b.value(U64, "sub i64 %ip_number, %page")
        b.end(f"switch i64 {place.ref}, label %at{first} [ {cases} ]")
    b._lines.extend(body)
    b.terminated = True
    _emit_leave(emitter)
    if emitter.jumps:
        _emit_far(emitter)
    module.functions.append(f"define dso_local preserve_nonecc void @{name}{SIGNATURE} #1 {{\n{b.text()}\n}}\n")


def _register(emitter: _Emitter, register: tuple[str, int]) -> Value:
    file, number = register
    return emitter.builder.element(emitter.hart_field(file), number)


def _write_back(emitter: _Emitter) -> None:
    b = emitter.builder
    for register in sorted(emitter.written):
        b.store(_register(emitter, register), b.read(emitter.variables[register]))


def _emit_leave(emitter: _Emitter) -> None:
    """The ways out to a handler whose slot is known."""
    b = emitter.builder

    def part(shift: int) -> Value:
        return b.binary("&", b.binary(">>", b.read(emitter.exit_number), shift), _FIELD)

    def slot() -> Value:
        return b.pointer(b.binary("+", Value("%page", U64), b.binary("<<", part(0), 3)), U8)

    for kind in sorted(emitter.exits):
        b.block(kind)
        counter = b.element(emitter.hart_field("count_exits"), EXITS.index(kind))
        b.store(counter, b.binary("+", b.load(counter), 1))
        if kind == OUTSIDE:
            place = slot()
            b.store(emitter.hart_field("outside"), b.value(U64, f"ptrtoint ptr {place.ref} to i64"))
            handler = b.value(PtrType(U8), f"load ptr, ptr {place.ref}")
        elif kind == LOOK:
            handler = emitter.machine_handler("attention_handler")
        else:
            record = b.pointer(emitter.get("machine"), Machine)
            table = b.field(record, "slow_handlers" if kind == MISS else "handlers")
            handler = b.pointer(b.load(b.element(table, part(_HANDLER_SHIFT))), U8)
        b.write(emitter.exit_handler, handler)
        b.jump("leave")
    if emitter.exits:
        b.block("leave")
        _write_back(emitter)
        retired = b.binary("+", b.read(emitter.retired), b.binary(">>", b.read(emitter.exit_number), _RETIRED_SHIFT))
        emitter.tail(b.read(emitter.exit_handler).ref, slot().ref, n=retired.ref)


def _emit_far(emitter: _Emitter) -> None:
    """The way out to a guest address, by the fetch TLB; without an entry, by the record."""
    b = emitter.builder
    b.block("far")
    _write_back(emitter)
    emitter.go_to_address(b.read(emitter.target_variable), b.read(emitter.retired))
