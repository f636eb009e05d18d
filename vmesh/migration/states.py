"""The states of services inside of the machine: messages of a bounded size, as many as it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vmesh.v1.lifecycle_pb2 import ServiceState
from vmesh.v1.migration_pb2 import SavedState

_MESSAGE_BYTES = 1 << 20  # of states that travel together; a longer one travels alone


def in_messages(states: Mapping[str, ServiceState]) -> Iterator[tuple[list[SavedState], bool]]:
    """What goes into each message, and whether more follow; one that is empty if there are no states."""
    part: list[SavedState] = []
    size = 0
    for service, state in states.items():
        if part and size + len(state.bytes) > _MESSAGE_BYTES:
            yield part, True
            part, size = [], 0
        part.append(SavedState(service=service, state=state))
        size += len(state.bytes)
    yield part, False
