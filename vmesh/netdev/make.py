"""The netdev that was asked for."""

from __future__ import annotations

from vmesh.log import Log
from vmesh.loop import Loop
from vmesh.netdev import options
from vmesh.netdev.port import Netdev, Port
from vmesh.netdev.stream import StreamNetdev


def make(asked: options.Options, loop: Loop, log: Log, port: Port) -> Netdev:
    """Not started. What one kind needs is imported only for it."""
    match asked:
        case options.Stream():
            return StreamNetdev(asked, loop, log, port)
        case options.User():
            from vmesh.netdev.user import UserNetdev

            return UserNetdev(asked, loop, log, port)
        case options.Tap():
            from vmesh.netdev.tap import TapNetdev

            return TapNetdev(asked, loop, log, port)
