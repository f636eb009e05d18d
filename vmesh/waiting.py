"""Waiting for files outside of a loop."""

from __future__ import annotations

import select


def readable(*files: int, seconds: float | None = None) -> list[int]:
    """Those of these descriptors that are readable or at their end, as soon as one is; none after so many `seconds`.

    As select(2), which has no room for descriptors from 1024 on.
    """
    poller = select.poll()
    for file in files:
        poller.register(file, select.POLLIN)
    return [file for file, _ in poller.poll(None if seconds is None else seconds * 1000)]
