"""Guest memory as the stream sees it: pages by number, their flags, and which ones the host has ever given memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vmesh import errors, segment
from vmesh.migration.pages import Numbers, Rows, Words, runs
from vmesh.v1 import memory_pb2
from vmesh.v1.migration_pb2 import RamSegment

Flags = npt.NDArray[np.uint8]


class GuestSegment:
    """One segment, mapped. `dirty` and `present` are its page flags: of ROM, which has none, arrays of its own."""

    def __init__(self, found: memory_pb2.Segment) -> None:
        self.name = found.name
        self.base = found.base
        self.pages = found.size // segment.PAGE
        self.writable = found.writable
        self.adopted = found.adopted
        self._map, flags = segment.attach_all(found)
        self._fd = os.open(found.path, os.O_RDWR | os.O_CLOEXEC)
        self.content: Rows = np.frombuffer(self._map, np.uint8).reshape(self.pages, segment.PAGE)
        self.has_flags = flags is not None
        self.dirty: Flags = np.ones(self.pages, np.uint8)
        self.present: Flags = np.ones(self.pages, np.uint8)
        if flags is not None:
            row = np.frombuffer(flags, np.uint8)
            self.dirty, self.present = (
                row[array * found.flags_stride :][: self.pages] for array in (segment.FLAG_DIRTY, segment.FLAG_PRESENT)
            )

    def identity(self) -> RamSegment:
        return RamSegment(name=self.name, base=self.base, size=self.pages * segment.PAGE, writable=self.writable)

    def file(self) -> str:
        """Which file it is: the same for all that map it."""
        status = os.fstat(self._fd)
        return f"{status.st_dev}:{status.st_ino}"

    def touched(self) -> npt.NDArray[np.bool_]:
        """Which pages have memory of the host; the others are zero. Raises HostLimit."""
        found = np.zeros(self.pages, np.bool_)
        for start, end in segment.touched(self._fd, self.pages * segment.PAGE):
            found[start:end] = True
        return found

    def take_dirty(self) -> Numbers:
        """The pages written since the last time, their flags cleared.

        Who reads their content next sees the write or finds the flag set again, once no hart has a stale TLB entry.
        """
        numbers = np.flatnonzero(self.dirty.copy())  # of a copy: harts set flags meanwhile, which numpy does not take
        self.dirty[numbers] = 0
        return numbers

    def put(self, numbers: Numbers, rows: Rows) -> None:
        """Give pages their content."""
        if int(numbers[-1]) - int(numbers[0]) + 1 == len(numbers):
            self._write(int(numbers[0]), rows)
        elif len(numbers) > 8:
            first, count = runs(numbers)
            at = 0
            for start, length in zip(first, count, strict=True):
                self._write(start, rows[at : at + length])
                at += length
        else:
            self.content[numbers] = rows

    def patch(self, numbers: Numbers, places: Numbers, words: Words) -> None:
        """Change words of pages, as vmesh.migration.pages.Pages has them."""
        content = self.content.view(np.uint64).reshape(-1)
        each = segment.PAGE // 8
        content[numbers[places // each] * each + places % each] = words

    def _write(self, start: int, rows: Rows) -> None:
        """By write(2): into pages that have no memory yet, this is faster than faulting each in."""
        data, offset = rows.data.cast("B"), start * segment.PAGE
        while data:
            try:
                count = os.pwrite(self._fd, data, offset)
            except OSError as error:
                raise errors.HostLimit(f"guest memory ({self.name}): {error.strerror}") from error
            data, offset = data[count:], offset + count

    def clear(self, numbers: Numbers) -> None:
        """Make pages zero; they give their memory back."""
        for start, count in zip(*runs(numbers), strict=True):
            self._map.madvise(mmap.MADV_REMOVE, start * segment.PAGE, count * segment.PAGE)


class GuestRam:
    """All segments of the machine, in the order of its address map."""

    def __init__(self, segments: Sequence[memory_pb2.Segment]) -> None:
        self.segments = [GuestSegment(each) for each in segments]

    @property
    def pages(self) -> list[int]:
        return [each.pages for each in self.segments]

    def identity(self) -> list[RamSegment]:
        return [each.identity() for each in self.segments]

    def count_dirty(self) -> int:
        return sum(int(np.count_nonzero(each.dirty)) for each in self.segments if each.has_flags)

    def find(self, address: int) -> tuple[int, int]:
        """Segment and page of a guest physical address. Raises BadRequest."""
        for number, each in enumerate(self.segments):
            if each.base <= address < each.base + each.pages * segment.PAGE:
                return number, (address - each.base) // segment.PAGE
        raise errors.BadRequest("page", expected="an address in guest memory", got=f"{address:#x}")

    def address(self, segment_number: int, page: int) -> int:
        return self.segments[segment_number].base + page * segment.PAGE
