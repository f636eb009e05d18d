"""Post-copy: the guest runs at the destination while its pages come; links that break are mended, and a package that is
too long leaves it where it was."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.faults.streams import COUNT_PAGE, ENDED, Pair, Proxy, counts, mend, wait_state
from tests.waiting import wait_for
from vmesh.client import GatewayError, MachineClient
from vmesh.v1 import migration_pb2

pytestmark = pytest.mark.system

PATIENT = "300"  # seconds: for devices that a test has stand still
ACTIVE, PAUSED = migration_pb2.MIGRATION_POSTCOPY_ACTIVE, migration_pb2.MIGRATION_POSTCOPY_PAUSED


@pytest.fixture
def pair(root: Path) -> Iterator[Pair]:
    made = Pair(root)
    yield made
    made.close()


def begin(source: MachineClient, uri: str, *, background: int) -> None:
    """Switch over at once; nothing but what is asked for comes any faster than `background` bytes a second."""
    source.migrate_set(postcopy_ram=True, max_bandwidth=1 << 20, max_postcopy_bandwidth=background)
    source.migrate(uri)
    source.migrate_start_postcopy()


def same_ram(pair: Pair) -> bool:
    """Whether all that the guest does not write is the same in both."""
    here, there = ((pair.runtime / name / "ram.seg").read_bytes() for name in ("source", "target"))
    behind = COUNT_PAGE + 4096
    return here[:COUNT_PAGE] == there[:COUNT_PAGE] and here[behind:] == there[behind:]


def kill(pair: Pair, machine: str, service: str) -> None:
    pid = pair.pid(machine, service)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def of_memory(machine: MachineClient, counter: str) -> int:
    (found,) = (service for service in machine.status().services if service.name == "memory")
    return found.counters[counter]


def saw_a_death(side: MachineClient) -> bool:
    return "was killed" in side.query_migrate().status.error


def refusal(ask: Callable[[], object]) -> str:
    """What is said of what cannot be."""
    with pytest.raises(GatewayError) as refused:
        ask()
    return str(refused.value)


def test_package_that_is_too_long_leaves_the_machine_at_the_source_and_the_next_try_moves_it(pair: Pair) -> None:
    source, target = pair.start("source"), pair.start("target", "-incoming", "defer")
    for side, limit in ((source, 500), (target, 600)):
        side.migrate_set(max_package_bytes=limit)
        begin(source, f"unix:{pair.listen(target)}", background=0)
        status = wait_state(source, *ENDED)
        assert status.state == migration_pb2.MIGRATION_FAILED
        assert f"at most {limit} bytes" in status.error
        assert f"got {status.package_bytes} bytes" in status.error
        assert counts(source)
        assert wait_state(target, *ENDED).state == migration_pb2.MIGRATION_FAILED
        # Enough, and hardly more: the times in it may take a byte more each by then.
        side.migrate_set(max_package_bytes=status.package_bytes + 64)
    begin(source, f"unix:{pair.listen(target)}", background=1 << 16)
    wait_state(target, ACTIVE)
    assert counts(target)  # while its pages come
    source.migrate_set(max_postcopy_bandwidth=0)
    status = wait_state(source, *ENDED)
    assert status.state == migration_pb2.MIGRATION_COMPLETED
    assert status.ram.postcopy_requests >= 1
    arrived = wait_state(target, *ENDED)
    assert arrived.state == migration_pb2.MIGRATION_COMPLETED
    assert sum(arrived.fault_latency_us) >= 1
    assert same_ram(pair)


def test_link_that_breaks_is_mended_and_nothing_is_lost(pair: Pair) -> None:
    source, target = pair.start("source"), pair.start("target", "-incoming", "defer")
    proxy = Proxy(pair.place(), pair.listen(target), lambda at, data: data)
    begin(source, proxy.uri, background=1 << 16)
    for how in ("cut", "asked", "asked there"):
        for side in (source, target):
            wait_state(side, ACTIVE)
        wait_for(lambda: target.status().run_state == "running", "the guest to run")
        match how:
            case "cut":
                proxy.cut()
            case "asked":
                source.migrate_pause()
            case _:
                target.migrate_pause()
        for side in (source, target):
            assert wait_state(side, PAUSED).ram.remaining >= 0
        assert source.status().run_state == "postmigrate"
        place = pair.place()
        target.migrate_recover(f"unix:{place}")
        source.migrate(f"unix:{place}", resume=True)
    source.migrate_set(max_postcopy_bandwidth=0)
    for side in (source, target):
        assert wait_state(side, *ENDED).state == migration_pb2.MIGRATION_COMPLETED
    source.migrate_start_postcopy()  # who asks cannot know that it has ended
    source.migrate_cancel()
    assert counts(target)
    assert same_ram(pair)


@pytest.mark.parametrize("killed", [("target",), ("source",), ("source", "target")])
def test_migration_service_that_is_killed_goes_on_in_its_next_life(pair: Pair, killed: tuple[str, ...]) -> None:
    source, target = pair.start("source"), pair.start("target", "-incoming", "defer")
    begin(source, f"unix:{pair.listen(target)}", background=1 << 16)
    wait_state(source, ACTIVE)
    wait_state(target, ACTIVE)
    assert counts(target)
    for victim in killed:
        kill(pair, victim, "migration")
    for side in (source, target):
        wait_state(side, PAUSED)
    for side in [{"source": source, "target": target}[each] for each in killed]:
        wait_for(partial(saw_a_death, side), "the death to be seen")
    assert counts(target)
    assert "runs at the destination" in refusal(source.resume)
    assert "still to come" in refusal(lambda: target.snapshot_save(pair.runtime / "x.vmsnap"))
    mend(pair, source, target)
    assert counts(target)
    assert same_ram(pair)


def test_guest_that_waits_for_a_page_is_served_by_the_next_life(pair: Pair) -> None:
    """The source stops to answer as soon as the guest is to run, so that its first page is waited for."""
    source, target = pair.start("source"), pair.start("target", "-incoming", "defer")
    proxy = Proxy(pair.place(), pair.listen(target), lambda at, data: data)
    begin(source, proxy.uri, background=1)
    wait_state(target, ACTIVE)
    target.migrate_pause()
    wait_state(target, PAUSED)
    kill(pair, "target", "migration")
    wait_for(lambda: "was killed" in target.query_migrate().status.error, "the death to be seen")
    wait_state(source, PAUSED)
    place = pair.place()
    target.migrate_recover(f"unix:{place}")
    source.migrate_set(max_postcopy_bandwidth=0)
    source.migrate(f"unix:{place}", resume=True)
    assert wait_state(source, *ENDED).state == migration_pb2.MIGRATION_COMPLETED
    assert counts(target)
    assert same_ram(pair)


def test_postcopy_that_fails_before_it_runs_leaves_nothing_absent(pair: Pair) -> None:
    """The next migration to the same destination, a pre-copy, finds all its pages there."""
    source = pair.start("source")
    target = pair.start("target", "-incoming", "defer", "-health-limit", PATIENT)
    device = pair.pid("target", "rtc")
    assert device is not None
    source.migrate_set(postcopy_ram=True, max_bandwidth=1 << 20)
    source.migrate(f"unix:{pair.listen(target)}")
    wait_state(target, migration_pb2.MIGRATION_ACTIVE)
    os.kill(device, signal.SIGSTOP)  # which cannot load its state then
    source.migrate_start_postcopy()
    wait_for(lambda: of_memory(target, "pages_absent"), "pages to be absent")
    source.migrate_cancel()
    os.kill(device, signal.SIGCONT)
    assert wait_state(source, *ENDED).state == migration_pb2.MIGRATION_CANCELLED
    assert wait_state(target, *ENDED).state == migration_pb2.MIGRATION_FAILED
    assert counts(source)
    source.migrate_set(postcopy_ram=False, max_bandwidth=0)
    source.migrate(f"unix:{pair.listen(target)}")
    assert wait_state(source, *ENDED).state == migration_pb2.MIGRATION_COMPLETED
    assert counts(target)
    assert same_ram(pair)


def test_destination_that_dies_before_it_runs_leaves_the_machine_at_the_source(pair: Pair) -> None:
    source = pair.start("source")
    target = pair.start("target", "-incoming", "defer", "-health-limit", PATIENT)
    device = pair.pid("target", "rtc")
    assert device is not None
    source.migrate_set(postcopy_ram=True, max_bandwidth=1 << 20)
    source.migrate(f"unix:{pair.listen(target)}")
    wait_state(source, migration_pb2.MIGRATION_ACTIVE)
    pid = pair.pid("target", "migration")
    assert pid is not None
    os.kill(device, signal.SIGSTOP)  # which cannot load its state then
    source.migrate_start_postcopy()
    wait_state(source, migration_pb2.MIGRATION_DEVICE)
    os.kill(pid, signal.SIGKILL)
    os.kill(device, signal.SIGCONT)
    assert wait_state(source, *ENDED).state == migration_pb2.MIGRATION_FAILED
    assert counts(source)
