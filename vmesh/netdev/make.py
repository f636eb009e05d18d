"""The netdev that was asked for."""

from __future__ import annotations

from pathlib import Path

from vmesh.log import Log
from vmesh.loop import Loop
from vmesh.netdev import options
from vmesh.netdev.port import Netdev, Port
from vmesh.netdev.stream import StreamNetdev

_RECONNECT_SECONDS = 0.02  # to a passt that is about to listen


def make(asked: options.Options, loop: Loop, log: Log, port: Port, kept: Path | None = None) -> Netdev:
    """Not started. `kept` is where a network listens that outlives the card, if there may be one (of kind user).

    What one kind needs is imported only for it.
    """
    match asked:
        case options.User() if kept is not None and kept.is_dir():
            return StreamNetdev(options.Stream(str(kept / "socket"), reconnect=_RECONNECT_SECONDS), loop, log, port)
        case options.Stream():
            return StreamNetdev(asked, loop, log, port)
        case options.User():
            from vmesh.netdev.user import UserNetdev

            return UserNetdev(asked, loop, log, port)
        case options.Tap():
            from vmesh.netdev.tap import TapNetdev

            return TapNetdev(asked, loop, log, port)
