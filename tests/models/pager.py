"""A pager for tests: keeps what RAM held, fills RAM with rubbish, and brings the pages that are asked for, late and in
random order."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vmesh import segment, wire
from vmesh.v1 import memory_pb2 as messages
from vmesh.v1.common_pb2 import Done

PAGE = segment.PAGE
RUBBISH = b"\xa5" * PAGE
_PATIENCE = 60.0


class Ram:
    """The segment with flags of a machine, and its content as `keep` found it."""

    def __init__(self, peer: wire.Peer) -> None:
        answer = peer.request(messages.MapRequest(), _PATIENCE)
        assert isinstance(answer, messages.AddressMap)
        (self.segment,) = (each for each in answer.segments if each.flags_path)
        self.base, self.pages = self.segment.base, self.segment.size // PAGE
        self.content = segment.attach(Path(self.segment.path), writable=True)
        self.flags = segment.attach(Path(self.segment.flags_path), writable=True)
        self.kept: dict[int, bytes] = {}

    def keep(self) -> None:
        """Takes the content of all pages away."""
        for page in range(self.pages):
            content = self.content[page * PAGE : (page + 1) * PAGE]
            if content.count(0) != PAGE:
                self.kept[page] = content
            self.content[page * PAGE : (page + 1) * PAGE] = RUBBISH

    def bring(self, page: int) -> int:
        """Puts a page's content back, then sets its flag; gives its address."""
        if not self.flags[page]:
            self.content[page * PAGE : (page + 1) * PAGE] = self.kept.get(page, bytes(PAGE))
            self.flags[page] = 1
        return self.base + page * PAGE


class Pager(threading.Thread):
    """Serves pages until `end`; each after up to `delay` seconds, those that are due together in random order.
    `background` pages are brought unasked, each second."""

    def __init__(
        self, dial: Callable[[], wire.Peer], ram: Ram, rng: random.Random, delay: float = 0.0, background: int = 0
    ) -> None:
        super().__init__(daemon=True)
        self._dial, self._ram, self._random = dial, ram, rng
        self._delay, self._background = delay, background
        self._ending = threading.Event()
        self.asked: list[int] = []
        self.serving = threading.Event()

    def run(self) -> None:
        peer = self._dial()
        assert isinstance(peer.request(messages.ServePages(), _PATIENCE), Done)
        self.serving.set()
        due: list[tuple[float, int]] = []
        quiet = self._delay / 4 or 1.0
        while not self._ending.is_set():
            packet = peer.unasked.popleft() if peer.unasked else peer.receive(min(quiet, 0.05))
            if packet is not None and packet.WhichOneof("body") == "pages_wanted":
                self._want(packet.pages_wanted.addresses, due)
            now = time.monotonic()
            ready = [page for when, page in due if when <= now]
            due = [(when, page) for when, page in due if when > now]
            if packet is None:
                ready += [self._random.randrange(self._ram.pages) for _ in range(int(self._background * 0.05))]
            self._random.shuffle(ready)
            if ready:
                peer.send(messages.PagesPresent(addresses=[self._ram.bring(page) for page in ready]))
        peer.close()

    def _want(self, addresses: Sequence[int], due: list[tuple[float, int]]) -> None:
        for address in addresses:
            page = (address - self._ram.base) // PAGE
            assert 0 <= page < self._ram.pages, hex(address)
            self.asked.append(page)
            due.append((time.monotonic() + self._random.random() * self._delay, page))

    def end(self) -> None:
        self._ending.set()
        self.join(_PATIENCE)
