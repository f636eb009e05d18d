"""Regions in this process: hot code goes to the translator, compiled code into the slots of the pages it was made of.

A hart's thread serves its own decoded pages, between two runs of native code, so nothing here races with the hart. A
region belongs
to the bytes of its page: it is looked up by their digest whenever a page is decoded, by any hart, in this machine or
a later one.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import struct
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Protocol

from .harts import Harts
from .isa.riscv.state import ATTENTION_REGIONS, CODE_HASH, CODE_PAGE_STRIDE, CodePage
from .native.blob import map_executable

PAGE = 4096
#: A region's code is a few KiB.
LONGEST_CODE = 1 << 20
_ARENA = 16 << 20
_OFFSET = struct.Struct("<H")
_COPY, _PHYSICAL, _NEXT = (CodePage.offset_of(name) for name in ("copy", "physical", "next"))


@dataclass(frozen=True, slots=True)
class Translation:
    """A compiled region: offsets in its page of its instructions and of its entries (little-endian 16-bit), and its
    code."""

    steps: bytes
    entries: bytes
    code: bytes

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

    def request(self, digest: bytes, page: bytes, offset: int) -> bool: ...


class Store(Protocol):
    """Translations kept from earlier machines."""

    def find(self, digest: bytes) -> list[Translation]: ...


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
            fd = os.memfd_create("vmesh-regions", os.MFD_CLOEXEC)
            try:
                os.ftruncate(fd, _ARENA)
                self._writing.append(mmap.mmap(fd, _ARENA))
                self._running = map_executable(fd, _ARENA)
            finally:
                os.close(fd)
            self._used = 0
        address = self._running + self._used
        self._writing[-1][self._used : self._used + len(code)] = code
        self._used += -(-len(code) // 64) * 64
        self.bytes += len(code)
        return address


@dataclass(slots=True)
class _Loaded:
    steps: Any
    step_count: int
    entries: Any
    entry_count: int
    address: int


class Regions:
    """The regions of a machine. ``hot_samples`` is how often the clock must find a slot before it is translated."""

    def __init__(self, harts: Harts, translator: Translator, store: Store, hot_samples: int) -> None:
        self._harts = harts
        self._translator = translator
        self._store = store
        self._arena = Arena()
        self._lock = threading.Lock()
        self._known: dict[bytes, list[_Loaded]] = {}
        self._asked: set[tuple[bytes, int]] = set()
        self._waiting: list[list[tuple[int, bytes, _Loaded]]] = [[] for _ in harts.hart]
        self._users: dict[bytes, set[tuple[int, int]]] = defaultdict(set)
        self._installed = self._from_store = self._translated = self._pages = self._refused = 0
        # the extensions that are on shape the code too
        self._salt = harts.machine.features.to_bytes(16, "little")
        self._python_ns = 0
        harts.machine.hot_samples = hot_samples

    def counters(self) -> dict[str, int]:
        """Regions compiled now, found on disk and put into pages; bytes of code; decoded pages; time of harts spent
        here."""
        return {
            "regions_translated": self._translated,
            "regions_from_store": self._from_store,
            "regions_installed": self._installed,
            "region_bytes": self._arena.bytes,
            "regions_asked": len(self._asked),
            "regions_refused": self._refused,
            "code_pages": self._pages,
            "region_service_us": self._python_ns // 1000,
        }

    def serve(self, number: int) -> None:
        """Does what hart ``number`` asks for. Called by its thread."""
        began = time.monotonic_ns()
        self._serve(number)
        self._python_ns += time.monotonic_ns() - began

    def _serve(self, number: int) -> None:
        hart = self._harts.hart[number]
        for index in range(hart.fresh_count):
            self._fresh(number, hart.fresh[index])
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
            if page and self._digest(page) == digest:
                self._install(number, page, [loaded])

    def add(self, digest: bytes, translation: Translation) -> None:
        """Takes a compiled region, and tells the harts that run its page. Called by the translator's thread."""
        with self._lock:
            loaded = self._load([translation])
            self._known.setdefault(digest, []).extend(loaded)
            self._translated += 1
            users = list(self._users[digest])
            for number, physical in users:
                self._waiting[number].extend((physical, digest, each) for each in loaded)
        for number, _ in users:
            self._harts.raise_attention(number, ATTENTION_REGIONS)

    def _fresh(self, number: int, page: int) -> None:
        digest = self._digest(page)
        self._pages += 1
        with self._lock:
            loaded = self._known.get(digest)
            if loaded is None:
                loaded = self._known[digest] = self._load(self._store.find(digest))
                self._from_store += len(loaded)
            self._users[digest].add((number, _read(page + _PHYSICAL)))
        self._install(number, page, loaded)

    def _hot(self, number: int, page: int, offset: int) -> None:
        digest = self._digest(page)
        with self._lock:
            self._users[digest].add((number, _read(page + _PHYSICAL)))
            asked = (digest, offset) in self._asked
        if not asked and self._translator.request(digest, ctypes.string_at(page + _COPY, PAGE), offset):
            self._asked.add((digest, offset))

    def _install(self, number: int, page: int, loaded: list[_Loaded]) -> None:
        for each in loaded:
            self._harts.install(number, page, each.steps, each.step_count, each.entries, each.entry_count, each.address)
        self._installed += len(loaded)

    def _load(self, translations: list[Translation]) -> list[_Loaded]:
        """Makes translations ready to be installed; those that are not sound are left out."""
        loaded = []
        for each in translations:
            if each.sound:
                steps = ctypes.create_string_buffer(each.steps, len(each.steps))
                entries = ctypes.create_string_buffer(each.entries, len(each.entries))
                address = self._arena.add(each.code)
                loaded.append(_Loaded(steps, len(each.steps) // 2, entries, len(each.entries) // 2, address))
            else:
                self._refused += 1
        return loaded

    def _digest(self, page: int) -> bytes:
        """Names what the regions of a decoded page are made of."""
        return hashlib.blake2b(ctypes.string_at(page + _COPY, PAGE), digest_size=16, salt=self._salt).digest()

    def _find(self, hart: Any, physical: int) -> int:
        """The address of a hart's decoded page, or 0."""
        page = _read(hart.code_hash + (physical >> 12 & CODE_HASH - 1) * 8)
        while page and _read(page + _PHYSICAL) != physical:
            page = _read(page + _NEXT)
        return page


def _read(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value
