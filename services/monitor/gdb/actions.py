"""What vCont asks of the harts (gdb's manual, E.2), and what of it the cpu is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Action:
    """`kind`: c goes on, s makes a step, r steps as long as pc is in [low, high). For one hart, or, None, for all."""

    kind: str
    hart: int | None
    low: int = 0
    high: int = 0


@dataclass(frozen=True, slots=True)
class Stepping:
    """How the harts run next: which stand still, and which one, if any, makes a step, and how far."""

    held: frozenset[int]
    hart: int | None = None
    low: int = 0
    high: int = 0


def parse_actions(text: str) -> list[Action]:
    """The actions behind `vCont;`. Raises ValueError. Signals are dropped: no hart takes any."""
    actions = []
    for part in text.split(";"):
        what, _, thread = part.partition(":")
        number = -1 if thread in ("", "-1") else int(thread, 16)
        if number == 0 or number < -1:
            raise ValueError(f"no thread {thread}")
        hart = None if number < 0 else number - 1
        kind, rest = what[:1].lower(), what[1:]
        if kind == "r":
            low, high = (int(each, 16) for each in rest.split(","))
            if not 0 <= low < 1 << 64 or not 0 <= high < 1 << 64:
                raise ValueError("no address")
            actions.append(Action("r", hart, low, high))
        elif kind in ("c", "s"):
            actions.append(Action(kind, hart))
        else:
            raise ValueError(f"no action {what}")
    return actions


def step_of(actions: Sequence[Action], harts: int, preferred: int) -> Stepping:
    """Of several actions for a hart the first holds; a hart without one stands still. If several harts are to make a
    step, one does, `preferred` if it is among them, and the others stand still meanwhile.

    Raises ValueError if no hart is to do anything.
    """
    chosen = {}
    for hart in range(harts):
        action = next((each for each in actions if each.hart in (None, hart)), None)
        if action is not None:
            chosen[hart] = action
    if not chosen:
        raise ValueError("no such thread")
    stepping = [hart for hart, action in chosen.items() if action.kind != "c"]
    going = frozenset(hart for hart, action in chosen.items() if action.kind == "c")
    if not stepping:
        return Stepping(frozenset(range(harts)) - going)
    hart = preferred if preferred in stepping else stepping[0]
    return Stepping(frozenset(range(harts)) - going - {hart}, hart, chosen[hart].low, chosen[hart].high)
