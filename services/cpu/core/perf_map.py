"""Names for `perf`: the core's handlers and the guest's regions, in the file that perf looks for (`-perfmap`).

The format is the one of JIT compilers: start and size in hex, then a name (perf's tools/perf/Documentation/
jit-interface.txt). perf reads it after the run, so it stays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path


class PerfMap:
    """The map of this process."""

    def __init__(self, folder: Path = Path("/tmp")) -> None:
        self.path = folder / f"perf-{os.getpid()}.map"
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()  # of an earlier process with our number
        # anybody may write to the folder: never through what somebody else has put there
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(file, "w")
        self._named: set[int] = set()

    def core(self, base: int, size: int, symbols: Mapping[str, int]) -> None:
        """Names the functions of the core."""
        starts = sorted(symbols.items(), key=lambda each: each[1])
        ends = [start for _, start in starts[1:]] + [size]
        for (name, start), end in zip(starts, ends, strict=True):
            self._file.write(f"{base + start:x} {end - start:x} {name}\n")
        self._file.flush()

    def region(self, address: int, size: int, physical: int) -> None:
        """Names a region by the guest physical address of its first entry; the first page that has it names it."""
        if address not in self._named:
            self._named.add(address)
            self._file.write(f"{address:x} {size:x} guest_{physical:x}\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()
