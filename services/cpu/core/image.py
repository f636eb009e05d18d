"""The native core: built once from the ISA's descriptions, kept in the cache folder, loaded in milliseconds."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import struct
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from vmesh import private

from ..isa.interface import Isa
from ..isa.interface import load as load_isa
from .controllers import Native
from .digest import blake2b

MAGIC = b"VMESHCORE1\0\0\0\0\0\0"
_HEADER = struct.Struct("<16s32sQ")
#: Days after which what was compiled under another key is removed, if nobody used it.
UNUSED_DAYS = 30


#: What shapes native code: the folders of its sources.
_ROOMS = ("native", "core", "controllers", "isa")
#: The instruction set of machines that name none.
ISA = "riscv"


class CoreError(Exception):
    """The native core cannot be built or loaded; says why."""


@dataclass(frozen=True, slots=True)
class CoreImage:
    """Machine code, its symbols, and the symbols of handlers ('' for none) and functions by number."""

    image: bytes
    symbols: dict[str, int]
    handlers: list[str]
    functions: list[str]


def cache_folder() -> Path:
    """Where compiled code is kept."""
    return private.cache_folder("native")


def remove_unused(folder: Path, kept: str) -> None:
    """Removes what was compiled under keys other than ``kept`` and not used for ``UNUSED_DAYS``: by other versions of
    vmesh or LLVM, or on another processor. Using a file sets its time of modification. What cannot be removed stays."""
    oldest = time.time() - UNUSED_DAYS * 86400
    for path in folder.iterdir():
        if path.suffix in (".core", ".regions") and not path.name.startswith(f"{kept}."):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()


def _host() -> str:
    """What of the host shapes the code: architecture and processor features."""
    try:
        info = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        kept = [
            line
            for line in info.splitlines()
            if line.startswith(("flags", "Features", "model\t", "cpu family", "vendor_id"))
        ]
        return platform.machine() + "\n".join(kept)
    except OSError:
        return platform.machine() + platform.processor()


def key(isa: str = ISA) -> str:
    """Names the core by all that shapes it: our sources, LLVM (through llvmlite's version) and the host's processor."""
    from importlib.metadata import version

    digest = blake2b(isa.encode(), digest_size=16)
    here = Path(__file__).parents[1]
    for path in sorted(path for room in _ROOMS for path in here.glob(f"{room}/**/*.py")):
        digest.update(path.relative_to(here).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(",".join(load_isa(isa).features).encode() + b"\0")  # whose places are bits of native code
    digest.update(version("llvmlite").encode() + _host().encode())
    return digest.hexdigest()


def build_core(isa: Isa, controllers: Native) -> CoreImage:
    """Compiles the core of an instruction set: a few seconds."""
    from ..native.build import build
    from .interpreter import Interpreter
    from .region import core_functions

    interpreter = Interpreter(isa, controllers)
    functions = [interpreter.module.export(function) for function in core_functions(isa)]
    text, handlers = interpreter.emit()
    code = build(text)
    return CoreImage(code.image, code.symbols, handlers, functions)


def _pack(core: CoreImage) -> bytes:
    head = json.dumps({"symbols": core.symbols, "handlers": core.handlers, "functions": core.functions}).encode()
    body = head + core.image
    return _HEADER.pack(MAGIC, blake2b(body, digest_size=32).digest(), len(head)) + body


def _unpack(data: bytes) -> CoreImage | None:
    """The core in a cache file; None if it is damaged."""
    if len(data) < _HEADER.size:
        return None
    magic, digest, length = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if magic != MAGIC or blake2b(body, digest_size=32).digest() != digest:
        return None
    head = json.loads(body[:length])
    return CoreImage(body[length:], head["symbols"], head["handlers"], head["functions"])


def load_core(isa: Isa, controllers: Native) -> CoreImage:
    """The core from the cache, which is thereby used; built and kept there if it is not there or is damaged.

    It is run: of a cache that is not this user's alone it says so, and builds the core each time.
    """
    path = cache_folder() / f"{key(isa.name)}.core"
    try:
        core = _unpack(private.read_bytes(path))
        if core is not None:
            with contextlib.suppress(OSError):
                os.utime(path)
            return core
    except PermissionError as problem:
        print(f"vmesh: {problem.filename} {problem.strerror}", file=sys.stderr)
    except OSError:
        pass
    core = build_core(isa, controllers)
    try:
        private.make_folder(path.parent)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=path.suffix, delete=False) as file:
            file.write(_pack(core))
        os.replace(file.name, path)
    except OSError:
        pass  # a cache that cannot be written costs time, nothing else
    return core
