"""An interface of the host that goes away: its link is down, whatever the guest does meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence

import pytest

from tests.unit.device_harness import FakeRuntime
from vmesh.netdev.options import Tap
from vmesh.netdev.tap import TapNetdev


class Wire:
    """A card that only knows its link."""

    up: bool | None = None

    def receive(self, frames: Sequence[memoryview]) -> int:
        return len(frames)

    def writable(self) -> None:
        pass

    def link(self, up: bool) -> None:
        self.up = up


class Runtime(FakeRuntime):
    """Watches nothing: what is opened here is no interface."""

    def watch(self, *_arguments: object, **_callbacks: object) -> None:
        pass


def test_a_reset_of_a_card_whose_interface_was_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = False

    def ioctl(fd: int, request: int, argument: object) -> int:
        if gone:
            raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr("vmesh.netdev.tap._DEVICE", "/dev/null")
    runtime, wire = Runtime(), Wire()
    netdev = TapNetdev(Tap("tap0"), runtime.loop, runtime.log, wire)
    netdev.start()
    assert wire.up
    gone = True
    netdev.set_offload(0)
    assert wire.up is False
    runtime.fire("netdev")  # and is tried again
    assert wire.up is False
    gone = False
    runtime.fire("netdev")
    assert wire.up
    netdev.close()
