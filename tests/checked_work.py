"""A Linux guest that works with its devices without end, and a check of every byte that it says.

Each step writes new random bytes to its disk, reads them back past the page cache, compares, reads the clock chip, and
says a line. What the guest cannot see (a line lost, said twice or mixed up, a clock that runs back) the check does.
"""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Callable
from pathlib import Path

from tests.system.conftest import NO_SELF_TESTS
from tests.waiting import LIMIT, wait_for
from vmesh.guest import Guest, initramfs

DISK_BYTES = 2 << 20
_BEGIN = "work begins\r\n"
_SCRIPT = """\
#!/bin/sh
stty -onlcr; stty onlcr
echo work begins
i=0
while :; do
    i=$((i+1)) s=$((i%32))
    head -c 65536 /dev/urandom >/tmp/n
    dd if=/tmp/n of=/dev/vda bs=64k seek=$s conv=fsync,notrunc 2>/dev/null || echo "step $i: cannot write"
    echo 3 >/proc/sys/vm/drop_caches
    dd if=/dev/vda bs=64k skip=$s count=1 2>/dev/null >/tmp/m
    result=WRONG
    [ "$(sha256sum </tmp/n)" = "$(sha256sum </tmp/m)" ] && result=right
    echo "step $i $result $(cat /sys/class/rtc/rtc0/since_epoch)"
done
"""
_STEP = re.compile(r"step (\d+) right (\d+)")
_CLOCK_SECONDS = 5  # what the clock may differ from the host's


def flags(guest: Guest, scratch: Path) -> list[str]:
    """Flags of `vmesh run` for this guest; its files are put into `scratch`."""
    assert guest.initrd is not None
    entry = initramfs.Entry("bin/work", stat.S_IFREG | 0o755, _SCRIPT.encode())
    archive, disk = scratch / "work.cpio", scratch / "disk"
    archive.write_bytes(guest.initrd.read_bytes() + initramfs.archive(iter([entry])))
    disk.write_bytes(bytes(DISK_BYTES))
    # What the kernel says of errors is said, and no line of ours.
    append = f"{guest.append} loglevel=4 {NO_SELF_TESTS} vmesh.run=work"
    made = ["-m", "256M", "-nographic", "-bios", guest.bios, "-kernel", str(guest.kernel), "-initrd", str(archive)]
    return [*made, "-append", append, "-drive", f"file={disk},format=raw"]


class Progress:
    """What the guest has said so far; `console` gives all of it."""

    def __init__(self, console: Callable[[], bytes]) -> None:
        self._console = console
        self.steps = 0
        self._checked = 0
        self._clock = 0

    def look(self) -> None:
        """Check what is new. Raises AssertionError."""
        text = self._console().decode(errors="replace")
        if _BEGIN not in text:
            return
        whole = text.partition(_BEGIN)[2].split("\r\n")[:-1]
        for line in whole[self._checked :]:
            found = _STEP.fullmatch(line)
            assert found is not None, f"after step {self.steps} the guest says {line!r}"
            assert int(found[1]) == self.steps + 1, f"expected step {self.steps + 1}, got {line!r}"
            clock = int(found[2])
            assert self._clock <= clock <= time.time() + _CLOCK_SECONDS, f"after {self._clock} the clock says {clock}"
            self.steps, self._clock = self.steps + 1, clock
        self._checked = len(whole)

    def wait(self, more: int, what: str, limit: float = LIMIT, failed: Callable[[], str] = str) -> None:
        """Wait for so many steps more; `failed` gives a reason, if there is one, not to wait any longer."""
        wanted = self.steps + more

        def reached() -> bool:
            self.look()
            assert not failed(), f"{what}: {failed()}"
            return self.steps >= wanted

        wait_for(reached, lambda: f"step {wanted} {what}; {self._console()[-300:]!r}", limit)
