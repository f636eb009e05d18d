"""What waits to be read: what is on its way is no cause to warn."""

from __future__ import annotations

import pytest

from vmesh_services.monitor.backlog import UNREAD_SECONDS, Backlog


@pytest.mark.parametrize(
    ("reports", "unread"),
    [
        ([0], 0),
        ([12], 0),
        ([12, 12], 12),
        ([12, 40], 40),
        ([12, 0, 12], 0),
        ([40, 12], 0),
        ([40, 12, 12], 12),
        ([12, 12, 0], 0),
    ],
)
def test_what_is_read_is_not_unread(reports: list[int], unread: int) -> None:
    backlog = Backlog()
    for number, waiting in enumerate(reports):
        now = number * UNREAD_SECONDS
        backlog.see(waiting, now)
    assert backlog.unread(now) == unread
