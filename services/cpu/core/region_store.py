"""Compiled regions on disk, shared by all machines of the host: one bounded file in the XDG cache folder.

Its name has all that shapes the code (see ``core.key``), the digest in each record the rest: the page's bytes and the
extensions. A record is a header with a checksum, then steps, entries and code; it says on which day it was last used.

* Writers append under a lock; what a killed writer left half-done is cut off by the next one. A reader takes the
  records up to the first damaged header, without the lock.
* A file never grows above ``LIMIT``. Who would make it do so puts another in its place, with the records used last in
  at most half of that. Readers go on with the old one; a writer that waited for the old one's lock opens the new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import struct
import time
from pathlib import Path
from typing import NamedTuple

from vmesh import private

from .digest import blake2b
from .image import ISA, cache_folder, key, remove_unused
from .regions import DIGEST, FINGERPRINT, Translation

#: Magic, day of last use, digest of the page, bytes of steps, entries and code; then the checksum.
_HEAD = struct.Struct(f"<8sI{DIGEST}sHHI")
#: The day, which readers write without the lock. The checksum is of what follows it.
_DAY = struct.Struct("<I")
_DAY_AT, _CHECKED_FROM = 8, 12
_CHECKSUM = 16
_BODY = _HEAD.size + _CHECKSUM
_MAGIC = b"vmregio2"
#: Bytes that a file may have: some 40,000 records, whose headers every machine reads when it starts.
LIMIT = 64 << 20


def store_path(isa: str = ISA) -> Path:
    return cache_folder() / f"{key(isa)}.regions"


def _today() -> int:
    """Days since 1970."""
    return int(time.time()) // 86400


def _record(digest: bytes, translation: Translation, day: int) -> bytes:
    """A record as it is in the file."""
    parts = (translation.steps, translation.entries, translation.code)
    head = _HEAD.pack(_MAGIC, day, digest, *map(len, parts))
    body = b"".join(parts)
    return head + blake2b(head[_CHECKED_FROM:] + body, digest_size=_CHECKSUM).digest() + body


class _Place(NamedTuple):
    """Where a record is, and what its header says."""

    position: int
    day: int
    digest: bytes
    steps: int
    entries: int
    code: int

    @property
    def size(self) -> int:
        return _BODY + self.steps + self.entries + self.code


class _Records:
    """The records of an open file, as far as it was scanned."""

    def __init__(self, file: io.FileIO) -> None:
        self.file = file
        self.places: dict[bytes, list[_Place]] = {}
        #: where the last whole record ends
        self.end = 0

    def scan(self) -> None:
        """Takes in what was appended since."""
        size = os.fstat(self.file.fileno()).st_size
        while len(head := os.pread(self.file.fileno(), _HEAD.size, self.end)) == _HEAD.size:
            magic, *fields = _HEAD.unpack(head)
            place = _Place(self.end, *fields)
            if magic != _MAGIC or place.position + place.size > size:
                break
            self.places.setdefault(place.digest, []).append(place)
            self.end += place.size

    def read(self, place: _Place) -> Translation | None:
        """What a record holds; None if it is damaged or the disk is, or a network's disk has replaced the file."""
        try:
            record = os.pread(self.file.fileno(), place.size, place.position)
        except OSError:
            return None
        body = record[_BODY:]
        steps, entries = place.steps, place.steps + place.entries
        translation = Translation(body[:steps], body[steps:entries], body[entries:])
        whole = record[_CHECKED_FROM:] == _record(place.digest, translation, 0)[_CHECKED_FROM:]
        return translation if whole else None

    def use(self, place: _Place) -> None:
        """Makes today the day of a record's last use, if it can be written."""
        if place.day != (today := _today()):
            with contextlib.suppress(OSError):
                os.pwrite(self.file.fileno(), _DAY.pack(today), place.position + _DAY_AT)


class RegionStore:
    """The records that are there when the machine starts; each is read and checked when it is used.

    Other machines may put another file in its place meanwhile, this one stays as it is. One that was damaged they may
    cut: what is read then is no longer what its checksum says. A mapping would end the process there.
    """

    def __init__(self, path: Path | None) -> None:
        """``path`` None: nothing is kept. The file counts as used now."""
        self._records: _Records | None = None
        self.damaged = 0
        if path is not None:
            with contextlib.suppress(OSError):  # nothing kept yet
                writable = os.access(path, os.W_OK)
                file = private.open_file(path, os.O_RDWR if writable else os.O_RDONLY)
                self._records = _Records(io.FileIO(file, "r+" if writable else "r"))
                self._records.scan()
                os.utime(self._records.file.fileno())

    def __len__(self) -> int:
        return sum(map(len, self._records.places.values())) if self._records else 0

    def fingerprints(self) -> set[bytes]:
        """What the digests begin with."""
        return {digest[:FINGERPRINT] for digest in self._records.places} if self._records else set()

    def find(self, digest: bytes) -> list[Translation]:
        """The translations of a page, which are thereby used; damaged ones are left out."""
        translations: list[Translation] = []
        if self._records is not None:
            for place in self._records.places.get(digest, ()):
                translation = self._records.read(place)
                if translation is None:
                    self.damaged += 1
                else:
                    self._records.use(place)
                    translations.append(translation)
        return translations


class RegionWriter:
    """Keeps translations for later machines. For one thread of a process; any number of processes.

    A cache that cannot be written costs time, nothing else: an error is the end of keeping, until the next machine.
    """

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet."""
        self._path = path
        self._temporary = path.with_name(f"{path.stem}.new{path.suffix}")
        self._records: _Records | None = None
        self._failed = False

    def append(self, digest: bytes, translation: Translation) -> None:
        """Keeps a translation, unless the file has one of that page with the same entries: that one is used then."""
        record = _record(digest, translation, _today())
        if self._failed or len(record) > LIMIT // 2:
            return
        try:
            records = self._lock()
            same = self._find(records, digest, translation.entries)
            if same is not None:
                records.use(same)
            elif records.end + len(record) > LIMIT:
                self._replace(records.file, record)
            elif os.pwrite(records.file.fileno(), record, records.end) != len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            fcntl.flock(records.file, fcntl.LOCK_UN)
        except OSError:
            self._failed = True
            self.close()

    def close(self) -> None:
        """Gives the file back, and the lock with it."""
        if self._records is not None:
            self._records.file.close()
            self._records = None

    def _lock(self) -> _Records:
        """Locks the file that has the path's name, beginning one if there is none; whole records only, all known."""
        while True:
            if self._records is None:
                private.make_folder(self._path.parent)
                file = private.open_file(self._path, os.O_RDWR | os.O_CREAT)
                self._records = _Records(io.FileIO(file, "r+"))
                # most of it while others may write
                self._records.scan()
            fcntl.flock(self._records.file, fcntl.LOCK_EX)
            if self._is_current(self._records.file):
                break
            self.close()
        self._temporary.unlink(missing_ok=True)
        self._records.scan()
        if self._records.end != os.fstat(self._records.file.fileno()).st_size:
            # a writer was killed, or the file is damaged and others cut it: what they keep is what we must keep
            self._records = _Records(self._records.file)
            self._records.scan()
            self._records.file.truncate(self._records.end)
        if not self._records.end:
            remove_unused(self._path.parent, self._path.stem)
        return self._records

    def _is_current(self, file: io.FileIO) -> bool:
        """Whether it is still the one that has the name."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False

    @staticmethod
    def _find(records: _Records, digest: bytes, entries: bytes) -> _Place | None:
        """An undamaged record of a page with these entries."""
        for place in records.places.get(digest, ()):
            if (translation := records.read(place)) is not None and translation.entries == entries:
                return place
        return None

    def _replace(self, file: io.FileIO, record: bytes) -> None:
        """Puts a file in place of the locked one: its records used last, undamaged ones, then ``record``; at most half
        of ``LIMIT``. Of one day, the later ones in the file are the later ones."""
        # readers have changed the days since
        records = _Records(file)
        records.scan()
        room = LIMIT // 2 - len(record)
        kept = []
        for place in sorted((each for places in records.places.values() for each in places), key=_age):
            room -= place.size
            if room < 0:
                break
            kept.append(place)
        try:
            new = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(new, "wb") as temporary:
                for place in sorted(kept):
                    if (translation := records.read(place)) is not None:
                        temporary.write(_record(place.digest, translation, place.day))
                temporary.write(record)
            self._temporary.replace(self._path)
        except OSError:
            self._temporary.unlink(missing_ok=True)
            raise


def _age(place: _Place) -> tuple[int, int]:
    """Sorts records by their last use, the latest first."""
    return -place.day, -place.position
