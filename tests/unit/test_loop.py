"""The loop's boundary: what a callback raises is told, and everything else goes on."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.models.clock import FakeClock
from tests.waiting import wait_for
from vmesh import errors
from vmesh.loop import Inbox, Loop

FAILURES = (ValueError("no"), OSError(28, "No space left on device"), MemoryError(), errors.BadRequest("no"))


class Watched:
    """A loop with a pipe that is always readable, until so many callbacks or a second later."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.told: list[Exception] = []
        self.loop.failed = self.told.append
        self.reader, self.writer = os.pipe()
        os.write(self.writer, b"x")
        self.calls = 0

    def run(self, seconds: float) -> None:
        self.loop.call_in("end", seconds, self.loop.stop)
        self.loop.run()


def failing(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", FAILURES, ids=repr)
def test_a_callback_that_fails_ends_neither_the_loop_nor_the_others(error: Exception) -> None:
    watched = Watched()
    watched.loop.watch(watched.reader, read=failing(error))
    watched.loop.call_in("fails", 0.0, failing(error))
    ran: list[str] = []
    watched.loop.call_in("runs", 0.0, lambda: ran.append("timer"))
    watched.loop.settle = failing(error)
    inbox = Inbox(watched.loop)
    inbox.call(failing(error))
    inbox.call(lambda: ran.append("inbox"))
    watched.run(0.02)
    assert sorted(ran) == ["inbox", "timer"]
    assert set(watched.told) == {error}


def test_a_source_that_always_fails_does_not_spin() -> None:
    watched = Watched()
    watched.loop.watch(watched.reader, read=failing(ValueError("always")))
    watched.run(0.35)
    assert 1 <= len(watched.told) <= 4  # one a tenth of a second


def test_a_source_that_rests_can_be_watched_anew_or_not_at_all() -> None:
    watched = Watched()

    def once() -> None:
        watched.loop.watch(watched.reader, read=lambda: watched.loop.watch(watched.reader))
        raise ValueError("once")

    watched.loop.watch(watched.reader, read=once)
    watched.run(0.3)
    assert [str(error) for error in watched.told] == ["once"]


def test_without_a_boundary_an_exception_ends_the_loop() -> None:
    loop = Loop()
    loop.call_in("fails", 0.0, failing(ValueError("no")))
    with pytest.raises(ValueError, match="no"):
        loop.run()


@contextmanager
def no_more_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_listener_without_descriptors_waits_for_them(tmp_path: Path) -> None:
    watched = Watched()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    client = socket.socket(socket.AF_UNIX)
    met: list[socket.socket] = []

    def accept() -> None:
        if (connection := watched.loop.accept(listener)) is not None:
            met.append(connection)

    watched.loop.watch(listener.fileno(), read=accept)
    client.connect(str(tmp_path / "s"))

    def meets() -> bool:
        watched.run(0.05)
        return bool(met)

    with no_more_files():
        watched.run(0.25)
    assert not met
    assert 1 <= len(watched.told) <= 3
    wait_for(meets, "the listener to be listened to again")
    assert len(met) == 1
    for each in (client, listener, *met):
        each.close()


def test_work_of_other_threads_is_done_in_order() -> None:
    watched = Watched()
    inbox, done = Inbox(watched.loop), list[int]()

    def ask() -> None:
        for n in range(100):
            inbox.call(partial(done.append, n))

    thread = threading.Thread(target=ask)
    thread.start()
    watched.run(0.1)
    thread.join()
    watched.run(0.01)
    assert done == list(range(100))


def test_said_is_one_line_that_tells_what_and_where() -> None:
    with pytest.raises(ValueError, match="no number") as raised:
        int("no number")
    assert str(errors.said(raised.value)).startswith(
        "ValueError: invalid literal for int() with base 10: 'no number' (test_"
    )
    assert str(errors.said(FileNotFoundError(2, "No such file", "/a\nb"))) == "No such file: /a b"
    assert str(errors.said(MemoryError())) == "not enough memory"
    refused = errors.BadRequest("no")
    assert errors.said(refused) is refused


def test_timers_of_guest_time_follow_the_clock() -> None:
    clock = FakeClock()
    loop, ran = Loop(clock), list[str]()

    def turn() -> None:
        loop.call_in("turn", 0.0, loop.stop)
        loop.run()

    loop.call_at("near", 100, lambda: ran.append("near"))
    loop.call_at("far", 200, lambda: ran.append("far"))
    turn()
    assert ran == []
    clock.advance(100)
    turn()
    assert ran == ["near"]
    clock.hear(300, passes=False)  # it stands still
    turn()
    assert ran == ["near"]
    clock.hear(300, passes=True)
    turn()
    turn()
    assert ran == ["near", "far"]


def test_a_timer_of_guest_time_wakes_the_loop() -> None:
    loop = Loop()
    loop.call_in("patience", 60, lambda: pytest.fail("it slept"))
    loop.call_at("due", 1_000_000, loop.stop)
    loop.run()
