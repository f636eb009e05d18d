"""Compiled regions on disk, shared by all machines of the host: one file that only grows, in the XDG cache folder.

Its name has all that shapes the code (see ``core.key``). A record is a header with a checksum, then steps, entries
and code. Writers append
under a lock; what a killed writer left half-done is cut off by the next one. A reader takes the records up to the
first that is damaged.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
from pathlib import Path

from .core import cache_folder, key
from .regions import Translation

_RECORD = struct.Struct("<8s16sHHI16s")  # magic, digest of the page, bytes of steps, entries and code, checksum
_MAGIC = b"vmregion"
#: The file begins anew above this.
LIMIT = 256 << 20


def store_path() -> Path:
    return cache_folder() / f"{key()}.regions"


def _checksum(digest: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(digest + body, digest_size=16).digest()


def _scan(data: mmap.mmap | bytes, position: int = 0) -> tuple[dict[bytes, list[tuple[int, int, int, int]]], int]:
    """Records by digest as (offset, bytes of steps, entries, code), and the end of the last whole record."""
    found: dict[bytes, list[tuple[int, int, int, int]]] = {}
    size = len(data)
    while position + _RECORD.size <= size:
        magic, digest, steps, entries, code, _ = _RECORD.unpack_from(data, position)
        end = position + _RECORD.size + steps + entries + code
        if magic != _MAGIC or end > size:
            break
        found.setdefault(digest, []).append((position, steps, entries, code))
        position = end
    return found, position


class RegionStore:
    """The records that are there when the machine starts; each is checked when it is used."""

    def __init__(self, path: Path | None) -> None:
        """``path`` None: nothing is kept."""
        self._data: mmap.mmap | bytes = b""
        self.damaged = 0
        try:
            with open(path or os.devnull, "rb") as file:
                if os.fstat(file.fileno()).st_size:
                    self._data = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
        except OSError:
            pass  # nothing kept yet
        self._records, _ = _scan(self._data)

    def __len__(self) -> int:
        return sum(map(len, self._records.values()))

    def find(self, digest: bytes) -> list[Translation]:
        """The translations of a page; damaged ones are left out."""
        translations = []
        for position, steps, entries, code in self._records.get(digest, ()):
            start = position + _RECORD.size
            body = bytes(self._data[start : start + steps + entries + code])
            if _checksum(digest, body) == _RECORD.unpack_from(self._data, position)[5]:
                translations.append(Translation(body[:steps], body[steps : steps + entries], body[steps + entries :]))
            else:
                self.damaged += 1
        return translations


def append(translations: list[tuple[bytes, Translation]], path: Path) -> None:
    """Keeps translations for later machines. A cache that cannot be written costs time, nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file.fileno()).st_size
            end = 0
            if 0 < size < LIMIT:
                with mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as data:
                    _, end = _scan(data)
            file.truncate(end)
            file.seek(end)
            for digest, each in translations:
                body = each.steps + each.entries + each.code
                head = (_MAGIC, digest, len(each.steps), len(each.entries), len(each.code), _checksum(digest, body))
                file.write(_RECORD.pack(*head) + body)
    except OSError:
        pass
