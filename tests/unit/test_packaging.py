"""pyproject.toml says once what cannot be derived, and the same where it has to be said twice."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path


def test_who_builds_in_isolation_has_the_packages_that_make_setup_has(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert project["build-system"]["requires"] == project["dependency-groups"]["build"]
    assert all("==" in package for package in project["build-system"]["requires"])


def test_the_messages_are_what_the_protoc_c_of_debian_12_knows(root: Path) -> None:
    """With a newer one, or none, the copier in C says nothing of it."""
    for path in (root / "proto").rglob("*.proto"):
        assert not re.search(r"^\s*optional ", path.read_text(), re.MULTILINE), path


def test_the_picture_of_the_mesh_is_of_the_machine_as_it_is(root: Path) -> None:
    drawn = subprocess.run(
        [sys.executable, "-P", str(root / "tools/draw_mesh.py")], cwd=root, capture_output=True, text=True, check=True
    )
    made_by = "python -P tools/draw_mesh.py > docs/pictures/mesh.svg"
    assert drawn.stdout == (root / "docs/pictures/mesh.svg").read_text(), made_by
