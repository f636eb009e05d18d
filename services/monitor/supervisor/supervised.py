"""One service as its supervisor knows it: its process, its connection, and what it has said of itself."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from vmesh.spawn import Child, ServiceCommand
from vmesh_services.monitor.backlog import Backlog
from vmesh_services.monitor.link import Link

EXTERNAL = "vmesh_services.external"  # stands for a program that is not one of ours
DEATHS, DEATHS_SECONDS = 5, 10.0  # a device that dies so often within so long is not started again

_NOT_READY = ("starting", "restarting", "hung")


@dataclass(frozen=True, slots=True)
class Successor:
    """What is to be the next life of a device; `prepare` is called when the former one has ended."""

    command: ServiceCommand
    prepare: Callable[[], None]


@dataclass(slots=True, eq=False)
class Supervised:
    """A service and what is known of it."""

    command: ServiceCommand
    child: Child
    link: Link
    began: float
    epoch: int = 1
    state: str = "starting"
    last_error: str = ""
    counters: dict[str, int] = field(default_factory=dict)
    complaints: dict[str, dict[str, int]] = field(default_factory=dict)  # about others, by name and cause
    console: Backlog = field(default_factory=Backlog)
    welcomed: bool = False
    came: bool = False  # somebody has listened in its place in this life
    alive: bool = True
    asked_at: float | None = None  # when the question about its health was sent that is still open
    ask_at: float = 0.0  # when to ask next
    was_ready: bool = False  # in this life or one before
    on_trial: bool = False  # it has yet to show that it can take its place: if it ends, the machine does not
    leaving: bool = False  # it was taken off the board
    finished: bool = False  # at the machine's end: it has brought out what the guest has written
    broken: bool = False  # it died too often, and has no next life before it is mended
    successor: Successor | None = None  # what to start when this life ends, as it was asked to
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=DEATHS))  # when it died last

    @property
    def name(self) -> str:
        return self.command.name

    @property
    def options(self) -> dict[str, str]:
        """Its command line as option and value, the dashes off; a bare option is `on`."""
        words = self.command.arguments
        found: dict[str, str] = {}
        for place, word in enumerate(words):
            if word.startswith("--") and "=" in word:  # one that may be there several times
                name, _, value = word[2:].partition("=")
                found[name] = f"{found[name]},{value}" if name in found else value
            elif word.startswith("--"):
                follows = words[place + 1] if place + 1 < len(words) else "--"
                found[word[2:]] = "on" if follows.startswith("--") else follows
        return found

    @property
    def ready(self) -> bool:
        return self.welcomed and self.state not in _NOT_READY

    @property
    def awaits_hand(self) -> bool:
        """Whether somebody is to start it by hand, and has not yet."""
        return by_hand(self.command) and not self.welcomed

    @property
    def dies_too_often(self) -> bool:
        return len(self.deaths) == DEATHS and self.deaths[-1] - self.deaths[0] < DEATHS_SECONDS

    @property
    def process(self) -> int:
        """The process that it is; 0: one that is started by hand, and `child` only waits for it."""
        return process(self.command, self.child)

    def died(self) -> None:
        self.deaths.append(time.monotonic())

    def kill(self) -> None:
        if self.child.pidfd >= 0:  # else it is somebody else's
            signal.pidfd_send_signal(self.child.pidfd, signal.SIGKILL)


def by_hand(command: ServiceCommand) -> bool:
    """Whether somebody else starts what this command only waits for."""
    return command.module == EXTERNAL and "--command" not in command.arguments


def patience(command: ServiceCommand) -> float:
    """Seconds that it is waited for what somebody else starts."""
    return float(command.arguments[command.arguments.index("--wait") + 1])


def process(command: ServiceCommand, child: Child) -> int:
    """As `Supervised.process`."""
    return 0 if by_hand(command) else child.pid
