"""Compiled regions on disk, shared by all machines of the host: one file that only grows, in the XDG cache folder.

Its name has all that shapes the code (see ``core.key``), the digest in each record the rest: the page's bytes and the
extensions. A record is a header with a checksum, then steps, entries and code. Writers append under a lock; what a
killed writer left half-done is cut off by the next one. A reader takes the records up to the first damaged header.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import struct
from pathlib import Path

from .core import cache_folder, key
from .regions import DIGEST, FINGERPRINT, Translation

_HEAD = struct.Struct(
    f"<8s{DIGEST}sHHI"
)  # magic, digest of the page, bytes of steps, entries and code; then the checksum
_CHECKSUM = 16
_BODY = _HEAD.size + _CHECKSUM
_MAGIC = b"vmregion"
#: The file begins anew above this.
LIMIT = 256 << 20


def store_path() -> Path:
    return cache_folder() / f"{key()}.regions"


def _record(digest: bytes, translation: Translation) -> bytes:
    """A record as it is in the file."""
    parts = (translation.steps, translation.entries, translation.code)
    head = _HEAD.pack(_MAGIC, digest, *map(len, parts))
    body = b"".join(parts)
    return head + hashlib.blake2b(head + body, digest_size=_CHECKSUM).digest() + body


def _scan(file: int) -> tuple[dict[bytes, list[tuple[int, int, int, int]]], int]:
    """Records of an open file by digest as (offset, bytes of steps, entries, code), and the end of the last whole
    one."""
    found: dict[bytes, list[tuple[int, int, int, int]]] = {}
    position, size = 0, os.fstat(file).st_size
    while len(head := os.pread(file, _HEAD.size, position)) == _HEAD.size:
        magic, digest, steps, entries, code = _HEAD.unpack(head)
        end = position + _BODY + steps + entries + code
        if magic != _MAGIC or end > size:
            break
        found.setdefault(digest, []).append((position, steps, entries, code))
        position = end
    return found, position


class RegionStore:
    """The records that are there when the machine starts; each is read and checked when it is used.

    Other machines may cut the file or begin it anew meanwhile: what is read then is no longer what its checksum says.
    A mapping would end the process there.
    """

    def __init__(self, path: Path | None) -> None:
        """``path`` None: nothing is kept."""
        self._file: io.FileIO | None = None
        self._records: dict[bytes, list[tuple[int, int, int, int]]] = {}
        self.damaged = 0
        try:
            self._file = io.FileIO(path or os.devnull)
            self._records, _ = _scan(self._file.fileno())
        except OSError:
            pass  # nothing kept yet

    def __len__(self) -> int:
        return sum(map(len, self._records.values()))

    def fingerprints(self) -> set[bytes]:
        """What the digests begin with."""
        return {digest[:FINGERPRINT] for digest in self._records}

    def find(self, digest: bytes) -> list[Translation]:
        """The translations of a page; damaged ones are left out."""
        translations = []
        for position, steps, entries, code in self._records.get(digest, ()):
            assert self._file is not None
            record = os.pread(self._file.fileno(), _BODY + steps + entries + code, position)
            body = record[_BODY:]
            translation = Translation(body[:steps], body[steps : steps + entries], body[steps + entries :])
            if record == _record(digest, translation):
                translations.append(translation)
            else:
                self.damaged += 1
        return translations


def append(translations: list[tuple[bytes, Translation]], path: Path | None = None) -> None:
    """Keeps translations for later machines. A cache that cannot be written costs time, nothing else."""
    path = path or store_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = 0 if os.fstat(file.fileno()).st_size >= LIMIT else _scan(file.fileno())[1]
            file.truncate(end)
            file.seek(end)
            file.write(b"".join(_record(digest, each) for digest, each in translations))
    except OSError:
        pass
