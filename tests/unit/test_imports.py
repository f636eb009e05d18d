"""The rules that keep the rooms apart: a service never imports another service, or the command line; vmesh/ never
imports a service. And what nobody uses."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: The package of the services, whose folder is services/.
SERVICES = "vmesh_services"


def imported_modules(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Every module that `source`, the text of `module`, names in an import statement or in a call of import_module."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            target = node.args[0]
            if name in ("import_module", "__import__") and isinstance(target, ast.Constant):
                yield str(target.value)


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What `module` imports against the rules, one sentence each."""
    parts = module.split(".")
    own_service = parts[1] if parts[0] == SERVICES and len(parts) > 1 else None
    found = {
        imported.split(".")[1] if "." in imported else ""
        for imported in imported_modules(source, module, is_package)
        if imported.split(".")[0] == SERVICES
    }
    allowed = {own_service, ""} if parts[0] == SERVICES else set()
    return [f"{module} imports {SERVICES}.{name}".rstrip(".") for name in sorted(found - allowed)]


def modules() -> Iterator[tuple[str, Path]]:
    for room in ("vmesh", SERVICES):
        for path in sorted((ROOT / room).rglob("*.py")):
            dotted = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            yield dotted.removesuffix(".__init__"), path


def test_nobody_waits_with_select() -> None:
    """It fails for descriptors from 1024 on, of which a process has some as soon as its limit allows them."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for _, path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "select.select"
    ]
    assert not found


def test_imports_whole_tree_keeps_the_rooms_apart() -> None:
    found = [
        violation
        for module, path in modules()
        for violation in violations(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
    ]
    assert not found


def rooms_entered(module: str, source: str, is_package: bool = False) -> list[str]:
    """What `module` imports against the rules between the cpu's rooms: the core knows no instruction set and no
    interrupt controller, an instruction set is known to nobody outside of its folder, and controllers know none; the
    service knows an engine by what it does, and so does the bus."""
    found = []
    sets = "vmesh_services.cpu.isa."
    for imported in imported_modules(source, module, is_package):
        folder = imported.removeprefix(sets).split(".")[0]
        own = module.startswith(f"{sets}{folder}.")
        common = (ROOT / "services" / "cpu" / "isa" / f"{folder}.py").exists()
        if imported.startswith(sets) and not own and not common:
            found.append(f"{module} imports {imported}")
        outside = module.startswith(
            ("vmesh_services.cpu.service", "vmesh_services.cpu.engine", "vmesh_services.cpu.bus")
        )
        if outside and imported.startswith(("vmesh_services.cpu.core", "vmesh_services.cpu.controllers")):
            found.append(f"{module} imports {imported}")
        if module.startswith("vmesh_services.cpu.core") and imported.startswith("vmesh_services.cpu.controllers"):
            found.append(f"{module} imports {imported}")
    return found


def test_no_room_of_the_cpu_knows_an_instruction_set() -> None:
    sources = [(module, path) for module, path in modules() if module.startswith("vmesh_services.cpu")]
    assert len(sources) > 60
    assert not [
        each
        for module, path in sources
        for each in rooms_entered(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    ]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vmesh_services.cpu.service", "from .isa.riscv.csr import CSRS"),
        ("vmesh_services.cpu.service", "from .core.harts import Harts"),
        ("vmesh_services.cpu.bus.link", "from ..core import state"),
        ("vmesh_services.cpu.core.harts", "from ..isa.riscv import state"),
        ("vmesh_services.cpu.core.harts", "from ..controllers.plic import drive"),
        ("vmesh_services.cpu.controllers.plic", "from ..isa.riscv.csr_bits import MEIP"),
        ("vmesh_services.cpu.isa.toy.decoder", "from ..riscv.decoder import decode"),
    ],
)
def test_a_way_between_the_rooms_is_found(module: str, source: str) -> None:
    assert rooms_entered(module, source)


def test_no_service_and_none_of_its_rooms_knows_the_command_line() -> None:
    found = [
        f"{module} imports {imported}"
        for module, path in modules()
        if not module.startswith(("vmesh.cli", "vmesh.deploy"))
        for imported in imported_modules(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
        if imported == "vmesh.cli" or imported.startswith("vmesh.cli.")
    ]
    assert not found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vmesh.wire", "import vmesh_services.cpu"),
        ("vmesh.wire", "import vmesh_services"),
        ("vmesh.wire", "from vmesh_services import cpu"),
        ("vmesh.wire", "def late():\n    from vmesh_services.memory.ram import Ram"),
        ("vmesh_services.cpu.hart", "import vmesh_services.memory"),
        ("vmesh_services.cpu.hart", "from vmesh_services import memory"),
        ("vmesh_services.cpu.hart", "from ..memory import ram"),
        ("vmesh_services.cpu.hart", "from .. import memory"),
        ("vmesh_services.cpu.hart", "importlib.import_module('vmesh_services.memory')"),
    ],
)
def test_imports_forbidden_import_is_found(module: str, source: str) -> None:
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vmesh.wire", "from vmesh.v1 import bus_pb2"),
        ("vmesh.wire", "name = 'vmesh_services.cpu'"),
        (
            "vmesh_services.cpu.hart",
            "from vmesh_services.cpu import isa\nfrom . import native\nfrom .isa import x",
        ),
        ("vmesh_services.cpu.isa.riscv.rvi", "from ... import hart"),
    ],
)
def test_imports_allowed_import_passes(module: str, source: str) -> None:
    assert not violations(source, module)


def test_imports_relative_import_in_package_resolves_from_the_package_itself() -> None:
    assert violations("from ..memory import ram", "vmesh_services.cpu", is_package=True)
    assert not violations("from .memory import ram", "vmesh_services.cpu", is_package=True)


#: What takes long to import and what no machine needs to start. Whoever needs it imports it then.
LATE = ("asyncio", "capstone", "email", "grpc", "http", "llvmlite", "numpy", "prompt_toolkit", "prometheus_client",
        "rich", "vmesh_services.monitor.network", "ssl", "unittest", "xml", "zstandard")  # fmt: skip


@pytest.mark.parametrize("module", ["vmesh.cli.run", "vmesh_services.monitor.__main__", "vmesh_services.cpu.__main__"])
def test_imports_of_what_starts_a_machine_are_few(module: str) -> None:
    """The start of a machine is a tenth of a Linux boot, and most of it is the import of Python modules."""
    code = f"import {module}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert not sorted(set(done.stdout.split()) & set(LATE))


#: What gRPC imports by itself: its other packages, where they are, and what it depends on.
GRPC = {"grpc", "grpc_health", "grpc_reflection", "grpc_tools", "typing_extensions"}


@pytest.mark.parametrize(
    ("module", "packages"),
    [("vmesh", set()), ("vmesh.device", {"google", "zmq"}), ("vmesh.client", {"google", *GRPC})],
)
def test_imports_of_what_others_write_programs_with_are_few(module: str, packages: set[str]) -> None:
    """The author of a device, who installs protobuf and ZeroMQ only, has to have no LLVM."""
    code = (
        "import sys\n"
        "before = {*sys.modules}\n"
        f"import {module}\n"
        "new = [name for name in {*sys.modules} - before if getattr(sys.modules[name], '__file__', None)]\n"
        "print(*{name.split('.')[0] for name in new} - sys.stdlib_module_names)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert {*done.stdout.split()} - {"vmesh"} <= packages


@pytest.mark.parametrize("module", ["vmesh.client", "vmesh_services.monitor.gateway", "bench.doors", "tests.conftest"])
def test_imports_of_grpc_come_after_its_settings(module: str) -> None:
    """It reads them when it is imported; and its handlers of fork(2) hang."""
    code = (
        "import importlib, os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'grpc':\n"
        "            print(*map(os.environ.get, ('GRPC_ENABLE_FORK_SUPPORT', 'GRPC_VERBOSITY')))\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"importlib.import_module({module!r})\n"
        "import grpc\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT, env=environment)
    assert done.stdout.split() == [b"0", b"NONE"]
