"""The package as somebody installs it who never sees the tree: source distribution, wheel, a new environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine import BUILD_LIMIT
from tests.system import programs
from vmesh.guest import tiny

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

# What a checkout has beside what was committed, and a clean clone has not.
_NOT_COMMITTED = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "*.egg-*")
_BUILD_SDIST = "import sys; sys.path.insert(0, 'tools'); import build_backend as b; print(b.build_sdist(sys.argv[1]))"
_PIP_INSTALL = ("install", "--quiet", "--no-index", "--no-deps")  # all that is needed is here


@dataclass(frozen=True)
class Package:
    """The files that were built, and an environment that has the wheel and sees the packages that it depends on."""

    sdist: Path
    wheel: Path
    python: Path

    def run(self, *words: str, stdin: str = "") -> str:
        """What a program of the environment prints, run where there is nothing of the tree."""
        program, *arguments = words
        return _run(str(self.python.with_name(program)), *arguments, cwd=self.python.parent, stdin=stdin)


def _run(*command: str, cwd: Path, stdin: str = "") -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=environment, input=stdin, capture_output=True, text=True, timeout=BUILD_LIMIT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def package(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    place = tmp_path_factory.mktemp("package")
    tree, unpacked = place / "tree", place / "unpacked"
    shutil.copytree(root, tree, symlinks=True, ignore=_NOT_COMMITTED)
    shutil.rmtree(tree / "vmesh/v1", ignore_errors=True)
    sdist = place / _run(sys.executable, "-c", _BUILD_SDIST, str(place), cwd=tree).splitlines()[-1]
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    built = ("wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(place))
    _run(*pip, *built, str(source), cwd=place)
    (wheel,) = place.glob("*.whl")
    python = place / "environment" / "bin" / "python"
    _run(sys.executable, "-m", "venv", "--without-pip", str(place / "environment"), cwd=place)
    _run(*pip, "--python", str(python), *_PIP_INSTALL, str(wheel), cwd=place)
    # Only now, lest pip take the tree's own installation, which is beside the dependencies, for one to replace.
    (site,) = place.glob("environment/lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n" + sysconfig.get_path("platlib") + "\n")
    return Package(sdist, wheel, python)


def test_source_distribution_has_what_is_committed_and_no_generated_code(package: Package) -> None:
    with tarfile.open(package.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "proto/vmesh/v1/bus.proto", "requirements.lock", "tests/conftest.py", "docs/cli.md"} <= names
    assert "services/cpu/service.py" in names
    assert "vmesh_services/cpu/service.py" not in names, "once is enough"
    assert not [name for name in names if "_pb2" in name or name.endswith(".pyc")]


def test_wheel_has_the_generated_code_and_says_what_it_is(package: Package) -> None:
    with zipfile.ZipFile(package.wheel) as archive:
        names = archive.namelist()
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith("dist-info/METADATA")]
    assert {"vmesh/v1/bus_pb2.py", "vmesh/v1/bus_pb2.pyi", "vmesh/v1/gateway_pb2_grpc.py", "vmesh/py.typed"} <= {*names}
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"vmesh", "vmesh_services"}
    head, _, description = metadata.partition("\n\n")
    assert "Description-Content-Type: text/markdown" in head
    assert "License-Expression: Apache-2.0" in head
    assert description.startswith("# vmesh")


def test_installed_it_boots_a_guest(package: Package, tmp_path: Path) -> None:
    guest = tmp_path / "guest.elf"
    guest.write_bytes(programs.elf(tiny.build()))
    said = package.run("vmesh", "run", "-bios", "none", "-kernel", str(guest), stdin="hello there\npoweroff\n")
    assert said.count("hello there") == 2, "typed, and said back"


def test_installed_its_sdk_and_its_client_can_be_imported(package: Package) -> None:
    wanted = "import vmesh.client, vmesh.device, vmesh.v1.gateway_pb2 as p; print(vmesh.client.__file__, p.__file__)"
    for path in package.run("python", "-c", wanted).split():
        assert Path(path).is_relative_to(package.python.parents[1])
