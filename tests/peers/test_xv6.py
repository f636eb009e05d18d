"""xv6's own tests, with its own flags: a kernel that never executes FENCE.I. ``VMESH_XV6`` names its folder, built
(``make TOOLPREFIX=riscv64-linux-gnu- kernel/kernel fs.img``)."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from vmesh.spawn import python

SECONDS = 3600.0
FOLDER = os.environ.get("VMESH_XV6", "")


class Console:
    """A machine's serial console on two pipes."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self.said = b""

    def wait_for(self, *endings: bytes) -> bytes:
        """The first of ``endings`` that the guest says, which is forgotten then."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + SECONDS
        while True:
            for ending in endings:
                if ending in self.said:
                    self.said = self.said.partition(ending)[2]
                    return ending
            assert time.monotonic() < deadline, self.said[-2000:].decode(errors="replace")
            if select.select([self.process.stdout], [], [], 1.0)[0]:
                more = os.read(self.process.stdout.fileno(), 65536)
                assert more, self.said[-2000:].decode(errors="replace")
                self.said += more

    def type(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()


@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.skipif(not FOLDER, reason="no xv6: VMESH_XV6 names its folder")
@pytest.mark.parametrize("translate", ["on", "off"])
def test_usertests(translate: str, tmp_path: Path) -> None:
    shutil.copy(Path(FOLDER) / "fs.img", tmp_path)
    flags = f"""
        -machine virt -bios none -kernel {FOLDER}/kernel/kernel -m 128M -smp 3 -nographic
        -global virtio-mmio.force-legacy=false -drive file={tmp_path}/fs.img,if=none,format=raw,id=x0
        -device virtio-blk-device,drive=x0,bus=virtio-mmio-bus.0 -accel tcg,translate={translate}
    """
    console = Console([*python("vmesh.cli", "run"), *flags.split()], {**os.environ, "VMESH_RUNTIME": str(tmp_path)})
    try:
        console.wait_for(b"$ ")
        console.type(b"usertests\n")
        ended = console.wait_for(b"ALL TESTS PASSED", b"FAILED", b"panic:")
        assert ended == b"ALL TESTS PASSED", console.said[-2000:].decode(errors="replace")
    finally:
        console.process.terminate()
        console.process.wait(30)
