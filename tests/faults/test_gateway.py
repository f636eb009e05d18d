"""Floods, nonsense and slow readers at the gateway: memory stays bounded, errors are clear, the machine is unharmed."""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import threading
import time
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path

import grpc
import pytest

from tests.faults.conftest import DEADLINE, Rig
from tests.waiting import wait_for
from vmesh.client import GatewayError
from vmesh.v1 import gateway_pb2
from vmesh.v1.gateway_pb2_grpc import MachineStub

STREAMS = 60  # more than the gateway has
ROUNDS = 150
GROWTH = 48 << 20  # bytes that the monitor may grow by, threads and gRPC's own buffers included


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_too_many_streams_are_refused_and_the_rest_goes_on(rig: Rig) -> None:
    launcher = rig.start()
    rig.wait_running()
    with ExitStack() as channels, rig.client() as client:
        client.status()
        streams = []
        for _ in range(STREAMS):
            channel = channels.enter_context(grpc.insecure_channel(f"unix:{rig.machine.gateway}"))
            streams.append(MachineStub(channel).Events(gateway_pb2.EventsRequest(), timeout=290))

        def refused() -> list[grpc.Call]:
            return [each for each in streams if not each.is_active()]

        wait_for(refused, "some to be refused")
        assert {each.code() for each in refused()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert "streams already" in "".join(each.details() for each in refused())
        assert client.status().state == gateway_pb2.MACHINE_RUNNING
        for each in streams:
            each.cancel()
    with rig.client() as client:  # their places are free again
        seen: list[gateway_pb2.Event] = []

        def listen() -> None:
            while not seen:
                with suppress(GatewayError):  # some are still being let go of
                    seen.extend(islice(client.events(), 1))

        threading.Thread(target=listen, daemon=True).start()

        def told() -> bool:
            client.pause()
            client.resume()
            return bool(seen)

        wait_for(told, "an event")
        client.quit()
    assert launcher.wait() == 0
    rig.wait_clean()


def test_floods_and_slow_readers_leave_memory_bounded(rig: Rig) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    launcher = rig.start()
    monitor = rig.wait_running().pid
    with ExitStack() as channels, rig.client() as client:
        client.status()
        stubs = [
            MachineStub(channels.enter_context(grpc.insecure_channel(f"unix:{rig.machine.gateway}"))) for _ in range(8)
        ]
        slow = [stub.Events(gateway_pb2.EventsRequest(), timeout=290) for stub in stubs]  # nobody reads these
        before = resident(monitor)
        for round in range(ROUNDS):
            client.pause()
            client.resume()
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(os.fspath(rig.machine.gateway))
                preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if round % 2 else b""
                try:
                    peer.sendall(preface + chance.randbytes(chance.randrange(1, 50_000)))
                except OSError:
                    continue  # it has had enough
            huge = gateway_pb2.ConsoleInput(data=bytes(2 << 20))
            if round % 30 == 0:
                answer = stubs[0].Attach(iter([huge]), timeout=30)
                with pytest.raises(grpc.RpcError) as error:
                    next(answer)
                assert isinstance(error.value, grpc.Call)
                assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        began = time.monotonic()
        assert client.status().state == gateway_pb2.MACHINE_RUNNING
        print(f"status took {time.monotonic() - began:.3f} s")
        grown = resident(monitor) - before
        assert grown < GROWTH, grown
        names = [next(slow[0]).name for _ in range(10)]
        assert set(names) <= {"STOP", "RESUME"}
        client.quit()
    assert launcher.wait() == 0
    rig.wait_clean()


def test_silent_connections_leave_the_machine_its_descriptors(rig: Rig) -> None:
    """Whoever connects and says nothing, wherever: a bounded number is kept, and what needs descriptors is done."""
    launcher = rig.start()
    rig.wait_running()
    with rig.client() as client, ExitStack() as open_ones:
        monitor = next(each.pid for each in client.status(usage=True).others if each.name == "monitor")

        def files() -> int:
            return len(os.listdir(f"/proc/{monitor}/fd"))

        before = files()
        for path in (rig.machine.gateway, rig.machine.qmp, rig.machine.hmp):
            for _ in range(150):
                silent = open_ones.enter_context(socket.socket(socket.AF_UNIX))
                silent.connect(str(path))
        assert files() < before + 64 + 2 * 32 + 40
        client.pause()
        os.kill(rig.service("uart0").pid, signal.SIGKILL)
        rig.wait_life("uart0", 2)
        client.resume()
        client.quit()
    assert launcher.wait(DEADLINE) == 0
    rig.wait_clean()
