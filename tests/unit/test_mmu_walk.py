"""Page walks and PMP against the model in ``models/translation.py``: random tables, random settings, every kind of
access."""

from __future__ import annotations

import os
import random
import struct
from dataclasses import dataclass

import pytest

from tests.models.paged import (
    CODE,
    CODE_INDEX,
    DATA,
    DATA_2M,
    END,
    NOWHERE,
    PMP_CODE,
    ROM,
    TABLES,
    Ended,
    PagedHart,
    sign_extend,
)
from tests.models.translation import (
    FETCH,
    LEVELS,
    LOAD,
    MISALIGNED,
    STORE,
    Fault,
    M,
    PmpEntry,
    S,
    Settings,
    U,
    access,
)

CASES = 4000
MASK = (1 << 64) - 1
ACCESSES = {
    "lb": (LOAD, 1), "lhu": (LOAD, 2), "lw": (LOAD, 4), "ld": (LOAD, 8), "lr.w": (LOAD, 4), "lr.d": (LOAD, 8),
    "sb": (STORE, 1), "sh": (STORE, 2), "sw": (STORE, 4), "sd": (STORE, 8), "sc.w": (STORE, 4), "sc.d": (STORE, 8),
    "amoadd.w": (STORE, 4), "amoswap.d": (STORE, 8), "jump": (FETCH, 2),
}  # fmt: skip
ATOMIC = ("lr", "sc", "am")
ROM_TABLE = ROM + 0x3000
ADUE, PBMTE = 1 << 61, 1 << 62
MPRV, SUM, MXR = 1 << 17, 1 << 18, 1 << 19
ALLOW_ALL = PmpEntry(0x1F, (1 << 54) - 1)


@dataclass
class Case:
    """One access, with everything it depends on."""

    seed: int
    settings: Settings
    gadget: str
    virtual: int
    value: int
    tables: dict[int, int]

    def __str__(self) -> str:
        s = self.settings
        tables = ", ".join(f"{at:#x}: {pte:#x}" for at, pte in self.tables.items())
        pmp = ", ".join(f"{e.config:#x} {e.address:#x}" for e in s.pmp)
        return (
            f"seed {self.seed}: {self.gadget} {self.virtual:#x} in {s.privilege} (mprv {s.mprv} mpp {s.mpp}) "
            f"satp {s.satp:#x} sum {s.sum} mxr {s.mxr} adue {s.adue} pbmte {s.pbmte}\n  tables {tables}\n  pmp {pmp}"
        )


class Maker:
    """Makes random cases in a hart's memory."""

    def __init__(self, hart: PagedHart) -> None:
        self.hart = hart
        for i in range(512):
            flags = (0xF, 0xCF, 0x1F, 0xDF, 0x4B, 0x01, 0x00, 0xC7)[i & 7]
            hart.poke(ROM_TABLE + 8 * i, (DATA >> 12) + (i & 31) << 10 | flags)

    def target(self, level: int) -> int:
        """A physical address to be reached by a leaf of this level."""
        r = self.random
        kind = r.random()
        if kind < 0.75:
            first = DATA if level == 0 else DATA_2M
            page = r.randrange(first, END, 4096)
        elif kind < 0.8:
            page = ROM + 0x8000
        elif kind < 0.9:
            page = NOWHERE + r.randrange(0, 1 << 21, 4096)
        else:
            page = r.randrange(1 << 56) & ~0xFFF
            if level or self.hart.memory_at(page):
                page = NOWHERE
        return page

    def leaf(self, physical: int, level: int) -> int:
        r = self.random
        ppn = physical >> 12
        if r.random() > 0.08:
            ppn = ppn >> (9 * level) << (9 * level)
        flags = 1 | r.choice((0x2, 0x6, 0xA, 0xE, 0xE, 0x8)) | r.choice((0, 0x10)) | r.choice((0, 0x20))
        flags |= 0xC0 if r.random() < 0.7 else r.choice((0, 0x40, 0x80))
        if r.random() < 0.12:
            flags = r.randrange(256)
        return self.spoil(ppn << 10 | flags | r.randrange(4) << 8, 0.05)

    def spoil(self, pte: int, chance: float) -> int:
        r = self.random
        if r.random() < chance:
            pte |= r.randrange(1, 128) << 54
        if r.random() < chance / 2:
            pte |= 1 << 63
        if r.random() < chance * 2:
            pte |= r.randrange(1, 4) << 61
        return pte

    def pointer(self, table: int) -> int:
        r = self.random
        pte = table >> 12 << 10 | 1 | r.choice((0, 0x20)) | r.randrange(4) << 8
        if r.random() < 0.04:
            pte |= r.choice((0x10, 0x40, 0x80))
        return self.spoil(pte, 0.01)

    def next_table(self) -> int:
        kind = self.random.random()
        if kind < 0.94:
            self.tables += 1
            return TABLES + self.tables * 0x1000
        return ROM_TABLE if kind < 0.97 else NOWHERE

    def map(self, virtual: int, physical: int, leaf_level: int, mode: int) -> None:
        """Entries from the root to a leaf; entries that are there already stay."""
        table = self.root
        for level in reversed(range(LEVELS[mode])):
            at = table + (virtual >> (12 + 9 * level) & 511) * 8
            if self.hart.memory_at(at) != "ram":
                return
            if at in self.entries:
                pte = self.entries[at]
                if pte & 0xE:
                    return
                table = (pte >> 10 & (1 << 44) - 1) << 12
                continue
            if level == leaf_level:
                self.put(at, self.leaf(physical, level))
                return
            table = self.next_table()
            self.put(at, self.pointer(table))

    def put(self, at: int, pte: int) -> None:
        self.entries[at] = pte
        self.hart.poke(at, pte)

    def pmp(self, interesting: list[int]) -> list[PmpEntry]:
        """Entry 0 lets the code run; the last one usually allows the rest."""
        r = self.random
        entries = [PmpEntry(0x1F, PMP_CODE)] + [PmpEntry(0, 0)] * 14 + [ALLOW_ALL]
        if r.random() < 0.5:
            return entries
        if r.random() < 0.1:
            entries[15] = PmpEntry(0, 0)
        for number in sorted(r.sample(range(1, 15), r.choice((1, 1, 2, 3)))):
            near = r.choice(interesting)
            config = r.choice((0, 1, 3, 4, 5, 7)) | (0x80 if r.random() < 0.25 else 0)
            mode = r.randrange(4)
            address = near >> 2
            if mode == 1:
                entries[number - 1] = PmpEntry(
                    entries[number - 1].config & 0x80, address - r.choice((0, 1, 1, 2, 1024, 5000))
                )
                address += r.choice((0, 1, 2, 512, 1024, 3000))
            elif mode == 2:
                address += r.choice((-1, 0, 0, 1))
            elif mode == 3:
                ones = r.choice((0, 0, 1, 2, 8, 9, 10, 18, 53))
                address = (address >> (ones + 1) << (ones + 1)) | ((1 << ones) - 1)
            entries[number] = PmpEntry(config | mode << 3, max(address, 0) & (1 << 54) - 1)
        if entries[0].config != 0x1F:
            entries[0] = PmpEntry(0x1F, PMP_CODE)
        return entries

    def make(self, seed: int) -> Case:
        self.random = r = random.Random(seed)
        self.entries: dict[int, int] = {}
        self.tables = 0
        self.root = TABLES
        mode = r.choice((8, 8, 9, 10)) if r.random() < 0.95 else 0
        privilege = r.choice((U, S, S, M))
        gadget = r.choice(list(ACCESSES))
        kind, size = ACCESSES[gadget]
        level = 0
        if mode:
            level = r.choice((0, 0, 0, 1, 1, *range(2, LEVELS[mode])))
        page = self.target(level)
        # atomics and fetches only where they are aligned, mostly; others at all offsets, ends of pages included
        offset = r.choice((r.randrange(4096), r.randrange(4096), 0, 4096 - r.randrange(1, 9)))
        if r.random() < 0.6 or kind == FETCH:
            offset &= -size
        physical = page + offset
        virtual = physical
        if mode:
            bits = 12 + 9 * LEVELS[mode]
            virtual = (
                r.randrange(1 << bits) >> (12 + 9 * level) << (12 + 9 * level) | physical & (4096 << 9 * level) - 1
            )
            if virtual >> (bits - 9) == CODE_INDEX:
                virtual ^= 1 << (bits - 2)
            virtual = sign_extend(virtual, bits)
            if r.random() < 0.04:
                virtual ^= 1 << r.randrange(bits, 64)
        virtual &= MASK
        if kind == FETCH and privilege == M and CODE <= virtual < DATA:
            virtual += DATA - CODE  # not translated: what lies there would run, which is no spin
        if mode:
            self.hart.map_code(self.root, mode)
            self.map(virtual, physical, level, mode)
            second = r.choice((0, 0, 0, 1))
            self.map((virtual & ~0xFFF) + 4096, self.target(0) if second == 0 else DATA_2M, second, mode)
        settings = Settings(
            privilege,
            mode << 60 | r.choice((0, 1, 0xFFFF)) << 44 | (self.root >> 12 if mode else 0),
            self.hart.memory_at,
            self.hart.peek,
            sum=r.random() < 0.5,
            mxr=r.random() < 0.5,
            mprv=privilege == M and r.random() < 0.8,
            mpp=r.choice((U, S, S, M)) if privilege == M else privilege,
            adue=r.random() < 0.5,
            pbmte=r.random() < 0.5,
        )
        interesting = [physical & (1 << 56) - 1, *self.entries]
        settings.pmp = self.pmp(interesting)
        return Case(seed, settings, gadget, virtual, r.randrange(1 << 64), self.entries)


@dataclass
class Expected:
    """What the model says: how it ends, which page table bits are set, which bytes are stored at which physical
    addresses."""

    fault: Fault | None
    pc: int
    set_bits: dict[int, int]
    loaded: list[int]
    stored: list[int]
    #: Trap values that are as right as the fault's own.
    also: tuple[int, ...] = ()


def predict(case: Case, code: int) -> Expected:
    """The outcome of a case by the model; ``code`` is the address of its instruction."""
    s = case.settings
    kind, size = ACCESSES[case.gadget]
    bits: dict[int, int] = {}

    def byte(address: int, width: int, what: str) -> int:
        try:
            walk = access(s, address & MASK, width, what)
        except Fault as fault:
            if "walk" in fault.__dict__:
                walk = fault.__dict__["walk"]
                bits[walk.leaf_at] = bits.get(walk.leaf_at, 0) | walk.set_bits
            raise
        if walk.set_bits:
            bits[walk.leaf_at] = bits.get(walk.leaf_at, 0) | walk.set_bits
        return walk.physical

    for half in range(0, 12, 2):
        try:
            byte(code + half, 2, FETCH)
        except Fault as fault:
            return Expected(fault, code & ~3, bits, [], [])
    aligned = case.virtual % size == 0
    if case.gadget[:2] in ATOMIC and not aligned:
        return Expected(Fault(MISALIGNED[kind], case.virtual), code, bits, [], [])
    if kind == FETCH:
        try:
            physical = byte(case.virtual, 2, FETCH)
        except Fault as fault:
            return Expected(fault, case.virtual, bits, [], [])
        if s.memory_at(physical) is None:
            return Expected(Fault(1, case.virtual), case.virtual, bits, [], [])
        return Expected(None, case.virtual, bits, [], [])
    touched: dict[int, int] = {}

    def lacking() -> bool:
        places = {s.memory_at(p) for p in touched.values()}
        return None in places or (kind == STORE and "rom" in places)

    try:
        if aligned:
            first = byte(case.virtual, size, kind)
            touched = {i: first + i for i in range(size)}
        else:
            # first both ends, then what is between
            for i in (0, size - 1):
                touched[i] = byte(case.virtual + i, 1, kind)
            if not lacking():
                touched = {i: byte(case.virtual + i, 1, kind) for i in range(size)}
    except Fault as fault:
        # the value is where the access begins or, if the page is another, what of it is there
        same_page = fault.value >> 12 == case.virtual >> 12
        begin = case.virtual if same_page else fault.value & ~0xFFF
        return Expected(Fault(fault.cause, begin), code, bits, [], [], (fault.value,) if same_page else ())
    if lacking():
        if not aligned:
            # devices and what cannot be written bear no misaligned access
            return Expected(Fault(MISALIGNED[kind], case.virtual), code, bits, [], [])
        if None in map(s.memory_at, touched.values()) or case.gadget[:2] in ATOMIC:
            return Expected(Fault(7 if kind == STORE else 5, case.virtual), code, bits, [], [])
        return Expected(None, code, bits, [], [])
    places = list(touched.values())
    return Expected(None, code, bits, places if case.gadget[0] != "s" else [], places if kind == STORE else [])


def value_after(case: Case, old: int) -> tuple[int | None, int | None]:
    """What the instruction leaves in memory and in its result register (None: unchanged), given what memory held."""
    size = ACCESSES[case.gadget][1]
    signed = sign_extend(old, 8 * size)
    match case.gadget:
        case "lb" | "lw" | "lr.w" | "lr.d" | "ld":
            return None, signed
        case "lhu":
            return None, old
        case "sb" | "sh" | "sw" | "sd":
            return case.value & (1 << 8 * size) - 1, None
        case "sc.w" | "sc.d":
            return None, 1
        case "amoadd.w":
            return (old + case.value) & 0xFFFF_FFFF, signed
        case "amoswap.d":
            return case.value, old
    return None, None


def check(hart: PagedHart, case: Case) -> Ended:
    """Runs a case and compares everything it may have changed."""
    s = case.settings
    mode = s.satp >> 60
    code = hart.code_at(mode, s.privilege) + (hart.gadget[case.gadget] & 0xFFF)
    expected = predict(case, code)
    old = [hart.peek(p, 1) for p in expected.loaded or expected.stored]
    for i, entry in enumerate(s.pmp):
        hart.hart.pmpcfg[i], hart.hart.pmpaddr[i] = entry.config, entry.address
    x = hart.hart.x
    x[10], x[11], x[12] = case.virtual, case.value, 0x1234_5678_9ABC_DEF0
    hart.hart.reserved_address = MASK
    mstatus = s.mpp << 11 | s.mprv * MPRV | s.sum * SUM | s.mxr * MXR
    ended = hart.enter(
        satp=s.satp,
        mstatus=mstatus,
        menvcfg=s.adue * ADUE | s.pbmte * PBMTE,
        pmpcfg2=sum(entry.config << 8 * i for i, entry in enumerate(s.pmp[8:])),
        pc=code,
        machine=s.privilege == M,
        count=24,
    )
    unchanged = x[12] == 0x1234_5678_9ABC_DEF0
    if expected.fault is not None:
        assert ended.how == "trap", ended
        assert (ended.cause, ended.pc) == (expected.fault.cause, expected.pc)
        assert ended.value in (expected.fault.value, *expected.also), hex(ended.value)
        assert hart.hart.mstatus >> 11 & 3 == s.privilege
        assert unchanged
    elif case.gadget == "jump":
        assert ended == Ended("jumped", case.virtual)
    else:
        assert ended.how == "done", ended
        memory, register = value_after(case, int.from_bytes(bytes(old), "little"))
        if register is None:
            assert unchanged
        else:
            assert x[12] == register
        now = bytes(hart.peek(p, 1) for p in expected.stored)
        if expected.stored:
            assert now == (bytes(old) if memory is None else memory.to_bytes(len(now), "little"))
        for p in expected.stored:
            hart.poke(p, SPIN_BYTES[p & 1], 1)
    for at, pte in case.tables.items():
        assert hart.peek(at) == pte | expected.set_bits.get(at, 0), f"entry at {at:#x}"
        hart.poke(at, 0)
    return ended


SPIN_BYTES = struct.pack("<H", 0xA001)


@pytest.fixture(scope="module")
def hart() -> PagedHart:
    return PagedHart()


@pytest.mark.parametrize("part", range(2))
def test_random_walks(hart: PagedHart, part: int) -> None:
    """VMESH_SEED=n runs case n alone."""
    first = int(os.environ.get("VMESH_SEED", "0")) or random.SystemRandom().randrange(1 << 40)
    count = 1 if "VMESH_SEED" in os.environ else CASES
    maker = Maker(hart)
    seen: dict[str, int] = {}
    for seed in range(first, first + count):
        case = maker.make(seed)
        try:
            ended = check(hart, case)
        except AssertionError as problem:
            raise AssertionError(f"{case}\n{problem}") from None
        name = f"{ended.how} {ended.cause}"
        seen[name] = seen.get(name, 0) + 1
    if count == CASES:
        # every way to end must have been there, or the test has lost its sense
        for name in ("done 0", "jumped 0", *(f"trap {n}" for n in (1, 4, 5, 6, 7, 12, 13, 15))):
            assert seen.get(name, 0) > 5, (name, seen)
        assert seen["done 0"] > CASES // 10, seen
