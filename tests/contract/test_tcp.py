"""Services over TCP: who is answered, as whom, and what a lost connection costs."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest
import zmq

from tests.contract.harness import PATIENCE, RAM_BASE, Machine
from tests.hosts import free_port
from tests.waiting import wait_for
from vmesh import curve, errors, strangers, wire
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import memory_pb2 as messages
from vmesh.v1.bus_pb2 import Description


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[tuple[Machine, Path, str]]:
    """A memory service that listens over TCP: the machine, its keys, and the address."""
    made, keys = Machine(), tmp_path / "keys"
    curve.make(keys, ["memory", "cpu", "monitor", "disk", "card"])
    address = f"tcp://127.0.0.1:{free_port()}"
    made.start_memory("--listen", address, "--keys", str(keys))
    yield made, keys, address
    made.close()


def dial(
    where: tuple[Machine, Path, str], key: str, role: common.Role.ValueType, name: str, folder: Path | None = None
) -> wire.Peer:
    made, keys, address = where
    mine = curve.load(folder or keys, key)
    said = wire.hello(role, name, machine=made.path.name)
    return wire.Peer(made.context, address, said, identify=partial(mine.identify, service="memory"), heed_loss=True)


def disk(address: str = "tcp://127.0.0.1:1") -> Description:
    return Description(name="disk", kind="x", epoch=1, endpoint=address, dma=True, doorbell="disk.doorbell")


def test_device_key_reaches_what_it_was_granted(machine: tuple[Machine, Path, str]) -> None:
    device = dial(machine, "disk", common.ROLE_DEVICE, "disk")
    device.greet(PATIENCE)
    with pytest.raises(errors.OutsideGrant):
        device.request(messages.DmaRead(address=RAM_BASE, size=8), PATIENCE)
    attached = device.request(messages.Attach(description=disk()), PATIENCE)
    assert isinstance(attached, messages.Attached)
    assert not attached.segments
    device.request(messages.DmaWrite(address=RAM_BASE, data=b"guest"), PATIENCE)
    answer = device.request(messages.DmaRead(address=RAM_BASE, size=5), PATIENCE)
    assert isinstance(answer, messages.DmaDone)
    assert answer.data == b"guest"


def test_device_key_stands_for_its_name_and_nothing_else(machine: tuple[Machine, Path, str]) -> None:
    for role, name in (
        (common.ROLE_DEVICE, "card"),
        (common.ROLE_DEVICE, "cpu"),
        (common.ROLE_CPU, "disk"),
        (common.ROLE_MONITOR, "monitor"),
        (common.ROLE_MIGRATION, "disk"),
    ):
        with pytest.raises(errors.PeerError, match="stands for"):
            dial(machine, "disk", role, name).greet(PATIENCE)
    with pytest.raises(errors.PeerError, match="stands for"):
        dial(machine, "cpu", common.ROLE_DEVICE, "cpu").greet(PATIENCE)


def test_device_on_another_host_cannot_name_sockets_of_this_one(machine: tuple[Machine, Path, str]) -> None:
    device = dial(machine, "disk", common.ROLE_DEVICE, "disk")
    device.greet(PATIENCE)
    with pytest.raises(errors.BadRequest, match="tcp"):
        device.request(messages.Attach(description=disk("ipc:///memory.sock")), PATIENCE)


def test_unknown_key_and_no_key_get_no_answer(machine: tuple[Machine, Path, str], tmp_path: Path) -> None:
    made, keys, address = machine
    other = tmp_path / "other"
    curve.make(other, ["disk"])
    (other / "memory.key").write_bytes((keys / "memory.key").read_bytes())
    with pytest.raises(errors.PeerError, match="does not know the key of disk"):
        dial(machine, "disk", common.ROLE_DEVICE, "disk", other).greet(PATIENCE)
    plain: zmq.Socket[bytes] = made.context.socket(zmq.DEALER)
    plain.setsockopt(zmq.LINGER, 0)
    plain.connect(address)
    plain.send(wire.make(wire.hello(common.ROLE_DEVICE, "disk"), 1).SerializeToString())
    assert not plain.poll(1000)
    dial(machine, "disk", common.ROLE_DEVICE, "disk").greet(PATIENCE)  # it has not fallen over


def test_next_connection_takes_the_place_of_the_former(machine: tuple[Machine, Path, str]) -> None:
    former = dial(machine, "disk", common.ROLE_DEVICE, "disk")
    former.greet(PATIENCE)
    former.request(messages.Attach(description=disk()), PATIENCE)
    later = dial(machine, "disk", common.ROLE_DEVICE, "disk")
    later.said.connection = former.said.connection
    later.greet(PATIENCE)
    later.request(messages.Attach(description=disk()), PATIENCE)
    with pytest.raises(errors.PeerError, match="Hello first"):
        former.request(messages.DmaWrite(address=RAM_BASE, data=b"late"), PATIENCE)
    answer = later.request(messages.DmaRead(address=RAM_BASE, size=4), PATIENCE)
    assert isinstance(answer, messages.DmaDone)
    assert answer.data != b"late"


def test_strangers_are_bounded_and_who_has_a_key_comes_in(machine: tuple[Machine, Path, str]) -> None:
    """Those who say nothing; and those let in stay."""
    made, _, address = machine
    device = dial(machine, "disk", common.ROLE_DEVICE, "disk")
    device.greet(PATIENCE)
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    process = made.processes["memory"].pid
    before = len(os.listdir(f"/proc/{process}/fd"))
    with ExitStack() as stack:
        for _ in range(2 * strangers.MOST):
            stack.enter_context(socket.create_connection((host, int(port))))
        dial(machine, "card", common.ROLE_DEVICE, "card").greet(PATIENCE)
        room = before + strangers.MOST + 8  # of those let in
        wait_for(lambda: len(os.listdir(f"/proc/{process}/fd")) <= room, "those who gave way to be gone")
        assert machine[0].monitor("memory").health().counters["strangers cut"] >= strangers.MOST - 1
    device.request(messages.Attach(description=disk()), PATIENCE)


def test_who_is_turned_away_tries_again_now_and_then(tmp_path: Path) -> None:
    """Something on the way takes connections though the service is not there."""
    curve.make(tmp_path, ["memory", "disk"])
    accepted = []
    with socket.create_server(("127.0.0.1", 0)) as listener, zmq.Context() as context:
        listener.settimeout(PATIENCE)

        def turn_away() -> None:
            with suppress(OSError):
                while True:
                    listener.accept()[0].close()
                    accepted.append(1)

        thread = threading.Thread(target=turn_away)
        thread.start()
        identify = partial(curve.load(tmp_path, "disk").identify, service="memory")
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        peer = wire.Peer(context, address, wire.hello(common.ROLE_DEVICE, "disk"), identify=identify, heed_loss=True)
        while not accepted:
            with pytest.raises(errors.PeerTimeout):
                peer.greet(1.0)
        peer.abandon()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)
    assert 1 <= len(accepted) < 50


def test_no_keys_no_tcp() -> None:
    made = Machine()
    made.start_memory("--listen", "tcp://127.0.0.1:1")
    assert "--keys FOLDER" in made.failure("memory")
    made.close()


def test_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    assert curve.make(tmp_path / "keys", ["memory"]) == ["memory"]
    assert curve.make(tmp_path / "keys", ["memory", "cpu"]) == ["cpu"]
    secret = tmp_path / "keys" / "memory.key_secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    secret.chmod(0o604)
    with pytest.raises(errors.ConfigError, match="0604"):
        curve.load(tmp_path / "keys", "memory")
