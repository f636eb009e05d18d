"""The states in which no migration is under way: the monitor and the migration service mean the same by it."""

from __future__ import annotations

from vmesh.v1 import migration_pb2 as messages

ENDED = (
    messages.MIGRATION_NONE,
    messages.MIGRATION_COMPLETED,
    messages.MIGRATION_FAILED,
    messages.MIGRATION_CANCELLED,
)
