"""What is amiss with the machine though it goes on: one line each, in Status while it lasts, and told as events."""

from __future__ import annotations

from collections.abc import Sequence

from vmesh.log import Log
from vmesh_services.monitor.events import EventHub

EVENT = "__org.vmesh_WARNING"
_MOST = 64


class Warnings:
    """The warnings that last, by what they are about. Of the loop's thread only."""

    def __init__(self, events: EventHub, log: Log) -> None:
        self._events = events
        self._log = log
        self._texts: dict[str, str] = {}

    @property
    def lines(self) -> Sequence[str]:
        return [f"{about}: {text}" for about, text in self._texts.items()]

    def warn(self, about: str, text: str) -> None:
        """Something is amiss until `end`. The same once more is said once."""
        if self._texts.get(about) == text or (about not in self._texts and len(self._texts) == _MOST):
            return
        self._texts[about] = text
        self._log.warning("warning", about=about, text=text)
        self._events.publish(EVENT, {"about": about, "text": text, "active": True})

    def end(self, about: str) -> None:
        """It is mended."""
        text = self._texts.pop(about, None)
        if text is not None:
            self._log.info("warning ended", about=about)
            self._events.publish(EVENT, {"about": about, "text": text, "active": False})
