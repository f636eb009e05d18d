"""Every process of a machine is killed while its guest writes: what it had flushed is there, and fsck finds nothing."""

from __future__ import annotations

import random
import secrets
from pathlib import Path

import pytest

from bench import crashes
from bench.harness import BenchError
from vmesh import guest

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.mark.parametrize("disk", ["format=raw", "format=qcow2"])
def test_what_was_flushed_is_there(tmp_path: Path, disk: str) -> None:
    if guest.find() is None:
        pytest.skip("Debian's guest is not cached (make guest)")
    try:
        crashes.require_tools()
    except BenchError as missing:
        pytest.skip(str(missing))
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    done = crashes.crash(tmp_path, disk, random.Random(seed))
    assert done.said > 0
    assert not done.wrong
