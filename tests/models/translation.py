"""What a load, store or fetch must do, by the book and slowly: the model that tests compare a hart's memory system
with.

Written from the privileged specification alone: 3.1.6.3 (MPRV, SUM, MXR), 3.7 (PMP), 12.3.2 (the translation
algorithm), 12.4 and 12.5 (Sv48, Sv57), Svade and Svadu, Svpbmt. It knows nothing of TLBs, and reads page tables one
bit at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

LOAD, STORE, FETCH = "load", "store", "fetch"
U, S, M = 0, 1, 3
#: Exception codes by kind of access: access fault, page fault, misaligned.
ACCESS_FAULT = {LOAD: 5, STORE: 7, FETCH: 1}
PAGE_FAULT = {LOAD: 13, STORE: 15, FETCH: 12}
MISALIGNED = {LOAD: 4, STORE: 6}

#: satp.MODE: levels of the page table.
LEVELS = {8: 3, 9: 4, 10: 5}
PAGE_SIZE, PTE_SIZE = 4096, 8


class Fault(Exception):
    """The access ends in an exception."""

    def __init__(self, cause: int, value: int) -> None:
        super().__init__(f"cause {cause}, value {value:#x}")
        self.cause, self.value = cause, value


@dataclass(frozen=True, slots=True)
class PmpEntry:
    """One entry: pmpcfg byte and pmpaddr."""

    config: int
    address: int


@dataclass(frozen=True, slots=True)
class Pte:
    """A page table entry, taken apart (12.4.1 and Svpbmt, Svnapot)."""

    raw: int

    def bit(self, number: int) -> bool:
        return bool(self.raw >> number & 1)

    v = property(lambda self: self.bit(0))
    r = property(lambda self: self.bit(1))
    w = property(lambda self: self.bit(2))
    x = property(lambda self: self.bit(3))
    u = property(lambda self: self.bit(4))
    g = property(lambda self: self.bit(5))
    a = property(lambda self: self.bit(6))
    d = property(lambda self: self.bit(7))
    n = property(lambda self: self.bit(63))
    ppn = property(lambda self: self.raw >> 10 & (1 << 44) - 1)
    reserved = property(lambda self: self.raw >> 54 & 0x7F)
    pbmt = property(lambda self: self.raw >> 61 & 3)


@dataclass(slots=True)
class Settings:
    """What the outcome of an access depends on besides memory. ``memory_at`` says what is at a physical address:
    "ram", "rom" (a store there changes nothing) or None (a device or nothing: no page tables there).
    """

    privilege: int
    satp: int
    memory_at: Callable[[int], str | None]
    read_pte: Callable[[int], int]
    pmp: list[PmpEntry] = field(default_factory=list)
    sum: bool = False
    mxr: bool = False
    mprv: bool = False
    mpp: int = 0
    adue: bool = False
    pbmte: bool = False


@dataclass(frozen=True, slots=True)
class Translation:
    """A finished walk: the physical address, the leaf entry and where it is, its level, and the bits that the walk
    sets in it."""

    physical: int
    leaf: int
    leaf_at: int
    level: int
    set_bits: int


def pmp_range(entries: list[PmpEntry], number: int) -> range:
    """The bytes that an entry matches (3.7.1); the mode is in bits 3 and 4."""
    entry = entries[number]
    mode = entry.config >> 3 & 3
    if mode == 0:
        return range(0)
    if mode == 1:
        return range((entries[number - 1].address if number else 0) * 4, entry.address * 4)
    if mode == 2:
        return range(entry.address * 4, entry.address * 4 + 4)
    ones = 0
    while entry.address >> ones & 1:
        ones += 1
    size = 8 << ones
    base = entry.address >> (ones + 1) << (ones + 1)
    return range(base * 4, base * 4 + size)


def pmp_allows(settings: Settings, physical: int, size: int, kind: str, privilege: int) -> bool:
    """Whether the lowest-numbered entry that matches any byte matches them all and permits (3.7.1)."""
    for number, entry in enumerate(settings.pmp):
        matched = pmp_range(settings.pmp, number)
        inside = [physical + i in matched for i in range(size)]
        if any(inside):
            if not all(inside):
                return False
            locked = bool(entry.config & 0x80)
            if privilege == M and not locked:
                return True
            return bool(entry.config >> {LOAD: 0, STORE: 1, FETCH: 2}[kind] & 1)
    return privilege == M


def effective_privilege(settings: Settings, kind: str) -> int:
    """MPRV: loads and stores of machine mode as if in MPP (3.1.6.3)."""
    if kind != FETCH and settings.mprv and settings.privilege == M:
        return settings.mpp
    return settings.privilege


def translate(settings: Settings, virtual: int, kind: str) -> Translation:
    """The steps of 12.3.2, in order. Raises :class:`Fault`. Changes nothing: ``set_bits`` says what hardware would."""
    privilege = effective_privilege(settings, kind)
    mode = settings.satp >> 60
    if privilege == M or mode == 0:
        return Translation(virtual, 0, 0, 0, 0)
    page_fault = Fault(PAGE_FAULT[kind], virtual)
    access_fault = Fault(ACCESS_FAULT[kind], virtual)
    levels = LEVELS[mode]
    bits = 12 + 9 * levels
    top = virtual >> (bits - 1)
    if top != 0 and top != (1 << (65 - bits)) - 1:
        raise page_fault
    # 1, 2
    a = (settings.satp & (1 << 44) - 1) * PAGE_SIZE
    i = levels - 1
    while True:
        vpn = virtual >> (12 + 9 * i) & 0x1FF
        pte_at = a + vpn * PTE_SIZE
        if settings.memory_at(pte_at) is None or not pmp_allows(settings, pte_at, 8, LOAD, S):
            raise access_fault
        pte = Pte(settings.read_pte(pte_at))
        # 3
        if not pte.v or (not pte.r and pte.w):
            raise page_fault
        if pte.reserved or pte.n or pte.pbmt == 3 or (pte.pbmt and not settings.pbmte):
            raise page_fault
        # 4
        if pte.r or pte.x:
            break
        if pte.d or pte.a or pte.u or pte.pbmt:
            raise page_fault
        i -= 1
        if i < 0:
            raise page_fault
        a = pte.ppn * PAGE_SIZE
    # 5: superpages are aligned
    for j in range(i):
        if pte.ppn >> (9 * j) & 0x1FF:
            raise page_fault
    # 6
    if pte.u:
        if privilege == S and (kind == FETCH or not settings.sum):
            raise page_fault
    elif privilege == U:
        raise page_fault
    # 7
    if kind == FETCH:
        permitted = pte.x
    elif kind == STORE:
        permitted = pte.w
    else:
        permitted = pte.r or (settings.mxr and pte.x)
    if not permitted:
        raise page_fault
    # 8, 9
    set_bits = 0
    if not pte.a:
        set_bits |= 1 << 6
    if kind == STORE and not pte.d:
        set_bits |= 1 << 7
    if set_bits:
        if not settings.adue:
            raise page_fault
        if settings.memory_at(pte_at) != "ram" or not pmp_allows(settings, pte_at, 8, STORE, S):
            raise access_fault
    # 10
    physical = 0
    for j in range(levels):
        part = virtual >> (12 + 9 * j) & 0x1FF if j < i else pte.ppn >> (9 * j)
        if j == levels - 1 and j >= i:
            physical |= part << (12 + 9 * j)
        else:
            physical |= (part & 0x1FF) << (12 + 9 * j)
    return Translation(physical | virtual & 0xFFF, pte.raw, pte_at, i, set_bits)


def access(settings: Settings, virtual: int, size: int, kind: str) -> Translation:
    """An aligned access: translation, then PMP. Raises :class:`Fault` (``set_bits`` of its ``walk``: made before the
    fault)."""
    walk = translate(settings, virtual, kind)
    if not pmp_allows(settings, walk.physical, size, kind, effective_privilege(settings, kind)):
        fault = Fault(ACCESS_FAULT[kind], virtual)
        fault.__dict__["walk"] = walk
        raise fault
    return walk
