"""Connecting: at once or refused, with a limit, to whatever the listener does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vmesh import connecting


@pytest.fixture
def full(tmp_path: Path) -> Iterator[tuple[Path, socket.socket]]:
    """Somebody who listens and does not accept, and whose queue is full."""
    path, held = tmp_path / "full", list[socket.socket]()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with suppress(BlockingIOError):
            while len(held) < 100:
                held.append(connecting.now(path))
        yield path, listener
    for each in held:
        each.close()


def test_a_queue_that_is_full(full: tuple[Path, socket.socket]) -> None:
    path, listener = full
    with pytest.raises(BlockingIOError, match="its queue of connections is full"):
        connecting.connect(path, 0.05)

    def accept() -> None:
        listener.accept()[0].close()

    threading.Timer(0.05, accept).start()
    with connecting.connect(path, 20) as made:
        assert made.getblocking()


def test_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connecting.connect(tmp_path / "nowhere", 20)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        connecting.connect(("127.0.0.1", port), 20)


def test_each_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        places = [(socket.AF_INET, ("127.0.0.2", port)), (socket.AF_INET, ("127.0.0.1", port))]
        monkeypatch.setattr(connecting, "places", lambda _: places)
        with connecting.connect(("both", port), 20) as made:
            assert made.getpeername() == ("127.0.0.1", port)


def test_packets(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "packets"))
        listener.listen()
        with connecting.now(tmp_path / "packets", socket.SOCK_SEQPACKET) as made:
            assert not made.getblocking()
