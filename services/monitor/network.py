"""passt kept for a network card that may be killed: it listens for the card's lives, which connect one after the other.

The guest's connections are passt's, and go on. passt does not end with who started it, nor with its peer: the keeper
ends it, or the monitor where the keeper is gone.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from vmesh.log import Log
from vmesh.loop import Loop
from vmesh.netdev import user
from vmesh.netdev.options import User, parse
from vmesh.spawn import ServiceCommand

_TRIES = 3  # at the start: another machine's passt may be about to give up its ports
_RETRY_SECONDS = 0.3
_END_SECONDS = 1.0
_COMES_SECONDS = 10.0  # until it serves
_LOOK_SECONDS = 0.01
_ERROR_BYTES = 4096


def network_of(command: ServiceCommand) -> User | None:
    """What a network card is to be kept for it, by its command line; None for other devices and other netdevs."""
    words = command.arguments
    for option, value in pairwise(words):
        if option == "--netdev" and value.startswith("user"):
            with suppress(ValueError):  # the card says so
                asked = parse(value)
                return asked if isinstance(asked, User) else None
    return None


def make_place(place: Path) -> None:
    """The folder where a card finds its network; that it is there tells the card that there will be one."""
    place.mkdir(exist_ok=True)
    place.chmod(0o777)  # passt of a machine of root is another user, who may not walk there, but can work there


class KeptNetwork:
    """passt for what `asked`, listening in the folder `place`, from now on until `close`."""

    def __init__(self, asked: User, place: Path, loop: Loop, log: Log) -> None:
        self._asked = asked
        self._words = user.command(asked, "--socket", user.SOCKET)
        self._place = place
        self._loop = loop
        self._log = log
        self._met: list[Callable[[str], None]] = []
        self._tries = 0
        self._deadline = time.monotonic() + _COMES_SECONDS
        self._serves = False  # it has once been there
        self._passt: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._start()

    def meet(self, met: Callable[[str], None]) -> None:
        """`met` is called once: when it serves, with "", or if it cannot be had, with one line that says why."""
        self._met.append(met)
        self._look()

    def _look(self) -> None:
        self._serves = self._serves or (self._place / user.SOCKET).exists()
        if self._serves:
            self._tell("")
        elif time.monotonic() > self._deadline:
            self._tell(f"passt does not serve after {_COMES_SECONDS:g} s")
        elif self._met:
            self._loop.call_in(f"passt comes {self._place}", _LOOK_SECONDS, self._look)

    def _tell(self, reason: str) -> None:
        met, self._met = self._met, []
        for each in met:
            each(reason)

    def _start(self) -> None:
        self._errors.seek(0)
        self._errors.truncate()
        self._tries += 1
        if reason := user.taken(self._asked):
            self._loop.call_in(f"passt {self._place}", 0.0, lambda: self._failed(reason))
            return
        try:
            self._passt = subprocess.Popen(
                self._words, stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors, cwd=self._place
            )
        except OSError as error:
            reason = user.not_started(error)
            self._log.info("netdev", reason=reason)
            self._loop.call_in(f"passt {self._place}", 0.0, lambda: self._tell(reason))
            return
        self._pidfd = os.pidfd_open(self._passt.pid)
        self._loop.watch(self._pidfd, read=self._ended)
        self._log.info("netdev", passt=self._passt.pid)

    def close(self) -> None:
        """End passt."""
        self._loop.cancel(f"passt {self._place}")
        self._loop.cancel(f"passt comes {self._place}")
        self._errors.close()
        if self._passt is not None:
            self._loop.watch(self._pidfd)
            os.close(self._pidfd)
            self._passt.terminate()
            try:
                self._passt.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._passt.kill()
                self._passt.wait()

    def _ended(self) -> None:
        assert self._passt is not None
        self._loop.watch(self._pidfd)
        os.close(self._pidfd)
        self._passt.wait()
        self._errors.seek(0)
        reason = user.end_of_passt(self._passt.returncode, self._errors.read(_ERROR_BYTES))
        self._passt = None
        self._failed(reason)

    def _failed(self, reason: str) -> None:
        """It has ended, or cannot begin: again, unless it has never been there."""
        self._serves = self._serves or (self._place / user.SOCKET).exists()
        if not self._serves and self._tries == _TRIES:
            self._tell(reason)
            return
        self._log.info("netdev", reason=reason)
        self._loop.call_in(f"passt {self._place}", _RETRY_SECONDS if not self._serves else 0.0, self._start)
