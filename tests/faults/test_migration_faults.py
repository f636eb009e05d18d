"""Whatever breaks before a machine has been switched over, it goes on where it was; and nothing else is harmed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.streams import ENDED, Pair, Proxy, counts, smallest_snapshot, wait_state
from tests.file_systems import mounted
from tests.keys import make_keys
from tests.waiting import wait_for
from vmesh.client import GatewayError, MachineClient
from vmesh.v1 import migration_pb2

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def pair(root: Path) -> Iterator[Pair]:
    made = Pair(root)
    yield made
    made.close()


@pytest.fixture(scope="module")
def source(pair: Pair) -> MachineClient:
    return pair.start("source")


@pytest.fixture(scope="module")
def target(pair: Pair) -> MachineClient:
    return pair.start("target", "-incoming", "defer")


@pytest.fixture
def chance() -> random.Random:
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    return random.Random(seed)


def test_stream_that_is_cut_anywhere(
    pair: Pair, source: MachineClient, target: MachineClient, chance: random.Random
) -> None:
    for end in (10, 300, chance.randrange(1000, 12_000_000), chance.randrange(1000, 12_000_000)):
        place = pair.listen(target)
        proxy = Proxy(pair.place(), place, lambda at, data, end=end: data if at < end else None)  # type: ignore[misc]
        source.migrate(proxy.uri)
        assert wait_state(source, *ENDED).state == migration_pb2.MIGRATION_FAILED
        proxy.close()
        assert counts(source)
        if target.query_migrate().status.state not in ENDED:
            target.migrate_cancel()
        wait_state(target, *ENDED)
        assert target.status().run_state == "inmigrate"


def test_stream_that_is_damaged_anywhere(
    pair: Pair, source: MachineClient, target: MachineClient, chance: random.Random
) -> None:
    for place_of_damage in (30, *(chance.randrange(200, 12_000_000) for _ in range(3))):

        def damage(at: int, data: bytes, where: int = place_of_damage) -> bytes:
            if not at <= where < at + len(data):
                return data
            changed = bytearray(data)
            changed[where - at] ^= 1 << chance.randrange(8)
            return bytes(changed)

        proxy = Proxy(pair.place(), pair.listen(target), damage)
        source.migrate(proxy.uri)
        status = wait_state(source, *ENDED)
        assert status.state == migration_pb2.MIGRATION_FAILED, place_of_damage
        proxy.close()
        assert counts(source)
        if target.query_migrate().status.state not in ENDED:
            target.migrate_cancel()
        wait_state(target, *ENDED)


def test_garbage_does_not_end_what_waits(pair: Pair, source: MachineClient, target: MachineClient) -> None:
    place = pair.listen(target)
    for garbage in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"VMESHMIG" + b"\xff" * 64,
        b"VMESHMIG\x01\0\0\0\x04\0\0\0" + b"\0" * 12,
    ):
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(place))
            link.sendall(garbage)
    assert target.query_migrate().status.state == migration_pb2.MIGRATION_SETUP
    target.migrate_cancel()
    assert wait_state(target, *ENDED).state == migration_pb2.MIGRATION_CANCELLED


@pytest.mark.parametrize("victim", ["source", "target"])
def test_migration_service_is_killed(
    pair: Pair, source: MachineClient, target: MachineClient, victim: str, chance: random.Random
) -> None:
    place = pair.listen(target)
    source.migrate_set(max_bandwidth=1 << 20)
    source.migrate(f"unix:{place}")
    wait_state(source, migration_pb2.MIGRATION_ACTIVE)
    time.sleep(chance.uniform(0, 0.3))
    pid = pair.pid(victim, "migration")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert wait_state(source, *ENDED).state == migration_pb2.MIGRATION_FAILED
    assert wait_state(target, *ENDED).state == migration_pb2.MIGRATION_FAILED
    source.migrate_set(max_bandwidth=0)
    assert counts(source)


@pytest.mark.parametrize("name", ["ram.seg", "ram.flags"])
def test_memory_of_the_source_is_cut_short(pair: Pair, target: MachineClient, name: str) -> None:
    """What was copied of it, and what would be, is no machine."""
    machine = name.replace(".", "-")
    lost = pair.start(machine)
    lost.migrate_set(max_bandwidth=1 << 20)
    lost.migrate(f"unix:{pair.listen(target)}")
    wait_state(lost, migration_pb2.MIGRATION_ACTIVE)
    os.truncate(pair.runtime / machine / name, 0)
    assert wait_state(lost, *ENDED).state == migration_pb2.MIGRATION_FAILED
    assert wait_state(target, *ENDED).state == migration_pb2.MIGRATION_FAILED
    wait_for(lambda: lost.status().run_state == "internal-error", "the machine to stop")
    assert f"/{machine}/{name} was cut short: 0 of " in lost.status().last_error
    with pytest.raises(GatewayError, match="the machine can be looked at and ended, no more"):
        lost.migrate(f"unix:{pair.place()}")
    pair.stop(machine)


def test_cancel_at_a_random_moment(
    pair: Pair, source: MachineClient, target: MachineClient, chance: random.Random
) -> None:
    place = pair.listen(target)
    source.migrate_set(max_bandwidth=1 << 20)
    source.migrate(f"unix:{place}")
    time.sleep(chance.uniform(0, 0.5))
    source.migrate_cancel()
    assert wait_state(source, *ENDED).state == migration_pb2.MIGRATION_CANCELLED
    source.migrate_set(max_bandwidth=0)
    assert counts(source)
    wait_state(target, *ENDED)


def test_full_disk_leaves_the_machine_and_the_former_snapshot(
    pair: Pair, source: MachineClient, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    with mounted(small):
        former = small / "x.vmsnap"
        former.write_bytes(smallest_snapshot())
        with pytest.raises(GatewayError, match="No space left"):
            source.snapshot_save(former)
        assert former.read_bytes() == smallest_snapshot()
        assert os.listdir(small) == ["x.vmsnap"]
    assert counts(source)


def test_keys_of_another_authority_are_refused_and_the_right_ones_taken(
    pair: Pair, source: MachineClient, target: MachineClient, tmp_path: Path
) -> None:
    """TCP with mutual TLS; the machine moves in the last test."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl")
    right, wrong = (make_keys(tmp_path / name, openssl) for name in ("right", "wrong"))
    target.migrate_incoming(f"tcp:127.0.0.1:0,tls-creds={right}")
    wait_state(target, migration_pb2.MIGRATION_SETUP)
    where = target.query_migrate().status.uri
    source.migrate(f"{where},tls-creds={wrong}")
    status = wait_state(source, *ENDED)
    assert status.state == migration_pb2.MIGRATION_FAILED
    assert "certificate" in status.error
    assert target.query_migrate().status.state == migration_pb2.MIGRATION_SETUP, "it waits for the next"
    source.migrate_set(max_bandwidth=1 << 20)
    source.migrate(f"{where},tls-creds={right}")
    wait_for(lambda: source.query_migrate().status.ram.transferred > 1 << 20, "pages to be sent")
    source.migrate_cancel()
    wait_state(source, *ENDED)
    wait_state(target, *ENDED)
    source.migrate_set(max_bandwidth=0)
    assert counts(source)


def test_after_all_that_it_moves(pair: Pair, source: MachineClient, target: MachineClient, tmp_path: Path) -> None:
    """The destination that has failed so often takes it at last, over TLS; and the source, told to go on, cannot."""
    openssl = shutil.which("openssl")
    if openssl is None:
        source.migrate(f"unix:{pair.listen(target)}")
    else:
        keys = f",tls-creds={make_keys(tmp_path / 'keys', openssl)}"
        target.migrate_incoming(f"tcp:127.0.0.1:0{keys}")
        wait_state(target, migration_pb2.MIGRATION_SETUP)
        source.migrate(target.query_migrate().status.uri + keys)
    status = wait_state(source, *ENDED)
    assert status.state == migration_pb2.MIGRATION_COMPLETED, status.error
    assert counts(target)
    assert source.status().run_state == "postmigrate"
    with pytest.raises(GatewayError, match="runs elsewhere"):
        source.migrate(f"unix:{pair.place()}")
    wait_for(lambda: target.status().run_state == "running", "the machine to run")
