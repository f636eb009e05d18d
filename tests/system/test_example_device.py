"""The device of docs/examples on the board of a real machine, and in the README."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.system import programs
from tests.system.conftest import LIMIT, Host
from vmesh import machine as machines
from vmesh.cli import options as flags
from vmesh.cli.plan import monitor_command, plan
from vmesh.spawn import ServiceCommand

pytestmark = pytest.mark.system

BASE = 0x400_0000  # where the board has nothing


def test_dice_on_the_board(host: Host, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elf = tmp_path / "guest.elf"
    elf.write_bytes(programs.elf(programs.roll(BASE, sides=1, times=6)))
    options = flags.parse(["-bios", "none", "-kernel", str(elf), "-serial", "null"])
    monkeypatch.setenv("VMESH_RUNTIME", str(host.runtime))
    machine = machines.create("dice")
    planned = plan(options, machine)
    planned.write(machine)
    os.close(machine.lock_fd)  # the monitor takes it
    dice = ServiceCommand("dice", "dice", "docs.examples.dice", ("--machine", str(machine.path), "--base", hex(BASE)))
    services = [*map(_expecting_dice, planned.services), dice]

    done = subprocess.run(
        str(monitor_command(services, options, machine)),
        shell=True, cwd=root, env=host.environment, timeout=LIMIT, check=False, capture_output=True, text=True,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (1 + 6, "")  # SIDES read back, and the sum of the rolls


def test_the_readme_shows_this_device(root: Path) -> None:
    source = (root / "docs/examples/dice/__main__.py").read_text()

    shown = source[source.index("class Dice") : source.index("\n\ndef main")]
    assert shown.strip() in (root / "README.md").read_text()


def _expecting_dice(command: ServiceCommand) -> ServiceCommand:
    """Memory waits for the devices that it is told to expect."""
    if command.name != "memory":
        return command
    place = command.arguments.index("--expect") + 1
    arguments = list(command.arguments)
    arguments[place] += ",dice"
    return replace(command, arguments=tuple(arguments))
