"""`vmesh deploy --on local`: what is refused before anything is started."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vmesh.cli import deploy
from vmesh.machine import MachineDirectory


def test_name_that_runs_is_not_said_to_have_been_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deploy, "find", lambda name: MachineDirectory(Path(f"/run/{name}")))
    monkeypatch.setattr(subprocess, "Popen", lambda *_: pytest.fail("started"))

    assert deploy.deploy("there", "local", ["-m", "1G"], "", "") == 1

    assert "'there' runs already (vmesh deploy --down there ends it)" in capsys.readouterr().err
