"""Regions in this process: hot code goes to the translator, compiled code into the slots of the pages it was made of.

A hart's thread serves its own decoded pages, between two runs of native code, so nothing here races with the hart. A
region belongs to the bytes of its page: it is looked up by their digest whenever a page is decoded, by any hart, in
this machine or a later one. A compiler in the guest writes into a page that runs, and changes instructions there: so a
region goes into the place that it was asked for, too, if the page has other bytes by now, but not where the region is.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..native.blob import map_executable
from .digest import blake2b
from .harts import Harts
from .state import ATTENTION_REGIONS, CODE_HASH, CODE_PAGE_STRIDE, EXITS, KNOWN, CodePage
from .tlb import PAGE

#: A region's code is a few KiB.
LONGEST_CODE = 1 << 20
_ARENA = 16 << 20
#: Of a machine: bytes of code, and contents of pages that it is known of. Nothing of it is ever forgotten, as harts run
#: it, and a guest can make new code all the time.
MOST_CODE, MOST_CONTENTS = 512 << 20, 1 << 18
#: Regions of a physical page that are remembered while its bytes change, the newest.
MOST_OF_A_PLACE = 64
#: Contents that the translator was asked about, more than it lets wait; and pages that one answer goes to.
MOST_ASKED, _MOST_USERS = 512, 256
_OFFSET = struct.Struct("<H")
#: Bytes of a page's fingerprint, and of its digest, which begins with it.
FINGERPRINT, DIGEST = 8, 24
_COPY, _FINGERPRINT, _VERSION, _PHYSICAL, _NEXT, _ARMED, _FRESH = (
    CodePage.offset_of(name) for name in ("copy", "fingerprint", "version", "physical", "next", "armed", "fresh")
)


@dataclass(frozen=True, slots=True)
class Translation:
    """A compiled region: offsets in its page of its instructions and of its entries (little-endian 16-bit), and its
    code."""

    steps: bytes
    entries: bytes
    code: bytes

    @staticmethod
    def nothing(offset: int) -> Translation:
        """Says that at ``offset`` there is next to nothing to compile."""
        return Translation(b"", _OFFSET.pack(offset), b"")

    @property
    def is_nothing(self) -> bool:
        return len(self.entries) == _OFFSET.size and not self.steps and not self.code

    @property
    def sound(self) -> bool:
        """Whether it can be put into a page: offsets of instructions in it, entries among them."""
        if not self.code or len(self.code) > LONGEST_CODE or len(self.steps) % 2 or len(self.entries) % 2:
            return False
        steps = {offset for (offset,) in _OFFSET.iter_unpack(self.steps)}
        entries = {offset for (offset,) in _OFFSET.iter_unpack(self.entries)}
        return bool(entries) and entries <= steps and all(not step % 2 and step < PAGE for step in steps)


class Translator(Protocol):
    """Compiles regions elsewhere; the answer comes to ``Regions.add``."""

    def request(self, digest: bytes, page: bytes, offset: int, executed: bytes, physical: int) -> bool: ...


class Store(Protocol):
    """Translations kept from earlier machines."""

    def find(self, digest: bytes) -> list[Translation]: ...

    def fingerprints(self) -> set[bytes]:
        """The first ``FINGERPRINT`` bytes of all digests."""
        ...


class Names(Protocol):
    """Where code is named for a profiler."""

    def region(self, address: int, size: int, physical: int) -> None: ...


@dataclass(frozen=True, slots=True)
class _Content:
    """What a decoded page was made of at a time. ``digest`` names it, and begins with the page's fingerprint."""

    page: int
    version: int
    code: bytes
    digest: bytes


class Arena:
    """Executable memory that only grows: written through one mapping, run through another."""

    def __init__(self) -> None:
        self._writing: list[mmap.mmap] = []
        self._running = 0
        self._used = _ARENA
        self.bytes = 0

    def add(self, code: bytes) -> int:
        """Copies code; gives its address."""
        if self._used + len(code) > _ARENA:
            memory = mmap.mmap(-1, _ARENA)
            self._running = map_executable(memory)
            self._writing.append(memory)
            self._used = 0
        address = self._running + self._used
        self._writing[-1][self._used : self._used + len(code)] = code
        self._used += -(-len(code) // 64) * 64
        self.bytes += len(code)
        return address


@dataclass(slots=True)
class _Asked:
    """A content that the translator was asked about: where, and by which harts in which physical pages."""

    code: bytes
    offsets: set[int] = field(default_factory=set)
    barren: set[int] = field(default_factory=set)  # of these, where there is next to nothing to compile
    users: dict[tuple[int, int], None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Loaded:
    """A region in this process. ``made_of``: all instructions, as bytes of the page from an offset; nothing if that is
    not known any more."""

    steps: Any
    step_count: int
    entries: Any
    entry_count: int
    offsets: frozenset[int]  # of the entries
    address: int
    size: int
    made_of: tuple[tuple[int, bytes], ...]

    def fits(self, code: bytes) -> bool:
        """Whether these bytes of a page have the instructions that it was made of."""
        return bool(self.made_of) and all(code.startswith(part, offset) for offset, part in self.made_of)

    def is_of(self, translation: Translation, code: bytes) -> bool:
        """Whether it is what a translation of this page would be here."""
        return bytes(self.steps) == translation.steps and bytes(self.entries) == translation.entries and self.fits(code)


class Regions:
    """The regions of a machine. ``hot_samples`` is how often the clock must find a slot before it is translated."""

    def __init__(
        self, harts: Harts, translator: Translator, store: Store, hot_samples: int, names: Names | None = None
    ) -> None:
        self._harts = harts
        self._translator = translator
        self._store = store
        self._names = names
        #: of the contents that regions are known of; native code looks at a bit for each
        self._fingerprints = set[bytes]()
        self._known_bits = (ctypes.c_uint8 * (KNOWN // 8))()
        harts.machine.known = ctypes.addressof(self._known_bits)
        for fingerprint in store.fingerprints():
            self._mark(fingerprint)
        self._arena = Arena()
        self._lock = threading.Lock()
        self._known: dict[bytes, list[_Loaded]] = {}  # by digest; of contents without a region nothing
        self._asked: dict[bytes, _Asked] = {}  # by digest, the newest last
        self._places: dict[int, list[_Loaded]] = defaultdict(list)  # what was in a physical page, the newest last
        self._waiting: list[list[tuple[int, bytes, _Loaded]]] = [[] for _ in harts.hart]
        self._compile_us = 0
        self._installed = self._from_store = self._translated = self._refused = self._asked_for = 0
        # the extensions that are on shape the code too
        self._salt = harts.machine.features.to_bytes(16, "little")
        self._python_ns = 0
        harts.machine.hot_samples = hot_samples

    def counters(self) -> dict[str, int]:
        """Regions compiled now and the time it took, found on disk, put into pages, asked for, refused as unsound;
        bytes of code; decoded pages; time of harts spent here and the longest of their pauses for Python; instructions
        (those in regions are an estimate by sampling); ways out of regions that are not the guest's jumps."""
        harts = self._harts.hart
        exits = {f"region_exits_{name}": sum(h.count_exits[i] for h in harts) for i, name in enumerate(EXITS)}
        return {
            "regions_translated": self._translated,
            "regions_from_store": self._from_store,
            "regions_installed": self._installed,
            "region_bytes": self._arena.bytes,
            "regions_asked": self._asked_for,
            "regions_refused": self._refused,
            "code_pages": sum(hart.count_code_pages for hart in harts),
            "region_compile_us": self._compile_us,
            "region_service_us": self._python_ns // 1000,
            "longest_pause_us": max(hart.longest_pause for hart in harts) // 1000,
            "instructions": sum(hart.retired for hart in harts),
            "instructions_in_regions": sum(hart.count_translated for hart in harts),
            **exits,
        }

    def serve(self, number: int) -> None:
        """Does what hart ``number`` asks for. Called by its thread."""
        began = time.monotonic_ns()
        self._serve(number)
        self._python_ns += time.monotonic_ns() - began

    def _serve(self, number: int) -> None:
        hart = self._harts.hart[number]
        for index in range(hart.fresh_count):
            page = hart.fresh[index]
            if _fingerprint(page) in self._fingerprints:
                content = self._content(page)
                self._install(number, content, self._fitting(content))
        hart.fresh_count = 0
        for index in range(hart.hot_count):
            slot = hart.hot[index]
            page = slot & ~(CODE_PAGE_STRIDE - 1)
            self._hot(number, page, (slot - page) >> 3)
        hart.hot_count = 0
        with self._lock:
            waiting, self._waiting[number] = self._waiting[number], []
        for physical, digest, loaded in waiting:
            page = self._find(hart, physical)
            # the page may have changed since it was asked for
            if page and ((content := self._content(page)).digest == digest or loaded.fits(content.code)):
                self._install(number, content, [loaded])

    def add(self, digest: bytes, translation: Translation, microseconds: int = 0) -> None:
        """Takes a compiled region, and tells the harts that asked for it. ``microseconds``: what it took to compile.
        Called by the translator's thread."""
        with self._lock:
            asked = self._asked.get(digest) or _Asked(b"")
            if translation.is_nothing:
                asked.barren.update(offset for (offset,) in _OFFSET.iter_unpack(translation.entries))
                return
            places = {physical: self._places[physical] for _, physical in asked.users}
            twins = (each for place in places.values() for each in place if each.is_of(translation, asked.code))
            loaded = next(twins, None) or next(iter(self._load([translation], asked.code)), None)
            self._translated += 1
            self._compile_us += microseconds
            if loaded is None:
                return
            self._know(digest, [loaded])
            for place in places.values():
                _remember(place, [loaded])
            users = list(asked.users)
            for number, physical in users:
                self._waiting[number].append((physical, digest, loaded))
        for number, _ in users:
            self._harts.raise_attention(number, ATTENTION_REGIONS)

    def _know(self, digest: bytes, loaded: list[_Loaded]) -> None:
        """These regions are of that content."""
        _put_last(self._known.setdefault(digest, []), loaded)
        self._mark(digest[:FINGERPRINT])

    def _mark(self, fingerprint: bytes) -> None:
        """Have pages of that fingerprint told when they are decoded."""
        self._fingerprints.add(fingerprint)
        number = int.from_bytes(fingerprint, "little") % KNOWN
        self._known_bits[number // 8] |= 1 << number % 8

    def _fitting(self, content: _Content) -> list[_Loaded]:
        """The regions that may be put into a page: those of its content last, before them what was in this place."""
        with self._lock:
            place = self._places[_read(content.page + _PHYSICAL)]
            loaded = self._known.get(content.digest)
            if loaded is None and not self._is_full() and (kept := self._store.find(content.digest)):
                loaded = self._load(kept, content.code)
                self._from_store += len(loaded)
                self._know(content.digest, loaded)
            fitting = [each for each in place if each.fits(content.code)]
            if loaded:
                _put_last(fitting, loaded)
                _remember(place, loaded)
            return fitting

    def _is_full(self) -> bool:
        """Whether a guest that makes code all the time has had what there is for it: no more is compiled."""
        return self._arena.bytes >= MOST_CODE or len(self._known) >= MOST_CONTENTS

    def _hot(self, number: int, page: int, offset: int) -> None:
        if _read(page + _ARMED):
            return
        fresh = ctypes.c_uint64.from_address(page + _FRESH)
        new, fresh.value = fresh.value, 0
        content = self._content(page)
        if not new and (asked := self._asked.get(content.digest)) and offset in asked.barren:
            return
        fitting = self._fitting(content)
        there = [each for each in fitting if offset in each.offsets]
        if new or there:  # not told, as data beside its code had changed, or it was another hart that asked
            self._install(number, content, fitting)
        if there or self._is_full():
            return
        physical = _read(page + _PHYSICAL)
        with self._lock:  # before the answer can come
            asked = self._asked.pop(content.digest, None) or _Asked(content.code)
            self._asked[content.digest] = asked
            self._asked_for += offset not in asked.offsets
            asked.offsets.add(offset)
            asked.users[number, physical] = None
            if len(asked.users) > _MOST_USERS:
                del asked.users[next(iter(asked.users))]
            if len(self._asked) > MOST_ASKED:
                del self._asked[next(iter(self._asked))]
        # asked again, it goes before what is less hot
        self._translator.request(content.digest, content.code, offset, self._harts.executed(number, page), physical)

    def _install(self, number: int, content: _Content, loaded: list[_Loaded]) -> None:
        page = content.page
        for each in loaded:
            self._harts.install(
                number,
                page,
                content.version,
                each.steps,
                each.step_count,
                each.entries,
                each.entry_count,
                each.address,
            )
            if self._names is not None:
                (entry,) = _OFFSET.unpack_from(each.entries)
                self._names.region(each.address, each.size, _read(page + _PHYSICAL) + entry)
        self._installed += len(loaded)

    def _load(self, translations: list[Translation], code: bytes) -> list[_Loaded]:
        """Makes translations of a page ready to be installed; those that are not sound are left out. ``code`` is what
        they were made of, empty if that is not known any more."""
        loaded = []
        for each in translations:
            if each.sound:
                steps = ctypes.create_string_buffer(each.steps, len(each.steps))
                entries = ctypes.create_string_buffer(each.entries, len(each.entries))
                address = self._arena.add(each.code)
                offsets = frozenset(offset for (offset,) in _OFFSET.iter_unpack(each.entries))
                loaded.append(
                    _Loaded(
                        steps,
                        len(each.steps) // 2,
                        entries,
                        len(each.entries) // 2,
                        offsets,
                        address,
                        len(each.code),
                        _instructions(self._harts.isa.length, each.steps, code),
                    )
                )
            else:
                self._refused += 1
        return loaded

    def _content(self, page: int) -> _Content:
        """What the regions of a decoded page are made of. Other harts may write to it meanwhile: then the parts do not
        fit, and no region is installed for it."""
        version, fingerprint = _read(page + _VERSION), _fingerprint(page)
        code = ctypes.string_at(page + _COPY, PAGE)
        digest = fingerprint + blake2b(code, digest_size=16, salt=self._salt).digest()
        return _Content(page, version, code, digest)

    def _find(self, hart: Any, physical: int) -> int:
        """The address of a hart's decoded page, or 0."""
        page = _read(hart.code_hash + (physical >> 12 & CODE_HASH - 1) * 8)
        while page and _read(page + _PHYSICAL) != physical:
            page = _read(page + _NEXT)
        return page


def _instructions(length: Callable[[int], int], steps: bytes, code: bytes) -> tuple[tuple[int, bytes], ...]:
    """What is at the offsets ``steps`` of a page, together where they touch. ``length``: as ``Isa.length``."""
    parts: list[list[int]] = []
    for (offset,) in sorted(_OFFSET.iter_unpack(steps)) if code else ():
        end = offset + length(code[offset])
        if parts and offset <= parts[-1][1]:
            parts[-1][1] = end
        else:
            parts.append([offset, end])
    return tuple((first, code[first:end]) for first, end in parts)


def _put_last(regions: list[_Loaded], newer: list[_Loaded]) -> None:
    """Of regions of one place, the newest last: a later one takes an entry that both have."""
    again = set(newer)
    regions[:] = [*(each for each in regions if each not in again), *newer]


def _remember(place: list[_Loaded], newer: list[_Loaded]) -> None:
    """These were in a physical page last."""
    _put_last(place, newer)
    del place[:-MOST_OF_A_PLACE]


def _fingerprint(page: int) -> bytes:
    """What tells most pages of which no region is known, at no cost: the core computes it when it decodes a page."""
    return ctypes.string_at(page + _FINGERPRINT, FINGERPRINT)


def _read(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value
