"""pyproject.toml says once what cannot be derived, and the same where it has to be said twice."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

LOCKS = ("requirements.lock", "requirements-dev.lock", "deploy/requirements.lock")


def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


def dependencies(root: Path) -> list[Requirement]:
    """What is installed with vmesh, its extras included."""
    table = project(root)["project"]
    return [Requirement(each) for each in chain(table["dependencies"], *table["optional-dependencies"].values())]


def lowest(requirement: Requirement) -> Version:
    (version,) = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
    return version


def locked(lock: Path) -> dict[str, Version]:
    """The version of each package of a lock file, which has one of each and the hashes of its files."""
    entries = [
        Requirement(each) for each in re.findall(r"^([^ #\n].*?) \\\n    --hash=sha256:", lock.read_text(), re.M)
    ]
    assert len(entries) == len(re.findall(r"^[^ #\n]", lock.read_text(), re.M)), "an entry without a hash"
    found = dict[str, Version]()
    for entry in entries:
        (exact,) = entry.specifier
        assert exact.operator == "==", entry
        found[canonicalize_name(entry.name)] = Version(exact.version)
    assert len(found) == len(entries), "a package twice"
    return found


def test_who_builds_in_isolation_has_the_packages_that_make_setup_has(root: Path) -> None:
    table = project(root)
    assert table["build-system"]["requires"] == table["dependency-groups"]["build"]
    groups = chain.from_iterable(table["dependency-groups"].values())
    assert all("==" in package for package in groups if package != {"include-group": "build"})


def test_what_users_install_is_a_range_and_what_is_locked_is_in_it(root: Path) -> None:
    locks = [locked(root / name) for name in LOCKS]
    for requirement in dependencies(root):
        assert sorted(each.operator for each in requirement.specifier) == ["<", ">="], requirement
        versions = {lock[name] for lock in locks if (name := canonicalize_name(requirement.name)) in lock}
        assert len(versions) == 1, (requirement, versions)
        assert requirement.specifier.contains(versions.pop()), requirement


def test_the_lock_files_have_the_same_version_of_what_they_share(root: Path) -> None:
    first, *others = [locked(root / name) for name in LOCKS]
    assert {Requirement(each).name for each in project(root)["dependency-groups"]["build"]} <= {*first}
    for other in others:
        assert {name: first[name] for name in other if name in first}.items() <= other.items()


@pytest.mark.parametrize(
    ("package", "generated", "said"),
    [
        ("protobuf", "bus_pb2.py", r"^# Protobuf Python Version: (\S+)$"),
        ("grpcio", "gateway_pb2_grpc.py", r"^GRPC_GENERATED_VERSION = '(\S+)'$"),
    ],
)
def test_nobody_installs_what_the_generated_code_refuses(root: Path, package: str, generated: str, said: str) -> None:
    """It takes no library that is older than the compiler it was made with."""
    (version,) = re.findall(said, (root / "vmesh/v1" / generated).read_text(), re.MULTILINE)
    (requirement,) = [each for each in dependencies(root) if each.name == package]
    assert lowest(requirement) >= Version(version)


def test_who_writes_devices_is_told_the_same_ranges(root: Path) -> None:
    (command,) = re.findall(r"^ +\$ pip install --no-deps (.*)$", (root / "docs/devices.md").read_text(), re.MULTILINE)
    told = {re.split("[<>=]", word)[0]: word for word in command.replace("'", "").split()}
    assert {"protobuf", "pyzmq"} <= {*told}
    for requirement in dependencies(root):
        if requirement.name in told:
            assert Requirement(told[requirement.name]) == requirement


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
