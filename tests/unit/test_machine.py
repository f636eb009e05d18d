"""Machine directories: names, locks, what is in use and what is left over."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.file_systems import mounted
from vmesh import machine
from vmesh.machine import MachineError, MachineRecord, ServiceRecord
from vmesh.qdev import names

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vmesh-") as directory:
        path = Path(directory) / "run"
        monkeypatch.setenv("VMESH_RUNTIME", str(path))
        yield path


def test_created_machine_is_private_listed_and_found(runtime: Path) -> None:
    made = machine.create("m")
    assert made.path == runtime / "m"
    assert runtime.stat().st_mode & 0o777 == made.path.stat().st_mode & 0o777 == 0o700
    assert [found.name for found in machine.machines()] == ["m"]
    assert machine.find("m").read_record().state == "starting"
    made.remove()
    os.close(made.lock_fd)
    assert machine.machines() == []


def test_name_in_use_is_refused(runtime: Path) -> None:
    made = machine.create("m")
    with pytest.raises(MachineError, match="'m' is in use"):
        machine.create("m")
    os.close(made.lock_fd)


def test_what_is_no_machines_is_left_alone(runtime: Path) -> None:
    """A user may point VMESH_RUNTIME to where other things are, $XDG_RUNTIME_DIR for one."""
    runtime.mkdir(0o700)
    for name in ("systemd", "locked", "piped", "empty"):
        (runtime / name).mkdir()
    (runtime / "systemd" / "private").write_text("kept")
    (runtime / "locked" / machine.LOCK).write_text("another program's")
    os.mkfifo(runtime / "piped" / machine.LOCK)
    made = machine.create("m")
    machine.reap()
    assert [found.name for found in machine.machines()] == ["m"]
    with pytest.raises(MachineError, match="systemd is in the way: it is no machine's"):
        machine.create("systemd")
    made.remove()
    os.close(made.lock_fd)
    assert sorted(os.listdir(runtime)) == ["empty", "locked", "piped", "systemd"]
    assert (runtime / "systemd" / "private").read_text() == "kept"


def test_a_directory_that_is_no_machines_is_not_made_one(tmp_path: Path) -> None:
    """A service that is started by hand with another directory would remove it at its end."""
    for name in ("notes", machine.LOCK):
        folder = tmp_path / f"of {name}"
        folder.mkdir()
        (folder / name).write_text("precious")
        with pytest.raises(MachineError, match="is no machine's directory: it has no file 'lock' that says so"):
            machine.adopt(folder)
        machine.MachineDirectory(folder).remove()
        assert [(each.name, each.read_text()) for each in folder.iterdir()] == [(name, "precious")]
    with pytest.raises(MachineError, match="is no machine's directory"):
        machine.meet(folder)
    with pytest.raises(OSError, match="its file 'lock' is another program's"):
        machine._make_lock(folder)
    assert (folder / machine.LOCK).read_text() == "precious"


def test_an_empty_directory_is_made_a_machines(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    adopted = machine.adopt(tmp_path / "m")
    met = machine.meet(adopted.path)
    met.remove()
    assert list(tmp_path.iterdir()) == []
    for made in (adopted, met):
        os.close(made.lock_fd)


def test_a_living_machine_of_a_former_vmesh_is_found_and_left_alone(runtime: Path) -> None:
    made = machine.create("m")
    os.ftruncate(made.lock_fd, 0)
    machine.reap()
    assert [found.name for found in machine.machines()] == ["m"]
    os.close(made.lock_fd)
    assert machine.machines() == []
    assert made.path.exists()


@pytest.mark.parametrize("begun", ["", machine.LOCK])
def test_creation_that_was_killed_is_not_in_the_way(runtime: Path, begun: str) -> None:
    (runtime / "m").mkdir(parents=True)
    runtime.chmod(0o700)
    if begun:
        (runtime / "m" / begun).touch()
    os.close(machine.create("m").lock_fd)


def test_removal_that_was_killed_is_ended_later(runtime: Path) -> None:
    made = machine.create("m")
    os.close(made.lock_fd)
    for path in made.path.iterdir():
        if path.name != machine.LOCK:
            path.unlink()
    machine.reap()
    assert not made.path.exists()


def test_machine_without_a_name_gets_one_of_its_own(runtime: Path) -> None:
    first, second = machine.create(), machine.create()
    assert first.name != second.name
    for made in (first, second):
        os.close(made.lock_fd)


def test_directory_of_the_dead_is_reaped(runtime: Path) -> None:
    made = machine.create("m")
    (made.path / "ram.seg").write_bytes(b"x")
    os.close(made.lock_fd)
    again = machine.create("m")
    assert not (again.path / "ram.seg").exists()
    os.close(again.lock_fd)
    machine.reap()
    assert not made.path.exists()


def test_lock_in_a_child_keeps_the_name(runtime: Path) -> None:
    made = machine.create("m")
    kept = os.dup(made.lock_fd)
    os.close(made.lock_fd)
    assert machine.find("m").alive()
    os.close(kept)
    with pytest.raises(MachineError, match="none is running"):
        machine.find("m")


def test_remove_spares_a_new_machine_of_the_same_name(runtime: Path) -> None:
    old = machine.create("m")
    machine.MachineDirectory(old.path).remove()
    new = machine.create("m")
    old.remove()
    assert new.path.exists()
    new.remove()
    assert not new.path.exists()
    for made in (old, new):
        os.close(made.lock_fd)


def test_adopt_takes_the_lock_or_refuses(runtime: Path) -> None:
    made = machine.create("m")
    with pytest.raises(MachineError, match="in use by a running machine"):
        machine.adopt(made.path)
    os.close(made.lock_fd)
    adopted = machine.adopt(made.path)
    assert adopted.alive()
    os.close(adopted.lock_fd)
    with pytest.raises(MachineError, match="No such file"):
        machine.adopt(runtime / "other")


def test_all_that_a_device_has_is_listed() -> None:
    """What is not there outlives the device, and is the next one's of that name."""
    made = machine.MachineDirectory(Path("/m"))
    found = set()
    for source in (*Path(ROOT, "vmesh").glob("*.py"), *Path(ROOT, "services").rglob("*.py")):
        endings = re.findall(r'(?:\b(?:name|service|device)\}|with_suffix\(")\.([a-z]+)"', source.read_text())
        found |= {made.path / f"d.{ending}" for ending in endings}
    found.remove(made.network("d"))
    assert found == set(made.device_files("d"))


def test_no_device_is_called_like_a_file_of_the_machine() -> None:
    made = machine.MachineDirectory(Path("/m"))
    for path in (made.gateway, made.qmp, made.hmp, made.terminal_monitor, made.handover, made.path / machine.RECORD):
        assert path.stem in names.TAKEN


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a b", "x" * 33, "ä", "a\n"])
def test_name_that_is_none_is_refused(runtime: Path, name: str) -> None:
    with pytest.raises(MachineError, match="cannot name a machine"):
        machine.create(name)


def test_runtime_that_others_may_enter_is_refused(runtime: Path) -> None:
    runtime.mkdir(mode=0o755)
    runtime.chmod(0o755)
    with pytest.raises(MachineError, match="mode 0700"):
        machine.create("m")


def test_runtime_that_is_a_link_is_refused(runtime: Path) -> None:
    runtime.symlink_to("/tmp")
    with pytest.raises(MachineError, match="not a directory"):
        machine.create("m")


def test_runtime_too_deep_for_sockets_is_refused(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMESH_RUNTIME", str(runtime / ("x" * 90)))
    with pytest.raises(MachineError, match="shorter"):
        machine.create("m")


def test_record_comes_back_as_written(runtime: Path) -> None:
    made = machine.create("m")
    record = MachineRecord("m", 1, 2.5, "running", (ServiceRecord("uart0", "ns16550a", 3, 1, "running"),))
    made.write_record(record)
    assert made.read_record() == record
    os.close(made.lock_fd)


def test_a_full_file_system_has_room_for_the_next_record(runtime: Path) -> None:
    runtime.mkdir()
    with mounted(runtime):
        made = machine.create("m")
        with suppress(OSError), open(runtime / "full", "wb", buffering=0) as full:
            while full.write(bytes(4096)):
                pass
        many = tuple(ServiceRecord(f"uart{i}", "ns16550a", i, 1, "dead") for i in range(20))
        for record in (MachineRecord("m", 1, 2.5, "paused", many), MachineRecord("m", 1, 2.5, "running")):
            made.write_record(record)
            assert made.read_record() == record
        with pytest.raises(OSError, match="No space left"):
            made.write_record(MachineRecord("m", 1, 2.5, "paused", many * 20))
        assert made.read_record() == record
        assert {each.name for each in made.path.iterdir()} == {machine.LOCK, machine.RECORD}
        os.close(made.lock_fd)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "m"}', '{"services": [1]}', "\xff"])
def test_record_that_is_none_is_one_line(runtime: Path, text: str) -> None:
    made = machine.create("m")
    (made.path / machine.RECORD).write_bytes(text.encode("latin-1"))
    with pytest.raises(MachineError) as caught:
        made.read_record()
    assert "\n" not in str(caught.value)
    os.close(made.lock_fd)


def test_listing_does_not_disturb_who_takes_the_lock(runtime: Path) -> None:
    made = machine.create("m")
    machine.machines()
    fcntl.flock(made.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(made.lock_fd)


def test_remove_with_a_socket_that_comes_meanwhile(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The monitor opens its gateway in a thread of its own."""
    made = machine.create("m")
    real, calls = shutil.rmtree, 0

    def meanwhile(path: Path, ignore_errors: bool) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            real(path, ignore_errors=ignore_errors)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", meanwhile)
        made.remove()
    assert not made.path.exists()
    os.close(made.lock_fd)
