"""Who asks for the counters: a bounded number at once, and none for ever."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.waiting import LIMIT, wait_for
from vmesh.v1 import gateway_pb2
from vmesh_services.monitor import metrics

STRANGERS = 40


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(metrics._Handler, "timeout", 1.0)
    server = metrics.serve("127.0.0.1", 0, lambda: gateway_pb2.MachineStatus(name="mine"), 8)
    yield server.server_port
    server.shutdown()
    server.server_close()


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=LIMIT) as answer:
        return str(answer.read().decode())


def test_silent_connections_are_bounded_and_end(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    with ExitStack() as open_ones:
        silent = []
        for _ in range(STRANGERS):
            made = open_ones.enter_context(socket.create_connection(("127.0.0.1", port), LIMIT))
            silent.append(made)
        assert silent[-1].recv(1) == b"", "who is too many is closed at once"
        assert threading.active_count() <= before + metrics._CONNECTIONS
        assert silent[0].recv(1) == b"", "who says nothing is not waited for"

        def is_answered() -> bool:
            try:
                return 'vmesh_machine_state{machine="mine"' in scrape(port)
            except OSError:
                return False

        wait_for(is_answered, "a place to be free")
    assert capfd.readouterr().err == ""


def test_ipv6() -> None:
    try:
        server = metrics.serve("::1", 0, gateway_pb2.MachineStatus, 8)
    except OSError:
        pytest.skip("no IPv6 here")
    assert server.socket.family == socket.AF_INET6
    server.shutdown()
    server.server_close()
