"""Pages that are absent: who waits for them, and the pager that brings them (memory.proto: PRESENCE).

Nobody waits in here: a request for absent pages is kept, and answered when the last of them has come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from vmesh import errors
from vmesh.latencies import Latencies
from vmesh.loop import Loop
from vmesh.segment import PAGE
from vmesh.v1 import memory_pb2 as messages
from vmesh.v1.packet_pb2 import Packet
from vmesh.wire import Client, Server

NEEDED_AT_ONCE = 256
WAITING_OF_ONE, WAITING = 1024, 1 << 16
PRESENT_AT_ONCE = 1 << 16
_LOOK_SECONDS = 0.1  # between two looks at flags that were set without a word, and whether the pager is still there
_SENT_AT_ONCE = 4096


@dataclass(slots=True, eq=False)
class _Waiter:
    client: Client
    missing: set[int]
    done: Callable[[], None]


@dataclass(slots=True)
class _Wanted:
    since: float
    waiters: list[_Waiter] = field(default_factory=list)
    sent: bool = False


class Presence:
    """Of one segment, from guest physical address `base` on; `flags` has a byte for each of its pages."""

    def __init__(self, base: int, flags: memoryview, server: Server, loop: Loop) -> None:
        self._base, self._flags = base, flags
        self._server, self._loop = server, loop
        self._wanted: dict[int, _Wanted] = {}  # by number of the page, the longest wanted first
        self._waiting: dict[str, int] = {}  # pages by the name of who waits for them, on however many connections
        self._pager: Client | None = None
        self._latencies = Latencies()
        self._nonsense = 0

    def need(self, client: Client, addresses: Iterable[int], done: Callable[[], None]) -> None:
        """Call `done` when these pages are present, perhaps at once. Raises BadRequest, TooMany."""
        missing = {page for page in map(self._page, addresses) if not self._flags[page]}
        if not missing:
            done()
            return
        waiting = self._waiting.get(client.name, 0) + len(missing)
        if waiting > WAITING_OF_ONE or len(self._wanted) + len(missing) > WAITING:
            raise errors.TooMany("pages that are waited for", expected=f"at most {WAITING_OF_ONE}", got=str(waiting))
        self._waiting[client.name] = waiting
        waiter = _Waiter(client, missing, done)
        now = time.monotonic()
        for page in sorted(missing):
            self._wanted.setdefault(page, _Wanted(now)).waiters.append(waiter)
        self._send()
        self._look_later()

    def serve(self, client: Client) -> None:
        """This client is the pager from now on."""
        self._pager = client
        for wanted in self._wanted.values():
            wanted.sent = False
        self._loop.call_in("pager", 0.0, self._look)  # after the answer

    def arrived(self, client: Client, addresses: Sequence[int]) -> None:
        """The pager says that these are present. Raises BadRequest for those of which that cannot be."""
        if client is not self._pager:
            raise errors.NotAllowed("PagesPresent", expected="ServePages before it, of nobody else since")
        if len(addresses) > PRESENT_AT_ONCE:
            raise errors.BadRequest(
                "PagesPresent", expected=f"at most {PRESENT_AT_ONCE} pages", got=str(len(addresses))
            )
        wrong = []
        for address in addresses:
            page = (address - self._base) // PAGE
            if 0 <= page < len(self._flags) and self._flags[page]:
                self._came(page)
            else:
                wrong.append(address)
        if wrong:
            self._nonsense += len(wrong)
            raise errors.BadRequest("PagesPresent", expected="pages whose flag is set", got=f"{wrong[0]:#x}")

    def mark(self, present: bool) -> None:
        """All pages become present, or absent."""
        self._flags[:] = (b"\x01" if present else b"\0") * len(self._flags)
        self._look()

    def forget(self, name: str) -> None:
        """A service begins another life: what the former one has asked for must not happen any more."""
        for page, wanted in list(self._wanted.items()):
            left = [waiter for waiter in wanted.waiters if waiter.client.name != name]
            self._count_off(name, len(wanted.waiters) - len(left))
            wanted.waiters = left
            if not left and not wanted.sent:
                del self._wanted[page]

    def _count_off(self, name: str, pages: int) -> None:
        if pages:
            self._waiting[name] -= pages
            if not self._waiting[name]:
                del self._waiting[name]

    @property
    def absent(self) -> int:
        """How many pages are."""
        return self._flags.tobytes().count(0)

    def counters(self) -> dict[str, int]:
        oldest = next(iter(self._wanted.values())).since if self._wanted else 0.0
        return {
            "pages_absent": self.absent,
            "pages_wanted": len(self._wanted),
            "pages_wanted_ms": int((time.monotonic() - oldest) * 1000) if self._wanted else 0,
            "pager": int(self._pager is not None),
            "pager_nonsense": self._nonsense,
            **self._latencies.counters("page_waits"),
        }

    def _page(self, address: int) -> int:
        page = (address - self._base) // PAGE
        if not 0 <= page < len(self._flags):
            raise errors.BadRequest("NeedPages", expected="addresses in RAM", got=f"{address:#x}")
        return page

    def _came(self, page: int) -> None:
        wanted = self._wanted.pop(page, None)
        if wanted is None:
            return
        self._latencies.add(time.monotonic() - wanted.since)
        for waiter in wanted.waiters:
            waiter.missing.discard(page)
            self._count_off(waiter.client.name, 1)
            if not waiter.missing:
                waiter.done()

    def _send(self) -> None:
        """Tell the pager what it has not been told."""
        unsent = [page for page, wanted in self._wanted.items() if not wanted.sent]
        for start in range(0, len(unsent), _SENT_AT_ONCE):
            pages = unsent[start : start + _SENT_AT_ONCE]
            addresses = [self._base + page * PAGE for page in pages]
            if self._pager is None or not self._server.send(self._pager, messages.PagesWanted(addresses=addresses)):
                self._check_pager()
                return
            for page in pages:
                self._wanted[page].sent = True

    def _check_pager(self) -> None:
        if self._pager is not None and self._server.clients.get(self._pager.identity) is not self._pager:
            self._pager = None

    def _look_later(self) -> None:
        if self._wanted:
            self._loop.call_in("pages", _LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Flags may have been set by a pager that died before it said so."""
        for page in [page for page in self._wanted if self._flags[page]]:
            self._came(page)
        if self._pager is not None:
            self._server.send_packet(self._pager.identity, Packet())  # a ROUTER learns of an end when it sends
            self._check_pager()
        self._send()
        self._look_later()
