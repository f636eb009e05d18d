"""A board whose parts are all elsewhere boots Linux: whoever needs to know where a part is asks the board.

One by one: `python -P -m bench.moved_board`.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.models import moved_board
from tests.system.conftest import NO_SELF_TESTS, Host
from tests.waiting import LIMIT
from vmesh.guest import Guest
from vmesh.spawn import python

pytestmark = pytest.mark.system


def test_linux_finds_every_part_elsewhere(host: Host, debian: Guest, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"here\n".ljust(1 << 20, b"\0"))
    found_first = moved_board.make(tmp_path / "tree", moved_board.MOVES)
    devices = ["-drive", f"file={disk},format=raw", "-fw_cfg", "opt/x,string=item"]
    done = subprocess.run(
        python("vmesh.cli", "run", "-quiet", "-append", NO_SELF_TESTS, *devices),
        input="cat /proc/iomem /proc/interrupts /sys/class/rtc/rtc0/name; head -n 1 /dev/vda; exit 3\n",
        env={**host.environment, **found_first},
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stdout + done.stderr  # the test device took it
    found = re.findall(r"^([0-9a-f]{8})-[0-9a-f]{8} : (.*)$", done.stdout, re.MULTILINE)
    assert ("20000000", "serial") in found
    assert ("03010000", "3010000.rtc rtc@3010000") in found
    assert ("20100000", "fw_cfg_mem") in found
    assert ("50016000", "50016000.virtio_mmio virtio_mmio@50016000") in found
    assert ("a0000000", "Reserved") in found  # the firmware, at the start of RAM
    for number, name in ((40, "ttyS0"), (41, "3010000.rtc"), (58, "virtio0")):
        assert re.search(rf"SiFive PLIC +{number} Edge +{name}$", done.stdout, re.MULTILINE), done.stdout
    assert "goldfish_rtc 3010000.rtc\n" in done.stdout
    assert "\nhere\n" in done.stdout
