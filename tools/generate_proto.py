"""Generate the protobuf code from proto/ into vmesh/v1/ (git-ignored): messages, their type stubs, and gRPC services.

The build backend calls this; `python tools/generate_proto.py` does by hand. Needs grpcio-tools and mypy-protobuf (the
`build` dependency group).
"""

import re
import sys
import tempfile
from importlib import metadata
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "proto"
PACKAGE = Path("vmesh/v1")
STUB_PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")


def plugin(name: str) -> str:
    """The path of a protoc plugin: that of the mypy-protobuf which this interpreter imports, wherever it is."""
    try:
        return str(next(file.locate() for file in metadata.files("mypy-protobuf") or () if file.name == name))
    except (metadata.PackageNotFoundError, StopIteration):
        sys.exit(f"generate_proto: {name} not found: install the `build` dependency group (mypy-protobuf)")


def generate(out: Path) -> None:
    """Run protoc for every file of proto/; *_pb2_grpc only for those that define a service."""
    from grpc_tools import protoc

    protos = sorted((SOURCES / PACKAGE).glob("*.proto"))
    services = [path for path in protos if re.search(r"^service\s", path.read_text(), re.MULTILINE)]
    common = [
        "protoc",
        f"-I{SOURCES}",
        f"-I{files('grpc_tools') / '_proto'}",
        *(f"--plugin={name}={plugin(name)}" for name in STUB_PLUGINS),
    ]
    runs = [[f"--python_out={out}", f"--mypy_out=quiet:{out}", *map(str, protos)]]
    if services:
        runs.append([f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}", *map(str, services)])
    for run in runs:
        if status := protoc.main([*common, *run]):
            sys.exit(status)


def main() -> None:
    target = ROOT / PACKAGE
    # Made aside, then only what changed is replaced: a failed run harms nothing, nor does one beside running tests.
    with tempfile.TemporaryDirectory(dir=ROOT, prefix=".proto-") as work:
        generate(Path(work))
        made = Path(work) / PACKAGE
        (made / "__init__.py").write_text('"""Generated from proto/vmesh/v1 by tools/generate_proto.py."""\n')
        target.mkdir(exist_ok=True)
        fresh = {path.name for path in made.iterdir()}
        for path in target.iterdir():
            if path.is_file() and path.name not in fresh:
                path.unlink()
        for path in made.iterdir():
            former = target / path.name
            if not former.exists() or former.read_bytes() != path.read_bytes():
                path.replace(former)


if __name__ == "__main__":
    main()
