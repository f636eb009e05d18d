"""The TLBs never give what the architecture does not allow: random changes of tables, fences, switches and accesses.

The model keeps, for each address space and page, every walk that was current at some time since the last fence for
it: those may be cached (12.2.1). An access must end as one of them says; after a fence only the walk of now is left.
It is stricter than the specification in one thing: a fence of one address also covers table entries above the leaf.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest

from tests.cpu_harness import BASE
from tests.models.assembler import assemble
from tests.models.paged import DATA, DATA_2M, END, PMP_CODE, TABLES, PagedHart
from tests.models.translation import FETCH, LOAD, STORE, Fault, M, PmpEntry, Pte, S, Settings, U, access

SEQUENCES, STEPS = 40, 600
MPRV, SUM, MXR = 1 << 17, 1 << 18, 1 << 19
#: Twelve address spaces: more than a hart keeps TLBs for. The last two share an ASID; the first is no address space
#: at all (Bare).
SPACES = 12
BARE = 0
TOP = 0x4020_0000
#: Pages that share superpages, or places in the TLBs.
PAGES = [TOP, TOP + 0x1000, TOP + 0x1FF000, TOP + 0x200000, TOP + 0x400000, TOP + 0x401000, TOP + 0x4000_0000]
MARK, FIRST_STORE, SECOND_STORE, FIRST_LANDING, SECOND_LANDING = 0x10, 0x20, 0x30, 0x40, 0x50
FRAMES = [DATA, DATA + 0x1000, DATA_2M, DATA_2M + 0x1000, DATA_2M + 0x200000, END - 0x1000]
REGIONS = [DATA_2M, DATA_2M + 0x200000, DATA_2M + 0x400000]

Walk = tuple[int, tuple[tuple[int, int], ...]]


@pytest.fixture(scope="module")
def hart() -> PagedHart:
    made = PagedHart()
    for frame in range(DATA, END, 0x1000):
        made.poke(frame + MARK, frame)
        code = assemble(f"lui a2, {(frame - BASE) >> 12}\nstay: j stay", 0).code
        for landing in (FIRST_LANDING, SECOND_LANDING):
            made.ram[frame + landing - BASE : frame + landing - BASE + 8] = code
    return made


class Model:
    """Page tables of all address spaces, and what may be cached of them."""

    def __init__(self, hart: PagedHart, rng: random.Random) -> None:
        self.hart, self.random = hart, rng
        self.used = 0
        #: Each sequence has a taste of its own: how often an entry of a level leads on, whether pages are for user
        #: mode.
        self.pointers = (0.0, rng.choice((0.2, 0.6, 0.9)), rng.choice((0.5, 0.95, 1.0)))
        self.user = rng.choice(((0, 0x10), (0,), (0x10,)))
        self.plain = rng.choice((0.0, 0.7, 1.0))
        self.roots = [self.table() for _ in range(SPACES)]
        self.slots: dict[int, list[tuple[int, int, int]]] = {}
        for space, root in enumerate(self.roots[1:], 1):
            slots = self.slots[space] = []
            hart.map_code(root, 8)
            for first in sorted({page >> 30 for page in PAGES}):
                middle = self.table()
                slots.append((root + 8 * (first & 511), 2, middle))
                for region in sorted({page >> 21 for page in PAGES if page >> 30 == first}):
                    last = self.table()
                    slots.append((middle + 8 * (region & 511), 1, last))
                    for page in PAGES:
                        if page >> 21 == region:
                            slots.append((last + 8 * (page >> 12 & 511), 0, 0))
            for slot in slots:
                hart.poke(slot[0], self.entry(*slot[1:]))
        self.pmp = [PmpEntry(0x1F, PMP_CODE), *self.holes(), PmpEntry(0x1F, (1 << 54) - 1)]
        self.space = 1
        self.privilege, self.sum, self.mxr = M, False, False
        self.may: dict[tuple[int, int], set[Walk]] = {}
        self.look()

    def table(self) -> int:
        self.used += 1
        at = TABLES + (self.used - 1) * 0x1000
        self.hart.ram[at - BASE : at - BASE + 0x1000] = bytes(0x1000)
        return at

    def holes(self) -> list[PmpEntry]:
        """Protected words inside of pages: what is allowed at one offset is not at another."""
        frames = self.random.sample(FRAMES, 2)
        return [PmpEntry(0x11, frames[0] + FIRST_STORE >> 2), PmpEntry(0x1B, (frames[1] + SECOND_LANDING >> 2) | 1)]

    def entry(self, level: int, below: int) -> int:
        """A new value for an entry of a level: mostly as a kernel would write, sometimes invalid or short of A or D."""
        r = self.random
        if r.random() < 0.05:
            return 0
        if r.random() < self.pointers[level]:
            return below >> 12 << 10 | 1
        frame = r.choice(FRAMES) if level == 0 else r.choice(REGIONS) if level == 1 else BASE
        if r.random() < self.plain:
            return frame >> 12 << 10 | 0xCF | r.choice(self.user)
        flags = (
            1
            | r.choice((0x2, 0x6, 0xA, 0xE, 0xE, 0xE, 0x8))
            | r.choice(self.user)
            | r.choice((0xC0, 0xC0, 0xC0, 0x40, 0))
        )
        return frame >> 12 << 10 | flags

    # what may be cached

    def satp(self, space: int) -> int:
        if space == BARE:
            return 0
        return 8 << 60 | min(space, SPACES - 2) << 44 | self.roots[space] >> 12

    @property
    def asid(self) -> int:
        return self.satp(self.space) >> 44 & 0xFFFF

    def walk(self, page: int) -> Walk:
        """The entries that a walk of now reads."""
        satp = self.satp(self.space)
        path: list[tuple[int, int]] = []
        table = (satp & (1 << 44) - 1) << 12
        for level in (2, 1, 0) if satp else ():
            at = table + 8 * (page >> (12 + 9 * level) & 511)
            pte = Pte(self.hart.peek(at))
            path.append((at, pte.raw))
            if not pte.v or pte.r or pte.x:
                break
            table = pte.ppn << 12
        return satp, tuple(path)

    def look(self) -> None:
        """What is current may be cached from now on."""
        for page in PAGES:
            self.may.setdefault((self.asid, page), set()).add(self.walk(page))

    def fence(self, page: int | None, asid: int | None) -> None:
        for key in self.may:
            if asid is not None and key[0] != asid:
                continue
            if page is None:
                self.may[key] = set()
                continue
            leaves = {walk[1][-1][0] for walk in self.may.get((key[0], page), set()) if walk[1]}
            self.may[key] = {
                walk for walk in self.may[key] if key[1] != page and walk[1] and walk[1][-1][0] not in leaves
            }
        self.look()

    # accesses

    def settings(self) -> Settings:
        return Settings(
            self.privilege, 0, self.hart.memory_at, self.hart.peek, self.pmp, self.sum, self.mxr, self.privilege == M, S
        )

    def outcomes(self, address: int, kind: str) -> list[int | tuple[int, int]]:
        """All ways an access may end: a physical address, or cause and value."""
        found: list[int | tuple[int, int]] = []
        for satp, path in self.may[self.asid, address & ~0xFFF]:
            settings = replace(self.settings(), satp=satp, read_pte=dict(path).__getitem__)
            try:
                physical = access(settings, address, 2 if kind == FETCH else 8, kind).physical
                if self.hart.memory_at(physical):
                    found.append(physical)
                    continue
                found.append(({LOAD: 5, STORE: 7, FETCH: 1}[kind], address))
            except Fault as fault:
                found.append((fault.cause, fault.value))
        return found


class Player:
    """Makes the same steps on the hart and in the model."""

    def __init__(self, hart: PagedHart, seed: int) -> None:
        self.hart, self.random = hart, random.Random(seed)
        self.model = Model(hart, self.random)
        self.log: list[str] = []
        self.counter = seed & 0xFFFF_FFFF
        self.stale = 0
        self.kinds = self.random.choice(((LOAD, STORE, STORE, FETCH), (FETCH,), (LOAD,), (STORE,)))
        self.privileges = self.random.choice(((U, S, M), (S, S, S, U, M), (U, U, U, S)))
        self.spaces = self.random.sample(range(SPACES), self.random.choice((1, 2, 5, SPACES)))
        for i in range(16):
            entry = self.model.pmp[i] if i < len(self.model.pmp) else PmpEntry(0, 0)
            hart.hart.pmpcfg[i], hart.hart.pmpaddr[i] = entry.config, entry.address
        hart.cpu.forget()
        hart.hart.menvcfg = 0
        hart.hart.satp = 0
        hart.hart.privilege = M
        hart.hart.mstatus &= ~(MPRV | SUM | MXR)
        self.to(S, 1)

    def to(self, privilege: int, space: int | None = None) -> None:
        """Another privilege, and perhaps another address space, through machine mode."""
        m = self.model
        m.privilege = privilege
        if space is not None:
            m.space = space
        status = SUM * m.sum | MXR * m.mxr | (MPRV | S << 11 if privilege == M else 0)
        self.hart.switch(privilege, status, None if space is None else m.satp(space))
        m.look()

    def step(self) -> None:
        r, m = self.random, self.model
        what = r.random()
        if what < 0.6:
            self.access(r.choice(PAGES))
        elif what < 0.78:
            space = r.choice((m.space or 1, m.space or 1, r.randrange(1, SPACES)))
            at, level, below = r.choice(m.slots[space])
            pte = m.entry(level, below)
            self.log.append(f"entry {at:#x} = {pte:#x}")
            self.hart.poke(at, pte)
            m.look()
        elif what < 0.80:
            self.remap()
        elif what < 0.88:
            self.fence()
        elif what < 0.93:
            space = r.choice(self.spaces)
            self.log.append(f"space {space}")
            if BARE in (space, m.space) or m.privilege != S:
                self.to(m.privilege, space)
            else:
                m.space = space
                assert self.hart.step("satp", m.satp(space)).how == "done"
                m.look()
        elif what < 0.96:
            privilege = r.choice(self.privileges)
            self.log.append(f"privilege {privilege}")
            self.to(privilege)
        else:
            m.sum, m.mxr = r.random() < 0.5, r.random() < 0.5
            self.log.append(f"sum {m.sum} mxr {m.mxr}")
            if m.privilege == S:
                assert self.hart.step("sstatus", SUM * m.sum | MXR * m.mxr).how == "done"
            else:
                self.to(m.privilege)

    def remap(self) -> None:
        """What a kernel does: an entry that was used changes, a page that it maps is fenced, another one is
        accessed."""
        r, m = self.random, self.model
        page = r.choice(PAGES)
        self.access(page)
        path = m.walk(page)[1]
        if path and m.space != BARE:
            at, level, below = next(slot for slot in m.slots[m.space] if slot[0] == path[-1][0])
            covered = [p for p in PAGES if m.walk(p)[1][-1][0] == at]
            self.hart.poke(at, m.entry(level, below))
            m.look()
            self.fence(r.choice(covered))
            self.access(page)

    def fence(self, page: int | None = None) -> None:
        r, m = self.random, self.model
        privilege = m.privilege
        if privilege == U:
            self.to(S)
        if page is None:
            page = r.choice((None, *PAGES))
        asid = r.choice((None, m.asid, r.randrange(SPACES - 1)))
        form = {(True, True): "", (True, False): ".asid", (False, True): ".va", (False, False): ".both"}[
            page is None, asid is None
        ]
        name = r.choice(("fence", "sinval")) + form
        self.log.append(f"{name} {page and hex(page)} {asid}")
        address = (page or 0) + r.randrange(4096)
        assert self.hart.step(name, address, asid or 0).how == "done"
        m.fence(page, asid)
        if privilege == U:
            self.to(U)

    def access(self, page: int) -> None:
        m, x = self.model, self.hart.hart.x
        kind = self.random.choice(self.kinds)
        if kind == FETCH and m.privilege == M:
            kind = LOAD
        gadget = {LOAD: "ld", STORE: "sd", FETCH: "jump"}[kind]
        places = {LOAD: (MARK,), STORE: (FIRST_STORE, SECOND_STORE), FETCH: (FIRST_LANDING, SECOND_LANDING)}
        offset = self.random.choice(places[kind])
        self.counter += 1
        x[12] = 0
        ended = self.hart.step(gadget, page + offset, self.counter)
        self.log.append(f"{kind} {page + offset:#x}: {ended}")
        allowed = m.outcomes(page + offset, kind)
        got: object = None
        if ended.how == "trap":
            got = (ended.cause, ended.value)
            self.to(m.privilege)
        elif kind == LOAD:
            got = x[12] + MARK
        elif kind == FETCH:
            assert ended.pc == page + offset + 4
            got = x[12] + BASE + offset
        else:
            got = next(
                (p for p in allowed if isinstance(p, int) and self.hart.peek(p) == self.counter), "a store elsewhere"
            )
        assert got in allowed, f"{got} is none of {allowed}"
        if len(set(allowed)) > 1:
            self.stale += 1


def test_random_sequences(hart: PagedHart) -> None:
    """VMESH_SEED=n runs sequence n alone."""
    alone = "VMESH_SEED" in os.environ
    first = int(os.environ["VMESH_SEED"]) if alone else random.SystemRandom().randrange(1 << 40)
    choices = 0
    for seed in range(first, first + (1 if alone else SEQUENCES)):
        player = Player(hart, seed)
        try:
            for _ in range(STEPS):
                player.step()
        except AssertionError as problem:
            last = "\n  ".join(player.log[-40:])
            raise AssertionError(f"seed {seed}, step {len(player.log)}:\n  {last}\n{problem}") from None
        choices += player.stale
    assert alone or choices > 100, "the sequences never left the hart a choice"


STATUS_SOURCE = """
    csrw sstatus, s2        # another permission, without going anywhere
    ld a0, 0(s0)            # cached now
    sd s3, 0(s1)            # another entry
    sfence.vma s0, x0
    ld a1, 0(s0)
    csrw sstatus, x0
    ld a1, 0(s0)            # not permitted any more
"""


@pytest.mark.parametrize("bit", [SUM, MXR])
def test_permissions_change_in_the_middle_of_a_run(hart: PagedHart, bit: int) -> None:
    """What is cached under a new SUM or MXR is under the fences that follow, and ends with them."""
    program = assemble(STATUS_SOURCE, hart.program.base + 0x400)
    hart.ram[0x400 : 0x400 + len(program.code)] = program.code
    hart.cpu.forget()
    root = TABLES
    hart.ram[root - BASE : root - BASE + 0x4000] = bytes(0x4000)
    hart.map_code(root, 8)
    entry, tables = root + 0x2000 + 8 * 1, root + 0x2000 + 8 * 2
    hart.poke(root, (root + 0x1000) >> 12 << 10 | 1)
    hart.poke(root + 0x1000, (root + 0x2000) >> 12 << 10 | 1)
    flags = 0xDF if bit == SUM else 0xC9
    hart.poke(entry, DATA >> 12 << 10 | flags)
    hart.poke(tables, (root + 0x2000) >> 12 << 10 | 0xC7)
    for at in (DATA, DATA + 0x1000):
        hart.poke(at, at)
    hart.hart.pmpcfg[0], hart.hart.pmpaddr[0] = 0x1F, (1 << 54) - 1
    for number in range(1, 16):
        hart.hart.pmpcfg[number] = 0
    x = hart.hart.x
    x[18], x[19], x[8], x[9] = bit, (DATA + 0x1000) >> 12 << 10 | flags, 0x1000, 0x2000 + 8
    start = hart.code_at(8, S) + 0x400
    ended = hart.enter(
        satp=8 << 60 | root >> 12, mstatus=S << 11, menvcfg=0, pmpcfg2=0, pc=start, machine=False, count=30
    )
    assert (ended.how, ended.pc, ended.cause) == ("trap", start + 24, 13)
    assert (x[10], x[11]) == (DATA, DATA + 0x1000)
