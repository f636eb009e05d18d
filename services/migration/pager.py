"""Pages that are not here yet: whoever needs one waits until it was fetched, be it from the source or from a file.

The flag `present` of a page says whether its content is here. Harts and devices that meet one that is not ask the
memory service, and that asks here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

from vmesh import errors
from vmesh.migration.pages import Numbers, Rows
from vmesh_services.migration.ram import GuestRam

Fetch = Callable[[int, list[int]], None]
"""Asks for pages of a segment, or brings them by itself with `Pager.install`. In the service's main thread."""


class Pager:
    """`tell` says to memory that pages, by guest physical address, are there; `serve` that we bring them;
    `mark_absent` makes all absent."""

    def __init__(
        self,
        ram: GuestRam,
        call: Callable[[Callable[[], None]], None],
        mark_absent: Callable[[], None],
        serve: Callable[[], None],
        tell: Callable[[Sequence[int]], None],
    ) -> None:
        self._ram = ram
        self._call = call  # has something done in the main thread
        self._mark_absent, self._serve = mark_absent, serve
        self._tell = tell
        self._lock = threading.Lock()
        self._fetch: Fetch | None = None
        self._waited: dict[tuple[int, int], float] = {}  # since when, by segment and page
        self.latency: Callable[[float], None] = lambda seconds: None  # a page came so long after it was wanted

    def begin(self, absent: Sequence[Numbers], fetch: Fetch) -> None:
        """From any thread, while nothing runs: these pages of each segment are to come, by `fetch` if needed."""
        self._fetch = fetch

        def serve() -> None:
            self._mark_absent()
            for each, numbers in zip(self._ram.segments, absent, strict=True):
                here = np.ones(each.pages, np.bool_)
                here[numbers] = False
                each.present[here] = 1
            self._serve()

        self._in_main(serve)

    def take_over(self, fetch: Fetch | None = None) -> None:
        """From any thread: in a former life's place, for the pages that are absent still."""
        self._fetch = fetch
        self._in_main(self._serve)

    def end(self) -> None:
        """All are there."""
        self._fetch = None

    def abandon(self) -> None:
        """Nobody brings what is absent, nor needs it: nothing runs on this memory before it has all come anew."""
        self._fetch = None
        with self._lock:
            self._waited.clear()
            for each in self._ram.segments:
                each.present[:] = 1

    def fetch_again(self, fetch: Fetch) -> None:
        """From any thread: by another way from now on, also what is waited for already."""
        self._fetch = fetch
        self._call(self._ask_all)

    def wanted(self, addresses: Sequence[int]) -> None:
        """In the main thread: memory asks for the pages at these guest physical addresses."""
        there, asked = [], dict[int, list[int]]()
        now = time.monotonic()
        with self._lock:
            for address in addresses:
                segment, page = self._ram.find(address)
                if self._ram.segments[segment].present[page]:
                    there.append(address)
                elif (segment, page) not in self._waited:
                    self._waited[segment, page] = now
                    asked.setdefault(segment, []).append(page)
        if there:
            self._tell(there)
        for segment, pages in asked.items():
            if self._fetch is not None:
                self._fetch(segment, pages)

    def install(self, segment: int, numbers: Numbers, rows: Rows | None, *, main: bool = False) -> int:
        """Give pages their content (`rows` None: zero) unless they are there already; gives how many were not.

        `main`: this is the main thread.
        """
        guest = self._ram.segments[segment]
        with self._lock:
            absent = guest.present[numbers] == 0
            if not absent.all():
                numbers, rows = numbers[absent], None if rows is None else rows[absent]
            if not len(numbers):
                return 0
            if rows is None:
                guest.clear(numbers)
            else:
                guest.put(numbers, rows)
            guest.present[numbers] = 1
            came = self._came(segment, numbers)
        if came and main:
            self._tell(came)
        elif came:
            self._call(lambda: self._tell(came))
        return len(numbers)

    def absent(self) -> list[npt.NDArray[np.bool_]]:
        """Which pages of each segment are not there."""
        return [each.present == 0 for each in self._ram.segments]

    def remaining(self) -> int:
        return sum(each.pages - int(np.count_nonzero(each.present)) for each in self._ram.segments)

    def _in_main(self, work: Callable[[], None]) -> None:
        """Have it done in the main thread. Raises its VmeshError."""
        done: Future[None] = Future()

        def run() -> None:
            try:
                work()
            except errors.VmeshError as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._call(run)
        done.result()

    def _came(self, segment: int, numbers: Numbers) -> list[int]:
        """The addresses of those that are waited for."""
        if not self._waited:
            return []
        now = time.monotonic()
        found = []
        for page in (
            numbers.tolist() if len(numbers) < len(self._waited) else [p for s, p in self._waited if s == segment]
        ):
            since = self._waited.get((segment, page))
            if since is not None and self._ram.segments[segment].present[page]:
                del self._waited[segment, page]
                self.latency(now - since)
                found.append(self._ram.address(segment, page))
        return found

    def _ask_all(self) -> None:
        asked: dict[int, list[int]] = {}
        with self._lock:
            for segment, page in self._waited:
                asked.setdefault(segment, []).append(page)
        for segment, pages in asked.items():
            if self._fetch is not None:
                self._fetch(segment, pages)
