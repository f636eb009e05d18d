"""What bash offers for a command line that is being typed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vmesh.cli import completion
from vmesh.cli.flags.table import FLAGS
from vmesh.cli.main import COMMANDS


@pytest.fixture(scope="module")
def bash() -> str:
    found = shutil.which("bash")
    if found is None:
        pytest.skip("there is no bash")
    return found


def offered(bash: str, folder: Path, *words: str) -> set[str]:
    ask = 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vmesh; printf "%s\\n" "${COMPREPLY[@]}"'
    script = f"{completion.bash(COMMANDS)}\n{ask}"
    done = subprocess.run([bash, "-c", script, "bash", *words], cwd=folder, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_commands(bash: str, tmp_path: Path) -> None:
    assert offered(bash, tmp_path, "vmesh", "") == set(COMMANDS)
    assert offered(bash, tmp_path, "vmesh", "mig") == {"migrate", "migration"}


@pytest.mark.parametrize("command", ["run", "deploy", "serve"])
def test_flags(bash: str, tmp_path: Path, command: str) -> None:
    names = {name for flag in FLAGS for name in flag.names}
    assert offered(bash, tmp_path, "vmesh", command, "-") == names
    assert offered(bash, tmp_path, "vmesh", command, "-m", "1G", "-ke") == {"-kernel"}


def test_values(bash: str, tmp_path: Path) -> None:
    (tmp_path / "disk.img").touch()
    assert offered(bash, tmp_path, "vmesh", "run", "-kernel", "") == {"disk.img"}
    assert offered(bash, tmp_path, "vmesh", "run", "-bios", "d") == {"default", "disk.img"}
    assert offered(bash, tmp_path, "vmesh", "run", "-display", "") == {"none"}
    assert offered(bash, tmp_path, "vmesh", "run", "-smp", "") == set()
    assert offered(bash, tmp_path, "vmesh", "snapshot", "d") == {"disk.img"}
