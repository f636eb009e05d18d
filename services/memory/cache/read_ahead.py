"""Which pages to fetch with one that is needed: the block around it, larger the longer pages have been needed in order.

Blocks are aligned, since what lies beside a page that is needed mostly comes to be needed: of the 8,930 pages that a
boot of Debian touches and that are not empty, these blocks bring all with 297 round trips, and 8 % too many; 4 to 64
pages from the needed one on take 1,159 (docs/findings.md).
"""

from __future__ import annotations

from collections import OrderedDict

FIRST, MOST = 16, 256  # pages of 4 KiB: powers of two
_STREAMS = 16


class ReadAhead:
    """Knows where the blocks that were fetched end: who needs the page there is taken to go on."""

    def __init__(self) -> None:
        self._ends: OrderedDict[int, int] = OrderedDict()  # the size of the last block, by the page after it

    def block(self, page: int) -> range:
        """`page` is needed: the pages to fetch, which it is one of."""
        size = min(2 * self._ends.pop(page, FIRST // 2), MOST)
        start = page // size * size
        self._ends[start + size] = size
        if len(self._ends) > _STREAMS:
            self._ends.popitem(last=False)
        return range(start, start + size)
