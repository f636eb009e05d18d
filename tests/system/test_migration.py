"""Machines that move, and that are saved and loaded, as a user does it."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system import programs
from tests.system.conftest import BRIEF, PROMPT, Host, Terminal
from tests.waiting import LIMIT, wait_for
from vmesh.client import MachineClient
from vmesh.guest import Guest
from vmesh.machine import MachineDirectory
from vmesh.v1 import migration_pb2

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]

# counts, and says so: whoever looks at two machines sees that no number is lost and none comes twice
COUNT = "x=0; while [ $x -lt 100000 ]; do x=$((x+1)); echo at $x; usleep 20000; done"


def numbers(output: str) -> list[int]:
    return [int(each) for each in re.findall(r"^at (\d+)$", output, re.MULTILINE)]


def joined(source: str, target: str) -> list[int]:
    """The numbers of a machine that has moved, perhaps in the midst of a line, which its launcher then ends."""
    whole = numbers(source) + numbers(target)
    return whole if whole == list(range(1, len(whole) + 1)) else numbers(source.removesuffix("\n") + target)


@pytest.fixture
def snapshots(host: Host, tmp_path: Path) -> Iterator[Path]:
    host.environment["VMESH_SNAPSHOTS"] = str(tmp_path)
    yield tmp_path
    del host.environment["VMESH_SNAPSHOTS"]


def boot(run: Run, name: str, *flags: str) -> Terminal:
    terminal = run("-name", name, "-m", "256M", "-append", BRIEF, *flags)
    terminal.expect(PROMPT)
    return terminal


def incoming(host: Host, run: Run, name: str, *flags: str) -> tuple[Terminal, str]:
    """A machine that waits, and where."""
    place = f"unix:{host.runtime}/{name}.migrate"
    terminal = run("-name", name, "-m", "256M", "-append", BRIEF, "-incoming", place, *flags)
    wait_for(Path(place[5:]).exists, lambda: f"{name} to listen: {terminal.output}")
    return terminal, place


def client(host: Host, name: str) -> MachineClient:
    return MachineClient(MachineDirectory(Path(host.runtime) / name), timeout=LIMIT)


def status(host: Host, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(host.vmesh("migrate", name, "--status", "--json"))
    return found


def test_machine_moves_and_nothing_is_lost(host: Host, run: Run, debian: Guest, tmp_path: Path) -> None:
    """There with pre-copy, with a disk that only one of them may have."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    drive = ("-drive", f"file={disk},format=raw")
    source = boot(run, "here", *drive)
    source.type(COUNT + "\n")
    source.expect("at 10\n")
    target, place = incoming(host, run, "there", *drive)
    assert "paused here" in host.vmesh("migrate", "here", place, "--bandwidth", "0", "--downtime", "10000")
    assert "is paused (postmigrate)" in host.vmesh("status", "here")
    assert status(host, "here")["state"] == "MIGRATION_COMPLETED"
    assert "in use by another machine" in host.vmesh("resume", "here", status=1)
    host.vmesh("stop", "here")
    source.wait()
    target.expect(f"at {numbers(source.output)[-2] + 30}\n")
    seen = joined(source.output, target.output)
    assert seen == list(range(1, len(seen) + 1))
    target.interrupt()
    assert "goldfish" in target.ask("cat /sys/class/rtc/rtc0/name")
    before = int(time.time())
    assert before <= int(target.ask("cat /sys/class/rtc/rtc0/since_epoch").split()[-1]) <= time.time()


def test_linux_boots_from_pages_that_come_when_it_needs_them(host: Host, run: Run, debian: Guest) -> None:
    """It is moved as soon as it begins, by post-copy, and next to nothing comes that is not asked for."""
    flags = ("-m", "256M", "-append", BRIEF)
    target, place = incoming(host, run, "boots")
    run("-name", "begins", *flags, "-S")
    wait_for((Path(host.runtime) / "begins" / "gateway.sock").exists, "the gateway")
    with client(host, "begins") as source:
        source.migrate_set(postcopy_ram=True, max_bandwidth=1 << 20, max_postcopy_bandwidth=1 << 16)
        source.resume()
        source.migrate(place)
        source.migrate_start_postcopy()
        target.expect(PROMPT)
        found = source.query_migrate().status
        assert found.state == migration_pb2.MIGRATION_POSTCOPY_ACTIVE
        assert found.ram.postcopy_requests > 1000
        assert found.ram.remaining > 1 << 20
        assert "alive" in target.ask("echo ali''ve")
        source.migrate_set(max_postcopy_bandwidth=0)
        wait_for(lambda: source.query_migrate().status.state == migration_pb2.MIGRATION_COMPLETED, "the last page")
    assert "alive" in target.ask("cat /proc/meminfo > /dev/null && echo ali''ve")


def test_machine_is_upgraded_and_its_memory_is_not_copied(host: Host, run: Run, debian: Guest, tmp_path: Path) -> None:
    """All processes are others then; a machine that cannot take it changes nothing."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    drive = ("-drive", f"file={disk},format=raw")
    source = boot(run, "old", *drive)
    source.type(COUNT + "\n")
    source.expect("at 10\n")
    flags = ("-m", "256M", "-append", BRIEF, *drive)
    ram = (Path(host.runtime) / "old" / "ram.seg").stat().st_ino
    other = run("-name", "other", *flags, "-smp", "2", "-incoming", "handover:old")
    wait_for((Path(host.runtime) / "other" / "handover.sock").exists, lambda: f"it to listen: {other.output}")
    assert "waits for a migration" in host.vmesh("reset", "other", status=1)
    assert "service 'cpu': harts: expected 2, got 1" in host.vmesh("upgrade", "old", "other", status=1)
    host.vmesh("stop", "other")
    assert other.wait() == 0, "it waited for another one"
    source.expect(f"at {numbers(source.output)[-2] + 10}\n")
    target = run("-name", "new", *flags, "-incoming", "handover:old")
    wait_for((Path(host.runtime) / "new" / "handover.sock").exists, lambda: f"it to listen: {target.output}")
    assert "'new' goes on" in host.vmesh("upgrade", "old", "new")
    assert source.wait() == 0
    assert (Path(host.runtime) / "new" / "ram.seg").stat().st_ino == ram
    target.expect(f"at {numbers(source.output)[-2] + 30}\n")
    seen = joined(source.output, target.output)
    assert seen == list(range(1, len(seen) + 1))
    host.vmesh("snapshot", "save", "new", str(tmp_path / "after.vmsnap"))
    target.interrupt()
    assert "alive" in target.ask("echo ali''ve")


def test_memory_that_another_machine_still_runs_on_takes_no_pages(host: Host, run: Run, debian: Guest) -> None:
    source = boot(run, "owner")
    third = boot(run, "third")
    flags = ("-m", "256M", "-append", BRIEF)
    heir = run("-name", "heir", *flags, "-incoming", "handover:owner")
    place = Path(host.runtime) / "heir" / "handover.sock"
    wait_for(place.exists, lambda: f"it to listen: {heir.output}")
    assert "handed over" in host.vmesh("migrate", "third", f"unix:{place}", status=1)
    assert heir.wait() == 1
    for each in (source, third):
        assert "alive" in each.ask("echo ali''ve")


def test_source_goes_on_when_the_destination_refuses_or_is_gone(host: Host, run: Run, debian: Guest) -> None:
    source = boot(run, "kept")
    assert "cannot connect" in host.vmesh("migrate", "kept", f"unix:{host.runtime}/nobody", status=1)
    other, place = incoming(host, run, "other", "-smp", "2")
    for _ in range(2):  # it goes on waiting
        refused = host.vmesh("migrate", "kept", place, status=1)
        assert "the destination refused: service 'cpu': harts: expected 2, got 1" in refused
    host.vmesh("stop", "other")
    assert other.wait() == 0
    assert "alive" in source.ask("echo ali''ve")
    assert host.ps()["kept"]["state"] == "running"
    assert "tls-creds" in host.vmesh("migrate", "kept", "tcp:192.0.2.1:4444", status=1)


def test_machine_is_saved_loaded_and_started_from_a_snapshot(
    host: Host, run: Run, shell: Terminal, snapshots: Path
) -> None:
    shell.ask("word=kept")
    assert "saved" in host.vmesh("snapshot", "save", "shared", "one")
    (listed,) = json.loads(host.vmesh("snapshot", "list", "--json"))
    assert (listed["tag"], listed["machine"], listed["ram_bytes"]) == ("one", "shared", 512 << 20)
    inspected = json.loads(host.vmesh("migration", "inspect", listed["file"], "--json"))
    assert inspected["whole"]
    assert {each["service"] for each in inspected["sections"]} == {"RAM", "memory", "cpu", "uart0", "rtc", "test"}
    shell.ask("word=changed")
    host.vmesh("snapshot", "load", "shared", "one")
    assert "is kept" in shell.ask('echo "is $word"')
    other = run("-name", "second", "-m", "512M", "-loadvm", "one")
    other.type('echo "is $word"\n')
    other.expect("is kept")
    host.vmesh("snapshot", "delete", "one")
    assert not list(snapshots.iterdir())


def test_snapshot_that_cannot_be_is_refused_and_the_machine_goes_on(
    host: Host, run: Run, shell: Terminal, snapshots: Path
) -> None:
    host.vmesh("snapshot", "save", "shared", "good")
    good = snapshots / "good.vmsnap"
    data = bytearray(good.read_bytes())
    data[len(data) // 2] ^= 1
    (snapshots / "bad.vmsnap").write_bytes(data)
    assert "damaged" in host.vmesh("snapshot", "load", "shared", "bad", status=1)
    assert "damaged" in host.vmesh("migration", "inspect", str(snapshots / "bad.vmsnap"), status=1)
    (snapshots / "short.vmsnap").write_bytes(data[: len(data) // 3])
    assert "ends" in host.vmesh("snapshot", "load", "shared", "short", status=1)
    assert "No such file" in host.vmesh("snapshot", "load", "shared", "none", status=1)
    assert "alive" in shell.ask("echo ali''ve")
    smaller = run("-name", "smaller", "-m", "256M", "-loadvm", "good")
    assert smaller.wait() == 1
    assert "expected 256 MiB of RAM (-m), got 512 MiB" in smaller.output
    for flags, reason in ((("-smp", "2"), "harts: expected 2, got 1"), (("-cpu", "rv64,v=off,zba=off"), "features: ")):
        other = run("-name", "other", "-m", "512M", *flags, "-loadvm", "good")
        assert other.wait() == 1
        assert f"-loadvm: snapshot {good}: service 'cpu': {reason}" in other.output
    # a full disk: nothing of the former snapshot is lost
    before = good.read_bytes()
    limited = host.vmesh("snapshot", "save", "shared", "/dev/full/x", status=1)
    assert "cannot write" in limited
    assert good.read_bytes() == before


def test_stream_that_the_first_version_wrote_is_loaded(host: Host, run: Run, tmp_path: Path) -> None:
    """A machine of 64 MiB that counts in memory for ever, as version 1 of the stream has it."""
    stored = tmp_path / "stored.vmsnap"
    stored.write_bytes(base64.decodebytes(Path(__file__).with_name("stream_v1.txt").read_bytes()))
    kernel = tmp_path / "kernel"
    kernel.write_bytes(programs.sleep(1))
    flags = ("-name", "old", "-m", "64M", "-serial", "null", "-bios", "none", "-kernel", str(kernel))
    run(*flags, "-loadvm", str(stored))
    before = 2_000_000  # instructions that it had retired, at least
    wait_for(lambda: host.ps().get("old", {}).get("state") == "running", "the machine to run")
    retired = re.search(r"^0 .*?([\d,]+)$", host.vmesh("status", "old"), re.MULTILINE)
    assert retired is not None
    assert int(retired[1].replace(",", "")) > before
