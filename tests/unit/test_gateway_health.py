"""The gateway's health service: who tells it never waits for who watches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.waiting import LIMIT, wait_for
from vmesh_services.monitor.health import WATCHERS, Health

FLIPS = 500
COMINGS = 50


class Served:
    """A health service at a socket of its own."""

    def __init__(self, socket: Path) -> None:
        self.health = Health("")
        self.target = f"unix:{socket}"
        self._server = grpc.server(ThreadPoolExecutor(WATCHERS + 8))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self._server.add_insecure_port(self.target)
        self._server.start()

    def connect(self) -> grpc.Channel:
        return grpc.insecure_channel(self.target, options=[("grpc.use_local_subchannel_pool", 1)])

    def close(self) -> None:
        self._server.stop(None).wait(LIMIT)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "s")
    yield made
    made.close()


def stub_of(channel: grpc.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)  # the package's type information has no methods


def watch(channel: grpc.Channel, name: str, timeout: float) -> Any:
    return stub_of(channel).Watch(health_pb2.HealthCheckRequest(service=name), timeout=timeout)


def test_watchers_see_the_newest_and_unknown_ones_are_named(served: Served) -> None:
    with served.connect() as channel:
        stream = watch(channel, "uart0", LIMIT)
        assert next(stream).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        served.health.tell({"uart0": True})
        assert next(stream).status == health_pb2.HealthCheckResponse.SERVING
        served.health.tell({})
        assert next(stream).status == health_pb2.HealthCheckResponse.NOT_SERVING
        stream.cancel()


def test_names_that_were_watched_are_not_kept(served: Served) -> None:
    """Nor those that were asked for: else a stranger's names grow without end."""
    with served.connect() as channel:
        for number in range(COMINGS):
            stream = watch(channel, f"stranger{number}", LIMIT)
            assert next(stream).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            stream.cancel()
            with pytest.raises(grpc.RpcError) as error:
                stub_of(channel).Check(health_pb2.HealthCheckRequest(service=f"asked{number}"))
            assert isinstance(error.value, grpc.Call)
            assert error.value.code() == grpc.StatusCode.NOT_FOUND

    def kept() -> list[object]:
        return [each for value in vars(served.health).values() if isinstance(value, dict | set) for each in value]

    wait_for(lambda: len(kept()) <= 2, lambda: f"what is kept to go: {kept()}")


def test_who_tells_does_not_wait_for_watchers_that_come_and_go(served: Served) -> None:
    """Nor for one that never reads."""
    told = 0

    def come_and_go() -> None:
        for _ in range(COMINGS):
            with served.connect() as channel, suppress(grpc.RpcError):
                for _ in watch(channel, "uart0", 0.02):
                    pass

    def tell() -> None:
        nonlocal told
        for told in range(FLIPS):
            served.health.tell({"uart0": bool(told % 2)})
            threading.Event().wait(0.001)

    threads = [threading.Thread(target=each, daemon=True) for each in (tell, *[come_and_go] * 4)]
    with served.connect() as channel:
        unread = watch(channel, "uart0", 2 * LIMIT)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert not any(thread.is_alive() for thread in threads), f"told {told} times"
        unread.cancel()


def test_watchers_are_bounded(served: Served) -> None:
    with ExitStack() as channels:
        streams = [watch(channels.enter_context(served.connect()), "", LIMIT) for _ in range(WATCHERS + 1)]

        def refused() -> list[grpc.Call]:
            return [each for each in streams if not each.is_active()]

        wait_for(refused, "one to be refused")
        (one,) = refused()
        assert one.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert one.details() == f"{WATCHERS} watch already; end one"
        for each in streams:
            each.cancel()

        def is_free() -> bool:
            again = watch(channels.enter_context(served.connect()), "", LIMIT)
            with suppress(grpc.RpcError):
                return bool(next(again).status == health_pb2.HealthCheckResponse.SERVING)
            return False

        wait_for(is_free, "a place to be free again")
