"""How many pages to fetch for one that is needed: more, the longer pages have been needed in their order."""

from __future__ import annotations

from collections import OrderedDict

FIRST, MOST = 4, 64  # pages of 4 KiB
_STREAMS = 16


class ReadAhead:
    """Knows where the runs that were fetched end: who needs the page there is taken to go on."""

    def __init__(self) -> None:
        self._ends: OrderedDict[int, int] = OrderedDict()  # the length of the last run, by the page after it

    def run(self, page: int) -> int:
        """`page` is needed: how many to fetch, from it on."""
        length = min(2 * self._ends.pop(page, FIRST // 2), MOST)
        self._ends[page + length] = length
        if len(self._ends) > _STREAMS:
            self._ends.popitem(last=False)
        return length
