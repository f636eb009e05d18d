"""The package as somebody installs it who never sees the tree: source distribution, wheel, a new environment."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from tests.engine import BUILD_LIMIT
from tests.system import programs
from tests.system.test_external_device import BASE, FLAG, IRQ, copied
from tests.waiting import LIMIT
from vmesh.guest import tiny

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

# What a checkout has beside what was committed, and a clean clone has not.
_NOT_COMMITTED = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "*.egg-*")
_BUILD_SDIST = "import sys; sys.path.insert(0, 'tools'); import build_backend as b; print(b.build_sdist(sys.argv[1]))"
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
_PIP_INSTALL = ("install", "--quiet", "--no-index", "--no-deps")  # all that is needed is here
#: Put before a device: at its end it writes down from which packages it has imported something.
_IMPORTED = """\
import atexit, pathlib, sys
notes = pathlib.Path(__file__).with_suffix(".imported")
def note():
    files = [name for name, module in sys.modules.items() if getattr(module, "__file__", None)]
    notes.write_text(" ".join(sorted({name.split(".")[0] for name in files} - sys.stdlib_module_names)))
atexit.register(note)
"""
_CLIENT = """\
import sys
from vmesh import client
with client.connect(sys.argv[1]) as machine:
    machine.pause()
    print(machine.status().name, machine.read_memory(0x80000000, 4, physical=True).hex())
    machine.quit()
"""


@dataclass(frozen=True)
class Package:
    """The files that were built, and an environment that has the wheel and sees the packages that it depends on."""

    sdist: Path
    wheel: Path
    python: Path

    def run(self, *words: str, stdin: str = "", status: int = 0) -> str:
        """What a program of the environment prints, run where there is nothing of the tree."""
        program, *arguments = words
        return _run(self.program(program), *arguments, cwd=self.python.parent, stdin=stdin, status=status)

    def program(self, name: str) -> str:
        return str(self.python.with_name(name))


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _run(*command: str, cwd: Path, stdin: str = "", status: int = 0) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=_environment(), input=stdin, capture_output=True, text=True, timeout=BUILD_LIMIT,
        check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def _install(wheel: Path, place: Path) -> Path:
    """A new environment that has the wheel and nothing else: its Python."""
    python = place / "bin" / "python"
    _run(sys.executable, "-m", "venv", "--without-pip", str(place), cwd=place.parent)
    _run(*_PIP, "--python", str(python), *_PIP_INSTALL, str(wheel), cwd=place)
    return python


def _site(python: Path) -> Path:
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    return site


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
    built = ("wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(place))
    _run(*_PIP, *built, str(source), cwd=place)
    (wheel,) = place.glob("*.whl")
    python = _install(wheel, place / "environment")
    # Only now, lest pip take the tree's own installation, which is beside the dependencies, for one to replace.
    dependencies = sysconfig.get_path("purelib") + "\n" + sysconfig.get_path("platlib") + "\n"
    (_site(python) / "dependencies.pth").write_text(dependencies)
    return Package(sdist, wheel, python)


@pytest.fixture(scope="module")
def light(package: Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of what docs/devices.md has the author of a device install: the wheel, protobuf and ZeroMQ."""
    python = _install(package.wheel, tmp_path_factory.mktemp("light") / "environment")
    for distribution in map(metadata.distribution, ("protobuf", "pyzmq")):
        for name in {file.parts[0] for file in distribution.files or ()} - {".."}:
            (_site(python) / name).symlink_to(Path(str(distribution.locate_file(name))))
    return python


@contextmanager
def _running(package: Package, name: str, guest: Path) -> Iterator[subprocess.Popen[str]]:
    """A machine of the package, whose guest waits for what is typed."""
    command = [package.program("vmesh"), "run", "-name", name, "-bios", "none", "-kernel", str(guest)]
    place = package.python.parent
    with subprocess.Popen(
        command, cwd=place, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as machine:
        try:
            yield machine
        finally:
            machine.terminate()


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


def test_installed_its_client_speaks_to_a_machine(package: Package, tmp_path: Path) -> None:
    guest, code, name = tmp_path / "guest.elf", tiny.build(), f"package-{os.getpid()}"
    guest.write_bytes(programs.elf(code))
    with _running(package, name, guest) as machine:
        assert machine.stdout is not None
        for line in machine.stdout:
            if line.strip() == tiny.BANNER.strip():
                break
        assert package.run("python", "-P", "-c", _CLIENT, name).split() == [name, code[:4].hex()]
        assert machine.wait(LIMIT) == 0


def test_a_device_needs_only_protobuf_and_zeromq(package: Package, light: Path, root: Path, tmp_path: Path) -> None:
    """The device of docs/examples in an environment without the rest, on the board of a machine that has all."""
    guest, device = tmp_path / "guest.elf", tmp_path / "copier.py"
    guest.write_bytes(programs.elf(programs.copy(BASE, IRQ)))
    device.write_text(_IMPORTED + (root / "docs/examples/copier/__main__.py").read_text())
    flag = f"{FLAG},kind=copier,command={shlex.join([str(light), '-P', str(device)])}"
    flags = ("-bios", "none", "-kernel", str(guest), "-serial", "null", "-device", flag)
    assert package.run("vmesh", "run", *flags, status=copied()) == ""
    assert device.with_suffix(".imported").read_text().split() == ["__main__", "google", "vmesh", "zmq"]
