"""The copier in C of docs/examples, built once for all tests that need it."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent
_SOURCE = _ROOT / "docs/examples/c"
_BUILD = _ROOT / "build/c"
_HEADERS = "#include <protobuf-c/protobuf-c.h>\n#include <zmq.h>\n"


def copier_in_c() -> list[str]:
    """The program; skips the test where it cannot be built."""
    for tool in ("make", "cc", "protoc-c"):
        if shutil.which(tool) is None:
            pytest.skip(f"the copier in C: no {tool}")
    headers = subprocess.run(["cc", "-E", "-"], input=_HEADERS, capture_output=True, text=True, check=False)
    if headers.returncode:
        pytest.skip("the copier in C: no headers of protobuf-c or ZeroMQ")
    _BUILD.mkdir(parents=True, exist_ok=True)
    with open(_BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        made = subprocess.run(
            ["make", "-s", "-C", str(_SOURCE), f"BUILD={_BUILD}"], capture_output=True, text=True, check=False
        )
    assert made.returncode == 0, made.stderr
    return [str(_BUILD / "copier")]
