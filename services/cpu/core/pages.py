"""A hart's way to pages that are absent (proto/vmesh/v1/memory.proto: PRESENCE)."""

from __future__ import annotations

import time
from collections.abc import Callable

from vmesh import errors, wire
from vmesh.latencies import Latencies
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import memory_pb2 as messages

from ..engine import GREETING_LIMIT

#: How long a hart waits before it looks whether it is wanted elsewhere, in seconds.
PATIENCE = 0.1
#: Requests that may be unanswered: pages may come before the answers, and memory is not asked faster than it answers.
MOST_OPEN = 64


class Pages:
    """Asks the memory service for pages. Belongs to the hart's thread, which ``dial`` is called in."""

    def __init__(self, dial: Callable[[], wire.Peer], is_present: Callable[[int], bool]) -> None:
        self.latencies = Latencies()
        self._dial = dial
        self._is_present = is_present
        self._memory: wire.Peer | None = None
        self._asked, self._packet_id, self._since = -1, 0, 0.0
        self._open = 0

    def wait(self, page: int, wanted_elsewhere: Callable[[], bool]) -> None:
        """Returns when the page at a guest physical address is present, or when the hart is wanted elsewhere: then it
        will meet the page again, and what was asked for stands. Raises what memory answers instead, LifelineEnded."""
        if self._memory is None:
            self._memory = self._dial()
            self._memory.greet(GREETING_LIMIT)
        if self._asked != page:
            while self._open and (self._open >= MOST_OPEN or not wanted_elsewhere()):
                if self._memory.receive(PATIENCE if self._open >= MOST_OPEN else 0.0) is not None:
                    self._open -= 1
                elif self._open < MOST_OPEN:
                    break
                elif self._is_present(page) or wanted_elsewhere():
                    return
            self._open += 1
            self._asked, self._since = page, time.monotonic()
            self._packet_id = self._memory.send(messages.NeedPages(addresses=[page]))
        while not self._is_present(page):
            if wanted_elsewhere():
                return
            packet = self._memory.receive(PATIENCE)
            if packet is None:
                continue
            self._open -= 1
            if packet.id != self._packet_id:
                continue
            answer = wire.body_of(packet)
            if isinstance(answer, common.Error):
                raise errors.from_message(answer)
        self.latencies.add(time.monotonic() - self._since)
        self._asked = -1

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()
