"""What may be done to a machine while something else has it, such as a migration: one table, which every door asks.

A door is whatever lets a user at the machine: QMP, HMP, the gateway, gdb. None of them looks at migrations: what it
does is checked here when it is about to be done. To end a machine is always allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto


class Act(Enum):
    """What a user may want."""

    RESUME = auto()  # let the harts go on, for however long: cont, a debugger's step
    RESET = auto()
    WRITE = auto()  # memory, registers, or a property of a device
    CHANGE_DEVICES = auto()  # device_add, device_del, swap
    SAVE = auto()  # a snapshot
    LOAD = auto()
    LEAVE = auto()  # by a migration
    COME_IN = auto()


class Stage(Enum):
    """What has the machine."""

    NOTHING = auto()
    AWAITED = auto()  # started with -incoming, and has not come in
    LOADING = auto()  # started with -loadvm, and has not begun
    MOVING = auto()  # the guest runs here while it is copied
    SWITCHING = auto()  # it stands still for a migration or a snapshot
    GIVEN = auto()  # it runs elsewhere, and needs what is here
    GONE = auto()  # it runs elsewhere, and needs nothing of what is here
    HANDED_OVER = auto()  # it runs elsewhere on the memory that is mapped here
    ARRIVING = auto()  # it runs here, and pages are still to come
    SPOILT = auto()  # a snapshot was half loaded
    LOST = auto()  # nobody knows any more what guest memory held


_ALLOWED: Mapping[Stage, tuple[str, frozenset[Act]]] = {
    Stage.NOTHING: (
        "the machine has a guest; one comes in where a machine was started with -incoming",
        frozenset(Act) - {Act.COME_IN},
    ),
    Stage.AWAITED: ("the machine waits for a migration to come in", frozenset({Act.COME_IN})),
    Stage.LOADING: ("the machine has not come in yet", frozenset()),
    Stage.MOVING: ("a migration or a snapshot is under way", frozenset({Act.RESUME, Act.RESET, Act.WRITE})),
    Stage.SWITCHING: ("the machine stands still for a migration or a snapshot", frozenset()),
    Stage.GIVEN: ("the machine runs at the destination of its migration, which needs the memory here", frozenset()),
    Stage.GONE: (
        "the machine was migrated; it runs elsewhere",
        frozenset({Act.RESUME, Act.RESET, Act.WRITE, Act.LOAD}),
    ),
    Stage.HANDED_OVER: ("the machine was handed over, and its memory with it", frozenset()),
    Stage.ARRIVING: (
        "pages of the guest's memory are still to come: try again when they are here",
        frozenset({Act.RESUME, Act.WRITE}),
    ),
    Stage.SPOILT: (
        "a snapshot was half loaded: reset the machine, or load one that is whole",
        frozenset({Act.RESET, Act.LOAD}),
    ),
    Stage.LOST: ("guest memory is lost: the machine can be looked at and ended, no more", frozenset()),
}


#: What only one machine may hold, as the lock on a disk, is another's, or may be.
AWAY = frozenset({Stage.AWAITED, Stage.LOADING, Stage.GIVEN, Stage.GONE, Stage.HANDED_OVER})


def refusal(stage: Stage, act: Act) -> str:
    """Why it may not be done now; empty if it may."""
    reason, allowed = _ALLOWED[stage]
    return "" if act in allowed else reason
