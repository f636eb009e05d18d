"""Random programs of hundreds of instructions that always end, and their comparison with an oracle.

A program is a list of items (one instruction, or a few that belong together). Branches and jumps go forward to other
items; loops count down; calls go to functions behind the end. Loads, stores and atomics reach a few KiB around a data
pointer. To see *where* two machines part, a program is also run with C.EBREAK in place of one of its items: that gives
the state as of the first time that item is reached.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vmesh_services.cpu.isa.description import Instruction
from vmesh_services.cpu.isa.riscv.compressed import expansion_table
from vmesh_services.cpu.isa.riscv.instructions import INSTRUCTIONS

from .operands import AMO, JALR, LOAD, LOAD_FP, MISC_MEM, STORE, STORE_FP, SYSTEM, Generator, disassemble, word_of
from .oracle import CODE, CODE_SIZE, DATA, DATA_SIZE, EBREAK, WINDOW, Case, Ours, Qemu, State, Unicorn
from .tiers import INTERPRET

RA, SP, S0 = 1, 2, 8
#: Loop counters, mask of offsets, scratch pointer, data pointer (as are sp and s0, which short loads and stores need).
COUNTERS, MASK, POINTER, BASE = (26, 27), 28, 29, 30
KEPT = frozenset((SP, S0, *COUNTERS, MASK, POINTER, BASE))
#: Room for data of one program; its page boundary is where the data pointer points.
ROOM, OFFSETS = 0x2000, 0x7F8
BY_NAME = {item.name: item for item in INSTRUCTIONS}
BRANCHES = tuple(item for item in INSTRUCTIONS if item.result == "branch")


#: QEMU has no cache blocks and conditionals before 8.0, and counts zeros of too many bits in CTZW; Unicorn has no Zb*,
#: leaves the upper half of single-precision results as it was, has old meanings of FMIN and FMAX, and sees nothing
#: invalid in a product of infinity and 0 that is added to a quiet NaN.
NEWER = ("zicbom", "zicboz", "zicond")
ON_QEMU = [i.name for i in INSTRUCTIONS if i.extension not in NEWER and i.name not in ("ctzw", "illegal")]
#: What our interpreter judges translated code by.
ON_INTERPRETER = [item.name for item in INSTRUCTIONS if item.name != "illegal"]
OTHERWISE = {f"{name}.d" for name in ("fcvt.s", "fmin", "fmax", "fmadd", "fmsub", "fnmadd", "fnmsub")} | {"fcvt.d.s"}
ON_UNICORN = [
    i.name
    for i in INSTRUCTIONS
    if (i.extension in ("i", "m", "a", "d") and i.name not in OTHERWISE | {"illegal"}) or i.name in ("flw", "fsw")
]


def opcode(word: int) -> int:
    return word & 127


def _short_words() -> dict[str, tuple[tuple[int, int], ...]]:
    """Short instructions and their rd, by kind: those that compute, and those that access memory by sp or s0."""
    kinds: dict[str, list[tuple[int, int]]] = {"compute": [], "memory": []}
    for index, word in enumerate(expansion_table()):
        encoding = (index & 0x3FFF) << 2 | index >> 14
        rd, rs1 = word >> 7 & 31, word >> 15 & 31
        if opcode(word) in (0x13, 0x1B, 0x33, 0x3B, 0x37) and rd not in KEPT:
            kinds["compute"].append((encoding, rd))
        elif opcode(word) in (LOAD_FP, STORE, STORE_FP) and rs1 in (SP, S0):
            kinds["memory"].append((encoding, 0))
        elif opcode(word) == LOAD and rs1 in (SP, S0) and rd not in KEPT:
            kinds["memory"].append((encoding, rd))
    return {kind: tuple(words) for kind, words in kinds.items()}


SHORT = _short_words()


@dataclass(frozen=True, slots=True)
class Jump:
    """An instruction whose immediate is the distance to a label, from ``origin`` bytes before it."""

    instruction: Instruction
    values: dict[str, int]
    label: int
    origin: int = 0
    size = 4

    def encode(self, distance: int) -> bytes:
        return struct.pack("<I", word_of(self.instruction, self.values, distance + self.origin))


@dataclass(frozen=True, slots=True)
class ShortJump:
    """C.J, C.BEQZ or C.BNEZ; ``layout``: the distance's bit numbers as they lie in the encoding from bit 12 down."""

    match: int
    layout: str
    label: int
    size = 2

    def encode(self, distance: int) -> bytes:
        bits = enumerate(self.layout.split())
        return struct.pack("<H", self.match | sum((distance >> int(b) & 1) << 12 - n for n, b in bits if b != "."))


Item = list[bytes | Jump | ShortJump]


@dataclass(frozen=True, slots=True)
class Program:
    """A program's code at ``pc``, the offsets of its items, and the state it starts from."""

    seed: int
    case: Case
    items: tuple[int, ...]

    def stopped_at(self, item: int, pc: int) -> Case:
        """The program at another place, with a breakpoint instead of one item (or whole)."""
        code = bytearray(self.case.code)
        if item < len(self.items):
            code[self.items[item] : self.items[item] + 2] = EBREAK
        case = self.case
        return Case(pc, bytes(code), case.x, case.f, case.fcsr, case.address, case.window)


class Writer:
    """Writes one random program over some instructions."""

    def __init__(self, seed: int, names: Iterable[str], length: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        allowed = [BY_NAME[name] for name in sorted(names)]
        self.loads = [i for i in allowed if opcode(i.match) in (LOAD, LOAD_FP)]
        self.stores = [i for i in allowed if opcode(i.match) in (STORE, STORE_FP)]
        atomics = [i for i in allowed if opcode(i.match) == AMO]
        self.reserving = [i for i in atomics if i.name.startswith("lr.")]
        self.atomics = [i for i in atomics if not i.name.startswith(("lr.", "sc."))]
        special = (LOAD, LOAD_FP, STORE, STORE_FP, AMO, MISC_MEM, JALR, SYSTEM)
        plain = [i for i in allowed if i.result in ("rd", "frd") and opcode(i.match) not in special and i.name != "jal"]
        self.integer = [i for i in plain if i.extension not in ("f", "d")]
        self.floating = [i for i in plain if i.extension in ("f", "d")]
        self.items: list[Item] = []
        #: Items behind the end; item n of them has the label -1 - n.
        self.functions: list[Item] = []
        self.length = length
        self.locked: set[int] = set()

    # pieces

    def destination(self) -> int:
        while (register := self.random.randrange(32)) in KEPT or register in self.locked:
            pass
        return register

    def word(self, item: Instruction, imm: int = 0, **given: int) -> bytes:
        values = {field.name: self.random.getrandbits(field.width) for field in item.fields}
        if "rd" in values and item.result != "frd":
            values["rd"] = self.destination()
        if "rm" in values:
            values["rm"] = self.random.choice((0, 1, 2, 3, 4, 7, 7))
        return struct.pack("<I", word_of(item, {**values, **given}, imm))

    def short(self, kind: str) -> Item:
        while (choice := self.random.choice(SHORT[kind]))[1] in self.locked:
            pass
        return [struct.pack("<H", choice[0])]

    def immediate(self, item: Instruction) -> int:
        if item.has("uimm20"):
            return self.random.getrandbits(20) << 12
        if item.has("shamt6") or item.has("shamt5"):
            return self.random.getrandbits(6 if item.has("shamt6") else 5)
        return self.random.choice((self.random.randrange(-2048, 2048), self.random.randrange(-8, 8)))

    def pointer(self) -> list[bytes]:
        """Code that puts an address of 8-byte alignment near the data pointer into the scratch register."""
        source = self.random.randrange(32)
        return [
            self.word(BY_NAME["and"], rd=POINTER, rs1=source, rs2=MASK),
            self.word(BY_NAME["add"], rd=POINTER, rs1=POINTER, rs2=BASE),
        ]

    def computation(self) -> Item:
        if self.random.random() < 0.4:
            return self.short("compute")
        item = self.random.choice(self.integer)
        return [self.word(item, self.immediate(item))]

    def floating_point(self) -> Item:
        if self.random.random() < 0.1:
            csr, value = self.random.choice(((1, 31), (2, 4), (2, 4)))
            name = self.random.choice(("csrrwi", "csrrw" if csr == 1 else "csrrwi"))
            zimm = self.random.randint(0, value)
            return [self.word(BY_NAME[name], csr12=csr, zimm5=zimm)]
        return [self.word(self.random.choice(self.floating))]

    def memory(self) -> Item:
        r = self.random
        if r.random() < 0.3:
            return self.short("memory")
        item = r.choice(r.choice((self.loads, self.stores)))
        offset = r.choice((r.randrange(-2048, 2048), r.randrange(-16, 16), r.randrange(-64, 64) & ~7))
        if r.random() < 0.5:
            return [self.word(item, offset, rs1=r.choice((BASE, S0, SP)))]
        return [*self.pointer(), self.word(item, offset, rs1=POINTER)]

    def atomic(self) -> Item:
        r = self.random
        item: Item = [*self.pointer()]
        if r.random() < 0.6:
            return [*item, self.word(r.choice(self.atomics), rs1=POINTER)]
        reserving = r.choice(self.reserving)
        item.append(self.word(reserving, rs1=POINTER))
        if r.random() < 0.5:
            item += self.computation()
        if r.random() < 0.3:
            item.append(self.word(r.choice(self.stores), r.choice((0, 0, 4, 8)), rs1=POINTER))
        item.append(self.word(BY_NAME[reserving.name.replace("lr", "sc")], rs1=POINTER))
        return item

    def order(self) -> Item:
        return [self.word(BY_NAME[self.random.choice(("fence", "fence", "fence", "fence.i"))])]

    def straight(self) -> Item:
        """Something without control flow."""
        kinds = (self.computation, self.floating_point, self.memory, self.atomic, self.order)
        return self.random.choices(kinds, (50, 18 if self.floating else 0, 22, 6, 1))[0]()

    # control flow

    def forward(self) -> None:
        """A branch or jump over some of the items that follow."""
        r = self.random
        label = len(self.items) + 1 + r.randrange(1, 12)
        kind = r.random()
        if kind < 0.3:
            # their reach is short
            near = len(self.items) + 1 + r.randrange(1, 4)
            branch = ShortJump(r.choice((0xC001, 0xE001)) | r.randrange(8) << 7, "8 4 3 . . . 7 6 2 1 5", near)
            self.items.append([r.choice((branch, ShortJump(0xA001, "11 4 9 8 10 6 7 3 2 1 5", near)))])
        elif kind < 0.6:
            values = {"rs1": r.randrange(32), "rs2": r.choice((0, r.randrange(32)))}
            self.items.append([Jump(r.choice(BRANCHES), values, label)])
        elif kind < 0.8:
            self.items.append([Jump(BY_NAME["jal"], {"rd": self.destination()}, label)])
        else:
            here = self.word(BY_NAME["auipc"], 0, rd=POINTER)
            self.items.append([here, Jump(BY_NAME["jalr"], {"rd": self.destination(), "rs1": POINTER}, label, 4)])

    def loop(self, depth: int) -> None:
        """A body that runs a few times: whoever jumps into it finds the counter at 0 or on its way there."""
        counter = COUNTERS[depth]
        self.items.append([self.word(BY_NAME["addi"], self.random.randint(1, 6), rd=counter, rs1=0)])
        start = len(self.items)
        self.block(self.random.randrange(2, 12), depth + 1)
        down = self.word(BY_NAME["addi"], -1, rd=counter, rs1=counter)
        self.items.append([down, Jump(BY_NAME["blt"], {"rs1": 0, "rs2": counter}, start)])

    def call(self) -> None:
        """A call of a function behind the end."""
        self.locked.add(RA)
        body = [self.straight() for _ in range(self.random.randrange(1, 8))]
        self.locked.discard(RA)
        back = struct.pack("<H", 0x8082) if self.random.getrandbits(1) else self.word(BY_NAME["jalr"], 0, rd=0, rs1=RA)
        self.items.append([Jump(BY_NAME["jal"], {"rd": RA}, -1 - len(self.functions))])
        self.functions += [*body, [back]]

    def block(self, count: int, depth: int) -> None:
        for _ in range(count):
            kind = self.random.random()
            if kind < 0.1:
                self.forward()
            elif kind < 0.14 and depth < len(COUNTERS):
                self.loop(depth)
            elif kind < 0.17:
                self.call()
            else:
                self.items.append(self.straight())

    # the whole

    def program(self) -> Program:
        while len(self.items) < self.length:
            self.block(1, 0)
        main = len(self.items)
        items: list[Item] = [*self.items, [EBREAK], *self.functions]
        starts, offset = [], 0
        for item in items:
            starts.append(offset)
            offset += sum(len(part) if isinstance(part, bytes) else part.size for part in item)
        code = bytearray()
        for item in items:
            for part in item:
                if isinstance(part, bytes):
                    code += part
                else:
                    target = starts[min(part.label, main)] if part.label >= 0 else starts[main - part.label]
                    code += part.encode(target - len(code))
        return Program(self.seed, self._start(bytes(code)), tuple(starts))

    def _start(self, code: bytes) -> Case:
        values = Generator(self.random.getrandbits(64))
        x = [0, *(values.integer() for _ in range(31))]
        base = DATA + ROOM * self.random.randrange(DATA_SIZE // ROOM) + 0x1000
        for register in (SP, S0, BASE):
            x[register] = base
        x[MASK] = OFFSETS
        for register in COUNTERS:
            x[register] = 0
        f = [values.floating() for _ in range(32)]
        fcsr = self.random.randrange(5) << 5
        return Case(CODE, code, x, f, fcsr, base - WINDOW // 2, self.random.randbytes(WINDOW))


def write(seed: int, names: Iterable[str], length: int = 250) -> Program:
    """A random program; the same for the same arguments."""
    return Writer(seed, names, length).program()


Stop = tuple[Program, int, Case]
#: Runs cases, given the states that we found: gives the oracle's states (None for no opinion) and its memory.
Oracle = Callable[[Sequence[Case], Sequence[State]], tuple[Sequence[State | None], bytes]]


def qemu() -> Oracle:
    machine = Qemu()
    return lambda cases, mine: (machine.run(cases), machine.memory)


def unicorn() -> Oracle:
    machine = Unicorn()
    return lambda cases, mine: (machine.run(cases, [state.pc for state in mine]), machine.memory)


def interpreter() -> Oracle:
    """Our own interpreter, to judge translated code: of every instruction, and of how many have retired."""
    machine = Ours(INTERPRET)
    return lambda cases, mine: (machine.run(cases), machine.memory)


def placed(programs: Sequence[Program], stops: Callable[[Program], Iterable[int]]) -> list[Stop]:
    """Each program with a breakpoint at each of ``stops`` (number of items: nowhere); all lie across a page's end."""
    found = []
    page = CODE + 0x2000
    for program in programs:
        r = random.Random(program.seed)
        length = len(program.case.code)
        for stop in stops(program):
            page += (length + 0x2FFF) & ~0xFFF
            assert page + length < CODE + CODE_SIZE, "too many programs for one run"
            found.append((program, stop, program.stopped_at(stop, page - 2 * r.randrange(1, length // 2))))
    return found


def some(count: int) -> Callable[[Program], list[int]]:
    """A few stops, and the end."""

    def stops(program: Program) -> list[int]:
        r = random.Random(program.seed)
        return [*(r.randrange(len(program.items)) for _ in range(count)), len(program.items)]

    return stops


def compare(programs: Sequence[Program], ours: Ours, oracle: Oracle, stops: int = 3) -> list[str]:
    """What differs, a message a program, with the item that comes before the first difference."""
    runs = placed(programs, some(stops))
    cases = [case for _, _, case in runs]
    mine = ours.run(cases)
    states, memory = oracle(cases, mine)
    different: dict[int, Program] = {}
    for (program, _, _), state, theirs in zip(runs, mine, states, strict=True):
        if theirs is not None and state.differences(theirs):
            different.setdefault(program.seed, program)
    if not different and memory != ours.memory:
        return [m for p in programs if (m := locate(p, ours, oracle))] or ["memory differs after all programs together"]
    return [locate(program, ours, oracle) for program in different.values()]


def locate(program: Program, ours: Ours, oracle: Oracle) -> str:
    """Stops a program at each of its items to find the first one after which the states differ; '' if none does."""
    runs = placed([program], lambda program: range(len(program.items) + 1))
    cases = [case for _, _, case in runs]
    mine = ours.run(cases)
    order = sorted(range(len(runs)), key=ours.retired.__getitem__)
    theirs, memory = oracle(cases, mine)
    before = 0
    for number in order:
        _, item, case = runs[number]
        other = theirs[number]
        if other is not None and (differences := mine[number].differences(other)):
            start = program.items[before]
            end = program.items[item] if before < item < len(program.items) else start + 16
            code = program.case.code[start:end]
            return (
                f"seed {program.seed}: {differences} (ours / theirs) after {ours.retired[number]} instructions at "
                f"{mine[number].pc:#x}, item {item}; before it item {before}: {disassemble(code, case.pc + start)}"
            )
        if item < len(program.items) and mine[number].pc == case.pc + program.items[item]:
            before = item
    if memory != ours.memory:
        at = next(n for n, (a, b) in enumerate(zip(ours.memory, memory, strict=True)) if a != b)
        return f"seed {program.seed}: memory at {DATA + at:#x}: {ours.memory[at]:#x} / {memory[at]:#x} (ours / theirs)"
    return ""
