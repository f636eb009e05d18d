"""What the balloon and the monitor call things by: the device is told and counts pages (virtio 1.2, 5.5)."""

from __future__ import annotations

PROPERTY = "pages"  # of the device: what the guest is to do without
COUNTER = "balloon_pages"  # of its report: what the guest does without
PAGE = 4096  # bytes, of whatever size the guest's own are (5.5.6)
