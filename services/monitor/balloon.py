"""The balloon in the monitor's words: bytes that the guest has. The device has pages that it does without."""

from __future__ import annotations

from vmesh.virtio.balloon import PAGE

KIND = "virtio-balloon"


def pages(ram: int, target: int) -> int:
    """How many the guest is to do without, if it is to have `target` bytes of `ram`; more than all is all of it."""
    return (ram - min(target, ram)) // PAGE


def actual(ram: int, pages: int) -> int:
    """How many bytes of `ram` it has. What its driver says may be more pages than there are."""
    return max(0, ram - pages * PAGE)
