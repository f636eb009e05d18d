"""Commands in a folder where anybody has put Python files by the names of what we import: none of them is run."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.system import programs
from tests.system.conftest import Host
from tests.waiting import LIMIT, Process, kill_all, wait_for
from vmesh.cli.main import COMMANDS
from vmesh.spawn import python

pytestmark = pytest.mark.system

_RTC = python("vmesh_services.devices.goldfish_rtc")
_GUEST = ("-bios", "none", "-kernel", "guest.elf", "-m", "16M")
# In this order, to machines `one`, which runs already, and `two`. A command that is refused has imported what it needs.
_DONE: tuple[tuple[str, ...], ...] = (
    ("deploy", "two", *_GUEST),
    ("ps",), ("health", "one", "cpu"), ("status", "one"), ("pause", "one"), ("resume", "one"), ("reset", "one"),
    ("registers", "one"), ("monitor", "one", "-c", "info status"), ("attach", "one", "--read-only"),
    ("top", "one", "--once"), ("trace", "one", "--seconds", "0.1"), ("memory", "one", "0x80000000"),
    ("metrics", "one"), ("swap", "one", "rtc", "--", *_RTC), ("device_add", "one", "virtio-rng-device,id=rng9"),
    ("device_del", "one", "rng9"), ("snapshot", "save", "one", "./saved"), ("migration", "inspect", "saved"),
    ("upgrade", "one", "nowhere"), ("keys", "keys"), ("hub", "no/folder"), ("guest", "fetch", "--help"),
    ("serve", "memory", "-no-flag"), ("completion", "bash"),
    ("migrate", "two", "file:two"), ("quit", "two"), ("stop", "one"),
)  # fmt: skip
_WHOLE_LIFE = {"run", "events"}  # of machine `one`


def _set_traps(folder: Path) -> Path:
    """Modules and packages that write down that they were run; gives where."""
    sprung = folder / "sprung"
    trap = f"open({str(sprung)!r}, 'a').write(__name__ + chr(10))\n"
    names = {*sys.stdlib_module_names, *packages_distributions(), "sitecustomize", "usercustomize", "docs", "tests"}
    for name in sorted(names):
        (folder / f"{name}.py").write_text(trap)
    for name in ("vmesh", "vmesh_services"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(trap)
    return sprung


def test_no_command_runs_what_lies_in_the_current_folder(host: Host, tmp_path: Path) -> None:
    assert {words[0] for words in _DONE} | _WHOLE_LIFE == set(COMMANDS)
    sprung = _set_traps(tmp_path)
    (tmp_path / "guest.elf").write_bytes(programs.elf(programs.sleep(1)))
    environment = {name: value for name, value in host.environment.items() if name != "PYTHONPATH"}
    started: list[Process] = []

    def vmesh(*words: str) -> Process:
        command, quiet = [str(Path(sys.executable).with_name("vmesh")), *words], subprocess.DEVNULL
        started.append(Process(command, cwd=tmp_path, env=environment, stdin=quiet, stdout=quiet, stderr=quiet))
        return started[-1]

    try:
        machine = vmesh("run", "-name", "one", *_GUEST, "-display", "none")
        wait_for(lambda: host.ps().get("one", {}).get("state") == "running", "the machine")
        events = vmesh("events", "one")
        for words in _DONE:
            process = vmesh(*words)
            if words[0] == "attach":  # until it is ended
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(1)
                process.terminate()
            process.wait(LIMIT)
            assert not sprung.exists(), f"vmesh {words[0]} ran {sprung.read_text()}"
        events.wait(LIMIT)
        machine.wait(LIMIT)
    finally:
        vmesh("quit", "two").wait(LIMIT)  # if it is still there
        kill_all(started)
    assert not sprung.exists(), sprung.read_text()
