"""From the supervisor's loop to a client's thread: a queue that never grows and never makes the loop wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Feed(Generic[Item]):
    """Keeps at most `limit` items for a client; the oldest give way, and are counted, each as what `weight` says.

    `put` and `close` are for any thread. Iterating gives (items dropped before this one, item) until the end.
    """

    def __init__(self, limit: int, weight: Callable[[Item], int] = lambda item: 1) -> None:
        self._weight = weight
        self._items: deque[Item] = deque()
        self._limit = limit
        self._dropped = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> None:
        """Never waits."""
        with self._changed:
            self._items.append(item)
            if len(self._items) > self._limit:
                self._dropped += self._weight(self._items.popleft())
            self._changed.notify()

    def close(self) -> None:
        """What is there is still given, then the iteration ends."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def __iter__(self) -> Iterator[tuple[int, Item]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._closed)
                if not self._items:
                    return
                item = self._items.popleft()
                dropped, self._dropped = self._dropped, 0
            yield dropped, item
