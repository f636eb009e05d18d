"""pyproject.toml says once what cannot be derived, and the same where it has to be said twice."""

from __future__ import annotations

import re
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
