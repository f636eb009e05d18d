"""pyproject.toml says once what cannot be derived, and the same where it has to be said twice."""

from __future__ import annotations

import tomllib
from pathlib import Path


def test_who_builds_in_isolation_has_the_packages_that_make_setup_has(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert project["build-system"]["requires"] == project["dependency-groups"]["build"]
    assert all("==" in package for package in project["build-system"]["requires"])
